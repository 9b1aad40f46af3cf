"""The loss on a CUDA device, a tile of logits at a time: same value and gradients as `blocks.py`, memory O(batch · dim).

    sums        one pass over all logits: every anchor's log-sum-exps over its negatives
    losses      from those and the positives, a few numbers an anchor
    gradients   one more pass: the gradient in a tile's logits is written, and multiplied by the rows

A tile's logits are a matrix product of cuBLAS, which a kernel then reads. Kernels that multiplied too, and kept logits from
memory altogether, were half as fast: on an H200 they reached 200 of its 790 TFLOP/s (docs/log.md). Where anchors and candidates
are the same rows, a tile above the diagonal is that below it too. Both passes make the same product, and kernels fuse no
additions, so a logit and the maximum that it is compared with are rounded alike.

Half-precision embeddings are multiplied as they came, unrounded, and brought to unit length afterwards; float32 ones follow
torch.set_float32_matmul_precision.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .blocks import Leaves, Setting, Summed, log_negatives
from .mix import Recipe
from .tasks import Task
from .unit import lengths
from .weights import Exp, Uniform

TILE_ROWS = 2**13  # anchors of a tile
TILE_SCORES = 2**26  # logits of a tile: 256 MiB, and 128 MiB of gradients in bfloat16
# Sides of a program's part of a tile, and its warps: measured on an H200, docs/log.md. ROWS: anchors of `losses_kernel`.
ALONG = {"BA": 1, "BC": 512, "num_warps": 1, "enable_fp_fusion": False}  # logits of an anchor lie beside each other
ACROSS = {"BA": 32, "BC": 64, "num_warps": 4, "enable_fp_fusion": False}  # of a candidate
WRITTEN = {"BA": 2, "BC": 512, "num_warps": 4, "enable_fp_fusion": False}
ROWS = 128


def usable(task: Task, setting: Setting, recipe: Recipe | None) -> bool:
    """Whether the kernels do this loss here; where they do not, `blocks.py` does, on any device."""
    config = setting.config
    return (
        task.anchors.is_cuda
        and task.anchors.dtype == torch.float32
        and isinstance(config.weights, Exp | Uniform)
        and config.entry in ("coupled", "decoupled", "shared")
        and config.false_negatives is None
        and not (config.own_negatives and task.own_explicit is not None)
        and not (setting.follows and setting.tau_plus and task.partners.shape[1] > 1)
        and recipe is None
        and find_spec("triton") is not None
    )


def sum_tiles(task: Task, setting: Setting, gradient: bool) -> Summed:
    """`blocks.sum_blocks` by kernels."""
    tiles = Tiles(task, setting)
    sums = tiles.sums()
    found = _label_losses(tiles, sums) if tiles.labelled else _pair_losses(tiles, sums)
    loss, on_floor = found.losses.mean(), found.on_floor.mean()
    nothing = torch.zeros_like(loss)
    if not gradient:
        return Summed(loss, None, None, nothing, nothing, on_floor)
    to_anchors, to_candidates = tiles.to_rows(sums, found)
    anchors = task.anchors.detach()
    count, sharpness = len(anchors), 1 / setting.temperature
    held = to_anchors
    if setting.follows and setting.through:  # 1/t has no part in the weights
        held, _ = Tiles(task, setting.detached).to_rows(sums, found)
    # A symmetric pass has the gradient of both sides in one.
    to_sharpness = -found.to_floor.sum()
    for some in _parts(count):
        to_sharpness += torch.sum(held[some] * anchors[some]) / (2 if tiles.symmetric else 1)
    if found.pairs is not None:
        target = to_anchors if to_candidates is None else to_candidates
        for some in _parts(count):
            to_pairs, partners = found.pairs.gradient[some], task.partners[some]
            to_anchors[some] += torch.bmm(to_pairs[:, None], task.candidates.detach()[partners])[:, 0]
            target.index_add_(0, partners.flatten(), (to_pairs[:, :, None] * anchors[some, None]).flatten(0, 1))
        to_sharpness += torch.sum(found.pairs.gradient * found.pairs.z) / sharpness
    for rows in (to_anchors, to_candidates):
        if rows is not None:
            rows.mul_(sharpness / count)
    return Summed(loss, to_anchors, to_candidates, to_sharpness / count, nothing, on_floor)


class Sums(NamedTuple):
    """Over an anchor's negatives, (A,) each: largest logit, Σ e^{(1+β)(z−top)}, Σ e^{β(z−top)} (their number for β = 0), number."""

    top: Tensor
    weighed: Tensor
    weights: Tensor
    negatives: Tensor


class Pairs(NamedTuple):
    """Partners as positives: their logits and the gradient in these, (A, M)."""

    z: Tensor
    gradient: Tensor


class Losses(NamedTuple):
    """Losses of anchors, (A,) each, and gradients of their sum.

    on_floor: 1 where the debiasing floor holds, to_floor: the gradient in that floor, −1/t. push, draw: see `kernels._pull`;
    level, share: likewise, for positives by label. pairs: where partners are the positives.
    """

    losses: Tensor
    on_floor: Tensor
    to_floor: Tensor
    push: Tensor
    draw: Tensor
    level: Tensor
    share: Tensor
    pairs: Pairs | None


def _pair_losses(tiles: "Tiles", sums: Sums) -> Losses:
    """Every anchor has its partners as positives."""
    from .kernels import losses_kernel

    task, setting = tiles.task, tiles.setting
    config, tau, sharpness = setting.config, setting.tau_plus, 1 / setting.temperature
    anchors, candidates = task.anchors.detach(), task.candidates.detach()
    z = torch.empty(task.partners.shape, device=anchors.device)
    for some in _parts(len(z)):
        z[some] = torch.bmm(candidates[task.partners[some]], anchors[some, :, None])[:, :, 0]
    z.mul_(sharpness)
    losses, on_floor, to_floor, push, draw = torch.empty(5, len(z), device=z.device)
    gradient = torch.empty_like(z)
    numbers = (setting.beta, math.log(tau) if tau else 0.0, math.log1p(-tau), -sharpness)
    published = len(task.candidates) - 2 if config.published_count else 0
    losses_kernel[(-(-len(z) // ROWS),)](
        *sums, z, losses, on_floor, to_floor, push, draw, gradient, len(z), *numbers, published,
        M=z.shape[1], DEBIASED=tau > 0, THROUGH=setting.through and setting.beta != 0, ENTRY=config.entry, BA=ROWS,
    )  # fmt: skip
    nothing = losses  # never read: there are no positives by label
    return Losses(losses, on_floor, to_floor, push, draw, nothing, nothing, Pairs(z, gradient))


def _parts(count: int) -> Iterator[slice]:
    """Rows of a tile at a time, for what takes as much memory again as the rows that it is done with."""
    return (slice(at, at + TILE_ROWS) for at in range(0, count, TILE_ROWS))


def _label_losses(tiles: "Tiles", sums: Sums) -> Losses:
    """Every same-class item is a positive: too many to list, so the kernels sum over them too.

    With positives p and log R = u: coupled, mean of log(1 + e^{u − p}); shared, log(e^u + Σ e^p) − mean p; decoupled, u − mean p.
    """
    setting, entry = tiles.setting, tiles.setting.config.entry
    some = sums.negatives > 0
    one = torch.ones_like(sums.top)
    weighed, weights = torch.where(some, sums.weighed, one), torch.where(some, sums.weights, one)
    none = sums.top.new_zeros(len(sums.top), 0)
    leaves = Leaves(sums.top + sums.weighed.log(), weights.log() if setting.beta else none, none, none, none, none)
    log_r, _ = log_negatives(leaves, sums.top, sums.negatives, setting, len(tiles.task.candidates))
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
    draw = -to_log_r / weights if setting.through and setting.beta else torch.zeros_like(to_log_r)
    nothing = torch.zeros_like(losses)
    return Losses(losses, nothing, nothing, to_log_r / weighed, draw, level, share, None)


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
        """Whether anchors and candidates are the same rows in the same order."""
        task = self.task
        return task.own is not None and len(task.anchors) == task.total == len(task.candidates)

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        """Rows, 1 over their lengths, and who is what to whom; what is not there is never read."""
        task = self.task
        nothing = task.partners
        if task.raw is not None:
            rows = tuple(x.contiguous() for x in task.raw)
            norms = tuple(1 / lengths(x)[:, 0] for x in rows)
        else:
            rows = (task.anchors.detach().contiguous(), task.candidates.detach().contiguous())
            norms = tuple(torch.ones_like(x[:, 0]) for x in rows)
        own = (task.own if task.own is not None else nothing).int()
        labels = task.labels if task.labels is not None else (nothing, nothing)
        items = task.items if task.items is not None else (nothing, nothing)
        return (*rows, *norms, own, task.partners.int().contiguous(), *labels, *items)

    def flags(self) -> dict[str, Any]:
        """What the kernels are compiled for."""
        task = self.task
        return {
            "OWN": task.own is not None,
            "M": task.partners.shape[1],
            "LABELS": self.labelled,
            "ITEMS": task.items is not None,
        }

    def each(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Tile by tile: its anchors, its candidates, and their products (r, c) float32, which the next overwrites. Where they
        are symmetric, those on the diagonal and above it."""
        (rows, columns), device = self.inputs[:2], self.task.anchors.device
        height = min(len(rows), TILE_ROWS)
        width = height if self.symmetric else min(len(columns), max(1, TILE_SCORES // height))
        room = torch.empty(height * width, device=device)
        for left in range(0, len(columns), width):
            candidates = slice(left, min(left + width, len(columns)))
            for top in range(0, left + 1 if self.symmetric else len(rows), height):
                anchors = slice(top, min(top + height, len(rows)))
                shape = anchors.stop - anchors.start, candidates.stop - candidates.start
                products = room[: shape[0] * shape[1]].view(shape)
                yield anchors, candidates, _product(rows[anchors], columns[candidates].T, products)

    def sums(self) -> Sums:
        from .kernels import sums_kernel

        beta, real = self.setting.beta, torch.float32
        numbers = (1 / self.setting.temperature, beta)
        each, weighed, weights, count = self._sum(
            sums_kernel, (), [real, real, real, torch.int32], numbers, {"HARD": beta != 0}
        )
        if not beta:
            weights = count.to(real)
        if len(each) == 1:
            return Sums(each[0], weighed[0], weights[0], count[0])
        top = each.amax(0)
        lower = each - top
        weighed = (weighed * ((1 + beta) * lower).exp()).sum(0)
        return Sums(top, weighed, (weights * (beta * lower).exp()).sum(0), count.sum(0))

    def positives(self, level: Tensor) -> Positives:
        """level: (A,) as in `kernels.positives_kernel`."""
        from .kernels import positives_kernel

        sharpness = 1 / self.setting.temperature
        *added, each, exps = self._sum(positives_kernel, (level,), [torch.float32] * 6, (sharpness,), {})
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
        """Run a kernel that sums over the candidates of a tile: outputs (S, A), of S tiles beside each other."""
        anchors, found = len(self.task.anchors), dict[int, list[Tensor]]()

        def add(rows: slice, columns: slice, products: Tensor, sides: dict[str, Any]) -> None:
            if columns.start not in found:
                found[columns.start] = [torch.empty(anchors, dtype=k, device=products.device) for k in outputs]
            place = (rows.start, rows.stop, columns.start, columns.stop, *products.stride())
            grid, out = (-(-len(products) // sides["BA"]),), found[columns.start]
            kernel[grid](products, *self.inputs[2:], *given, *out, *place, *numbers, **self.flags(), **flags, **sides)

        for rows, columns, products in self.each():
            add(rows, columns, products, ALONG)
            if self.symmetric and rows.start != columns.start:
                add(columns, rows, products.T, ACROSS)
        return [torch.stack(parts) for parts in zip(*found.values(), strict=True)]

    def to_rows(self, sums: Sums, losses: Losses) -> tuple[Tensor, Tensor | None]:
        """Gradients in anchors (A, d) and candidates (C, d) of the sum of losses in cosines over t, pairs aside.

        A symmetric pass has both in the first.
        """
        from .kernels import gradient_kernel

        task, anchors, candidates = self.task, self.task.anchors.detach(), self.task.candidates.detach()
        # Half-precision rows have half-precision gradients; bfloat16, since most of them are far below float16's least.
        kind = torch.float32 if self.task.raw is None else torch.bfloat16
        unit_anchors = anchors.to(kind)
        unit_candidates = unit_anchors if task.candidates is task.anchors else candidates.to(kind)
        to_anchors = torch.zeros_like(anchors)
        to_candidates = to_anchors if self.symmetric else torch.zeros_like(candidates)
        flags = self.flags() | {
            "HARD": self.setting.beta != 0,
            "THROUGH": self.setting.through,
            "ENTRY": self.setting.config.entry if self.labelled else "",
        }
        numbers = (1 / self.setting.temperature, self.setting.beta)
        for rows, columns, products in self.each():
            to_z = torch.empty_like(products, dtype=kind)
            grid = (-(-products.shape[1] // WRITTEN["BC"]), -(-len(products) // WRITTEN["BA"]))
            place = (rows.start, rows.stop, columns.start, columns.stop, *products.stride())
            stats = (sums.top, losses.push, losses.draw, losses.level, losses.share)
            mirrored = self.symmetric and rows.start != columns.start
            gradient_kernel[grid](
                products, *self.inputs[2:], *stats, to_z, *place, *numbers, SYMMETRIC=mirrored, **flags, **WRITTEN
            )
            _add_product(to_anchors[rows], to_z, unit_candidates[columns])
            _add_product(to_candidates[columns], to_z.T, unit_anchors[rows])
            del to_z  # or the next would stand beside it
        return to_anchors, None if self.symmetric else to_candidates


def _product(x: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """x @ y in float32, whatever they are in."""
    if x.dtype == torch.float32:
        return torch.mm(x, y, out=out)
    return torch.mm(x, y, out_dtype=torch.float32, out=out) if x.is_cuda else torch.mm(x.float(), y.float(), out=out)


def _add_product(total: Tensor, x: Tensor, y: Tensor) -> None:
    """total += x @ y in float32, whatever they are in."""
    if x.dtype == torch.float32:
        total.addmm_(x, y)
    elif x.is_cuda:
        torch.addmm(total, x, y, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(x.float(), y.float())
