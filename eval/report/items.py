"""Embedded items as a section: do items of a class lie together, and where do they not? Of one encoder, or of several side by side."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval.data import shortened
from retrieval.errors import UserError
from retrieval.images import Images
from retrieval.neighbors import Floats, Ints, exact_neighbors

from ..clusters import (
    NAMES,
    Clusters,
    Settings,
    Stage,
    confusion,
    evaluate_clusters,
    refuse_unusable,
    summary,
    unit,
    unseen,
)
from ..compare import compare, corrected, paired
from ..labels import Classes
from .figures import Figure, heat, histogram, scatter, spectrum
from .layout import Way, on_a_plane, usable
from .page import Section
from .pictures import colour, pack_map, thumbnail

EVERY, SAMPLE = 20_000, 10_000  # up to so many items all are judged, beyond that so many of them
MAPPED = 100_000
PAIRED = 1000  # items whose pairs the histograms are of
EXAMPLES, NEIGHBOURS = 6, 8
MATRIX = 15
DESCRIBED = {
    "r@1": "the nearest neighbour is of the same class",
    "r@10": "one of the ten nearest is of the same class",
    "r-precision": "of as many neighbours as the class has other items, the share that are of it",
    "map@r": "of as many neighbours as the class has other items, precision at each that is of it, over how many there are",
    "knn@20": "a vote of the twenty nearest gives the right class",
    "nmi": "k-means finds the classes (normalised mutual information)",
    "ami": "k-means finds the classes, adjusted for chance",
    "ari": "pairs of items rightly together or apart (adjusted Rand index)",
    "silhouette": "nearer to its own class than to the nearest other",
    "nearest-mean": "the nearest class mean is the right one",
}
GEOMETRY = {
    "nc1": ("spread within classes, against that between them", "0"),
    "cdnv": ("spread of two classes, against their distance", "0"),
    "nc2-norms": ("class means lie equally far out", "0"),
    "nc2-angles": ("class means stand at equal angles", "0"),
    "nc2-simplex": ("the angles are those of a simplex", "0"),
    "angle": ("smallest angle between two class means, degrees", "the next line"),
    "best-angle": ("largest that so many classes could have, or a bound", ""),
    "alignment": ("mean squared distance within a class", "0"),
    "uniformity": ("how evenly items fill the sphere; lower is more evenly", ""),
    "effective-rank": ("dimensions in use", ""),
}


@dataclass(frozen=True)
class Items:
    """What one encoder makes of n items: vectors (n, d), labels or None, ids, and texts or pictures if they are known.
    metric: how the vectors are compared; also: other names of these vectors; note: what the page says beside."""

    name: str
    vectors: Floats
    labels: list[str] | None
    ids: list[str]
    metric: str = "cosine"
    texts: Sequence[str] | None = None
    pictures: Images | None = None
    also: tuple[str, ...] = ()
    note: str = ""

    def same_items(self, other: "Items") -> bool:
        """Whether the two are views of the same items, as far as ids, labels and texts say."""
        texts = self.texts is None or other.texts is None or list(self.texts) == list(other.texts)
        return self.ids == other.ids and self.labels == other.labels and texts

    def same_vectors(self, other: "Items") -> bool:
        return self.metric == other.metric and np.array_equal(self.vectors, other.vectors)

    def told(self, row: int, length: int = 140) -> str:
        return shortened(self.ids[row] if self.texts is None else self.texts[row], length)


def items_section(
    title: str,
    note: str,
    sides: Sequence[Items],
    *,
    way: Way = "tsne",
    sample: int | None = None,
    seed: int = 0,
    stage: Stage = unseen,
) -> Section:
    """One side, or several of the same items, such as before and after training.

    Raises UserError where the items of the sides differ, or nothing is there to judge.
    """
    _refuse_unfit(sides)
    first = sides[0]
    points = [unit(side.vectors) for side in sides]
    values: dict[str, Any] = {
        "note": " ".join(each for each in (note, *(side.note for side in sides)) if each),
        "items": len(first.ids),
        "names": [name for side in sides for name in (side.name, *side.also)],
        "columns": [", ".join((side.name, *side.also)) for side in sides],
    }
    figures: dict[str, Figure] = {}
    judged: list[Clusters] = []
    unjudged = ""
    if first.labels is not None:
        try:
            judged = [_judged(side, sample, seed, stage) for side in sides]
        except UserError as error:  # such as one class only; there is a map all the same
            unjudged = str(error)
    values["unjudged"] = unjudged or "There are no labels to judge by."
    if judged:
        values["sides"] = [summary(each, seed) for each in judged]
        values["differences"] = _differences(judged, seed)
        values["classes"] = _classes(judged[-1], values["sides"][-1])
        values["mixed"] = [_mixed(each, sides[-1]) for each in values["sides"][-1]["confusion"]]
        values["described"], values["geometry_of"] = _present(values["sides"][0]["metrics"])
        figures |= _of_classes(judged, values["sides"], values["columns"])
    chosen = np.random.default_rng(seed).permutation(len(first.ids))[:MAPPED]
    rows = np.sort(chosen)
    maps = []
    with stage("map", len(points)) as advance:
        for each in points:
            maps.append(on_a_plane(each[rows], way, seed))
            advance(1)
    ranks, names = _ranked_classes(first.labels, rows)
    of_classes = {name: colour(rank) for rank, name in enumerate(names)}
    of_points = [colour(rank) for rank in ranks.tolist()]
    values["map"] = {"way": usable(points[0], way), "ids": [first.ids[row] for row in rows.tolist()]}
    values["map"] |= {side.name: np.round(xy, 4).tolist() for side, xy in zip(sides, maps, strict=True)}
    for at, (side, xy, each) in enumerate(zip(sides, maps, points, strict=True)):
        figures[f"map{at}"] = scatter(f"map-{at}", xy, of_points, f"Map, {side.name}", of_classes)
        figures[f"similarity{at}"], values[f"similarity{at}"] = _similarities(
            each, first.labels if judged else None, at, seed
        )
    values["neighbours"] = _neighbours(sides, points, judged[0] if judged else None, seed)
    shown = {
        "map": pack_map(maps, ranks, names, [first.told(row) for row in rows.tolist()], first.pictures, rows),
        "pictures": _thumbnails(values["neighbours"], first.pictures),
    }
    return Section("items", title, values, figures, shown)


def _refuse_unfit(sides: Sequence[Items]) -> None:
    """Raise UserError for sides of other items than the first's, and for what cannot be shown."""
    for side in sides[1:]:
        if not side.same_items(sides[0]):
            raise UserError(f"{side.name}: holds other items or labels than {sides[0].name}; report them apart")
    for side in sides:
        with _named(side):
            refuse_unusable(side.vectors, side.labels, "cosine")
            if len(side.ids) < 2:
                raise UserError("holds fewer than two items")


def _judged(side: Items, sample: int | None, seed: int, stage: Stage) -> Clusters:
    assert side.labels is not None
    if sample is None and len(side.ids) > EVERY:
        sample = SAMPLE
    settings = Settings(metric=side.metric, sample=sample, seed=seed)
    with _named(side):
        return evaluate_clusters(side.vectors, side.labels, settings, ids=side.ids, stage=stage)


@contextmanager
def _named(side: Items) -> Iterator[None]:
    """Errors say whose items they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{side.name}: {error}") from None


def _differences(judged: Sequence[Clusters], seed: int) -> list[dict[str, Any]]:
    """The last side against the first, for what is a mean over queries."""
    if len(judged) < 2:
        return []
    runs, _ = paired([[judged[0].queries], [judged[-1].queries]])
    shown = [name for name in DESCRIBED if name in runs[0][0].values and name in runs[1][0].values]
    return [
        {"metric": each.metric, "difference": each.difference, "interval": each.interval, "adjusted_p": each.adjusted,
         "better": each.verdict() == "better", "worse": each.verdict() == "worse"}
        for each in corrected([compare(runs[0], runs[1], name, seed=seed) for name in shown])
    ]  # fmt: skip


def _present(metrics: dict[str, float]) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """What the headline and the table of geometry have lines for."""
    headline = [name for name in (*NAMES, *DESCRIBED) if name in metrics]
    return {name: DESCRIBED[name] for name in dict.fromkeys(headline)}, {
        n: t for n, t in GEOMETRY.items() if n in metrics
    }


def _classes(found: Clusters, side: dict[str, Any]) -> list[dict[str, Any]]:
    """Classes, those that cluster least first, each with what it is mixed up with most."""
    mixed: dict[str, str] = {}
    for each in confusion(found, len(found.rows)):
        mixed.setdefault(each.query, f"{each.neighbor} ({each.share:.1%})")
    rows = sorted(side["per_class"], key=lambda row: (row["map@r"], row["class"]))
    return [row | {"with": mixed.get(row["class"], "")} for row in rows]


def _mixed(each: dict[str, Any], side: Items) -> dict[str, Any]:
    return each | {"told": [side.told(row) for row in each["example"]]}


def _of_classes(judged: Sequence[Clusters], told: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Figure]:
    figures = {}
    if all("spectrum" in each for each in told):
        figures["spectrum"] = spectrum("spectrum", {n: each["spectrum"] for n, each in zip(names, told, strict=True)})
    pairs = told[-1]["confusion"]
    classes: list[str] = []
    for each in pairs:  # both or neither
        more = [name for name in (each["query"], each["neighbor"]) if name not in classes]
        classes += more if len(classes) + len(more) <= MATRIX else []
    if len(classes) > 1:
        figures["confusion"] = heat("confusion", classes, _matrix(judged[-1], classes))
    return figures


def _matrix(found: Clusters, classes: Sequence[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Of the first neighbours of each class's queries, the share of each class."""
    relevance = found.relevance
    assert isinstance(relevance, Classes)
    place = {name: at for at, name in enumerate(classes)}
    of = np.array([place.get(name, -1) for name in relevance.names])
    shares = np.zeros((len(classes), len(classes)))
    own, other = of[relevance.query_codes[found.rows]], of[relevance.codes[found.nearest.ids]]
    width = np.minimum(found.relevant, found.nearest.ids.shape[1])
    within = np.arange(found.nearest.ids.shape[1]) < width[:, None]
    query, column = np.nonzero(within & (other >= 0) & (own >= 0)[:, None])
    np.add.at(shares, (own[query], other[query, column]), 1)
    totals = np.bincount(own[own >= 0], width[own >= 0], len(classes))
    return shares / np.maximum(totals, 1)[:, None]


def _ranked_classes(labels: list[str] | None, rows: Ints) -> tuple[Ints, list[str]]:
    """The class of each mapped row as its rank by size, and the names in that order."""
    if labels is None:
        return np.zeros(len(rows), np.int64), []
    names, codes, sizes = np.unique(
        np.asarray(labels, dtype=object)[rows].astype(str), return_inverse=True, return_counts=True
    )
    order = np.argsort(-sizes, kind="stable")
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names))
    return rank[codes], names[order].tolist()


def _similarities(points: Floats, labels: list[str] | None, at: int, seed: int) -> tuple[Figure, dict[str, Any]]:
    """Cosines of pairs of one class and of two; without labels of every item with its nearest, and of all pairs."""
    rows = np.random.default_rng(seed).permutation(len(points))[:PAIRED]
    cosines = points[rows] @ points[rows].T
    pair = np.triu(np.ones_like(cosines, dtype=bool), 1)
    if labels is None:
        near = exact_neighbors(points[rows], points, 1, self_rows=rows).scores[:, 0]
        kinds = {"with the nearest item": near, "of two items": cosines[pair]}
    else:
        codes = np.unique(np.asarray(labels, dtype=object)[rows].astype(str), return_inverse=True)[1]
        same = codes[:, None] == codes[None]
        kinds = {"of one class": cosines[pair & same], "of two classes": cosines[pair & ~same]}
    edges = np.linspace(min(float(each.min(initial=1)) for each in kinds.values()), 1, 61)
    counts = {kind: np.histogram(each.clip(edges[0], 1), edges)[0] for kind, each in kinds.items()}
    shares = {kind: count / max(1, count.sum()) for kind, count in counts.items()}
    told = {"edges": edges.round(4).tolist(), **{kind: share.round(6).tolist() for kind, share in shares.items()}}
    alt = "Histograms of cosines: " + " and ".join(
        f"{kind}, mean {each.mean():.2f}" for kind, each in kinds.items() if len(each)
    )
    return histogram(f"similarity-{at}", shares, edges, alt), told


def _neighbours(
    sides: Sequence[Items], points: Sequence[Floats], judged: Clusters | None, seed: int
) -> list[dict[str, Any]]:
    """A few queries drawn at random, half of them among those whose nearest neighbour is wrong, with what each side finds."""
    first = sides[0]
    order = np.random.default_rng(seed).permutation(len(first.ids))
    rows = order[:EXAMPLES]
    if judged is not None and first.labels is not None:
        labels = np.asarray(first.labels, dtype=object)
        wrong = judged.rows[labels[judged.nearest.ids[:, 0]] != labels[judged.rows]]
        wrong = order[np.isin(order, wrong)][: EXAMPLES // 2]
        rows = np.concatenate([wrong, order[~np.isin(order, wrong)][: EXAMPLES - len(wrong)]])
    depth = min(NEIGHBOURS, len(first.ids) - 1)
    found = [exact_neighbors(each[rows], each, depth, self_rows=rows) for each in points]
    return [
        {
            **_told(first, row),
            "found": [
                {"name": side.name, "hits": [
                    _told(side, hit) | {"score": score, "wrong": side.labels is not None and side.labels[hit] != side.labels[row]}
                    for hit, score in zip(near.ids[at].tolist(), near.scores[at].tolist(), strict=True)
                ]}
                for side, near in zip(sides, found, strict=True)
            ],
        }
        for at, row in enumerate(rows.tolist())
    ]  # fmt: skip


def _told(side: Items, row: int) -> dict[str, Any]:
    label = "" if side.labels is None else side.labels[row]
    return {"row": row, "id": side.ids[row], "label": label, "text": "" if side.texts is None else side.told(row)}


def _thumbnails(neighbours: list[dict[str, Any]], pictures: Images | None) -> dict[int, str]:
    if pictures is None:
        return {}
    rows = {item["row"] for query in neighbours for item in (query, *(h for f in query["found"] for h in f["hits"]))}
    return {row: thumbnail(pictures[row]) for row in rows}
