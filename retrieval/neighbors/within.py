"""All neighbours within a distance, or above a similarity: exact, for as many as there are."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retrieval.errors import UserError

from .base import Base, Floats, Ints, Vectors, lengths, require_alike, take, tile_of
from .exact import TINY, score_rows
from .product import Precision

RESCORED_PAIRS = 2**16


@dataclass(frozen=True)
class Within:
    """What lies within the radius of each query, nearest first: `rows[starts[i] : starts[i + 1]]` of query i."""

    scores: Floats
    rows: Ints
    starts: Ints


def exact_within(queries: Vectors, base: Base, radius: float) -> Within:
    """All rows whose inner product or cosine is at least `radius`, or by the metric "euclidean" whose distance is at most.

    queries: (q, d). Products in float32 find what may be within, by their error bound; float64 decides. Raises UserError for queries
    that do not fit the base.
    """
    if not isinstance(base, Base):
        raise UserError('the base: make it one by Base(vectors, "inner_product"), or by another metric')
    require_alike(queries, base)
    precision: Precision = "float32"
    found: list[tuple[Tensor, Tensor, Tensor]] = []  # query, row, score
    whole = take(queries, slice(0, len(queries))).to(base.device)
    norms = lengths(whole.double())
    for start, block in (
        base.blocks(max(1, len(whole)), whole.shape[1] if len(whole) else 1, precision) if len(whole) else ()
    ):
        for tile in torch.split(torch.arange(len(whole), device=whole.device), tile_of(base.device.type)):
            least = _least(base.metric, radius, norms[tile]) - block.error(whole[tile], norms[tile])
            query, column = (block.scores(whole[tile]).double() >= least[:, None]).nonzero(as_tuple=True)
            for part in torch.split(torch.arange(len(query), device=whole.device), RESCORED_PAIRS):
                rows = column[part] + start
                scores = score_rows(whole[tile[query[part]]], base, rows[:, None])[:, 0].float()
                kept = scores >= (-radius if base.metric == "euclidean" else radius)
                found.append((tile[query[part]][kept], rows[kept], scores[kept]))
    if not found:
        return Within(np.empty(0, np.float32), np.empty(0, np.int64), np.zeros(len(queries) + 1, np.int64))
    queries_of, rows_of, scores_of = (np.asarray(torch.cat(parts).cpu()) for parts in zip(*found, strict=True))
    order = np.lexsort((rows_of, -scores_of, queries_of))
    starts = np.concatenate([[0], np.cumsum(np.bincount(queries_of, minlength=len(queries)))])
    nearest = scores_of[order]
    return Within(np.abs(nearest) if base.metric == "euclidean" else nearest, rows_of[order], starts)


def _least(metric: str, radius: float, norms: Tensor) -> Tensor:
    """The radius as a product would give it; see product.py."""
    if metric == "euclidean":
        return (norms.square() - radius * radius * (1 + 1e-6)) / 2
    slack = 1e-6 * abs(radius) + TINY  # scores are rounded to float32 before they are compared
    return (radius - slack) * (norms if metric == "cosine" else torch.ones_like(norms))
