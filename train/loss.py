"""The hardness-controlled contrastive loss, in log space.

Robinson, Chuang, Sra, Jegelka, "Contrastive Learning with Hard Negative Samples", ICLR 2021 (arXiv 2010.04592): HCL.
With unit embeddings, temperature t, logits z = cos/t, positive logit p and the N negatives j of one anchor:

    log R = log N + LSE_j((1+β) z_j) − LSE_j(β z_j)        importance-sampled N · E_q[e^z],  q ∝ e^{βz}
    Ng    = max((R − τ⁺ N e^p) / (1 − τ⁺), N e^{−1/t})      debiased: a "negative" shares the anchor's class with chance τ⁺
    loss  = log(1 + Ng / e^p)

β = τ⁺ = 0 is InfoNCE (NT-Xent); β = 0 is the debiased loss (Chuang et al. 2020); β → ∞ keeps the hardest negative alone.
With labels, items of the anchor's class are never negatives: H-SCL (Jiang et al., arXiv 2209.00078), for β = 0 SINCERE.

Letters: A anchors, C candidates, d dimensions. Rows are independent of each other.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize

from retrieval.errors import UserError

LossName = Literal["hcl", "debiased", "infonce"]
DIAGNOSED_ANCHORS = 256  # the effective sample size is estimated on this many


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which loss, and how hard.

    Hardness is given as β, as the concentration on the cosine κ = β/t, or as a target for the effective sample size of the
    negatives' weights (one β a batch, solved for the median anchor); at most one of them, κ = 2 (the paper's best) if none.
    detach_weights: treat the weights e^{βz} as constants. Off as published: the gradient through them draws easy negatives
    nearer and, on BANKING77, was better at the best hardness; detached is more forgiving of too much hardness.
    """

    name: LossName = "hcl"
    temperature: float = 0.1
    beta: float | None = None
    kappa: float | None = None
    ess: float | None = None
    tau_plus: float = 0.0
    label_mask: bool = True
    detach_weights: bool = False

    def __post_init__(self) -> None:
        given = [f"--{flag}" for flag in ("beta", "kappa", "ess") if getattr(self, flag) is not None]
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise UserError(f"--temperature {self.temperature}: must be above 0; 0.05 to 0.5 is usual")
        if not 0 <= self.tau_plus < 1:
            raise UserError(
                f"--tau-plus {self.tau_plus}: must be at least 0 and below 1; one over the number of classes is usual"
            )
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)}: are three ways to say one thing; give one of them")
        if given and self.name != "hcl":
            raise UserError(f"{given[0]}: --loss {self.name} has no hardness; use --loss hcl, or leave {given[0]} out")
        for flag in ("beta", "kappa"):
            value = getattr(self, flag)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise UserError(f"--{flag} {value}: must be 0 or more")
        if self.ess is not None and not self.ess >= 1:
            raise UserError(f"--ess {self.ess}: must be 1 or more, at most the number of negatives")
        if self.name == "debiased" and self.tau_plus == 0:
            raise UserError("--loss debiased: needs --tau-plus, the chance that a negative shares the anchor's class")
        if self.name == "infonce" and self.tau_plus > 0:
            raise UserError(f"--tau-plus {self.tau_plus}: --loss infonce has no debiasing; use --loss debiased or hcl")

    def fixed_beta(self) -> float | None:
        """β, or None where every batch solves for it."""
        if self.name != "hcl" or self.beta is not None:
            return self.beta or 0.0
        if self.ess is not None:
            return None
        return (2.0 if self.kappa is None else self.kappa) * self.temperature


class Diagnostics(NamedTuple):
    """What the loss saw in one batch, as plain numbers.

    ess: median effective sample size (Σw)²/Σw² of the negatives' weights w = e^{βz}. floor: share of anchors whose negative
    term sits on the debiasing floor, so that no gradient reaches their negatives. positive, negative: mean cosines.
    """

    beta: float
    kappa: float
    ess: float
    floor: float
    positive: float
    negative: float


class LossOutput(NamedTuple):
    loss: Tensor
    diagnostics: Diagnostics


def log_hard_negatives(z: Tensor, negatives: Tensor, beta: float | Tensor, detach_weights: bool = False) -> Tensor:
    """log R of each anchor: N times the mean of e^z over its negatives under weights e^{βz} (HCL, section 3).

    z: (A, C) logits. negatives: (A, C) bool. Returns (A,), −inf where an anchor has no negative.
    R/N is the Lehmer mean of e^z of order 1+β, so it lies between the mean and the largest, and never falls as β grows.
    The row's maximum leaves *before* β multiplies: unshifted float32 is off by 4.6 at t = 2e-4, β = 1e4.
    """
    count = negatives.sum(1)
    lowest = torch.finfo(z.dtype).min
    top = z.detach().masked_fill(~negatives, lowest).amax(1)
    top = torch.where(count > 0, top, torch.zeros_like(top))
    # Masked entries are set to a shift of 0 and removed after β multiplied, so that no inf · 0 can arise at β = 0.
    shifted = torch.where(negatives, z - top[:, None], torch.zeros_like(z))
    weighting = beta * (shifted.detach() if detach_weights else shifted)
    some = count > 0
    excluded = ~negatives & some[:, None]
    log_weighted = torch.logsumexp((shifted + weighting).masked_fill(excluded, -torch.inf), 1)
    log_weights = torch.logsumexp(weighting.masked_fill(excluded, -torch.inf), 1)
    log_r = count.clamp(min=1).to(z.dtype).log() + top + log_weighted - log_weights
    return torch.where(some, log_r, torch.full_like(log_r, -torch.inf))


def debias(
    log_r: Tensor, count: Tensor, positive: Tensor, tau_plus: float, temperature: float
) -> tuple[Tensor, Tensor]:
    """log max((R − τ⁺ N e^p)/(1 − τ⁺), N e^{−1/t}) and which anchors are on that floor (HCL equation 4; Chuang et al. 2020).

    log_r, count, positive: (A,). Returns (A,) and (A,) bool. With τ⁺ = 0 it is log_r, which is never below the floor.
    """
    if tau_plus == 0:
        return log_r, torch.zeros_like(log_r, dtype=torch.bool)
    log_n = count.clamp(min=1).to(log_r.dtype).log()
    floor = log_n - 1 / temperature
    gap = math.log(tau_plus) + log_n + positive - log_r  # log of the share of R that is taken away
    on_floor = gap >= 0
    # The dead branch of a `where` still has a gradient, so it gets a harmless input.
    safe = torch.where(on_floor, torch.full_like(gap, -1.0), gap)
    log_ng = torch.where(on_floor, floor, log_r + _log1mexp(safe) - math.log1p(-tau_plus))
    on_floor = on_floor | (log_ng < floor)
    log_ng = torch.where(on_floor, floor, log_ng)
    none = count == 0
    return torch.where(none, log_r, log_ng), on_floor & ~none


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 − e^x) for x < 0, by the branch that is exact on each side of −log 2."""
    near = x > -math.log(2)
    small = torch.where(near, x, torch.full_like(x, -0.5))
    large = torch.where(near, torch.full_like(x, -1.0), x)
    return torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x); torch's own turns linear above 20 and so is off by 2e-9 there."""
    return -logsigmoid(-x)


def effective_sample_size(z: Tensor, negatives: Tensor, beta: float) -> Tensor:
    """(Σw)²/Σw² over the negatives of each anchor, w = e^{βz}: from N at β = 0 down to 1. z, negatives: (A, C) → (A,)."""
    log_w = (beta * z).masked_fill(~negatives, -torch.inf)
    return (2 * torch.logsumexp(log_w, 1) - torch.logsumexp(2 * log_w, 1)).exp()


def solve_beta(z: Tensor, negatives: Tensor, ess: float) -> float:
    """The β at which the median effective sample size over these anchors is `ess`: bisection on log β.

    It falls as β grows. A target of N or more gives 0; one that even the largest β (e^30) cannot reach gives that.
    """
    rows = negatives.any(1)
    if not rows.any():
        return 0.0
    z, negatives = z[rows].double(), negatives[rows]
    z = z - z.masked_fill(~negatives, -torch.inf).amax(1, keepdim=True)  # weights are relative
    if ess >= float(negatives.sum(1).median()):
        return 0.0
    low, high = -30.0, 30.0
    for _ in range(50):
        middle = (low + high) / 2
        if float(effective_sample_size(z, negatives, math.exp(middle)).median()) > ess:
            low = middle
        else:
            high = middle
    return math.exp(high)


def contrastive_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    items: Tensor | None = None,
    config: LossConfig,
) -> LossOutput:
    """The loss of B pairs, both sides as anchors, everything else in the batch as negatives; mean over the 2B anchors.

    anchor, positive: (B, d), made unit here. negative: (K, d) explicit negatives of every anchor.
    labels: (B,) class of each pair; with config.label_mask same-class items stop being negatives and become positives.
    items: (2B,) identity of each embedding; equal ones (the same text twice) are not negatives of each other.
    Half precision is raised to float32, float64 is kept. An anchor without negatives has loss 0.
    """
    with torch.autocast(anchor.device.type, enabled=False):
        sides = torch.cat([_unit(anchor), _unit(positive)])
        candidates = sides if negative is None else torch.cat([sides, _unit(negative)])
        z = sides @ candidates.T / config.temperature
        mask = _Masks.of_pairs(len(anchor), candidates.shape[0], labels if config.label_mask else None, items, z.device)
        beta = _beta(z, mask.negatives, config)
        log_r = log_hard_negatives(z, mask.negatives, beta, config.detach_weights)
        if mask.several:
            each = _softplus(log_r[:, None] - z).masked_fill(~mask.positives, 0.0)
            per_anchor = each.sum(1) / mask.positives.sum(1)
            on_floor = torch.zeros_like(log_r, dtype=torch.bool)
        else:
            p = z.gather(1, mask.partner[:, None]).squeeze(1)
            log_ng, on_floor = debias(log_r, mask.negatives.sum(1), p, config.tau_plus, config.temperature)
            per_anchor = _softplus(log_ng - p)
        return LossOutput(per_anchor.mean(), _diagnose(z.detach(), mask, beta, on_floor, config))


class _Masks(NamedTuple):
    """Which candidates are what to each anchor. negatives, positives: (A, C) bool; partner: (A,) the other half of the pair;
    several: whether anchors may have more than one positive."""

    negatives: Tensor
    positives: Tensor
    partner: Tensor
    several: bool

    @classmethod
    def of_pairs(
        cls, pairs: int, candidates: int, labels: Tensor | None, items: Tensor | None, device: torch.device
    ) -> "_Masks":
        anchors = 2 * pairs
        row = torch.arange(anchors, device=device)
        partner = (row + pairs) % anchors
        column = torch.arange(candidates, device=device)
        itself = row[:, None] == column
        positives = partner[:, None] == column
        if labels is not None:
            both = torch.cat([labels, labels])
            positives = _padded(both[:, None] == both, candidates) & ~itself
        negatives = ~(positives | itself)
        if items is not None:
            negatives &= ~_padded(items[:, None] == items, candidates)
        return cls(negatives, positives, partner, several=labels is not None)


def _padded(square: Tensor, columns: int) -> Tensor:
    """(A, A) bool widened to (A, columns) with False."""
    return nn.functional.pad(square, (0, columns - square.shape[1]), value=False)


def _unit(x: Tensor) -> Tensor:
    return normalize(x if x.dtype == torch.float64 else x.float(), dim=1)


def _beta(z: Tensor, negatives: Tensor, config: LossConfig) -> float:
    fixed = config.fixed_beta()
    if fixed is not None:
        return fixed
    assert config.ess is not None
    return solve_beta(z[:DIAGNOSED_ANCHORS].detach(), negatives[:DIAGNOSED_ANCHORS], config.ess)


@torch.no_grad()
def _diagnose(z: Tensor, mask: _Masks, beta: float, on_floor: Tensor, config: LossConfig) -> Diagnostics:
    few = slice(DIAGNOSED_ANCHORS)
    rows, negatives = z[few], mask.negatives[few]
    kept = negatives.any(1)
    ess = effective_sample_size(rows[kept], negatives[kept], beta).median().item() if kept.any() else 0.0
    t = config.temperature
    positive = rows[mask.positives[few]].mean().item() * t
    negative = rows[negatives].mean().item() * t if kept.any() else 0.0
    return Diagnostics(beta, beta / t, ess, on_floor.float().mean().item(), positive, negative)


class ContrastiveLoss(nn.Module):
    """`contrastive_loss` as a module: shapes as there, returns the scalar loss; the last diagnostics are an attribute."""

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.diagnostics: Diagnostics | None = None

    def forward(
        self,
        anchor: Tensor,
        positive: Tensor,
        negative: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        items: Tensor | None = None,
    ) -> Tensor:
        loss, self.diagnostics = contrastive_loss(
            anchor, positive, negative, labels=labels, items=items, config=self.config
        )
        return loss
