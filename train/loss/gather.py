"""Rows of all processes: with gradients for embeddings, so that every anchor meets every candidate."""

import torch
from torch import Tensor, distributed

from .tasks import Known


def world() -> tuple[int, int]:
    """(rank, processes); (0, 1) where torch.distributed is not set up."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def rows(x: Tensor) -> Tensor:
    """(n, …) of every process, one after the other in order of rank: (Σ n, …). The processes' n may differ."""
    _, processes = world()
    if processes == 1:
        return x
    counts = _counts(len(x), x.device)
    padded = torch.cat([x, x.new_zeros(max(counts) - len(x), *x.shape[1:])]).contiguous()
    if x.requires_grad:
        import torch.distributed.nn.functional as differentiable

        parts = differentiable.all_gather(padded)  # type: ignore[no-untyped-call]
    else:
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


def _counts(count: int, device: torch.device) -> list[int]:
    _, processes = world()
    found = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(processes)]
    distributed.all_gather(found, torch.tensor([count], device=device))
    return [int(n) for n in torch.cat(found).tolist()]


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
        return None if x is None else rows(x.transpose(0, 1).contiguous()).transpose(0, 1)

    views = by_view(here.views)
    assert views is not None
    labels = None if here.labels is None else rows(here.labels)
    return Known(views, labels, by_view(here.items), by_view(here.guide)), sum(counts[:rank]), share
