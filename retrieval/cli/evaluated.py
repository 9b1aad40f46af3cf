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

    given = None if labels is None else read_labels(labels)
    if path.is_dir():
        store = open_store(path, check=check)
        rows = store.load()
        own = rows.labels
        held = (
            "cosine"
            if store.manifest["normalized"] and store.manifest["metric"] != "euclidean"
            else store.manifest["metric"]
        )
        side = Side(rows.embeddings, [], [str(i) for i in rows.ids], metric or held, rows.payload)
    else:
        opened = open_vectors(path)
        if metric is None and opened.metric is None:
            raise UserError(
                f"{path}: does not say how its vectors are compared; add --metric cosine, inner_product or euclidean"
            )
        rows = opened.rows(0, opened.count)
        found = opened.ids(0, opened.count)
        own = rows.labels
        side = Side(
            rows.embeddings,
            [],
            [str(i) for i in (rows.ids if found is None else found)],
            metric or str(opened.metric),
            rows.payload,
        )
    if given is None and own is None:
        raise UserError(
            f"{path}: has no labels; add {option} FILE, or embed data with a column label, or class folders"
        )
    if given is not None and len(given) != len(side.vectors):
        raise UserError(
            f"{labels}: has {len(given):,} labels, {path} {len(side.vectors):,} vectors; there must be one a vector"
        )
    side.labels.extend(given if given is not None else own or [])
    return side


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


def write_evaluation(output: Path, result: dict[str, Any], tables: "dict[str, PerQuery]", overwrite: bool) -> None:
    """A folder of the figures, as the manifest, and the values of each query: queries.csv, or one table a name."""
    from retrieval.artifact import creating

    with creating(output, KIND, overwrite=overwrite) as (folder, manifest):
        for name, table in tables.items():
            with (folder / f"queries{'-' if name else ''}{name}.csv").open("w", encoding="utf-8", newline="") as file:
                table.write(file)
        manifest |= {"evaluation": result}
