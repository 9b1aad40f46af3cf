"""What a loss sees in a batch, as plain numbers that steer the choice of hardness."""

from typing import NamedTuple

import torch
from torch import Tensor

from .blocks import Block, Setting, Tilted, block_logits, log_weights, tilt
from .tasks import Task
from .weights import effective_sample_size

OBSERVED_ANCHORS = 64
SAMPLED_COSINES = 4096


class Diagnostics(NamedTuple):
    """Of 64 anchors of one batch; cosines, shares and counts.

    beta, kappa, temperature, tau_plus: as used in this step. negatives: how many an anchor has, in the mean. ess: median effective sample size (Σw)²/Σw² of the negatives'
    weights. floor: share of all anchors whose negative term sits on the debiasing floor, so that no gradient reaches their
    negatives. attracted: share of negatives that the gradient through the weights pulls *nearer*. positive, negative: mean
    cosines; negative_q50, negative_q99: quantiles of the negatives'. false_negatives: share of negatives that have the
    anchor's label, where labels are known and not masked, else 0.
    """

    beta: float
    kappa: float
    temperature: float
    tau_plus: float
    negatives: float
    ess: float
    floor: float
    attracted: float
    positive: float
    negative: float
    negative_q50: float
    negative_q99: float
    false_negatives: float


@torch.no_grad()
def observe(task: Task, setting: Setting, on_floor: Tensor) -> Diagnostics:
    """Look at some of the anchors of a task."""
    at = some_anchors(len(task.anchors))
    block = block_logits(task, at, setting)
    t = setting.temperature
    negatives = block.z > -torch.inf
    ess = effective_sample_size(log_weights(task, block.z, at, setting))
    ess = ess.where(block.negatives > 0, torch.nan).nanmedian().nan_to_num(0.0)
    total = block.negatives.sum().clamp(min=1)
    cosines = setting.cosines(block.z)
    mean = cosines.where(negatives, 0.0).sum() / total
    false = block.z.new_zeros(())
    if task.labels is not None:
        false = ((task.labels[0][at, None] == task.labels[1]) & negatives).sum() / total
    quantiles = _quantiles(cosines.where(negatives, torch.nan))
    positive = setting.cosines(block.z_pos).mean()
    attracted = _attracted(tilt(task, block, at, setting), setting, total)
    count = block.negatives.to(mean.dtype).mean()
    seen = [count, ess, on_floor, attracted, positive, mean, *quantiles, false.to(mean.dtype)]
    found = torch.stack(seen).tolist()  # the one place where a GPU is waited for
    return Diagnostics(setting.beta, setting.beta / t, t, setting.tau_plus, *found)


def some_anchors(count: int) -> slice:
    """At most 64 of them, evenly spaced, so that every view has its share."""
    return slice(None, None, -(-count // OBSERVED_ANCHORS))


def _quantiles(cosines: Tensor) -> Tensor:
    """Median and 99th percentile of an even sample; NaN are none."""
    sample = cosines.flatten()[:: max(1, cosines.numel() // SAMPLED_COSINES) | 1]  # odd, so that no column is left out
    return torch.nanquantile(sample, sample.new_tensor([0.5, 0.99])).nan_to_num(0.0)


def _attracted(tilted: Tilted, setting: Setting, total: Tensor) -> Tensor:
    """Share of negatives j with (1+β) p_j < β q_j: their logit's gradient is negative."""
    if tilted.weights is None or tilted.weights_sum is None:
        return tilted.lse.new_zeros(())
    pull = setting.beta * tilted.weights / tilted.weights_sum[:, None]
    push = (1 + setting.beta) * tilted.weighed / tilted.weighed_sum[:, None]
    return (push < pull).sum() / total


def observed_logits(task: Task, setting: Setting) -> Block:
    """The masked logits by which an effective-sample-size target is solved."""
    with torch.no_grad():
        return block_logits(task, some_anchors(len(task.anchors)), setting)
