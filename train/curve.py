"""The training curve: one plain dictionary a step."""

import torch
from torch import Tensor

from retrieval.errors import UserError

from .loss import Diagnostics

FEW = 8  # effective negatives, below which a gradient is the noise of a few items
LOOK = 10
SOME, RISEN = 10, 1.5  # steps, and by how much a loss grows, before that is said
Curve = list[dict[str, float]]


def record(curve: Curve, loss: Tensor, diagnostics: Diagnostics | None) -> None:
    """Append a step, with the diagnostics of the one before where it was not looked at. Raises UserError if the loss is not
    finite, since every later step would be lost work."""
    value = float(loss.detach())
    if value != value or value in (float("inf"), float("-inf")):
        raise UserError(
            f"step {len(curve) + 1}: the loss is {value}; lower --lr, and look for NaN in the data or the encoder"
        )
    seen = curve[-1] if diagnostics is None else diagnostics._asdict()
    told = {"step": float(len(curve) + 1), "loss": value}
    curve.append(told | seen | told)  # which come first, and are not those of the step before


def looked_at(step: int, device: torch.device) -> bool:
    """Whether a step's batch is observed. On a GPU looking takes as long as the loss of a small batch, so every tenth is."""
    return device.type == "cpu" or step % LOOK == 0


def ends(curve: Curve) -> tuple[float, float]:
    """The mean loss of the first and of the last tenth of the steps."""
    tenth = max(1, len(curve) // 10)
    first, last = (sum(step["loss"] for step in part) / tenth for part in (curve[:tenth], curve[-tenth:]))
    return first, last


def warnings(curve: Curve) -> list[str]:
    """What the last tenth of a curve says is wrong with the setting, each with its remedy."""
    tail = curve[-max(1, len(curve) // 10) :]
    if not tail:
        return []
    found = []
    floor = sum(step["floor"] for step in tail) / len(tail)
    ess = sum(step["ess"] for step in tail) / len(tail)
    negatives = sum(step["negatives"] for step in tail) / len(tail)
    if floor > 0.2:
        found.append(
            f"{floor:.0%} of anchors sit on the debiasing floor and learn nothing from negatives; lower --tau-plus"
        )
    if not negatives:
        found.append("anchors have no negatives: all texts of a batch are equal, or of one class; look at the data")
    first, last = ends(curve)
    if len(curve) >= SOME and last > RISEN * max(first, 0.1):
        found.append(f"the loss has risen from {first:.3f} to {last:.3f}; lower --lr")
    if 0 < ess < FEW:
        fewer = ess < negatives / 2
        found.append(
            f"each anchor effectively sees {ess:.1f} of {negatives:.0f} negatives; lower --kappa (or --beta), or raise --ess or --temperature"
            if fewer
            else f"each anchor has only {negatives:.0f} negatives; raise --batch-size, or give more data"
        )
    return found
