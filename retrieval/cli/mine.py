"""`retrieval mine`: hard negatives for a training file."""

import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval.errors import UserError
from retrieval.wording import plural

from .amounts import Number
from .columns import of_pairs, training_data
from .commands import Command
from .index import goal_of
from .options import common, existing, pick_device, quiet_libraries, refuse_existing, uses_device
from .output import emit, progress, say

if TYPE_CHECKING:
    from retrieval.data import Texts
    from retrieval.encoder import Encoder
    from retrieval.index.bundle import Index
    from retrieval.neighbors import Floats, Ints
    from retrieval.store import Store
    from retrieval.train.mining import Judge, Mining, Search

ENDINGS = (".jsonl", ".csv", ".tsv")
BLOCK = 4096  # rows written at a time
EXAMPLES = 3  # rows that are shown, at most
SHOWN = 60  # characters of a text
NEARER = 0.05  # of the negatives may be nearer than their positive without a word


class Ranks(click.ParamType[tuple[int, int]]):
    """Two numbers with a colon between them."""

    name = "first:last"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        first, _, last = str(value).partition(":")
        if not (first.isdecimal() and last.isdecimal()):
            return self.fail(f"{value!r} is not understood; write ranks such as 10:100.", param, ctx)
        return int(first), int(last)


@dataclass(frozen=True)
class Searched:
    """Distinct anchors and positives, embedded; what is searched, with its texts and their codes."""

    anchors: "Store"
    positives: "Store"
    corpus: "Store"
    texts: Sequence[str]
    codes: "Ints"
    index: "Index | None"


@click.command(cls=Command)
@of_pairs
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Pairs, as for train text.")
@click.option("--model", required=True, help="Encoder that finds the candidates.")
@click.option(
    "--corpus",
    type=existing("any"),
    help="Texts, pairs, a BEIR folder, a store or an index whose documents to mine from.  [default: the positives]",
)
@click.option(
    "--ranks",
    type=Ranks(),
    default=(0, 100),
    help="Ranks that are looked at, known positives not counted.  [default: 0:100]",
)
@click.option("--count", type=click.IntRange(min=1), default=3, show_default=True, help="Negatives of each row.")
@click.option("--absolute-margin", type=Number(), help="A negative's score is below its positive's by at least that.")
@click.option("--relative-margin", type=Number(), help="Likewise by that share of the positive's: 0.05 is usual.")
@click.option("--max-negative", type=Number(), help="Highest score of a negative.")
@click.option("--min-negative", type=Number(), help="Lowest score of a negative.")
@click.option(
    "--choose", type=click.Choice(["top", "random"]), default="top", show_default=True, help="Among those that pass."
)
@click.option("--guide", help="Another encoder, whose scores count for margins and order.")
@click.option("--cross-encoder", help="Likewise a cross-encoder.")
@click.option(
    "--recall",
    type=click.FloatRange(0, 1, min_open=True),
    help="Search through an index with that recall, not exactly.",
)
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help=".jsonl, .csv or .tsv to write."
)
@click.option("--overwrite", is_flag=True, help="Replace the file.")
@uses_device
@common
def mine(**flags: Any) -> None:
    """Find hard negatives for pairs: texts that are near an anchor and none of its positives.

    The data's own negatives (--negatives of a row) are kept, the mined ones come after. A row for which fewer pass has fewer. The result is read by
    `train text`. Killed, the same command goes on from what is embedded.

    \b
    Example:
      retrieval mine --data train.csv --model all-MiniLM-L6-v2 --relative-margin 0.05 --output mined.jsonl
    """  # fmt: skip
    from retrieval.artifact import staging_folder
    from retrieval.data.columns import NEGATIVES
    from retrieval.locks import sole_writer
    from retrieval.train.mining import Mining

    output = flags["output"]
    if output.suffix.lower() not in ENDINGS:
        raise UserError(f"--output {output}: name a file that ends with {', '.join(ENDINGS)}")
    refuse_existing(flags["overwrite"], output)
    if flags["guide"] and flags["cross_encoder"]:
        raise UserError("--guide and --cross-encoder: let one of them judge")
    first, last = flags["ranks"]
    mining = Mining(
        negatives=flags["count"],
        first=first,
        last=last,
        least=flags["min_negative"],
        most=flags["max_negative"],
        absolute_margin=flags["absolute_margin"],
        relative_margin=flags["relative_margin"],
        choose=flags["choose"],
        seed=flags["seed"],
    )
    quiet_libraries()
    data = training_data(flags["data"], flags, pairs=True)
    if not data.is_pairs:
        raise UserError(
            f"{flags['data']}: has no pairs to mine for ({data.origin}); name their columns by --anchor and --positive"
        )
    say(f"{flags['data']}: {data.origin}")
    if judge := flags["guide"] or flags["cross_encoder"]:
        from retrieval.encoder import located

        located(judge)  # now, and not when all is embedded
    scratch = staging_folder(output)
    scratch.mkdir(parents=True, exist_ok=True)
    with sole_writer(scratch):
        try:
            result = _mined(data, flags, mining, scratch)
        except BaseException:
            if not any(path.is_dir() for path in scratch.iterdir()):  # nothing is embedded yet to go on from
                shutil.rmtree(scratch)
            raise
        shutil.rmtree(scratch)
    if (most := len(data.columns) - 2 + mining.negatives) > NEGATIVES:
        say(f"Note: a row has up to {most} negatives, of which training uses {NEGATIVES}; give it --negatives {most}")
    examples = result.pop("examples")
    lines = [
        f"{output}: {plural(result['rows'], 'row')}, {plural(result['mined'], 'negative')}",
        *_told(result, examples, mining),
    ]
    if result["short"]:
        lines.append(
            f"  {plural(result['short'], 'row')} with fewer than {mining.negatives}: widen --ranks or the margins, or give a larger --corpus"
        )
    emit(result, flags["as_json"], lines)


def _mined(data: "Texts", flags: dict[str, Any], mining: "Mining", scratch: Path) -> dict[str, Any]:
    """Embed, search, choose, write; what came out."""
    import numpy as np

    from retrieval.train.mining import distinct, mine, relations

    device = pick_device(flags["device"])
    anchors, positives = distinct(data, "anchor"), distinct(data, "positive")
    searched = _searched(anchors.texts, positives.texts, flags, scratch, device)
    of = relations(data, anchors, positives, searched.codes)
    negatives = np.full((len(data), mining.negatives), -1, np.int64)
    scores, own = np.full(negatives.shape, np.nan, np.float32), np.empty(len(data), np.float32)
    judge = _judge(anchors.texts, positives.texts, searched, flags, scratch, device)
    with progress("mine", len(data)) as bar:
        for mined in mine(of, _search(searched, device), _score(searched.anchors, searched.positives), mining, judge):
            width = mined.negatives.shape[1]
            negatives[mined.rows, :width], scores[mined.rows, :width] = mined.negatives, mined.scores
            own[mined.rows] = mined.positives
            bar(len(mined.rows))
    _write(flags["output"], data, negatives, searched.texts)
    there = (negatives >= 0).sum(1)
    short = int((there < mining.negatives).sum())
    told = {"output": str(flags["output"]), "rows": len(data), "mined": int(there.sum()), "short": short}
    told |= {"corpus": len(searched.texts), "scores": _scores(scores, own)}
    return told | {"examples": [_example(data, row, searched.texts, negatives, scores, own) for row in _spread(there)]}


def _scores(scores: "Floats", own: "Floats") -> dict[str, Any]:
    """Quartiles of positives' and negatives' scores, and what share of the negatives scores no lower than its positive."""
    import numpy as np

    found = ~np.isnan(scores)
    if not found.any():
        return {}
    quartiles = {
        name: [round(float(q), 4) for q in np.quantile(each, (0.25, 0.5, 0.75))]
        for name, each in (("positives", own), ("negatives", scores[found]))
    }
    return quartiles | {"nearer_than_positive": float((scores >= own[:, None])[found].mean())}


def _spread(there: "Ints") -> list[int]:
    """Some rows that have a negative, from all over the data."""
    import numpy as np

    rows = np.flatnonzero(there)
    return [int(row) for row in rows[:: max(1, -(-len(rows) // EXAMPLES))]]


def _example(data: "Texts", row: int, texts: Sequence[str], negatives: "Ints", scores: "Floats", own: "Floats") -> str:
    from retrieval.data import shortened

    said = data.columns["anchor"][row], data.columns["positive"][row], texts[negatives[row, 0]]
    anchor, positive, negative = (shortened(text, SHOWN) for text in said)
    return f'  "{anchor}": {own[row]:.2f} "{positive}", not {scores[row, 0]:.2f} "{negative}"'


def _told(result: dict[str, Any], examples: list[str], mining: "Mining") -> list[str]:
    told = result["scores"]
    if not told:
        return []
    both = ", ".join(f"{name} {told[name][1]:.2f} ({told[name][0]:.2f}–{told[name][2]:.2f})" for name in ("positives", "negatives"))  # fmt: skip
    lines = [f"  scores, median and quartiles: {both}", *examples]
    nearer = told["nearer_than_positive"]
    if nearer > NEARER:
        advice = "" if mining.relative_margin else "; --relative-margin 0.05 leaves them out"
        lines.append(f"  {nearer:.0%} of the negatives are no farther than their positive, and may be right{advice}")
    return lines


def _searched(anchors: list[str], positives: list[str], flags: dict[str, Any], scratch: Path, device: str) -> Searched:
    """Everything embedded that is not so yet. Raises UserError for a store or an index of another encoder."""
    from retrieval.data import text_codes
    from retrieval.encoder import load_encoder

    encoder = load_encoder(flags["model"], device)
    stores = [_embed(encoder, texts, scratch / what, role) for texts, what, role in ((anchors, "anchors", "query"), (positives, "positives", "document"))]  # fmt: skip
    where: tuple[Store, Sequence[str], Index | None] = (stores[1], positives, None)
    if flags["corpus"]:
        where = _corpus(flags["corpus"], encoder, scratch)
    corpus, texts, index = where
    if flags["recall"] and index is None:
        index = _indexed(corpus, flags, scratch / "index")
    return Searched(stores[0], stores[1], corpus, texts, text_codes(texts), index)


def _corpus(path: Path, encoder: "Encoder", scratch: Path) -> "tuple[Store, Sequence[str], Index | None]":
    """A store or an index with its texts, or a file of texts, which are embedded, equal ones once."""
    import numpy as np

    from retrieval.artifact import stated_kind
    from retrieval.data import text_codes
    from retrieval.data.texts import Collected, taken
    from retrieval.index.bundle import open_index, require_same_encoder
    from retrieval.store import open_store

    kind = stated_kind(path)
    if kind not in ("store", "index"):
        read = _documents(path)
        rows = np.sort(np.unique(text_codes(read), return_index=True)[1])
        texts: Sequence[str] = read if len(rows) == len(read) else taken(read, rows.tolist())
        return _embed(encoder, texts, scratch / "corpus", "document"), texts, None
    index = open_index(path) if kind == "index" else None
    store = index.rows if index is not None else open_store(path)
    require_same_encoder(store.manifest, encoder.fingerprint, encoder.name)
    store.require_unit_vectors()
    told = Collected(["text"])
    for block in store:
        if "text" not in block.payload:
            raise UserError(f"--corpus {path}: holds no texts; give one that `retrieval embed` made of texts")
        for text in block.payload["text"]:
            told.add({"text": text.strip()})  # as every reader does, whoever wrote the store
    return store, told.finish()["text"], index


def _documents(path: Path) -> Sequence[str]:
    """The texts of a file; of pairs all but the anchors, of a folder with a corpus that."""
    from retrieval.data import read_texts
    from retrieval.data.documents import documents_of, is_collection

    if path.is_dir() and is_collection(path):
        return documents_of(path)
    read = read_texts(path)
    if not read.is_pairs:
        return read.texts
    return [text for name, column in read.columns.items() if name != "anchor" for text in column if text]


def _embed(encoder: "Encoder", texts: Sequence[str], folder: Path, role: str) -> "Store":
    from retrieval.data import Texts
    from retrieval.embed import embed

    with progress(f"embed {folder.name}", len(texts)) as bar:
        return embed(encoder, Texts({"text": texts}), folder, role=role, overwrite=True, progress=bar)


def _indexed(corpus: "Store", flags: dict[str, Any], folder: Path) -> "Index":
    from retrieval.index.build import build

    say(f"an index with recall {flags['recall']:g} over {corpus.count:,} texts")
    goal = goal_of(flags["recall"], None, None, flags["ranks"][1], None)
    return build(corpus, folder, goal=goal, overwrite=True, seed=flags["seed"])


def _search(searched: Searched, device: str) -> "Search":
    from retrieval.neighbors import Base, exact_neighbors

    if searched.index is not None:
        from retrieval.index.search import search as search_index

        index = searched.index

        def through(anchors: "Ints", k: int) -> "tuple[Floats, Ints]":
            found = search_index(index, searched.anchors.take(anchors), k)
            return found.scores, found.rows

        return through
    base = Base(searched.corpus, "inner_product", device, keep=True)

    def exactly(anchors: "Ints", k: int) -> "tuple[Floats, Ints]":
        found = exact_neighbors(searched.anchors.take(anchors), base, k)
        return found.scores, found.ids

    return exactly


def _score(left: "Store", right: "Store") -> "Judge":
    """The cosine of rows of one store and of another."""
    import numpy as np

    return lambda a, b: np.einsum("nd,nd->n", left.take(a), right.take(b), dtype=np.float64).astype(np.float32)


def _judge(
    anchors: list[str], positives: list[str], searched: Searched, flags: dict[str, Any], scratch: Path, device: str
) -> "Judge | None":
    """What scores an anchor and a document, of the corpus or, behind it, of the positives, instead of the search."""
    import numpy as np

    documents = len(searched.texts)
    if flags["guide"]:
        from retrieval.encoder import load_encoder

        guide = load_encoder(flags["guide"], device)
        asked = _embed(guide, anchors, scratch / "guide anchors", "query")
        known = _embed(guide, positives, scratch / "guide positives", "document")
        corpus = known if searched.texts is positives else _embed(guide, searched.texts, scratch / "guide corpus", "document")  # fmt: skip
        scores = [_score(asked, side) for side in (corpus, known)]

        def guided(a: "Ints", d: "Ints") -> "Floats":
            found, own = np.empty(len(a), np.float32), d >= documents
            found[~own], found[own] = scores[0](a[~own], d[~own]), scores[1](a[own], d[own] - documents)
            return found

        return guided
    if flags["cross_encoder"]:
        from retrieval.encoder import load_cross_encoder

        score = load_cross_encoder(flags["cross_encoder"], device)

        def crossed(a: "Ints", d: "Ints") -> "Floats":
            texts = [positives[at - documents] if at >= documents else searched.texts[at] for at in d.tolist()]
            return score([anchors[at] for at in a.tolist()], texts)

        return crossed
    return None


def _write(path: Path, data: "Texts", negatives: "Ints", texts: Sequence[str]) -> None:
    """The data's rows in their order, with their own negatives and then the mined ones: whole, or not at all."""
    from retrieval.artifact import writing_atomically
    from retrieval.data.rows import row_writer
    from retrieval.data.texts import taken

    held = [name for name in data.columns if name.startswith("negative")]
    names = ["anchor", "positive", *(f"negative_{at + 1}" for at in range(len(held) + negatives.shape[1]))]
    if data.ids is not None:
        names.insert(0, "id")
    with writing_atomically(path) as binary:
        file = io.TextIOWrapper(binary, "utf-8", newline="")
        write = row_writer(path, file, names)
        for start in range(0, len(data), BLOCK):
            part, chosen = data.part(start, start + BLOCK), negatives[start : start + BLOCK]
            there = chosen >= 0
            found = iter(taken(texts, chosen[there].tolist()))
            for row in range(len(part)):
                mined = [next(found) if kept else "" for kept in there[row].tolist()]
                own = [part.columns[name][row] for name in held]
                bad = [*(t for t in own if t), *(t for t in mined if t)]
                cells = [*([part.ids[row]] if part.ids is not None else []), part.columns["anchor"][row], part.columns["positive"][row], *bad]  # fmt: skip
                cells += [""] * (len(names) - len(cells))
                write(cells)
        file.flush()
        file.detach()
