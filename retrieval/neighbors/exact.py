"""Exact k nearest neighbours: fast products find candidates, float64 decides, and an error bound says whether it could."""

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from retrieval.errors import UserError

from .base import Base, Floats, Ints, Vectors, lengths, require_alike, take, tile_of
from .product import ROUNDING, Block, Precision
from .select import Best, first_keys, from_keys, in_order, keys_of, largest

HELD = 2**22  # candidates of all queries held at a time: 50 MB, and several times that while they are merged
WHOLE = 2**24  # scores held at a time where k is a large part of the base: 64 MB
RESCORED = {"cpu": 2**20, "cuda": 2**26}  # numbers scored again at a time: 8 MiB, which stays in cache; 512 MiB
AT_ONCE = 2**20  # scores, up to which one table of all is as fast as keeping the best of each block
TINY = 1e-300
NEAR = 1e-5  # of ‖q‖²: below, a squared distance is taken from the difference of the vectors


class Neighbors(NamedTuple):
    """The k nearest of each query, nearest first; equal scores by row number.

    scores: (queries, k) float32, inner products or cosines, or for the metric "euclidean" distances (not squared).
    ids: (queries, k) int64 row numbers of the base.
    """

    scores: Floats
    ids: Ints

    def ordered(self, order: Ints) -> "Neighbors":
        """Each query's neighbours at these places (queries, k)."""
        return Neighbors(np.take_along_axis(self.scores, order, 1), np.take_along_axis(self.ids, order, 1))


def without(found: Neighbors, rows: Ints, k: int) -> Neighbors:
    """The k first of each query's neighbours that are not this row of its (q,): the query itself, wherever it was found."""
    order = np.argsort(found.ids == rows[:, None], axis=1, kind="stable")[:, :k]
    return found.ordered(order)


def exact_neighbors(
    queries: Vectors,
    base: Vectors | Base,
    k: int,
    *,
    metric: str = "inner_product",
    self_rows: Ints | None = None,
    device: str = "cpu",
    precisions: tuple[Precision, ...] | None = None,
) -> Neighbors:
    """The k rows of `base` that are nearest to each query.

    queries: (q, d), base: (n, d), arrays, tensors or stores, which need not fit in memory, or a `Base` to be searched
    again, whose own metric and device count. metric: one of METRICS. self_rows: (q,) the row of `base` that is the query
    itself, which is left out *by row*: dropping the first hit instead would be wrong wherever two items have the same
    vector. k is at most n, or n − 1 with self_rows. precisions: tried in turn, the last being float64; by default what suits
    the device. Memory: candidates and a tile of scores, never (q, n).

    Raises UserError for vectors that are not finite, queries and base of different dimensions, and a k or metric that cannot be.
    """
    tiles = list(
        neighbor_tiles(queries, base, k, metric=metric, self_rows=self_rows, device=device, precisions=precisions)
    )
    if not tiles:
        return Neighbors(np.empty((0, k), np.float32), np.empty((0, k), np.int64))
    return Neighbors(np.concatenate([t.scores for t in tiles]), np.concatenate([t.ids for t in tiles]))


def neighbor_tiles(
    queries: Vectors,
    base: Vectors | Base,
    k: int,
    *,
    metric: str = "inner_product",
    self_rows: Ints | None = None,
    device: str = "cpu",
    precisions: tuple[Precision, ...] | None = None,
) -> Iterator[Neighbors]:
    """`exact_neighbors` so many queries at a time, for what needs a large k of many queries but not all at once."""
    ready = base if isinstance(base, Base) else Base(base, metric, device)
    require_alike(queries, ready)
    available = len(ready) - (self_rows is not None)
    if not (isinstance(k, int | np.integer) and 0 < k <= available):
        besides = "" if self_rows is None else " besides the query itself"
        raise UserError(f"k {k}: give a whole number of at least 1, and at most the {available:,} rows{besides}")
    if self_rows is not None and (np.shape(self_rows) != (len(queries),) or not isinstance(self_rows, np.ndarray)):
        raise UserError(f"self_rows: give an array ({len(queries):,},), the row of the base that each query is")
    tried = precisions or suited(ready, k, len(queries))
    step = max(1, HELD // (k + spare(k, tried[0])))
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        itself = None if self_rows is None else torch.from_numpy(self_rows[rows]).to(ready.device)
        search = Search(take(queries, rows).to(ready.device), ready, k, itself)
        yield (search.at_once() if precisions is None else None) or search.run(tried)


def spare(k: int, precision: Precision) -> int:
    """How many candidates are kept beyond k, so that most queries are settled at once: the more, the rougher their scores."""
    return 32 + k // 2 if precision == "bfloat16" else 8 + k // 8


def _is_wide(k: int, base: Base) -> bool:
    return 256 * k > len(base)


def _pays(count: int, kept: int, base: Base) -> bool:
    """Whether the processor scores so many candidates of each query again in less time than all rows in float64."""
    return base.device.type == "cpu" and 2 * count * kept <= len(base)


def suited(base: Base, k: int, count: int) -> tuple[Precision, ...]:
    """At which precisions so many queries are best answered."""
    if _is_wide(k, base) and not _pays(count, k + spare(k, "float32"), base):
        return ("float64",)  # scoring that many candidates again would cost more than scoring everything
    return ("float32", "float64") if base.device.type == "cpu" else ("bfloat16", "float32", "float64")


def _best(count: int, k: int, device: torch.device) -> Any:
    if device.type == "cuda" and find_spec("triton"):
        from .collect import Collected

        return Collected(count, k, device)
    return Best(count, k, device)


class Search:
    """Some queries (q, d): passes over the base at rising precision, each for the queries that are not settled yet."""

    def __init__(self, queries: Tensor, base: Base, k: int, self_rows: Tensor | None) -> None:
        self.queries, self.base, self.k, self.self_rows = queries, base, k, self_rows
        self.norms = lengths(queries.double())
        self.scores = torch.empty((len(queries), k), device=queries.device)
        self.rows = torch.empty((len(queries), k), dtype=torch.int64, device=queries.device)
        if not torch.isfinite(self.norms).all():
            raise UserError("the queries hold NaN, infinite or huge values; find and remove them")

    def at_once(self) -> Neighbors | None:
        """The answer from one table of scores, where these are so few that the steps of `run` would cost more than what they compute;
        None where they are not."""
        count, rows = len(self.queries), len(self.base)
        kept = min(self.k + spare(self.k, "float32"), rows)
        small = self.queries.device.type == "cpu" and self.self_rows is None and count * rows <= AT_ONCE
        if not (small and _pays(count, kept, self.base)):
            return None
        blocks = [block for _, block in self.base.blocks(count, self.queries.shape[1], "float32")]
        tables = [block.scores(self.queries) for block in blocks]
        rough = tables[0] if len(tables) == 1 else torch.cat(tables, 1)
        error = max(blocks, key=lambda block: block.longest).error(self.queries, self.norms)
        best = rough.topk(kept)
        least = self._least(best.values[:, self.k - 1].double() - error) - error
        if kept < rows and bool((best.values[:, -1] >= least).any()):  # some that were left out could be among the k
            kept = int((rough >= least[:, None]).sum(1).max())
            if not _pays(count, kept, self.base):
                return None
            best = rough.topk(kept)
        exact = score_rows(self.queries, self.base, best.indices).float().numpy() + np.float32(0)  # − 0 becomes 0
        found = Neighbors(exact, best.indices.numpy())
        found = found.ordered(np.lexsort((found.ids, -exact), axis=1)[:, : self.k])
        return Neighbors(-found.scores, found.ids) if self.base.metric == "euclidean" else found

    def run(self, precisions: tuple[Precision, ...]) -> Neighbors:
        assert precisions[-1] == "float64"
        unsettled = torch.arange(len(self.queries), device=self.queries.device)
        for precision in precisions[:-1]:
            if len(unsettled):
                unsettled = unsettled[~self._settle(unsettled, precision)]
        if len(unsettled):
            self._decide(unsettled)
        scores = -self.scores if self.base.metric == "euclidean" else self.scores
        return Neighbors(scores.cpu().numpy(), self.rows.cpu().numpy())

    def _settle(self, which: Tensor, precision: Precision) -> Tensor:
        """Answer queries from candidates; (q,) whether the answer is certain."""
        kept = min(self.k + spare(self.k, precision), len(self.base))
        tiles = self._tiles(which)
        asked = [self.queries[tile] for tile in tiles]
        best = [_best(len(tile), kept, which.device) for tile in tiles]
        error = torch.zeros(len(which), dtype=torch.float64, device=which.device)
        bounds, grain = None, 0.0
        for start, block in self.base.blocks(len(which), self.queries.shape[1], precision):
            if bounds != (block.longest, block.rounded):
                bounds, grain = (block.longest, block.rounded), block.grain
                error = torch.maximum(error, block.error(self.queries[which], self.norms[which]))
            for queries, tile, part in zip(asked, tiles, best, strict=True):
                part.add(self._without_self(block.scores(queries), tile, start), start)
        for part in best:
            part.finish()
        rough, rows = torch.cat([part.values for part in best]), torch.cat([part.rows for part in best])
        exact = score_rows(self.queries[which], self.base, rows.clamp_min(0)).float()
        exact = exact.masked_fill(torch.isneginf(rough), -torch.inf)  # the query itself
        self._answer(which, keys_of(exact, rows.clamp_min(0)))
        if kept >= len(self.base) - (self.self_rows is not None):
            return torch.ones_like(which, dtype=torch.bool)
        floor = torch.cat([part.floor for part in best]).double()
        left_out = floor + grain * floor.abs() + error  # nothing that was left out is above
        return self._rough(which, self.scores[which, -1].double()) > left_out

    def _decide(self, which: Tensor) -> None:
        """Answer queries by products in float64."""
        if _is_wide(self.k, self.base):
            self._decide_from_all(which)
            return
        tiles = self._tiles(which)
        best = [torch.empty((len(tile), 0), dtype=torch.int64, device=which.device) for tile in tiles]
        for start, block in self.base.blocks(len(which), self.queries.shape[1], "float64"):
            for number, tile in enumerate(tiles):
                scores = self._final(block.scores(self.queries[tile]), tile, start).float()
                rows = torch.arange(start, start + scores.shape[1], device=scores.device)
                keys = first_keys(keys_of(self._without_self(scores, tile, start), rows), self.k)
                best[number] = first_keys(torch.cat([best[number], keys], 1), self.k)
        self._answer(which, torch.cat(best))

    def _decide_from_all(self, which: Tensor) -> None:
        """Answer queries that ask for much of the base: select from all scores of so many queries, held at once."""
        height, dim = min(len(which), max(1, WHOLE // len(self.base))), self.queries.shape[1]
        room = torch.empty((height, len(self.base)), device=which.device)
        kept = list(self.base.blocks(height, dim, "float64")) if len(self.base) * dim <= WHOLE else None
        found = [
            self._from_all(part, room[: len(part)], kept or self.base.blocks(height, dim, "float64"))
            for part in torch.split(which, height)
        ]
        self.scores[which], self.rows[which] = (torch.cat(parts) for parts in zip(*found, strict=True))

    def _from_all(self, which: Tensor, scores: Tensor, blocks: Iterable[tuple[int, Block]]) -> tuple[Tensor, Tensor]:
        """Scores and rows (q, k), from the blocks of the base, by way of all scores (q, n)."""
        for start, block in blocks:
            first = 0
            for tile in self._tiles(which):
                found = self._final(block.scores(self.queries[tile]), tile, start)
                scores[first : first + len(tile), start : start + found.shape[1]] = found
                first += len(tile)
        return largest(self._without_self(scores, which, 0), self.k)

    def _answer(self, which: Tensor, keys: Tensor) -> None:
        self.scores[which], self.rows[which] = from_keys(in_order(keys)[:, : self.k])

    def _tiles(self, which: Tensor) -> list[Tensor]:
        """The queries in parts of much the same size."""
        return list(torch.tensor_split(which, max(1, -(-len(which) // tile_of(which.device.type)))))

    def _without_self(self, scores: Tensor, which: Tensor, start: int) -> Tensor:
        if self.self_rows is not None:
            column = self.self_rows[which] - start
            here = ((column >= 0) & (column < scores.shape[1])).nonzero()[:, 0]
            scores[here, column[here]] = -torch.inf
        return scores

    def _rough(self, which: Tensor, scores: Tensor) -> Tensor:
        """Final scores (q,) as a product would have given them, to be compared with what was left out."""
        if self.base.metric == "euclidean":
            return (self.norms[which].square() - scores.square() * (1 + 4 * ROUNDING)) / 2
        return scores * self.norms[which] if self.base.metric == "cosine" else scores

    def _least(self, scores: Tensor) -> Tensor:
        """What a product is at least, if its final score, once rounded, is that of a product (q,)."""
        if self.base.metric == "euclidean":
            return scores - (self.norms.square() - 2 * scores).clamp_min(0) * (4 * ROUNDING)
        return scores

    def _final(self, products: Tensor, which: Tensor, start: int) -> Tensor:
        """Scores (q, n), larger is nearer, from products in float64 with rows start, start + 1, …"""
        own = self.norms[which, None]
        if self.base.metric == "cosine":
            return products.div_(own.clamp_min(TINY))
        if self.base.metric == "inner_product":
            return products
        squares = own.square() - 2 * products
        query, row = (squares < NEAR * own.square()).nonzero(as_tuple=True)  # small differences of large numbers
        near = score_rows(self.queries[which[query]], self.base, (start + row)[:, None])[:, 0]
        return (-squares.clamp_min(0).sqrt()).index_put((query, row), near)


def score_rows(queries: Tensor, base: Base, rows: Tensor) -> Tensor:
    """Scores (q, k) in float64, on the base's device, of base rows (q, k), larger is nearer: inner product, cosine, or minus
    the distance."""
    queries, rows = queries.to(base.device), rows.to(base.device)
    step = max(1, RESCORED[queries.device.type] // (rows.shape[1] * queries.shape[1]))
    # Made at once: small results between large vectors that come and go would leave the heap full of holes, gigabytes of them.
    found = torch.empty(rows.shape, dtype=torch.float64, device=queries.device)
    for some, asked, scores in zip(*(torch.split(each, step) for each in (queries, rows, found)), strict=True):
        vectors = base.take(asked.flatten()).double().reshape(*asked.shape, queries.shape[1])
        exact = some.double()
        if base.metric == "euclidean":
            scores.copy_(-torch.linalg.vector_norm(vectors - exact[:, None], dim=2))
            continue
        products = torch.bmm(vectors, exact[:, :, None])[:, :, 0]
        if base.metric == "cosine":
            both = torch.linalg.vector_norm(vectors, dim=2) * lengths(exact)[:, None]
            products = products / both.clamp_min(TINY)
        scores.copy_(products)
    return found
