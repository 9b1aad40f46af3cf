"""The loss on a CUDA device, through the Triton kernels: same value and gradients as `blocks.py`, memory O(batch · dim).

    sums        one pass over all logits: every anchor's log-sum-exps over its negatives
    losses      from those and the positives, a few numbers an anchor
    gradients   a chunk of anchors at a time: the gradient in their logits is written, and multiplied by the rows

Half-precision embeddings are multiplied as they came, unrounded, and brought to unit length afterwards; float32 ones follow
torch.set_float32_matmul_precision: "highest", the default, multiplies in full, anything else in TF32.
"""

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .blocks import Block, Leaves, Setting, Summed, log_negatives, losses_of
from .mix import Recipe
from .tasks import Task
from .weights import Exp, Uniform

CHUNK_SCORES = 2**26  # logits whose gradients are held at a time: 128 MiB in bfloat16
MIRRORED = 1e3  # largest concentration (1+β)/t at which 2⁻²³ of a cosine changes nothing that matters
PROGRAMS = 1024  # at least so many, to fill a device whose anchors alone are too few


def usable(task: Task, setting: Setting, recipe: Recipe | None) -> bool:
    """Whether the kernels do this loss here; where they do not, `blocks.py` does, on any device."""
    config = setting.config
    return (
        task.anchors.is_cuda
        and task.anchors.dtype == torch.float32
        and isinstance(config.weights, Exp | Uniform)
        and config.entry in ("coupled", "decoupled", "shared")
        and config.false_negatives is None
        and recipe is None
        and find_spec("triton") is not None
    )


def sum_tiles(task: Task, setting: Setting, gradient: bool) -> Summed:
    """`blocks.sum_blocks` by kernels."""
    tiles = Tiles(task, setting)
    sums = tiles.sums()
    summed = _label_losses(tiles, sums) if tiles.labelled else _pair_losses(tiles, sums)
    count, sharpness = len(task.anchors), 1 / setting.temperature
    loss, on_floor = summed.losses.sum() / count, summed.on_floor.sum() / count
    if not gradient:
        return Summed(loss, None, None, torch.zeros_like(loss), torch.zeros_like(loss), on_floor)
    to_anchors, to_candidates = tiles.to_rows(sums, summed)
    anchors, candidates = task.anchors.detach(), task.candidates.detach()
    # A symmetric pass has the gradient of both sides in one.
    to_sharpness = (to_anchors * anchors).sum() / (2 if tiles.symmetric else 1) - summed.floor
    pairs = summed.pairs
    if pairs is not None:
        of_anchor, of_candidate = anchors[pairs.owner], candidates[pairs.column]
        to_anchors.index_add_(0, pairs.owner, summed.to_pairs[:, None] * of_candidate)
        target = to_anchors if to_candidates is None else to_candidates
        target.index_add_(0, pairs.column, summed.to_pairs[:, None] * of_anchor)
        to_sharpness += summed.to_pairs @ pairs.z_pos / sharpness
    for rows in (to_anchors, to_candidates):
        if rows is not None:
            rows.mul_(sharpness / count)
    return Summed(loss, to_anchors, to_candidates, to_sharpness / count, torch.zeros_like(loss), on_floor)


class Sums(NamedTuple):
    """Over an anchor's negatives, (A,) each: largest logit, Σ e^{(1+β)(z−top)}, Σ e^{β(z−top)} (their number for β = 0), number."""

    top: Tensor
    weighed: Tensor
    weights: Tensor
    negatives: Tensor


class Losses(NamedTuple):
    """Losses and their gradients, of the sum over anchors.

    losses, on_floor: (A,). push, draw: (A,) in the two log-sum-exps. level, share: (A,) for the gradient in positives by
    label. pairs, to_pairs: positives as (anchor, candidate) pairs, and the gradient in their logits. floor: () in −1/t.
    """

    losses: Tensor
    on_floor: Tensor
    push: Tensor
    draw: Tensor
    level: Tensor
    share: Tensor
    floor: Tensor
    pairs: Block | None
    to_pairs: Tensor


def _leaves(sums: Sums, setting: Setting, z_pos: Tensor) -> Leaves:
    none = sums.top.new_zeros(len(sums.top), 0)
    weights = sums.weights.log() if setting.beta else none
    floor = sums.top.new_tensor(-1 / setting.temperature)
    values = (sums.top + sums.weighed.log(), weights, z_pos, none, floor)
    return Leaves(*(value.detach().requires_grad_() for value in values))


def _pair_losses(tiles: "Tiles", sums: Sums) -> Losses:
    """Every anchor has its partners as positives."""
    task, setting = tiles.task, tiles.setting
    owner = torch.arange(len(task.anchors), device=sums.top.device).repeat_interleave(task.partners.shape[1])
    column = task.partners.flatten()
    z_pos = (task.anchors.detach()[owner] * task.candidates.detach()[column]).sum(1) / setting.temperature
    pairs = Block(z_pos, sums.negatives, z_pos, owner, column)
    leaves = _leaves(sums, setting, z_pos)
    with torch.enable_grad():
        losses, on_floor = losses_of(leaves, sums.top, pairs, setting, len(task.candidates), views=1)
        found = leaves.gradients(losses.sum())
    draw = found.lse_weights if setting.through and setting.beta else torch.zeros_like(found.lse)
    none = torch.zeros_like(found.lse)
    return Losses(losses.detach(), on_floor, found.lse, draw, none, none, found.floor, pairs, found.z_pos)


def _label_losses(tiles: "Tiles", sums: Sums) -> Losses:
    """Every same-class item is a positive: too many to list, so the kernels sum over them too.

    With positives p and log R = u: coupled, mean of log(1 + e^{u − p}); shared, log(e^u + Σ e^p) − mean p; decoupled, u − mean p.
    """
    setting, entry = tiles.setting, tiles.setting.config.entry
    log_r, _ = log_negatives(
        _leaves(sums, setting, sums.top), sums.top, sums.negatives, setting, len(tiles.task.candidates)
    )
    log_r, some = log_r.detach(), sums.negatives > 0
    found = tiles.positives(log_r)
    share = 1 / found.number
    if entry == "coupled":
        losses, to_log_r, level = found.softplus * share, found.sigmoid * share, log_r
    elif entry == "shared":
        level = torch.logaddexp(log_r, found.lse)
        losses, to_log_r = level - found.total * share, (log_r - level).exp()
    else:
        losses = torch.where(some, log_r - found.total * share, torch.zeros_like(log_r))
        to_log_r, level, share = some.to(log_r.dtype), log_r, share * some
    draw = -to_log_r if setting.through and setting.beta else torch.zeros_like(to_log_r)
    nothing = torch.zeros_like(losses[:0])
    return Losses(losses, torch.zeros_like(some), to_log_r, draw, level, share, losses.new_zeros(()), None, nothing)


class Positives(NamedTuple):
    """Over an anchor's positives by label, (A,) each; see `kernels.positives_kernel`."""

    number: Tensor
    total: Tensor
    softplus: Tensor
    sigmoid: Tensor
    lse: Tensor


@dataclass(frozen=True)
class Tiles:
    """A task in the form that the kernels take."""

    task: Task
    setting: Setting

    @property
    def labelled(self) -> bool:
        return self.setting.config.label_mask and self.task.labels is not None

    @property
    def symmetric(self) -> bool:
        """Whether anchors and candidates are the same rows in the same order, so that one pass does for both sides.

        Not at extreme hardness: a logit and its mirror image may be rounded differently, and (1+β)/t multiplies that.
        """
        same = self.task.own is not None and len(self.task.anchors) == self.task.total == len(self.task.candidates)
        return same and (1 + self.setting.beta) / self.setting.temperature < MIRRORED

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        """Rows, 1 over their lengths, and who is what to whom; what is not there is never read."""
        task = self.task
        nothing = task.partners
        if task.raw is not None:
            rows = tuple(x.contiguous() for x in task.raw)
            norms = tuple(1 / x.float().norm(dim=1).clamp(min=1e-12) for x in rows)
        else:
            rows = (task.anchors.detach().contiguous(), task.candidates.detach().contiguous())
            norms = tuple(torch.ones_like(x[:, 0]) for x in rows)
        own = (task.own if task.own is not None else nothing).int()
        labels = task.labels if task.labels is not None else (nothing, nothing)
        items = task.items if task.items is not None else (nothing, nothing)
        return (*rows, *norms, own, task.partners.int().contiguous(), *labels, *items)

    def flags(self, columns: int = 128) -> dict[str, Any]:
        """What a kernel is compiled for. columns: of a tile of half-precision rows; fewer where an epilogue needs registers."""
        task, half = self.task, self.task.raw is not None
        full = half or torch.get_float32_matmul_precision() == "highest"
        return {
            "D": task.anchors.shape[1],
            "OWN": task.own is not None,
            "M": task.partners.shape[1],
            "LABELS": self.labelled,
            "ITEMS": task.items is not None,
            "BA": 128 if half else 64,
            "BC": columns if half else 64,
            "BD": 64 if half else 32,
            "PRECISION": "ieee" if full else "tf32",
            "num_warps": 8 if half else 4,
        }

    def sums(self) -> Sums:
        from .kernels import sums_kernel

        beta, real = self.setting.beta, torch.float32
        each, weighed, weights, count = self._sum(
            sums_kernel,
            (),
            [real, real, real, torch.int32],
            (1 / self.setting.temperature, beta),
            self.flags() | {"HARD": beta != 0},
        )
        top = each.amax(0)
        lower = each - top
        count = count.sum(0)
        weighed = (weighed * (beta * lower).exp() * lower.exp()).sum(0)
        weights = (weights * (beta * lower).exp()).sum(0) if beta else count.to(real)
        return Sums(torch.where(count > 0, top, torch.zeros_like(top)), weighed, weights, count)

    def positives(self, level: Tensor) -> Positives:
        """level: (A,) as in `kernels.positives_kernel`."""
        from .kernels import positives_kernel

        sharpness = 1 / self.setting.temperature
        *added, each, exps = self._sum(positives_kernel, (level,), [torch.float32] * 6, (sharpness,), self.flags(64))
        top = each.amax(0)
        lse = top + (exps * (each - top).exp()).sum(0).log()
        number, total, softplus, sigmoid = (x.sum(0) for x in added)
        return Positives(number, total, softplus, sigmoid, lse)

    def _sum(
        self,
        kernel: Any,
        given: tuple[Tensor, ...],
        outputs: list[torch.dtype],
        numbers: tuple[float, ...],
        flags: dict[str, Any],
    ) -> list[Tensor]:
        """Run a kernel that sums over candidates, in S splits where anchors alone are too few programs: outputs (S, A)."""
        anchors, candidates = len(self.task.anchors), len(self.task.candidates)
        blocks, tiles = -(-anchors // flags["BA"]), -(-candidates // flags["BC"])
        each = -(-tiles // max(1, PROGRAMS // blocks)) * flags["BC"]
        splits = -(-candidates // each)
        found = [torch.empty(splits, anchors, dtype=kind, device=self.task.anchors.device) for kind in outputs]
        kernel[(blocks, splits)](*self.inputs, *given, *found, anchors, candidates, each, *numbers, **flags)
        return found

    def to_rows(self, sums: Sums, losses: Losses) -> tuple[Tensor, Tensor | None]:
        """Gradients in anchors (A, d) and candidates (C, d) of the sum of losses in cosines over t, pairs aside.

        A symmetric pass has both in the first.
        """
        from .kernels import gradient_kernel

        anchors, candidates = self.task.anchors.detach(), self.task.candidates.detach()
        # Half-precision rows have half-precision gradients; bfloat16, since most of them are far below float16's least.
        kind = torch.float32 if self.task.raw is None else torch.bfloat16
        rows, columns = anchors.to(kind), candidates.to(kind)
        some = sums.negatives > 0
        one = torch.ones_like(sums.top)
        weighed, weights = torch.where(some, sums.weighed, one), torch.where(some, sums.weights, one)
        push, draw = losses.push / weighed, losses.draw / weights
        to_anchors = torch.empty_like(anchors)
        to_candidates = None if self.symmetric else torch.zeros_like(candidates)
        flags = self.flags() | {
            "HARD": self.setting.beta != 0,
            "THROUGH": self.setting.through,
            "SYMMETRIC": self.symmetric,
            "ENTRY": self.setting.config.entry if self.labelled else "",
        }
        step = max(flags["BA"], CHUNK_SCORES // len(candidates) // flags["BA"] * flags["BA"])
        room = torch.empty(min(step, len(rows)), len(columns), dtype=kind, device=rows.device)
        for start in range(0, len(rows), step):
            stop = min(start + step, len(rows))
            to_z = room[: stop - start]
            grid = (-(-(stop - start) // flags["BA"]), -(-len(columns) // flags["BC"]))
            numbers = (start, stop, len(columns), 1 / self.setting.temperature, self.setting.beta)
            gradient_kernel[grid](
                *self.inputs, sums.top, push, draw, losses.level, losses.share, to_z, *numbers, **flags
            )
            to_anchors[start:stop] = _product(to_z, columns)
            if to_candidates is not None:
                to_candidates += _product(to_z.T, rows[start:stop])
        return to_anchors, to_candidates


def _product(x: Tensor, y: Tensor) -> Tensor:
    """x @ y in float32, whatever they are in."""
    if x.dtype == torch.float32:
        return x @ y
    return torch.mm(x, y, out_dtype=torch.float32) if x.is_cuda else x.float() @ y.float()
