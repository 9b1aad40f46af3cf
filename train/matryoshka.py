"""Embeddings whose first dimensions are embeddings too: Matryoshka representation learning (Kusupati et al., NeurIPS 2022)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from retrieval.errors import UserError

from .loss import LossConfig


def nested(loss: Callable[..., Tensor], dims: Sequence[int], anchor: Tensor, positive: Tensor, **known: Any) -> Tensor:
    """The mean of the losses of the first d dimensions, for each d of `dims` and all of them (equation 1 there, weights alike).

    anchor, positive, and in `known`, which holds what else the loss takes, negative: (…, D). The whole comes last, so that what
    the loss observes is what it sees there.
    """
    sizes = [*(d for d in dims if d < anchor.shape[-1]), anchor.shape[-1]]
    negative = known.pop("negative", None)

    def first(x: Tensor | None, d: int) -> Tensor | None:
        return x if x is None or d == x.shape[-1] else x[..., :d]

    losses = [loss(first(anchor, d), first(positive, d), first(negative, d), **known) for d in sizes]
    return torch.stack(losses).mean() if len(losses) > 1 else losses[0]


def check_dims(dims: Sequence[int], dim: int, config: LossConfig) -> None:
    """Raise UserError for dimensions that the encoder does not have, or a loss that remembers embeddings of one size."""
    for d in dims:
        if not 0 < d <= dim:
            raise UserError(f"--dims {d}: the encoder has {dim} dimensions; give fewer")
    if dims and config.memory:
        raise UserError(f"--dims: {config.name} remembers whole embeddings; use a loss without memory")
