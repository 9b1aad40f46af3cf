"""The mean loss of a task as one differentiable step, by whichever way of summing fits the device.

The upstream gradient of a mean is one number, so gradients can be taken while logits are at hand, and backward only scales
(the idea of fused linear cross-entropies, as in Liger Kernel).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .blocks import Setting, sum_blocks
from .mix import Recipe
from .tasks import Task
from .tiles import sum_tiles, usable


def mean_loss(
    task: Task,
    temperature: Tensor,
    bias: Tensor,
    setting: Setting,
    recipe: Recipe | None,
    block_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The mean loss of a task's anchors, differentiable in its embeddings, temperature () and bias (), and the floor rate."""
    found: tuple[Tensor, Tensor] = _FusedMean.apply(  # type: ignore[no-untyped-call]
        task.anchors, task.candidates, 1 / temperature, bias, task, setting, recipe, block_rows
    )
    return found


class _FusedMean(torch.autograd.Function):
    """One differentiable step: forward takes the gradients too, backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        candidates: Tensor,
        sharpness: Tensor,
        bias: Tensor,
        task: Task,
        setting: Setting,
        recipe: Recipe | None,
        block_rows: int | None,
    ) -> tuple[Tensor, Tensor]:
        gradient = any(ctx.needs_input_grad)
        if usable(task, setting, recipe):
            with torch.cuda.device_of(task.anchors):  # type: ignore[no-untyped-call] # Triton launches on the current device
                found = sum_tiles(task, setting, gradient)
        else:
            found = sum_blocks(task, setting, recipe, gradient, block_rows)
        if gradient:
            ctx.save_for_backward(found.anchors, found.candidates, found.sharpness, found.bias)
        ctx.mark_non_differentiable(found.on_floor)
        return found.loss, found.on_floor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        found = (None if gradient is None else gradient * to_loss for gradient in ctx.saved_tensors)
        return (*found, None, None, None, None)
