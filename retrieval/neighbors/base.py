"""What is searched: vectors in memory, on a GPU or in a store, a block or a few rows at a time."""

import warnings
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.errors import UserError
from retrieval.metrics import METRICS

from .product import Block, Precision

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
TILE = {"cpu": 2**22, "cuda": 2**29}  # scores made at a time: 16 MiB, 1 GiB in bfloat16
BLOCK_ROWS = {"cpu": 2**14, "cuda": 2**17}  # rows at a time, more where queries are few
FEW, WIDE_ROWS = 64, 2**16  # up to so many queries, wide blocks are kept for the next
READ = 2**26  # numbers read at a time of what is not in memory: 256 MiB


class Stored(Protocol):
    """Vectors that need not fit in memory, such as an embedding store."""

    def __len__(self) -> int: ...
    def take(self, rows: Ints) -> Floats:
        """Some rows (k, d), in the order asked for."""
        ...


Vectors = Floats | Tensor | Stored


class Base:
    """Vectors (n, d) made ready to be searched by a metric, once or again and again.

    An array is used where it lies; for a GPU it is copied there if it takes at most half of what is free, and streamed
    otherwise, as a store is; there a second copy in bfloat16 is kept beside it, if half of what is then free holds that.
    keep: hold a second copy packed for the processor, which makes searches of few queries up to twice as fast.
    """

    def __init__(self, vectors: Vectors, metric: str, device: str = "cpu", *, keep: bool = False) -> None:
        if metric not in METRICS:
            raise UserError(f"metric {metric!r}: give one of {', '.join(METRICS)}")
        require_vectors(vectors, "the base")
        self.metric, self.device, self._keep = metric, torch.device(device), keep
        self._vectors = resident(vectors, self.device)
        self._norms: Tensor | None = None
        self._kept: list[tuple[int, Block]] = []
        self._half: Block | None = None

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def dim(self) -> int | None:
        """Of its vectors; None where they do not say."""
        return dim_of(self._vectors)

    def take(self, rows: Tensor) -> Tensor:
        """Rows (k, d) float32, on the device."""
        return take(self._vectors, rows).to(self.device)

    def blocks(self, queries: int, dim: int, precision: Precision) -> Iterator[tuple[int, Block]]:
        """First row and block, so that the scores of one tile of queries fit their bounds."""
        kind = self.device.type
        if self._keep and precision == "float32" and queries <= FEW:
            if not self._kept:
                self._kept = list(self._cut(WIDE_ROWS, precision, FEW))
            yield from self._kept
            return
        rows, tile = max(BLOCK_ROWS[kind], TILE[kind] // queries), tile_of(kind)
        if precision == "bfloat16" and self._keeps_half():
            half = self._half = self._half or self._halved(dim)
            for start in range(0, len(self), rows):
                yield start, half.part(slice(start, start + rows))
            return
        if precision == "float64":  # products over 32 MiB would take their memory from the system anew each time
            rows //= 4
        if not isinstance(self._vectors, Tensor):
            rows = min(rows, max(1, READ // dim))
        yield from self._cut(rows, precision, tile if tile < queries else 0)

    def _cut(self, rows: int, precision: Precision, tile: int) -> Iterator[tuple[int, Block]]:
        for start in range(0, len(self), rows):
            stop = min(start + rows, len(self))
            block = take(self._vectors, slice(start, stop)).to(self.device)
            yield start, Block(block, self._norms_of(block, start, stop), self.metric, precision, tile)

    def _keeps_half(self) -> bool:
        if self._half is not None:
            return True
        here = isinstance(self._vectors, Tensor) and self._vectors.is_cuda
        return here and self._vectors.numel() * 2 <= torch.cuda.mem_get_info(self.device)[0] // 2  # type: ignore[union-attr]

    def _halved(self, dim: int) -> Block:
        """All rows as one block in bfloat16, made a part at a time."""
        table = torch.empty(len(self), dim, dtype=torch.bfloat16, device=self.device)
        parts = []
        for start, block in self._cut(READ // dim + 1, "bfloat16", 0):
            there = table[start : start + len(block.table)]
            # The part's own goes at once, or all of them would double the memory.
            block.table = there.copy_(block.table)
            parts.append(block)
        return Block.joined(parts, table)

    def _norms_of(self, block: Tensor, start: int, stop: int) -> Tensor:
        if not isinstance(self._vectors, Tensor):
            return lengths(block)
        if self._norms is None:
            self._norms = lengths(self._vectors.float()).to(self.device)
        return self._norms[start:stop]


def require_vectors(vectors: Vectors, name: str) -> None:
    """Raise UserError for what is no table of vectors."""
    if isinstance(vectors, np.ndarray | Tensor):
        if vectors.ndim != 2:
            raise UserError(f"{name}: has the shape {tuple(vectors.shape)}; give vectors as (rows, dimensions)")
    elif not hasattr(vectors, "take"):
        raise UserError(f"{name}: is a {type(vectors).__name__}; give an array (rows, dimensions), a tensor or a store")


def dim_of(vectors: Vectors) -> int | None:
    if isinstance(vectors, np.ndarray | Tensor):
        return int(vectors.shape[1])
    dim: int | None = getattr(vectors, "dim", None)
    return dim


def require_alike(queries: Vectors, base: Base) -> None:
    """Raise UserError for queries that are no vectors, or of other dimensions than those of the base."""
    require_vectors(queries, "the queries")
    own, theirs = dim_of(queries), base.dim
    if own != theirs and None not in (own, theirs):
        raise UserError(f"the queries: have {own} dimensions, the base {theirs}; both must be by one encoder")


def lengths(vectors: Tensor) -> Tensor:
    """(n,) of vectors (n, d)."""
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=1)
    return norms


def tile_of(kind: str) -> int:
    """How many queries are scored at a time, against BLOCK_ROWS rows."""
    return TILE[kind] // BLOCK_ROWS[kind]


def resident(vectors: Vectors, device: torch.device) -> Tensor | Stored:
    if isinstance(vectors, np.ndarray):
        vectors = as_tensor(vectors)
    vectors = vectors.detach() if isinstance(vectors, Tensor) else vectors
    if isinstance(vectors, Tensor) and device.type == "cuda":
        fits = vectors.numel() * 4 <= torch.cuda.mem_get_info(device)[0] // 2
        return vectors.to(device, torch.float32) if fits else vectors
    return vectors


def take(vectors: Vectors, rows: slice | Tensor) -> Tensor:
    """Rows (k, d) as float32: a run of them, or any, wherever the vectors are."""
    if isinstance(vectors, np.ndarray):
        vectors = as_tensor(vectors)
    if isinstance(vectors, Tensor):
        vectors = vectors.detach()
        return (vectors[rows] if isinstance(rows, slice) else vectors.index_select(0, rows.to(vectors.device))).float()
    numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows.cpu().numpy()
    return torch.from_numpy(vectors.take(numbers))


def as_tensor(array: Floats) -> Tensor:
    if array.flags.writeable:
        return torch.from_numpy(np.ascontiguousarray(array))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor is it written to
        return torch.from_numpy(np.ascontiguousarray(array))
