"""What the commands of `retrieval eval` read and write: vectors with labels, and evaluations."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.errors import UserError
from retrieval.wording import plural

if TYPE_CHECKING:
    from retrieval.eval.values import PerQuery
    from retrieval.formats.trec import Run
    from retrieval.neighbors import Floats
    from retrieval.store import Rows

KIND = "evaluation"
PAIRS = "pairs.csv"
SHOWN = 60
FEW = 30


@dataclass(frozen=True)
class Side:
    """Vectors (n, d), their labels and ids, how they are compared; texts or paths and the encoder's fingerprint if known."""

    vectors: "Floats"
    labels: list[str]
    ids: list[str]
    metric: str
    payload: dict[str, list[str]]
    encoder: str | None = None

    def unit(self) -> "Floats":
        from retrieval.eval.clusters import unit

        return unit(self.vectors)

    def told(self, row: int) -> str:
        """An item, for people."""
        if "text" in self.payload:
            from retrieval.data import shortened

            return f'"{shortened(self.payload["text"][row], SHOWN)}"'
        return self.ids[row]


def read_side(path: Path, labels: Path | None, metric: str | None, check: bool, option: str = "--labels") -> Side:
    """A store with its labels, or a file of vectors with others. Raises UserError where either is missing."""
    from retrieval.eval.clusters import refuse_unusable

    rows, metric, encoder = read_vectors(path, metric, check)
    if not len(rows):
        raise UserError(f"{path}: has no rows; there is nothing to judge")
    held = rows.labels if labels is None else read_labels(labels)
    if held is None:
        raise UserError(
            f"{path}: has no labels; add {option} FILE, or embed data with a column label, or class folders"
        )
    if len(held) != len(rows):
        raise UserError(f"{labels}: has {len(held):,} labels, {path} {len(rows):,} vectors; there must be one a vector")
    try:
        refuse_unusable(rows.embeddings, held, metric)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return Side(rows.embeddings, held, [str(i) for i in rows.ids], metric, rows.payload, encoder)


def read_vectors(path: Path, metric: str | None, check: bool) -> "tuple[Rows, str, str | None]":
    """The rows of a store, an index or a file, how they are compared, and the fingerprint of their encoder if it is known.
    Raises UserError where it is not said how they are compared."""
    from retrieval.artifact import stated_kind
    from retrieval.formats import open_vectors
    from retrieval.store import open_store

    if path.is_dir():
        if stated_kind(path) == "index":
            from retrieval.index.bundle import open_index

            store = open_index(path, check=check).rows
        else:
            store = open_store(path, check=check)
        told = store.manifest["metric"]
        metric = metric or ("cosine" if store.manifest["normalized"] and told != "euclidean" else told)
        return store.load(), metric, (store.manifest["encoder"] or {}).get("fingerprint")
    opened = open_vectors(path)
    metric = metric or opened.metric
    if metric is None:
        raise UserError(
            f"{path}: does not say how its vectors are compared; add --metric cosine, inner_product or euclidean"
        )
    rows, named = opened.rows(0, opened.count), opened.ids(0, opened.count)
    return (rows if named is None else replace(rows, ids=named)), metric, None


def read_labels(path: Path) -> list[str]:
    """One a line, or an .npy of integers."""
    from retrieval import formats

    if path.suffix != ".npy":
        return formats.read_labels(path)
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise UserError(f"{path}: is no .npy file of integers; give one label a line") from None
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        raise UserError(f"{path}: holds {array.dtype} of shape {array.shape}; give integers or strings, one a vector")
    return [str(label).strip() for label in array.tolist()]


def as_run(queries: list[str], ids: list[str], scores: Any, rows: Any, metric: str) -> "Run":
    """Distances become scores of which larger is better."""
    from retrieval.formats.trec import Run

    signed = -scores if metric == "euclidean" else scores
    return Run(
        {
            query: {ids[row]: score for row, score in zip(found, values, strict=True) if row >= 0}
            for query, found, values in zip(queries, rows.tolist(), signed.tolist(), strict=True)
        },
        0,
    )


def rough(queries: int, classes: int | None = None) -> list[str]:
    """Lines where there are too few queries, or classes, for the bootstrap."""
    are = "is" if queries == 1 else "are"
    lines = [f"{plural(queries, 'query')} {are} few: intervals are rough, and too narrow"] if queries < FEW else []
    few = classes is not None and classes < FEW
    return lines + ([f"{classes:,} classes are few: intervals by class are too narrow"] if few else [])


def refuse_evaluation(flags: dict[str, Any]) -> None:
    """Raise UserError where --output names what may not be replaced."""
    from retrieval.artifact import refuse_to_clobber

    if flags["output"] is not None:
        refuse_to_clobber(flags["output"], KIND, flags["overwrite"])


def write_evaluation(
    flags: dict[str, Any],
    of: str,
    result: dict[str, Any],
    tables: "dict[str, PerQuery]",
    pairs: Iterable[tuple[str, str, str]] = (),
) -> None:
    """If --output asks for it, a folder of the figures, as the manifest, and the values of each query: queries.csv, or one
    table a name. of: which command evaluated; pairs: what its queries were, (query, anchor, positive) each."""
    from retrieval.artifact import creating
    from retrieval.data.rows import table_writer

    if flags["output"] is None:
        return
    with creating(flags["output"], KIND, overwrite=flags["overwrite"]) as (folder, manifest):
        for name, table in tables.items():
            with (folder / f"queries{'-' if name else ''}{name}.csv").open("w", encoding="utf-8", newline="") as file:
                table.write(file)
        if rows := list(pairs):
            with (folder / PAIRS).open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                table_writer(file).writerows([("query", "anchor", "positive"), *rows])
        manifest |= {"of": of, "evaluation": result}


def named_paths(systems: tuple[str, ...], *, several: bool = True) -> list[tuple[str, list[Path]]]:
    """Names and paths; a path stands for its name where there is none. several: a name may have more than one, with commas. A
    path that exists is taken whole, whatever signs it has."""
    named = []
    for system in systems:
        name, given, rest = ("", "", system) if Path(system).exists() else system.partition("=")
        if given and not name:
            raise UserError(f"{system}: has no name before the sign; write NAME=PATH, or PATH alone")
        told = rest if given else system
        paths = [Path(part) for part in (told.split(",") if several and not Path(told).exists() else [told])]
        missing = next((path for path in paths if not path.exists()), None)
        if missing is not None:
            raise UserError(f"{missing}: no such file or folder")
        real = [path.resolve() for path in paths]
        again = next((path for path in paths if real.count(path.resolve()) > 1), None)
        if again is not None:
            raise UserError(f"{again}: is given twice as a run of {name}; runs must differ, as by their seeds")
        named.append((name if given else system, paths))
    names = [name for name, _ in named]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{twice}: is given twice; give each another name, NAME=PATH")
    return named
