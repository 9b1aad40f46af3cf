"""Rows of all processes: with gradients for embeddings, so that every anchor meets every candidate."""

from typing import Any

import torch
from torch import Tensor, distributed

from .tasks import Known


def world() -> tuple[int, int]:
    """(rank, processes); (0, 1) where torch.distributed is not set up."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def rows(x: Tensor, counts: list[int] | None = None) -> Tensor:
    """(n, …) of every process, one after the other in order of rank: (Σ n, …). counts: their n, asked for if not given."""
    if world()[1] == 1:
        return x
    found: Tensor = _AllGather.apply(x, counts or _counts(len(x), x.device))  # type: ignore[no-untyped-call]
    return found


class _AllGather(torch.autograd.Function):
    """The gradient of a row is the sum of what every process has for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padded = torch.cat([x, x.new_zeros(max(counts) - len(x), *x.shape[1:])]).contiguous()
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rank, _ = world()
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient)
        return torch.split(gradient, ctx.counts)[rank], None


def _counts(count: int, device: torch.device) -> list[int]:
    found = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world()[1])]
    distributed.all_gather(found, torch.tensor([count], device=device))
    return [int(n) for n in torch.cat(found).tolist()]


def shared(parameter: Tensor) -> Tensor:
    """A parameter of the loss that all processes have alike; its gradient becomes the mean of theirs, as DDP does it."""
    if world()[1] == 1:
        return parameter
    found: Tensor = _Shared.apply(parameter)  # type: ignore[no-untyped-call]
    return found


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor) -> Tensor:
        return parameter.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        distributed.all_reduce(gradient)
        return gradient / world()[1]


def agreed_seed(device: torch.device) -> int:
    """A random seed from torch's own state on the first process, the same on all."""
    seed = torch.randint(2**62, (1,))
    if world()[1] > 1:
        seed = seed.to(device)
        distributed.broadcast(seed, 0)
    return int(seed)


def everywhere(here: Known) -> tuple[Known, int, float]:
    """The same of all processes together; the number there of our first pair; and what to multiply our mean by.

    DDP averages gradients over processes, so a process with more pairs than others must weigh more: B · processes / Σ B.
    """
    rank, processes = world()
    if processes == 1:
        return here, 0, 1.0
    pairs = here.views.shape[1]
    counts = _counts(pairs, here.views.device)
    share = pairs * processes / sum(counts)

    def by_view(x: Tensor | None) -> Tensor | None:
        return None if x is None else rows(x.transpose(0, 1).contiguous(), counts).transpose(0, 1)

    views = by_view(here.views)
    assert views is not None
    labels = None if here.labels is None else rows(here.labels, counts)
    known = Known(views, labels, by_view(here.items), by_view(here.guide), by_view(here.raw))
    return known, sum(counts[:rank]), share
