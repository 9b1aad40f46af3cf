"""Embeddings of past batches as further negatives: cross-batch memory (XBM, Wang et al., CVPR 2020), MoCHi's queue."""

import torch
from torch import Tensor, nn

from . import gather
from .tasks import UNKNOWN, Extra

PARTS = ("rows", "labels", "codes")


class Memory(nn.Module):
    """The last `size` positives' embeddings, without gradient, with their labels and codes where known.

    A code names an item once and for all; which items have one identity differs from batch to batch. What is remembered is part of
    `state_dict`, and moves with the loss.
    """

    _rows: Tensor | None
    _labels: Tensor | None
    _codes: Tensor | None

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        for name in PARTS:  # apart from state_dict's tensors, whose shapes must not change
            self.register_buffer(f"_{name}", None, persistent=False)

    def __len__(self) -> int:
        return 0 if self._rows is None else len(self._rows)

    def past(self, labels: Tensor | None, items: Tensor | None, codes: Tensor | None) -> Extra | None:
        """What is remembered, with labels and identities if this batch has them; None while empty.

        items, codes: ((1 + M)·B,) of this batch. What stands in it too has the identity that it has there.
        """
        if self._rows is None:
            return None
        identities = None
        if items is not None and codes is not None:
            assert self._codes is not None
            known, order = gather.rows(codes).sort()
            place = torch.searchsorted(known, self._codes).clamp(max=len(known) - 1)
            identities = torch.where(known[place] == self._codes, gather.rows(items)[order[place]], self._codes)
        return Extra(self._rows, labels=self._labels if labels is not None else None, items=identities)

    @torch.no_grad()
    def add(self, positive: Tensor, labels: Tensor | None, codes: Tensor | None) -> None:
        """Remember a batch: positive (B, d) or (M, B, d) unit; labels (B,); codes ((1 + M)·B,)."""
        views = positive if positive.ndim == 3 else positive[None]
        rows = views.flatten(0, 1)
        unknown = torch.full((len(rows),), UNKNOWN, device=rows.device)
        own = (
            rows,
            unknown if labels is None else labels.repeat(len(views)),
            unknown if codes is None else codes[-len(rows) :],
        )
        new = [gather.rows(x) for x in own]
        old = (self._rows, self._labels, self._codes)
        self._rows, self._labels, self._codes = (
            (n if o is None else torch.cat([o, n]))[-self.size :] for o, n in zip(old, new, strict=True)
        )

    def get_extra_state(self) -> dict[str, Tensor]:
        """For a checkpoint; empty while nothing is remembered."""
        held = (self._rows, self._labels, self._codes)
        return {f"memory.{n}": x.clone() for n, x in zip(PARTS, held, strict=True) if x is not None}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        self._rows, self._labels, self._codes = (state.get(f"memory.{name}") for name in PARTS)
