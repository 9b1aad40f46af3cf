"""Exact nearest neighbours by inner product: the ground truth of mining, evaluation and index tuning."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
TILE_SCORES = 2**24  # scores held at a time: 64 MiB


@dataclass(frozen=True)
class Neighbors:
    """The k nearest of each query, best first.

    scores: (queries, k) float32 inner products. ids: (queries, k) int64 row numbers of the base.
    """

    scores: Floats
    ids: Ints


def exact_neighbors(
    queries: Floats, base: Floats, k: int, *, self_rows: Ints | None = None, device: str = "cpu"
) -> Neighbors:
    """The k rows of `base` with the largest inner product with each query.

    queries: (q, d), base: (n, d), float32. self_rows: (q,) the row of `base` that is the query itself, which is left out
    *by index*: dropping the first hit instead would be wrong wherever two items have the same vector.
    k is at most n, or n - 1 with self_rows. Memory: one tile of scores, never (q, n).
    """
    tiles = list(neighbor_tiles(queries, base, k, self_rows=self_rows, device=device))
    return Neighbors(np.concatenate([t.scores for t in tiles]), np.concatenate([t.ids for t in tiles]))


def neighbor_tiles(
    queries: Floats, base: Floats, k: int, *, self_rows: Ints | None = None, device: str = "cpu"
) -> Iterator[Neighbors]:
    """`exact_neighbors` a few hundred queries at a time, for what needs a large k of many queries but not all at once."""
    available = len(base) - (self_rows is not None)
    assert 0 < k <= available, f"k = {k} of {available}"
    base_t = torch.from_numpy(np.ascontiguousarray(base)).to(device).T
    tile = max(1, min(len(queries), TILE_SCORES // len(base)))
    for start in range(0, len(queries), tile):
        stop = min(start + tile, len(queries))
        block = torch.from_numpy(np.ascontiguousarray(queries[start:stop])).to(device) @ base_t
        if self_rows is not None:
            block.scatter_(1, torch.from_numpy(self_rows[start:stop]).to(device)[:, None], -torch.inf)
        best = block.topk(k, dim=1)
        yield Neighbors(best.values.cpu().numpy(), best.indices.cpu().numpy())
