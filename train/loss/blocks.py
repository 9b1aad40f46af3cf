"""The loss a block of anchors at a time, forward and backward in one pass: memory O(batch · dim), same value and gradient.

Two log-sum-exps a row are all that the family needs, so a block of logits is made, used and dropped, its gradient taken while it
is at hand: three matrix products in all, none of them twice. On any device; `tiles.py` is faster where it can be used.

Letters: r anchors of the block, C candidates, d dimensions, P positives of the block's anchors together.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .config import LossConfig
from .mix import Recipe, mixed_negatives
from .rows import row_losses, softplus
from .tasks import UNKNOWN, Task
from .weights import Additive, Exp, Uniform

BLOCK_SCORES = 2**20  # logits of a block: 4 MiB in float32, about what a core's cache holds
BLOCK_ROWS = 64  # at least, for the matrix products' sake


@dataclass(frozen=True)
class Setting:
    """A loss at one step: numbers, no schedules. beta: of the exponential weights, 0 if there are none. learned: whether the
    temperature has a gradient."""

    config: LossConfig
    temperature: float
    tau_plus: float
    beta: float
    bias: float = 0.0
    learned: bool = False

    @property
    def follows(self) -> bool:
        """Whether β follows a temperature that learns, as where κ is set: the weights e^{κ cos} do not depend on it."""
        how = self.config.weights
        return self.learned and self.beta > 0 and isinstance(how, Exp) and how.beta is None

    @property
    def through(self) -> bool:
        """Whether gradients go through the weights."""
        return isinstance(self.config.weights, Exp) and not self.config.weights.detach

    @property
    def detached(self) -> "Setting":
        """The same with exponential weights that are constants in the gradient."""
        assert isinstance(self.config.weights, Exp)
        return replace(self, config=replace(self.config, weights=replace(self.config.weights, detach=True)))

    def cosines(self, z: Tensor) -> Tensor:
        """Back from logits."""
        return (z - self.bias) * self.temperature


class Block(NamedTuple):
    """Some anchors of a task and their logits z (r, C), −inf where a candidate is no negative.

    negatives: (r,) how many are. z_pos, owner, column: (P,) the positives' logits, rows and columns.
    """

    z: Tensor
    negatives: Tensor
    z_pos: Tensor
    owner: Tensor
    column: Tensor


def block_logits(task: Task, at: slice, setting: Setting, room: Tensor | None = None) -> Block:
    """Logits of the anchors in `at`, positives taken out, everything that is no negative masked. room: (r, C) to use."""
    anchors, candidates = task.anchors[at].detach(), task.candidates.detach()
    z = anchors.new_empty(len(anchors), len(candidates)) if room is None else room
    # 1/t multiplies within the product, once it is summed: anchors over t would round every term at t = 2e-4.
    torch.addmm(z, anchors, candidates.T, beta=0, alpha=1 / setting.temperature, out=z)
    if setting.bias:
        z += setting.bias
    rows = torch.arange(len(z), device=z.device)
    partners = task.partners[at]
    own = None if task.own is None else (rows, task.own[at])
    excluded = None
    if setting.config.label_mask and task.labels is not None:
        excluded = task.labels[0][at, None] == task.labels[1]
        if own is not None:
            excluded[own] = False
        owner, column = excluded.nonzero(as_tuple=True)
    else:
        owner, column = rows.repeat_interleave(partners.shape[1]), partners.flatten()
    z_pos = z[owner, column]
    excluded = _also_excluded(excluded, task, z, at, setting)
    if excluded is None:
        count = torch.full((len(z),), z.shape[1] - partners.shape[1] - (own is not None), device=z.device)
        z[owner, column] = -torch.inf
        if own is not None:
            z[own] = -torch.inf
    else:
        excluded[owner, column] = True
        if own is not None:
            excluded[own] = True
        count = z.shape[1] - excluded.sum(1)
        z.masked_fill_(excluded, -torch.inf)
    return Block(z, count, z_pos, owner, column)


def _also_excluded(excluded: Tensor | None, task: Task, z: Tensor, at: slice, setting: Setting) -> Tensor | None:
    """(r, C) bool of what is no negative though no positive either, added to what is; None if there is nothing."""
    if task.items is not None:
        same = task.items[0][at, None] == task.items[1]
        excluded = same if excluded is None else excluded.logical_or_(same)
    if task.own_explicit is not None and setting.config.own_negatives:
        mine, theirs = task.own_explicit
        others = (mine[at, None] != theirs).logical_and_(theirs != UNKNOWN)
        excluded = others if excluded is None else excluded.logical_or_(others)
    rule = setting.config.false_negatives
    if rule is not None:
        if rule.guide:
            assert task.guide is not None
            similar = task.guide[0][at] @ task.guide[1].T
        else:
            similar = setting.cosines(z)
        own = similar.gather(1, task.partners[at, :1])
        slack = rule.margin if rule.kind == "absolute" else rule.margin * own.abs()
        likely = similar > own - slack
        excluded = likely if excluded is None else excluded.logical_or_(likely)
    return excluded


class Tilted(NamedTuple):
    """Log-sum-exps over the negatives: lse of z + log w, lse_weights of log w (None: not needed), each (r,).

    Exponential weights are e^{β(z − top)} with the row's largest z: β·top, which at β = 1e4 would drown everything else, is in
    neither of the two.
    weighed: (r, C) e^{z + log w} over its row's `weighed_sum`; weights likewise, only where a gradient goes through them.
    """

    top: Tensor
    lse: Tensor
    lse_weights: Tensor | None
    weighed: Tensor
    weighed_sum: Tensor
    weights: Tensor | None
    weights_sum: Tensor | None


def tilt(task: Task, block: Block, at: slice, setting: Setting) -> Tilted:
    """Weigh the negatives. The block's z is used up. The row's maximum leaves *before* β multiplies: unshifted float32 is off
    by 4.6 at t = 2e-4, β = 1e4."""
    z, some = block.z, block.negatives > 0
    one = torch.ones_like(block.z_pos[:1])
    how = setting.config.weights
    if setting.config.entry == "sigmoid":
        total = softplus(z).sum(1)
        return Tilted(0 * total, total.log(), None, z.sigmoid_(), torch.where(total > 0, total, one), None, None)
    if not isinstance(how, Exp | Uniform):
        log_w = log_weights(task, z, at, setting)
        z = z.add_(log_w)
        lse_weights = torch.logsumexp(log_w, 1) if how.normalised else None
    top = torch.where(some, z.amax(1), torch.zeros_like(z[:, 0]))
    z.sub_(top[:, None])
    if setting.beta == 0:
        weighed, weights, weights_sum = z.exp_(), None, None
        if isinstance(how, Exp | Uniform):
            lse_weights = None
    else:
        weights = (z * setting.beta).exp_()
        weighed = z.exp_().mul_(weights)
        weights_sum = weights.sum(1)
        lse_weights = weights_sum.log()
    total = weighed.sum(1)
    lse = top + total.log()
    safe = torch.where(some, total, one)
    return Tilted(
        top,
        lse,
        lse_weights,
        weighed,
        safe,
        weights if setting.through else None,
        torch.where(some, weights_sum, one) if weights_sum is not None and setting.through else None,
    )


def log_weights(task: Task, z: Tensor, at: slice, setting: Setting) -> Tensor:
    """log w of every negative, −inf elsewhere. z: (r, C) masked logits → (r, C)."""
    how = setting.config.weights
    if isinstance(how, Additive):
        explicit = None
        if task.own_explicit is not None:
            explicit = task.own_explicit[0][at, None] == task.own_explicit[1]
        return how.log_weights(z, setting.temperature, explicit)
    if isinstance(how, Exp | Uniform):
        none = z == -torch.inf
        return (setting.beta * z.masked_fill(none, 0.0)).masked_fill(none, -torch.inf)
    return how.log_weights(z, setting.temperature)


class Summed(NamedTuple):
    """What a pass over all blocks adds up: the mean loss, its gradients (None if not asked for; sharpness is 1/t), share of anchors on the floor."""

    loss: Tensor
    anchors: Tensor | None
    candidates: Tensor | None
    sharpness: Tensor
    bias: Tensor
    on_floor: Tensor


def sum_blocks(
    task: Task,
    setting: Setting,
    recipe: Recipe | None,
    gradient: bool,
    block_rows: int | None = None,
) -> Summed:
    """The mean loss of a task's anchors and its gradients; where anchors and candidates are one, the anchors' is of both."""
    anchors, candidates = task.anchors.detach(), task.candidates.detach()
    count, size, sharpness = len(anchors), len(candidates), 1 / setting.temperature
    floor = anchors.new_tensor(-sharpness)
    step = block_rows or max(BLOCK_ROWS, BLOCK_SCORES // size)
    if setting.config.entry == "joint":  # the anchors of a pair stay together
        step = -(-step // _views(task)) * _views(task)
    room = anchors.new_empty(min(step, count), size)
    to_anchors = torch.zeros_like(anchors) if gradient else None
    one = task.candidates is task.anchors
    to_candidates = to_anchors if one else torch.zeros_like(candidates) if gradient else None
    total, floors = anchors.new_zeros(()), anchors.new_zeros(())
    to_sharpness, to_bias = anchors.new_zeros(()), anchors.new_zeros(())
    for start in range(0, count, step):
        at = slice(start, min(start + step, count))
        block = block_logits(task, at, setting, room[: at.stop - at.start])
        mixed = mixed_negatives(block.z, anchors[at], candidates, recipe.rows(at)) if recipe is not None else None
        tilted = tilt(task, block, at, setting)
        leaves = Leaves.of(tilted, block, mixed.cosines * sharpness if mixed else None, floor, setting.beta)
        with torch.enable_grad():
            losses, on_floor = losses_of(leaves, tilted.top, block, setting, size, _views(task))
            part = losses.sum() / count
        total += part.detach()
        floors += on_floor.sum()
        if not gradient:
            continue
        assert to_anchors is not None and to_candidates is not None
        found = leaves.gradients(part)
        to_z = _to_logits(tilted, found, setting)
        to_z.index_put_((block.owner, block.column), found.z_pos, accumulate=True)
        to_bias += to_z.sum()
        to_cosines = to_z @ candidates
        if mixed is not None:
            to_cosines += torch.einsum("rk,rkd->rd", found.z_mix, mixed.vectors)
        to_anchors[at].add_(to_cosines, alpha=sharpness)
        to_candidates.addmm_(to_z.T, anchors[at], alpha=sharpness)
        to_sharpness += (to_cosines * anchors[at]).sum() - found.floor
        if setting.follows:  # β falls as 1/t grows, and takes back what reached 1/t through the weights
            to_sharpness -= setting.beta * setting.temperature * found.beta
            if tilted.weights is not None:
                back = ((tilted.weights @ candidates) * anchors[at]).sum()
                back -= (tilted.top * (found.lse + found.lse_weights)).sum() * setting.temperature
                to_sharpness -= setting.beta * back
    return Summed(total, to_anchors, None if one else to_candidates, to_sharpness, to_bias, floors / count)


def _views(task: Task) -> int:
    return task.partners.shape[1] + 1


class Leaves(NamedTuple):
    """The few numbers of a block through which its loss depends on everything else, as leaves of a small graph."""

    lse: Tensor
    lse_weights: Tensor
    z_pos: Tensor
    z_mix: Tensor
    floor: Tensor
    beta: Tensor

    @classmethod
    def of(cls, tilted: Tilted, block: Block, z_mix: Tensor | None, floor: Tensor, beta: float) -> "Leaves":
        none = tilted.lse.new_zeros(len(tilted.lse), 0)
        weights = tilted.lse_weights if tilted.lse_weights is not None else none
        values = (tilted.lse, weights, block.z_pos, none if z_mix is None else z_mix, floor, floor.new_full((), beta))
        return cls(*(value.detach().requires_grad_() for value in values))

    def gradients(self, loss: Tensor) -> "Leaves":
        found = torch.autograd.grad(loss, list(self), allow_unused=True)
        return Leaves(*(torch.zeros_like(x) if g is None else g for x, g in zip(self, found, strict=True)))


def losses_of(
    leaves: Leaves, top: Tensor, block: Block, setting: Setting, candidates: int, views: int
) -> tuple[Tensor, Tensor]:
    """(r,) losses from the leaves, and who is on the floor."""
    log_r, count = log_negatives(leaves, top, block.negatives, setting, candidates)
    return row_losses(
        log_r,
        count,
        leaves.z_pos,
        block.owner,
        entry=setting.config.entry,
        tau_plus=setting.tau_plus,
        beta=leaves.beta,
        floor=leaves.floor,
        views=views,
    )


def log_negatives(
    leaves: Leaves, top: Tensor, negatives: Tensor, setting: Setting, candidates: int
) -> tuple[Tensor, Tensor]:
    """log R of each anchor and how many negatives it stands for, both (r,); synthetic negatives joined to the real ones."""
    normalised, mixed = setting.config.weights.normalised, leaves.z_mix.shape[1]
    lse, count = leaves.lse, torch.where(negatives > 0, negatives + mixed, 0)
    if mixed:
        # An anchor without negatives is left out in the end, but −inf has no gradient, not even of 0, so it gets a harmless input.
        z_mix = torch.where(negatives[:, None] > 0, leaves.z_mix, torch.zeros_like(leaves.z_mix))
        mix_weights = leaves.beta * (z_mix - top[:, None])
        mix_weights = mix_weights if setting.through else mix_weights.detach()
        lse = torch.logaddexp(lse, torch.logsumexp(z_mix + mix_weights, 1))
    stands_for = torch.full_like(count, candidates - 2) if setting.config.published_count else count
    log_r = lse
    if normalised:
        # `leaves.lse_weights` is empty where all weights are one, so that their log-sum is that of the count.
        some = count.clamp(min=1).to(lse.dtype).log()
        lse_weights = leaves.lse_weights if leaves.lse_weights.ndim == 1 else some
        if mixed and leaves.lse_weights.ndim == 1:
            lse_weights = torch.logaddexp(lse_weights, torch.logsumexp(mix_weights, 1))
        log_r = stands_for.clamp(min=1).to(lse.dtype).log() + lse - lse_weights
    return torch.where(count > 0, log_r, torch.full_like(log_r, -torch.inf)), count


def _to_logits(tilted: Tilted, found: Leaves, setting: Setting) -> Tensor:
    """The gradient in every logit (r, C): g (1+β) p + g' β q with softmaxes p of z + log w and q of log w, where gradients go
    through the weights, else g p. `weighed` and `weights` are used up; the latter holds g p + g' q then."""
    to_z = tilted.weighed.mul_((found.lse / tilted.weighed_sum)[:, None])
    if tilted.weights is not None:
        assert tilted.weights_sum is not None
        # g p + β (g p + g' q): the two nearly cancel, and β = 1e4 must not multiply them before they do.
        share = (found.lse_weights / tilted.weights_sum)[:, None]
        to_z.add_(torch.addcmul(to_z, tilted.weights, share, out=tilted.weights), alpha=setting.beta)
    return to_z
