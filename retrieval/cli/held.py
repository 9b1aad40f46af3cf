"""What encoders are judged by, during training and after: labelled items, pairs, scored pairs, or a collection with judgments."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retrieval.artifact import sha256_json
from retrieval.errors import UserError
from retrieval.wording import plural

from .evaluated import as_run, rough
from .output import say

if TYPE_CHECKING:
    from retrieval.data import Asked, Texts
    from retrieval.encoder import Encoder
    from retrieval.eval.values import PerQuery, Unit
    from retrieval.images import Images, Pairs
    from retrieval.neighbors import Floats

VOTERS = 40  # items; of fewer the 20 nearest are half of all, and their vote says little
DEEP = 100  # documents of each query that are ranked


class Part(NamedTuple):
    """Items of one kind, and what they are: "document", or "query"."""

    items: "Texts | Images"
    role: str = "document"


@dataclass(frozen=True)
class HeldOut:
    """Distinct items, part after part, and what their vectors (u, d) say of an encoder, query by query.

    metric: the one to choose by; shown: those to tell. left_out: queries that are not asked, since their text was trained on.
    unit: what intervals and tests are over: queries, or groups of them that are not independent of each other.
    """

    parts: tuple[Part, ...]
    count: int
    measure: "Callable[[Floats], PerQuery]"
    metric: str
    shown: tuple[str, ...]
    mark: str
    left_out: int = 0
    unit: "Unit" = "query"

    @property
    def is_text(self) -> bool:
        from retrieval.data import Texts

        return all(isinstance(part.items, Texts) for part in self.parts)

    @property
    def size(self) -> int:
        """How many items there are to encode."""
        return sum(len(part.items) for part in self.parts)

    def judge(self, encoder: "Encoder") -> "PerQuery":
        """Every metric of every query."""
        return self.measure(self.encode(encoder))

    def encode(self, encoder: "Encoder", progress: Callable[[int], None] = lambda rows: None) -> "Floats":
        """The items' vectors (u, d), queries and documents with the prompts for them."""
        from retrieval.embed import encode_all

        return self.by_kind(lambda items, role: encode_all(encoder, items, role=role, progress=progress))

    def by_kind(self, encode: "Callable[[Texts | Images, str], Floats]") -> "Floats":
        """The items' vectors, `encode`d with their role."""
        import numpy as np

        vectors: Floats = np.concatenate([encode(*part) for part in self.parts])
        return vectors


def read_held(path: Path, asked: "Asked | None" = None, split: str = "test") -> HeldOut:
    """Judge by a file, folder or data set of any kind. asked: columns that the user names. split: where there are several."""
    from retrieval.data import read_texts
    from retrieval.data.documents import is_collection

    if path.is_dir() and is_collection(path):
        return by_judgments(path, split)
    data = read_texts(path, asked, split)
    if data.scores is not None:
        return by_scores(data)
    if data.is_pairs:
        return by_pairs(data)
    if data.labels is None:
        label = asked.label if asked is not None and asked.label else "label"
        named = " or name it by --label" if asked is not None and not asked.label else ""
        raise UserError(
            f"{path}: has nothing to judge by ({data.origin}); rename its column of classes to {label!r}{named}, or give pairs, "
            f"scored pairs, or a BEIR folder"
        )
    if len(set(data.labels)) < 2:
        raise UserError(
            f"{path}: only one class ({data.labels[0]!r}), so nothing to judge by; give two classes or more"
        )
    return by_classes(data)


def by_classes(items: "Texts | Images", left_out: int = 0) -> HeldOut:
    """Every item asks for those of its class."""
    assert items.labels is not None
    labels = list(items.labels)
    ids = list(items.ids) if items.ids is not None else [str(row) for row in range(len(items))]

    def measure(vectors: "Floats") -> "PerQuery":
        from retrieval.eval.clusters import Settings, evaluate_clusters

        return evaluate_clusters(vectors, labels, Settings(seeds=0), ids=ids).queries

    mark = sha256_json([items.fingerprint, labels])
    shown = ("r@1", "map@r", *(["knn@20"] if len(items) > VOTERS else []))
    return HeldOut((Part(items),), len(items), measure, "map@r", shown, mark, left_out)


def by_pairs(data: "Texts", left_out: int = 0) -> HeldOut:
    """Each anchor asks for its positives among all positives. Those of other anchors are wrong, though a chain of shared texts may
    lead to them: what is no safe negative in training is not for that an answer."""
    import numpy as np

    from retrieval.data import Texts
    from retrieval.data.texts import taken

    sides = [data.columns[name] for name in ("positive", "anchor")]
    places = [
        np.unique(data.codes[name], return_index=True, return_inverse=True)[1:] for name in ("positive", "anchor")
    ]
    (documents, relevant), (queries, asked) = places
    texts = [taken(side, rows.tolist()) for side, rows in zip(sides, (documents, queries), strict=True)]
    ids = [str(row) for row in queries.tolist()]

    def measure(vectors: "Floats") -> "PerQuery":
        from retrieval.eval.pairs import found_by_rank, pair_ranks
        from retrieval.eval.values import PerQuery

        ranks = pair_ranks(vectors[len(documents) :], vectors[: len(documents)], asked, relevant)
        return PerQuery(ids, None, found_by_rank("", ranks))

    parts = [Texts({"text": side}, None, None, data.origin) for side in texts]
    mark = sha256_json([*(part.fingerprint for part in parts), relevant.tolist(), asked.tolist()])
    kinds = tuple(map(Part, parts, ("document", "query")))
    return HeldOut(kinds, len(ids), measure, "mrr", ("r@1", "mrr", "r@10"), mark, left_out)


def warn_of_pictures(judged: "Images", trained: "Images", flag: str, source: str) -> None:
    """Say how many of the pictures that are judged by are trained on too."""
    from retrieval.images import stand_in

    count = int(stand_in(judged, trained).sum())
    if count:
        stand = "stands" if count == 1 else "stand"
        say(
            f"Warning: {count:,} of the {plural(len(judged), 'picture')} of --{flag.replace('_', '-')} {stand} in {source}"
        )


def by_shown(data: "Pairs") -> HeldOut:
    """Each side of pairs with pictures asks for the other among all there are of its kind; where there are wrong captions, each
    picture also asks which is right."""
    import numpy as np

    from retrieval.images import Images

    names = ["anchor", "positive", *(name for name in data.columns if name.startswith("negative"))]
    sides = [_distinct(data.columns[name]) for name in names]
    anchors, positives = sides[0][1], sides[1][1]
    cuts = np.cumsum([len(part.items) for part, _ in sides])
    letters = ["i" if isinstance(data.columns[name], Images) else "t" for name in ("anchor", "positive")]
    there, back = "2".join(letters), "2".join(reversed(letters))
    directions = [(there, 0, 1), (back if back != there else f"{back}_back", 1, 0)]

    def measure(vectors: "Floats") -> "PerQuery":
        from retrieval.eval.pairs import found_by_rank, pair_ranks, right_over_wrong
        from retrieval.eval.values import PerQuery

        found = np.split(vectors, cuts[:-1])
        codes = [anchors, positives]
        values: dict[str, Any] = {}
        for name, side, opposite in directions:
            ranks = pair_ranks(found[side], found[opposite], codes[side], codes[opposite])
            values |= found_by_rank(name, ranks[codes[side]])
        if len(names) > 2 and letters == ["i", "t"]:
            rows = [np.flatnonzero(each >= 0) for _, each in sides[2:]]
            wrong = np.concatenate(
                [each[codes[at]] for each, (_, codes), at in zip(found[2:], sides[2:], rows, strict=True)]
            )
            share = right_over_wrong(found[0][anchors], found[1][positives], wrong, np.concatenate(rows))
            values["captions"] = np.where(np.isnan(share), 0.5, share)
        return PerQuery([str(row) for row in range(len(data))], [str(code) for code in anchors.tolist()], values)

    shown = tuple(f"{name}_{what}" for name, _, _ in directions for what in ("r@1", "mrr"))
    parts = tuple(part for part, _ in sides)
    mark = sha256_json([*(part.items.fingerprint for part in parts), *(codes.tolist() for _, codes in sides)])
    captions = ("captions",) if len(names) > 2 and letters == ["i", "t"] else ()
    unit: Unit = "class" if len(sides[0][0].items) < len(data) else "query"  # pairs of one picture are not independent
    return HeldOut(parts, len(data), measure, f"{directions[1][0]}_mrr", shown + captions, mark, unit=unit)


def _distinct(column: "Images | list[str]") -> "tuple[Part, Any]":
    """The different items of a column, and which stands in each row (n,); −1 where a row lacks one."""
    import numpy as np

    from retrieval.data import Texts
    from retrieval.images import Images

    items: list[Any] = list(column.source) if isinstance(column, Images) else column
    number = {item: row for row, item in enumerate(dict.fromkeys(item for item in items if item != ""))}
    codes = np.array([number.get(item, -1) for item in items], np.int64)
    if isinstance(column, Images):
        return Part(Images(list(number), None, column.origin)), codes
    return Part(Texts({"text": list(number)}, None, None, f"{len(items):,} pairs"), "query"), codes


def by_scores(data: "Texts") -> HeldOut:
    """The cosine of each pair beside the score that it was given: Spearman's correlation."""
    import numpy as np

    from retrieval.data import Texts
    from retrieval.train.head import distinct

    texts, codes = distinct([data.columns["anchor"], data.columns["positive"]])
    scores = data.scores
    assert scores is not None
    if np.isnan(scores).any():
        raise UserError(f"{data.origin}: neutral pairs have no score; judge by scored pairs, classes or a BEIR folder")
    ids = [str(row) for row in range(len(scores))]

    def measure(vectors: "Floats") -> "PerQuery":
        from retrieval.eval.scores import correlation_parts
        from retrieval.eval.values import PerQuery

        cosines = (vectors[codes[0]] * vectors[codes[1]]).sum(1)
        return PerQuery(ids, None, {"spearman": correlation_parts(cosines, scores)})

    mark = sha256_json([texts, codes.tolist(), scores.tolist()])
    parts = (Part(Texts({"text": texts}, None, None, data.origin)),)
    return HeldOut(parts, len(scores), measure, "spearman", ("spearman",), mark)


def by_judgments(folder: Path, split: str) -> HeldOut:
    """The queries of a collection ask for their relevant documents among all."""
    from retrieval.data import Texts
    from retrieval.formats.trec import read_beir

    found = read_beir(folder, split)
    origin = f"{len(found.corpus):,} documents"
    parts = [Texts({"text": list(side)}, None, None, origin) for side in (found.corpus, found.queries)]

    def measure(vectors: "Floats") -> "PerQuery":
        from retrieval.eval.relevance import evaluate_relevance
        from retrieval.neighbors import exact_neighbors

        documents, queries = vectors[: len(found.corpus)], vectors[len(found.corpus) :]
        near = exact_neighbors(queries, documents, min(DEEP, len(documents)))
        run = as_run(found.query_ids, found.corpus_ids, near.scores, near.ids, "cosine")
        return evaluate_relevance(found.qrels, run).queries

    mark = sha256_json([*(part.fingerprint for part in parts), found.qrels])
    kinds = tuple(map(Part, parts, ("document", "query")))
    return HeldOut(kinds, len(found.queries), measure, "ndcg@10", ("ndcg@10", "mrr@10", "recall@100"), mark)


def before_and_after(held: HeldOut, before: "PerQuery", after: "PerQuery", seed: int) -> dict[str, Any]:
    """What training changed, with paired differences and their intervals, of the metrics that are told."""
    from retrieval.eval.compare import compare, corrected, paired

    sides, _ = paired([[before], [after]])
    intervals = [side[0].intervals_over(held.unit, seed) for side in sides]
    told = [metric for metric in held.shown if metric in before.values]
    found = corrected([compare(sides[0], sides[1], metric, unit=held.unit, seed=seed) for metric in told])
    return {
        "queries": held.count,
        "of": held.parts[0].items.origin,
        "metrics": {
            each.metric: {
                "before": each.means[0],
                "after": each.means[1],
                "intervals": [list(one[each.metric]) for one in intervals],
                "difference": each.difference,
                "interval": list(each.interval),
                "p": each.adjusted,
                "verdict": each.verdict(),
            }
            for each in found
        },
    }


def told_changes(name: str, found: dict[str, Any]) -> list[str]:
    """For people: a line a metric."""
    title = f"{name}, {plural(found['queries'], 'query')}"
    lines = [f"{title:<25} before    after   difference, 95 % interval; verdict corrected for several metrics"]
    for metric, each in found["metrics"].items():
        low, high = each["interval"]
        lines.append(
            f"  {metric:<22}{each['before']:>8.4f} {each['after']:>8.4f}   {each['difference']:+.4f} [{low:+.4f}, {high:+.4f}]  {each['verdict']}"
            + (", once corrected" if low * high > 0 and each["verdict"] == "no difference shown" else "")
        )
    return [*lines, *(f"  {note}" for note in rough(found["queries"]))]
