"""Embeddings of past batches as further negatives: cross-batch memory (XBM, Wang et al., CVPR 2020), MoCHi's queue."""

import torch
from torch import Tensor

from . import gather
from .tasks import UNKNOWN, Extra

PARTS = ("rows", "labels", "items")


class Memory:
    """The last `size` positives' embeddings, without gradient, with their labels and identities where known."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._rows: Tensor | None = None
        self._labels: Tensor | None = None
        self._items: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self._rows is None else len(self._rows)

    def past(self, labels: Tensor | None, items: Tensor | None) -> Extra | None:
        """What is remembered, with labels and identities if this batch has them; None while empty."""
        if self._rows is None:
            return None
        return Extra(
            self._rows,
            labels=self._labels if labels is not None else None,
            items=self._items if items is not None else None,
        )

    @torch.no_grad()
    def add(self, positive: Tensor, labels: Tensor | None, items: Tensor | None) -> None:
        """Remember a batch: positive (B, d) or (M, B, d) unit; labels (B,); items ((1 + M)·B,)."""
        views = positive if positive.ndim == 3 else positive[None]
        rows = views.flatten(0, 1)
        unknown = torch.full((len(rows),), UNKNOWN, device=rows.device)
        own = (
            rows,
            unknown if labels is None else labels.repeat(len(views)),
            unknown if items is None else items[-len(rows) :],
        )
        new = [gather.rows(x) for x in own]
        old = (self._rows, self._labels, self._items)
        self._rows, self._labels, self._items = (
            (n if o is None else torch.cat([o, n]))[-self.size :] for o, n in zip(old, new, strict=True)
        )

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint; empty while nothing is remembered."""
        held = (self._rows, self._labels, self._items)
        return {f"memory.{n}": x.clone() for n, x in zip(PARTS, held, strict=True) if x is not None}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._rows, self._labels, self._items = (state.get(f"memory.{name}") for name in PARTS)
