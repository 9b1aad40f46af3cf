"""Scores of queries against a block of the base by matrix product, at a stated precision, with a bound on their error.

A score is what a metric ranks by, larger is nearer:
inner_product   q·x
cosine          q·x/‖x‖            (the length of the query changes no ranking)
euclidean       q·x − ‖x‖²/2       = (‖q‖² − ‖q − x‖²)/2
"""

from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from retrieval.errors import UserError

Precision = Literal["bfloat16", "float32", "float64"]
ROUNDING = 2.0**-24  # unit roundoff of float32


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

    def scores(self, queries: Tensor) -> Tensor:
        """(q, n) for queries (q, d) float32; float64 ones are not rounded."""
        if self.precision == "float64":
            found = queries.double() @ self.table.T
        elif self.precision == "bfloat16":
            found = _half_product(queries.bfloat16(), self.table)
        else:
            return linear(queries, self.table, self.bias)
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


def _half_product(queries: Tensor, table: Tensor) -> Tensor:
    if queries.is_cuda:
        return torch.mm(queries, table.T, out_dtype=torch.float32)
    return queries.float() @ table.float().T  # the same values; the processor's own bfloat16 product rounds its result
