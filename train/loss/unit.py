"""Rows of unit length, whose gradient is taken from the rows as they came: no copy of them is kept for it."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST = 1e-12  # what a shorter row is divided by, as torch's `normalize` has it
PART = 2**13  # rows that the gradient is taken of at a time


def unit(x: Tensor) -> Tensor:
    """x (…, d) over its length, in at least float32."""
    found: Tensor = _Unit.apply(x)  # type: ignore[no-untyped-call]
    return found


def lengths(x: Tensor) -> Tensor:
    """(…, 1) what the rows of x (…, d) are divided by, in at least float32."""
    found: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return found.clamp_min_(LEAST)


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        divisors = lengths(x)
        ctx.save_for_backward(x, divisors)
        found: Tensor = x / divisors
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_unit: Tensor) -> Tensor:
        """(g − (g·u) u) over the length, u being the unit row; of a row that is too short, g over `LEAST`."""
        x, divisors = ctx.saved_tensors
        found = torch.empty_like(x, memory_format=torch.contiguous_format)
        flat = (found.flatten(0, -2), *(each.flatten(0, -2) for each in (x, divisors, to_unit)))
        for into, some, divisor, gradient in zip(*(each.split(PART) for each in flat), strict=True):
            direction = some / divisor
            along = (gradient * direction).sum(-1, keepdim=True).mul_(divisor > LEAST)
            into.copy_(gradient.addcmul(along, direction, value=-1).div_(divisor))
        return found
