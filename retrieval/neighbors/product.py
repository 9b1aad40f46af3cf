"""Scores of queries against a block of the base by matrix product, at a stated precision, with a bound on their error.

A score is what a metric ranks by, larger is nearer:
inner_product   q·x
cosine          q·x/‖x‖            (the length of the query changes no ranking)
euclidean       q·x − ‖x‖²/2       = (‖q‖² − ‖q − x‖²)/2
"""

from copy import copy
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from retrieval.errors import UserError

Precision = Literal["bfloat16", "float32", "float64"]
ROUNDING = 2.0**-24  # unit roundoff of float32
HALF_ROUNDING = 2.0**-8  # of bfloat16, of a number and of what it came from, whichever is larger


class Block:
    """Some rows of the base, made ready for one precision.

    rows: (n, d) float32 on the device where the product is to be. norms: (n,) their lengths. tile: how many queries will
    come at a time, if they come more than once.
    """

    def __init__(self, rows: Tensor, norms: Tensor, metric: str, precision: Precision, tile: int) -> None:
        self.precision = precision
        exact = rows
        if precision == "float64":
            exact = rows.double()
            norms = torch.linalg.vector_norm(exact, dim=1)
        if metric == "cosine":
            exact = exact / norms.clamp_min(torch.finfo(exact.dtype).tiny)[:, None]
            norms = (norms > 0).to(norms)
        self.bias = -norms.square() / 2 if metric == "euclidean" else None
        self.longest = float(norms.max())
        if not isfinite(self.longest):
            raise UserError("the vectors hold NaN, infinite or huge values; find and remove them")
        self.table, self.rounded = exact, 0.0
        if precision == "float32" and tile and _has_onednn(exact):
            self.table = torch.ops.mkldnn._reorder_linear_weight(exact.contiguous(), tile)
        if precision == "bfloat16":
            self.table = exact.bfloat16()
            self.rounded = float(torch.linalg.vector_norm(exact - self.table, dim=1).max())

    @classmethod
    def joined(cls, parts: "list[Block]", table: Tensor) -> "Block":
        """One block of several whose rows stand one after the other in `table`."""
        found = copy(parts[0])
        found.table = table
        found.longest, found.rounded = max(p.longest for p in parts), max(p.rounded for p in parts)
        found.bias = None if found.bias is None else torch.cat([p.bias for p in parts if p.bias is not None])
        return found

    def part(self, rows: slice) -> "Block":
        """Some of its rows, with the bounds of all."""
        found = copy(self)
        found.table, found.bias = self.table[rows], None if self.bias is None else self.bias[rows]
        return found

    @property
    def grain(self) -> float:
        """How much of itself a score may have lost when it was written down, beyond `error`.

        Scores in bfloat16 are half the bytes, and bytes are what a GPU's search is short of; biased ones would lose too much.
        """
        return HALF_ROUNDING if self.precision == "bfloat16" and self.bias is None else 0.0

    def scores(self, queries: Tensor) -> Tensor:
        """(q, n) for queries (q, d) float32; float64 ones are not rounded."""
        if self.precision == "float32":
            return linear(queries, self.table, self.bias)
        if self.precision == "float64":
            found = queries.double() @ self.table.T
        else:
            found = _half_product(queries.bfloat16(), self.table, torch.bfloat16 if self.grain else torch.float32)
        return found if self.bias is None else found.add_(self.bias)

    def error(self, queries: Tensor, lengths: Tensor) -> Tensor:
        """(q,) float64, for queries (q, d) of these lengths (q,): no score differs by more from the true one.

        A sum of d products in float32, in any order, is within d·2⁻²⁴·‖q‖‖x‖ to first order (Higham, Accuracy and Stability
        of Numerical Algorithms, §3.1); the additions are for norms, bias and the rounding of the true score. Rounding the
        factors to bfloat16 adds ‖q − q̂‖‖x‖ + ‖q̂‖‖x − x̂‖, taken as it is and not by its bound.
        """
        size = lengths if self.bias is None else lengths + self.longest
        bound = (queries.shape[1] + 8) * ROUNDING * 1.01 * size * self.longest
        if self.precision == "bfloat16":
            short = queries.bfloat16().double()
            bound += torch.linalg.vector_norm(queries.double() - short, dim=1) * self.longest
            bound += torch.linalg.vector_norm(short, dim=1) * self.rounded
        return bound


def linear(queries: Tensor, table: Tensor, bias: Tensor | None = None) -> Tensor:
    """queries (q, d) · tableᵀ (d, n) + bias (n,), in float32, by the fastest product of this processor."""
    if _has_onednn(queries):
        scores: Tensor = torch.ops.mkldnn._linear_pointwise(queries, table, bias, "none", [], "")
        return scores
    return torch.nn.functional.linear(queries, table, bias)


def _has_onednn(tensor: Tensor) -> bool:
    """oneDNN's own kernels: as fast as MKL's on Intel processors and twice as fast on AMD's, where MKL holds back."""
    return tensor.device.type == "cpu" and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _half_product(queries: Tensor, table: Tensor, kind: torch.dtype) -> Tensor:
    """Sums in float32, rounded once if `kind` is bfloat16."""
    if not queries.is_cuda:  # the processor's own product of bfloat16 may add up in less
        return (queries.float() @ table.float().T).to(kind)
    return queries @ table.T if kind == queries.dtype else torch.mm(queries, table.T, out_dtype=kind)
