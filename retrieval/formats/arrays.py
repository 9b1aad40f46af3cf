"""Bare arrays of vectors: NumPy's .npy, INRIA's .fvecs family, the big-ann .fbin family. They hold no ids.

.npy                                    (n, d) of any real type
.fvecs .bvecs .ivecs                    a record a row: int32 d, then d values (float32, uint8, int32)
.fbin .f16bin .ibin .u8bin .i8bin       uint32 n, uint32 d, then n · d values row by row
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import UserError
from retrieval.store import Floats, Rows, Store

RECORDS: dict[str, Any] = {".fvecs": np.float32, ".bvecs": np.uint8, ".ivecs": np.int32}
BINS: dict[str, Any] = {
    ".fbin": np.float32,
    ".f16bin": np.float16,
    ".ibin": np.int32,
    ".u8bin": np.uint8,
    ".i8bin": np.int8,
}


@dataclass(frozen=True)
class ArrayFile:
    """A file of vectors, mapped. block(start, stop) gives rows as the file has them."""

    path: Path
    count: int
    dim: int
    block: Callable[[int, int], NDArray[Any]]
    metric: None = None
    part: None = None
    columns: tuple[str, ...] = ()

    def ids(self, start: int, stop: int) -> None:
        return None

    def rows(self, start: int, stop: int) -> Rows:
        """Rows start:stop, numbered from start."""
        return Rows(as_floats(self.block(start, stop), self.path, start), np.arange(start, stop))


def as_floats(block: NDArray[Any], path: Path, start: int) -> Floats:
    """Rows (k, d) of a file, from row `start` on. Raises UserError for integers that float32 does not hold."""
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which is refused by row
        vectors: Floats = block.astype(np.float32)
    if block.dtype.kind in "iu" and (vectors.astype(np.float64) != block).any():
        row = start + int((vectors.astype(np.float64) != block).any(axis=1).argmax())
        raise UserError(f"{path}: row {row} has integers that float32 cannot hold; scale them down")
    return vectors


def open_array(path: Path) -> ArrayFile:
    """Open by ending. Raises UserError for a file that is not what its ending says."""
    ending = path.suffix.lower()
    if ending == ".npy":
        return _npy(path)
    return _records(path, RECORDS[ending]) if ending in RECORDS else _bin(path, BINS[ending])


def _npy(path: Path) -> ArrayFile:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError):
        why = "cut short, of another format, or of Python objects"
        raise UserError(f"{path}: not an .npy file of numbers that can be read ({why}); save it again") from None
    if array.ndim != 2 or array.dtype.kind not in "fiu" or array.shape[1] == 0:
        raise UserError(f"{path}: holds {array.dtype} of shape {array.shape}; give real numbers of (rows, dimensions)")
    return ArrayFile(path, len(array), array.shape[1], lambda start, stop: array[start:stop])


def _records(path: Path, dtype: Any) -> ArrayFile:
    content = _mapped(path)
    dim = int(content[:4].view("<i4")[0]) if len(content) >= 4 else 0
    size = 4 + dim * np.dtype(dtype).itemsize
    if dim <= 0 or len(content) % size:
        raise UserError(f"{path}: {len(content):,} bytes are no whole number of rows of {dim} values; is it cut off?")
    table = content.reshape(-1, size)
    said = np.ascontiguousarray(table[:, :4]).view("<i4")[:, 0]
    if (said != dim).any():
        row = int((said != dim).argmax())
        raise UserError(f"{path}: row {row} says that it has {said[row]} values, row 0 {dim}; all must have the same")
    little = np.dtype(dtype).newbyteorder("<")
    return ArrayFile(path, len(table), dim, lambda a, b: np.ascontiguousarray(table[a:b, 4:]).view(little))


def _bin(path: Path, dtype: Any) -> ArrayFile:
    content = _mapped(path)
    count, dim = content[:8].view("<u4").tolist() if len(content) >= 8 else (0, 0)
    if dim == 0 or len(content) != 8 + count * dim * np.dtype(dtype).itemsize:
        raise UserError(f"{path}: has {len(content):,} bytes, not those of the {count:,} × {dim} values it announces")
    table = content[8:].view(np.dtype(dtype).newbyteorder("<")).reshape(count, dim)
    return ArrayFile(path, count, dim, lambda start, stop: table[start:stop])


def _mapped(path: Path) -> NDArray[np.uint8]:
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty; give a file of vectors")
    mapped: NDArray[np.uint8] = np.memmap(path, np.uint8, "r").view(np.ndarray)
    return mapped


def write_array(file: BinaryIO, ending: str, store: Store) -> None:
    """Write a store's vectors in the format of an ending. Raises UserError where it cannot hold them."""
    if ending == ".npy":
        dtype = np.float16 if store.dtype == "float16" else np.float32
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (store.count, store.dim)})
    elif ending in RECORDS:
        dtype = RECORDS[ending]
    else:
        dtype = BINS[ending]
        file.write(np.array([store.count, store.dim], "<u4").tobytes())
    for start, vectors in _blocks(store):
        block = _as_type(vectors, np.dtype(dtype), start, ending)
        if ending in RECORDS:
            heads = np.full((len(block), 1), store.dim, "<i4").view(np.uint8)
            block = np.hstack([heads, block.view(np.uint8)])
        file.write(block.tobytes())


def _blocks(store: Store) -> Iterator[tuple[int, Floats]]:
    for number, start in enumerate(store.starts[:-1].tolist()):
        yield start, store.vectors(number)


def _as_type(vectors: Floats, dtype: np.dtype[Any], start: int, ending: str) -> NDArray[Any]:
    """The vectors as little-endian `dtype`: rounded if that is float16; integers must be exact."""
    with np.errstate(over="ignore", invalid="ignore"):
        block = np.ascontiguousarray(vectors).astype(dtype.newbyteorder("<"))
    if dtype.kind == "f":
        bad, why = ~np.isfinite(block).all(axis=1), "overflows float16"
    else:
        bad, why = (block.astype(np.float64) != vectors).any(axis=1), f"is not of whole numbers that fit {dtype}"
    if bad.any():
        raise UserError(f"row {start + int(bad.argmax())} {why}, which is what {ending} holds; choose another ending")
    return block
