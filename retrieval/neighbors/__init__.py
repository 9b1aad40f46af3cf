"""Exact nearest neighbours: the ground truth of mining, evaluation, index tuning and flat search.

    base.py, a block at a time → product.py: scores, and how wrong they can be → select.py (on a GPU collect.py): the best so
    far of each query → exact.py: candidates scored again in float64; queries that the error could have deceived go to the
    next precision

The answer is the same for any device, batch size and blocks: neighbours are ordered by their score, computed in float64 and
rounded to float32, and equal scores by row number.
"""

from .base import Base, Floats, Ints
from .exact import Neighbors, exact_neighbors, neighbor_tiles, score_rows, without
from .within import Within, exact_within

__all__ = [
    "Base",
    "Floats",
    "Ints",
    "Neighbors",
    "Within",
    "exact_within",
    "exact_neighbors",
    "neighbor_tiles",
    "score_rows",
    "without",
]
