"""The contrastive loss of a batch: a pure function of embeddings, and a thin module with what must be kept between batches."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from retrieval.errors import UserError

from . import gather
from .blocks import Setting
from .config import LossConfig
from .fused import mean_loss
from .inputs import refuse_other_config, refuse_unfit
from .memory import Memory
from .mix import Recipe
from .names import named, with_settings
from .observe import Diagnostics, observe, observed_logits
from .schedule import Number, at, number
from .tasks import UNKNOWN, Extra, Known, Task, tasks
from .unit import unit
from .weights import Exp, solve_beta

# Of a learned temperature: CLIP's code scales logits by 100 at most (Radford et al., ICML 2021, section 2.5).
LEAST = 0.01
# At which a temperature and a bias learn: Adam moves a number by its rate a step, and they may have far to go.
OWN_RATE = 0.01


class LossOutput(NamedTuple):
    """loss: () differentiable. diagnostics: None if not asked for."""

    loss: Tensor
    diagnostics: Diagnostics | None


def contrastive_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    items: Tensor | None = None,
    guide: Tensor | None = None,
    guide_negative: Tensor | None = None,
    negative_items: Tensor | None = None,
    negative_pairs: Tensor | None = None,
    past: Extra | None = None,
    config: LossConfig,
    temperature: Tensor | None = None,
    bias: Tensor | None = None,
    diagnose: bool = True,
    block_rows: int | None = None,
) -> LossOutput:
    """The mean loss of B pairs under `config`, whose numbers are constants here (`schedule.at` resolves schedules).

    anchor: (B, d). positive: (B, d), or (M, B, d) for M positives of every anchor; all made unit here. negative: (K, d)
    explicit negatives of every anchor, or with `own_negatives` of their own pair's; row k is pair negative_pairs[k]'s own, or where K
    is a multiple of B, pair k mod B's.
    labels: (B,) class of each pair. items: ((1 + M)·B,) identity of each embedding, view after view; equal ones (the same text
    twice) are not negatives of each other; negative_items: (K,) likewise. guide: ((1 + M), B, g) and guide_negative (K, g), a guide encoder's embeddings.
    past: embeddings of past batches. temperature, bias: () learned ones, instead of the config's.
    In several processes (torch.distributed) the candidates are those of all of them, with gradients, and the mean over
    processes of this loss's gradients is that of the whole batch in one. Half precision is raised to float32, float64 kept.
    Raises UserError for other shapes, and where the config needs labels, a guide or the negatives' pairs, and they are not given.
    """
    rest = {"labels": labels, "items": items, "negative_items": negative_items, "negative_pairs": negative_pairs}
    guides = {"guide": guide, "guide_negative": guide_negative}
    refuse_unfit(config, {"anchor": anchor, "positive": positive, "negative": negative} | rest | guides)
    guide = guide if config.guided else None
    with torch.autocast(anchor.device.type, enabled=False):
        given = torch.cat([anchor[None], positive if positive.ndim == 3 else positive[None]])
        views = unit(given)
        here = Known(views, labels, _by_view(items, len(views)), None if guide is None else unit(guide), _raw(given))
        everywhere, first, share = gather.everywhere(here)
        own = None if negative is None else _own_pairs(negative, negative_pairs, len(anchor), first, config)
        extra = _extra(negative, guide_negative, negative_items, own, past)
        found = tasks(here, everywhere, first, extra, config)
        (t, t_now), (b, b_now) = (
            _here(*each, views) for each in ((config.temperature, temperature), (config.bias, bias))
        )
        learned = temperature is not None and temperature.requires_grad
        setting = _setting(config, t_now, b_now, learned, lambda: tasks(everywhere, everywhere, 0, extra, config)[0])
        total, floors = [], []
        for task in found:
            loss, on_floor = mean_loss(task, t, b, setting, _recipe(task, config), block_rows)
            total.append(loss)
            floors.append(on_floor)
        loss = torch.stack(total).mean() * share
        seen = None
        if diagnose:
            seen = observe(found[0], setting, torch.stack(floors).mean())
        return LossOutput(loss, seen)


def _here(fixed: Number, learned: Tensor | None, like: Tensor) -> tuple[Tensor, float]:
    """A constant, or a learned () tensor, beside the embeddings, and as a number. Only a learned one makes a GPU wait."""
    if learned is None:
        return like.new_full((), number(fixed)), number(fixed)
    return learned.to(like), float(learned.detach())


def _raw(x: Tensor) -> Tensor | None:
    """Half-precision rows as they came, which a GPU multiplies fastest, and unrounded."""
    return x.detach() if x.is_cuda and x.dtype in (torch.float16, torch.bfloat16) else None


def _by_view(items: Tensor | None, views: int) -> Tensor | None:
    return None if items is None else items.view(views, -1)


def _own_pairs(negative: Tensor, told: Tensor | None, pairs: int, first: int, config: LossConfig) -> Tensor:
    """(K,) the pair, numbered over all processes, whose own each explicit negative is, or UNKNOWN."""
    if told is not None:
        return told + first
    if config.own_negatives and len(negative) % pairs:
        raise UserError(
            f"--loss {config.name}: {len(negative)} negatives of {pairs} pairs do not say whose they are; give negative_pairs"
        )
    own = torch.arange(len(negative), device=negative.device) % pairs + first
    return own if len(negative) % pairs == 0 else torch.full_like(own, UNKNOWN)


def _extra(
    negative: Tensor | None, guide: Tensor | None, items: Tensor | None, own: Tensor | None, past: Extra | None
) -> Extra | None:
    """Explicit negatives of all processes, then embeddings of past batches."""
    if negative is None or own is None:
        return past
    rows, pair = gather.rows(unit(negative)), gather.rows(own)
    known = None if guide is None else gather.rows(unit(guide))
    named = None if items is None else gather.rows(items)
    if past is None:
        raw = _raw(negative)
        return Extra(rows, items=named, pair=pair, guide=known, raw=None if raw is None else gather.rows(raw))
    unknown = torch.full((len(rows),), UNKNOWN, device=rows.device)
    return Extra(
        torch.cat([rows, past.rows]),
        labels=None if past.labels is None else torch.cat([unknown, past.labels]),
        items=None if past.items is None else torch.cat([unknown if named is None else named, past.items]),
        pair=torch.cat([pair, torch.full((len(past.rows),), UNKNOWN, device=rows.device)]),
    )


def _setting(config: LossConfig, t: float, bias: float, learned: bool, whole: Callable[[], Task]) -> Setting:
    """The numbers of this step; β solved for an effective-sample-size target over the anchors of all processes."""
    beta = config.weights.fixed_beta(t) if isinstance(config.weights, Exp) else 0.0
    setting = Setting(config, t, number(config.tau_plus), beta or 0.0, bias, learned)
    if beta is not None:
        return setting
    assert isinstance(config.weights, Exp) and config.weights.ess is not None
    z = observed_logits(whole(), setting).z
    return replace(setting, beta=solve_beta(z, number(config.weights.ess)))


def _recipe(task: Task, config: LossConfig) -> Recipe | None:
    if config.mix is None:
        return None
    device = task.anchors.device
    seed = gather.agreed_seed(device)
    return Recipe.draw(config.mix, task.total, len(task.candidates), seed, device).rows(task.number)


class ContrastiveLoss(nn.Module):
    """`contrastive_loss` with what outlives a batch: schedules, a learned temperature, the memory, the last diagnostics.

    Set `progress` (0 … 1) as training goes on; schedules follow it. Shapes as in `contrastive_loss`; returns the loss.
    In `eval()` it looks at what is remembered and adds nothing. A learned temperature stays at LEAST or above, unless it began below.
    codes: likewise of each embedding, what the memory knows it by where `items` hold for this batch alone; `items` if not given.
    """

    def __init__(self, config: LossConfig, *, diagnose: bool = True) -> None:
        super().__init__()
        refuse_other_config(config)
        self.config = config
        self.diagnose = diagnose
        self.progress = 0.0
        self.diagnostics: Diagnostics | None = None
        start = number(at(config, 0.0).temperature)
        learned, self._least = config.learn_temperature, math.log(min(LEAST, start))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(start))) if learned else None
        self.bias = nn.Parameter(torch.tensor(number(config.bias))) if learned and config.entry == "sigmoid" else None
        self.memory = Memory(config.memory) if config.memory else None

    def forward(
        self,
        anchor: Tensor,
        positive: Tensor,
        negative: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        items: Tensor | None = None,
        codes: Tensor | None = None,
        guide: Tensor | None = None,
        guide_negative: Tensor | None = None,
        negative_items: Tensor | None = None,
        negative_pairs: Tensor | None = None,
    ) -> Tensor:
        codes = items if codes is None else codes
        if self.log_temperature is not None:
            with torch.no_grad():  # on data that fall apart entirely it would sink for ever
                self.log_temperature.clamp_(min=self._least)
        past = self.memory.past(labels, items, codes) if self.memory is not None else None
        loss, self.diagnostics = contrastive_loss(
            anchor,
            positive,
            negative,
            labels=labels,
            items=items,
            guide=guide,
            guide_negative=guide_negative,
            negative_items=negative_items,
            negative_pairs=negative_pairs,
            past=past,
            config=at(self.config, self.progress),
            temperature=None if self.log_temperature is None else gather.shared(self.log_temperature).exp(),
            bias=None if self.bias is None else gather.shared(self.bias),
            diagnose=self.diagnose,
        )
        if self.memory is not None and self.training:
            self.memory.add(unit(positive.detach()), labels, codes)
        return loss

    def extra_repr(self) -> str:
        return self.config.name


def loss(name: str, **settings: object) -> ContrastiveLoss:
    """A loss by name: `loss("hcl", kappa=4)` or `loss("hcl(kappa=4)")`; prints back as what it is."""
    return ContrastiveLoss(with_settings(named(name), settings, f"loss({name!r})"))
