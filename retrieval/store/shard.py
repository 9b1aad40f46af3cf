"""One shard: an HDF5 file of some rows, written whole or not at all, never changed afterwards.

embeddings     (n, d) float32 | float16 | uint16 with attribute dtype = "bfloat16" | int8; contiguous, uncompressed
scales         (n,) float32, int8 only: a row is embeddings · scales
norms          (n,) float32, of the rows as stored
ids            (n,) int64, or strings
labels         (n,) strings, where there are any
payload/NAME   (n,) strings: text, path, whatever helps to show a result
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from retrieval.artifact import write_atomically
from retrieval.errors import UserError

from .dtypes import Encoded, Floats, refuse_bad_vectors

Ints = NDArray[np.int64]
Ids = list[str] | Ints
PAGE, LARGE_PAGE, LARGE = 4096, 65_536, 1 << 20  # embeddings begin on a page; from 1 MiB on, on the largest there is
_DAMAGED = (OSError, KeyError, RuntimeError, ValueError, AttributeError)  # what h5py raises on a damaged file


@dataclass(frozen=True)
class Rows:
    """Consecutive rows: embeddings (n, d) float32; ids: n strings or (n,) int64; labels: n strings or None; payload: columns
    of n strings."""

    embeddings: Floats
    ids: Ids
    labels: list[str] | None = None
    payload: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, rows: Any) -> "Rows":
        """Some of the rows, by slice or by an array of row numbers."""
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]

        def pick(column: Any) -> Any:
            return column[rows] if isinstance(column, np.ndarray) else [column[row] for row in rows.tolist()]

        labels = pick(self.labels) if self.labels is not None else None
        payload = {name: pick(column) for name, column in self.payload.items()}
        return Rows(self.embeddings[rows], pick(self.ids), labels, payload)


def concatenate(parts: Sequence[Rows], dim: int) -> Rows:
    """Rows after rows; all parts have the same columns."""
    if not parts:
        return Rows(np.empty((0, dim), np.float32), np.empty(0, np.int64))
    if len(parts) == 1:
        return parts[0]

    def join(columns: list[Any]) -> Any:
        if columns[0] is None:
            return None
        if isinstance(columns[0], np.ndarray):
            return np.concatenate(columns)
        return [value for column in columns for value in column]

    return Rows(
        np.concatenate([part.embeddings for part in parts]),
        join([part.ids for part in parts]),
        join([part.labels for part in parts]),
        {name: join([part.payload[name] for part in parts]) for name in parts[0].payload},
    )


def shard_name(number: int) -> str:
    return f"part-{number:05d}.h5"


def write_shard(path: Path, rows: Rows, dtype: str, *, unit: bool = False) -> dict[str, Any]:
    """Write one shard durably; returns what a manifest says of it: rows, offset of the embeddings, bytes, sha256.

    Raises UserError naming the ids of rows that cannot be stored as `dtype`; `unit`: and of other lengths than 1.
    """
    stored, norms = refuse_bad_vectors(rows.embeddings, rows.ids, dtype, zero=not unit, unit=unit)
    return write_columns(path, rows, stored, norms, dtype)


def write_columns(
    path: Path, rows: Rows, stored: Encoded | None = None, norms: Floats | None = None, dtype: str = ""
) -> dict[str, Any]:
    """The columns of rows as HDF5, with their vectors or (an index's items) without.

    Composed in memory, then written in one piece: HDF5 itself crashes the process when the disk fills up under it.
    """
    composed = io.BytesIO()
    offset, size = 0, 1 if stored is None else max(1, stored.data.nbytes)
    page = LARGE_PAGE if size >= LARGE else PAGE
    with h5py.File(composed, "w", alignment_threshold=max(size, 4 * PAGE), alignment_interval=page) as file:
        if stored is not None:
            data = file.create_dataset("embeddings", data=stored.data)
            data.attrs["dtype"] = dtype
            offset = data.id.get_offset() or 0
            if stored.scales is not None:
                file["scales"] = stored.scales
            file["norms"] = norms
        _write_strings(file, "ids", rows.ids, rows)
        if rows.labels is not None:
            _write_strings(file, "labels", rows.labels, rows)
        payload = file.create_group("payload", track_order=True)
        for name, column in rows.payload.items():
            _write_strings(payload, name, column, rows)
    with composed.getbuffer() as content:  # released before its owner goes, which Python 3.13 insists on
        write_atomically(path, content)
        digest = hashlib.sha256(content).hexdigest()
        return {"rows": len(rows), "offset": offset, "bytes": content.nbytes, "sha256": digest}


def _write_strings(group: Any, name: str, column: Any, rows: Rows) -> None:
    assert len(column) == len(rows), name
    if isinstance(column, np.ndarray):
        group[name] = column
        return
    try:
        group.create_dataset(name, data=np.array(column, dtype=object), dtype=h5py.string_dtype())
    except (ValueError, UnicodeEncodeError):
        bad = next(row for row, value in enumerate(column) if "\0" in value or not _is_unicode(value))
        raise UserError(
            f"id {rows.ids[bad]!r}: its {name} has a NUL character or half a surrogate pair; clean it, or rename the file"
        ) from None


def _is_unicode(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)


def read_columns(
    source: Path | BinaryIO, rows: Any = slice(None)
) -> tuple[Ids, list[str] | None, dict[str, list[str]]]:
    """ids, labels and payload of some rows: a slice, or row numbers in rising order without repeats."""
    with _reading(source) as file:
        return _columns(file, rows)


def read_column(source: Path | BinaryIO, name: str) -> Any:
    """One column of a shard by its path in the file, such as "norms" or "payload/text"."""
    with _reading(source) as file:
        return _column(file[name], slice(None))


def _columns(file: Any, rows: Any) -> tuple[Ids, list[str] | None, dict[str, list[str]]]:
    labels = _column(file["labels"], rows) if "labels" in file else None
    return _column(file["ids"], rows), labels, {name: _column(data, rows) for name, data in file["payload"].items()}


def _column(data: Any, rows: Any) -> Any:
    return data.asstr()[rows].tolist() if h5py.check_string_dtype(data.dtype) else data[rows]


@contextmanager
def _reading(source: Path | BinaryIO) -> Iterator[Any]:
    name = source if isinstance(source, Path) else source.name
    try:
        with h5py.File(source, "r") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{name}: is gone; was it replaced or compacted meanwhile? Open it again") from None
    except _DAMAGED as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise UserError(f"{name}: damaged ({reason}); make it again") from None
