"""The vectors of many shards as one array in memory's address space: no row is copied, and any row is one index away."""

import ctypes
import mmap
import os
from collections.abc import Iterator
from math import lcm
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import UserError

from .shard import Ints

PAGE = mmap.ALLOCATIONGRANULARITY
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


def map_shards(
    files: Iterator[BinaryIO], rows: list[int], offsets: list[int], dim: int, dtype: Any
) -> tuple[NDArray[Any], Ints]:
    """A read-only array (places, dim) over the embeddings of all shards, and the place of each shard's first row.

    files: the shards, opened; they may be closed and even removed afterwards. Between shards that do not fill whole pages
    there are places without rows. Parts that do not begin on a page are read instead of mapped.
    """
    width = dim * np.dtype(dtype).itemsize
    step = lcm(width, PAGE)  # where a shard can begin: at a page, and at a row
    sizes = [-(-count * width // step) * step for count in rows]
    starts = np.cumsum([0, *sizes])
    # Reserved, not taken: nothing is in it until a shard is laid over it.
    space = mmap.mmap(-1, max(int(starts[-1]), PAGE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _no_reserve())
    whole = np.frombuffer(space, np.uint8)
    for file, count, offset, start in zip(files, rows, offsets, starts.tolist(), strict=False):
        size = count * width
        if os.fstat(file.fileno()).st_size < offset + size:  # reading beyond its end would kill the process
            raise UserError(f"{file.name}: damaged (shorter than its embeddings); make it again")
        if size and offset % PAGE == 0:
            _lay(whole.ctypes.data + start, size, file.fileno(), offset)
        elif size:
            whole[start : start + size] = np.frombuffer(os.pread(file.fileno(), size, offset), np.uint8)
    table = whole[: int(starts[-1])].view(dtype).reshape(-1, dim)
    table.flags.writeable = False
    return table, starts[:-1] // width


def _no_reserve() -> int:
    return int(getattr(mmap, "MAP_NORESERVE", 0))


def _lay(address: int, size: int, descriptor: int, offset: int) -> None:
    """Map a file over reserved addresses; whoever holds the reservation unmaps it."""
    fixed = 0x10  # MAP_FIXED, the same on Linux and macOS
    found = _libc.mmap(address, size, mmap.PROT_READ, mmap.MAP_SHARED | fixed, descriptor, offset)
    if found != address:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
