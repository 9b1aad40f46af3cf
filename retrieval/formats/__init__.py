"""Vectors as other tools keep them, into a store and out of one.

arrays.py    .npy, .fvecs and its like, .fbin and its like
tables.py    .parquet
hdf5.py      .hdf5 of ann-benchmarks
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.artifact import sha256_file, sha256_json, writing_atomically
from retrieval.errors import UserError
from retrieval.store import SHARD_ROWS, UNIT, Ids, Rows, Store
from retrieval.store.dtypes import ROUNDED

from .arrays import BINS, RECORDS, open_array, write_array

ARRAYS = (".npy", *RECORDS, *BINS)
HDF5 = (".hdf5", ".h5")
ENDINGS = (*ARRAYS, ".parquet", *HDF5)
NAMED = 3  # how many rows an error names
Fault = Callable[[NDArray[np.float64]], NDArray[np.bool_]]


class Opened(Protocol):
    """A foreign file. metric: what the file says, else None; part: which of its data sets or columns, None where that is not chosen;
    ids: None where it has none."""

    @property
    def path(self) -> Path: ...
    @property
    def count(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def metric(self) -> str | None: ...
    @property
    def part(self) -> str | None: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    def ids(self, start: int, stop: int) -> Ids | None: ...
    def rows(self, start: int, stop: int) -> Rows: ...


def open_vectors(path: Path, part: str = "train", **columns: Any) -> Opened:
    """Open a file by its ending; `part` is for ann-benchmarks' files, and `columns` (vectors, id, label, payload) name those of a
    table where it does not call them so. Raises UserError for what cannot be read."""
    ending = _ending(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give one of vectors ({', '.join(ENDINGS)})")
    given = {which: name for which, name in columns.items() if name is not None}
    if given and ending != ".parquet":
        raise UserError(f"{path}: has no named columns; leave --{next(iter(given))} out")
    if ending in ARRAYS:
        return open_array(path)
    if ending in HDF5:
        from .hdf5 import open_ann_benchmarks

        return open_ann_benchmarks(path, part)
    from .tables import Columns, open_parquet

    return open_parquet(path, Columns(**given))


def _ending(path: Path) -> str:
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f"{path}: cannot tell the format by its ending; use one of {', '.join(ENDINGS)}")
    return ending


@dataclass
class Imported:
    """A foreign file as a store's source: its own ids and labels or those of other files, lengths made 1 or checked.

    own_ids: n strings or integers, or None; labels: n strings, or None. metric: "cosine" demands unit vectors. dtype: what they are to be
    stored as, of which they may have been before: lengths may be off by as much as it rounds.
    """

    opened: Opened
    metric: str
    normalize: bool
    own_ids: Ids | None = None
    labels: list[str] | None = None
    dtype: str = "float32"

    @property
    def count(self) -> int:
        return self.opened.count

    @property
    def fingerprint(self) -> str:
        ids = None if self.own_ids is None else [str(i) for i in self.own_ids]
        if isinstance(self.own_ids, np.ndarray):
            ids = ["integers", *(ids or [])]
        part = [] if self.opened.part is None else [self.opened.part]
        return sha256_json([sha256_file(self.opened.path), self.normalize, ids, self.labels, *part])

    @property
    def columns(self) -> list[str]:
        kept = [name for name in self.opened.columns if name != "labels" or self.labels is None]
        return [*(["labels"] if self.labels is not None else []), *kept]

    def ids(self, start: int, stop: int) -> Ids | None:
        return self.opened.ids(start, stop) if self.own_ids is None else self.own_ids[start:stop]

    def rows(self, start: int, stop: int, ids: Ids) -> Rows:
        rows = self.opened.rows(start, stop)
        lengths = _lengths(rows)
        for bad, what, remedy in self._faults():
            if bad(lengths).any():
                raise self._refusal(bad, what, remedy)
        labels = rows.labels if self.labels is None else self.labels[start:stop]
        vectors = (rows.embeddings / lengths[:, None]).astype(np.float32) if self.normalize else rows.embeddings
        return Rows(vectors, ids, labels, rows.payload)

    def _faults(self) -> Iterator[tuple[Fault, str, str]]:
        """Which lengths (n,) rows must not have, what such rows are, and what to do."""
        mend = "mend them, or leave them out"
        yield lambda lengths: ~np.isfinite(lengths), "not finite (NaN or infinity)", mend
        if self.normalize or self.metric == "cosine":
            yield lambda lengths: lengths == 0, "zero, so have no direction", mend
        if self.metric == "cosine" and not self.normalize:
            remedy = "add --normalize" + ("" if self.opened.metric else ", or say --metric inner_product or euclidean")
            slack = ROUNDED.get(self.dtype, UNIT)
            yield lambda lengths: np.abs(lengths - 1) > slack, "not of length 1, which cosine needs", remedy

    def _refusal(self, bad: Fault, what: str, remedy: str) -> UserError:
        """Says how many rows of the whole file are so: who mends the first alone meets the next otherwise."""
        found: list[tuple[int, float]] = []
        for start in range(0, self.count, SHARD_ROWS):
            lengths = _lengths(self.opened.rows(start, min(start + SHARD_ROWS, self.count)))
            found += [(start + row, lengths[row]) for row in np.flatnonzero(bad(lengths)).tolist()]
        ids = self.ids(0, self.count)
        rows = ", ".join(
            f"row {row}"
            + (f" has length {length:.4g}" if np.isfinite(length) and length > 0 else "")
            + (f" (id {ids[row]})" if ids is not None else "")
            for row, length in found[:NAMED]
        )
        more = ", …" if len(found) > NAMED else ""
        return UserError(
            f"{self.opened.path}: {len(found):,} of {self.count:,} rows are {what}: {rows}{more}; {remedy}"
        )


def _lengths(rows: Rows) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.linalg.norm(rows.embeddings.astype(np.float64), axis=1)
    return lengths


def export(
    store: Store,
    path: Path,
    *,
    ids: Path | None = None,
    queries: Store | None = None,
    k: int | None = None,
    device: str = "cpu",
) -> None:
    """Write a store to a foreign file, by its ending, atomically; `ids` to another, as `read_id_file` reads it. `queries` and `k` (100, or all
    rows where there are fewer) are for ann-benchmarks' files."""
    ending = _ending(path)
    if (queries is not None) != (ending in HDF5):
        raise UserError(
            f"{path}: {'takes no' if queries is not None else 'needs'} --queries, which {' and '.join(HDF5)} hold"
        )

    def write(file: BinaryIO) -> None:
        if queries is not None:
            from .hdf5 import write_ann_benchmarks

            write_ann_benchmarks(file, store, queries, min(100, store.count) if k is None else k, device)
        elif ending == ".parquet":
            from .tables import write_parquet

            write_parquet(file, store)
        else:
            write_array(file, ending, store)

    if ids is None:
        with writing_atomically(path) as file:
            write(file)
        return
    with writing_atomically(ids) as lines, writing_atomically(path) as file:
        write_ids(lines, ids, store.ids_between(0, store.count))
        write(file)


def read_labels(path: Path) -> list[str]:
    """Labels, one a line, without the white space at their ends, as in every format."""
    return [line.strip() for line in read_lines(path)]


def read_lines(path: Path) -> list[str]:
    """One string a line: ids or labels."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8; convert the file, for instance with iconv") from None
    # Not by splitlines(): an id may hold what else ends lines.
    lines = text.removesuffix("\n").split("\n") if text else []
    empty = [number for number, line in enumerate(lines, 1) if not line.strip()]
    if empty:
        more = f" ({len(empty):,} of {len(lines):,} lines are)" if len(empty) > 1 else ""
        raise UserError(f"{path}: line {empty[0]} is empty{more}; give one a line")
    return lines


def read_id_file(path: Path) -> Ids:
    """Ids: strings, one a line, or an .npy of integers."""
    if path.suffix.lower() != ".npy":
        return read_lines(path)
    try:
        ids = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        ids = np.empty(0)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or (ids.dtype == np.uint64 and (ids > np.iinfo(np.int64).max).any()):
        raise UserError(f"{path}: is no list of integers of 64 bits; give that, or strings, one a line")
    integers: Ids = ids.astype(np.int64)
    return integers


def write_ids(file: BinaryIO, path: Path, ids: Ids) -> None:
    """The reverse, `file` being that of `path`. Raises UserError for strings that it does not hold."""
    if path.suffix.lower() == ".npy":
        if isinstance(ids, list):
            raise UserError(f"{path}: .npy is for ids that are integers, and these are strings; name a text file")
        np.save(file, ids)
        return
    lines = [str(i) for i in ids]
    bad = next((line for line in lines if not line.strip() or "\n" in line or "\r" in line), None)
    if bad is not None:
        raise UserError(f"id {bad!r} is no single line of text; export to .parquet instead")
    file.write("".join(f"{line}\n" for line in lines).encode())
