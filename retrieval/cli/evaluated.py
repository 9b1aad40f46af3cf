"""What the commands of `retrieval eval` read and write: vectors with labels, and evaluations."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.errors import UserError

if TYPE_CHECKING:
    from retrieval.eval.values import PerQuery
    from retrieval.neighbors import Floats

KIND = "evaluation"
SHOWN = 60


@dataclass(frozen=True)
class Side:
    """Vectors (n, d), their labels and ids, how they are compared, and texts or paths if they are known."""

    vectors: "Floats"
    labels: list[str]
    ids: list[str]
    metric: str
    payload: dict[str, list[str]]

    def unit(self) -> "Floats":
        from retrieval.eval.clusters import unit

        return unit(self.vectors)

    def told(self, row: int) -> str:
        """An item, for people."""
        if "text" in self.payload:
            text = " ".join(self.payload["text"][row].split())
            return f'"{text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"}"'
        return self.ids[row]


def read_side(path: Path, labels: Path | None, metric: str | None, check: bool, option: str = "--labels") -> Side:
    """A store with its labels, or a file of vectors with others. Raises UserError where either is missing."""
    from retrieval.formats import open_vectors
    from retrieval.store import open_store

    if path.is_dir():
        store = open_store(path, check=check)
        rows, told = store.load(), store.manifest["metric"]
        metric = metric or ("cosine" if store.manifest["normalized"] and told != "euclidean" else told)
        ids = rows.ids
    else:
        opened = open_vectors(path)
        metric = metric or opened.metric
        if metric is None:
            raise UserError(
                f"{path}: does not say how its vectors are compared; add --metric cosine, inner_product or euclidean"
            )
        rows, named = opened.rows(0, opened.count), opened.ids(0, opened.count)
        ids = rows.ids if named is None else named
    held = rows.labels if labels is None else read_labels(labels)
    if held is None:
        raise UserError(
            f"{path}: has no labels; add {option} FILE, or embed data with a column label, or class folders"
        )
    if len(held) != len(rows):
        raise UserError(f"{labels}: has {len(held):,} labels, {path} {len(rows):,} vectors; there must be one a vector")
    return Side(rows.embeddings, held, [str(i) for i in ids], metric, rows.payload)


def read_labels(path: Path) -> list[str]:
    """One a line, or an .npy of integers."""
    from retrieval.formats import read_lines

    if path.suffix != ".npy":
        return read_lines(path)
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise UserError(f"{path}: is no .npy file of integers; give one label a line") from None
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        raise UserError(f"{path}: holds {array.dtype} of shape {array.shape}; give integers or strings, one a vector")
    return [str(label) for label in array.tolist()]


def refuse_evaluation(flags: dict[str, Any]) -> None:
    """Raise UserError where --output names what may not be replaced."""
    from retrieval.artifact import refuse_to_clobber

    if flags["output"] is not None:
        refuse_to_clobber(flags["output"], KIND, flags["overwrite"])


def write_evaluation(flags: dict[str, Any], result: dict[str, Any], tables: "dict[str, PerQuery]") -> None:
    """If --output asks for it, a folder of the figures, as the manifest, and the values of each query: queries.csv, or one
    table a name."""
    from retrieval.artifact import creating

    if flags["output"] is None:
        return
    with creating(flags["output"], KIND, overwrite=flags["overwrite"]) as (folder, manifest):
        for name, table in tables.items():
            with (folder / f"queries{'-' if name else ''}{name}.csv").open("w", encoding="utf-8", newline="") as file:
                table.write(file)
        manifest |= {"evaluation": result}
