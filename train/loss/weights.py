"""How negatives weigh: the densities under which the mean of e^z over an anchor's negatives is taken.

Each weighting gives log w of every negative. Normalised, the negative term is N · Σ w e^z / Σ w; otherwise Σ w e^z.
Only `Exp` has a gradient through its weights; all others are constants in the backward pass, as published.
Letters: A anchors, C candidates; z = cos/t is −inf where a candidate is no negative.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from retrieval.errors import UserError

from .schedule import Number, number, refuse_below, refuse_other_kinds, values

LARGEST_LOG_BETA = 30.0
KAPPA = 2.0  # the paper's best, where nobody says


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """w = 1: InfoNCE (van den Oord et al. 2018), NT-Xent (Chen et al. 2020)."""

    normalised = True


@dataclass(frozen=True, kw_only=True)
class Exp:
    """w = e^{βz}: HCL (Robinson et al., ICLR 2021, section 3). β → 0 is `Uniform`, β → ∞ keeps the hardest negative alone.

    Hardness is given as β, as the concentration on the cosine κ = β/t, or as a target for the effective sample size of the
    weights (one β a batch, solved for the median anchor); κ = 2, the paper's best, if none is given.
    detach: take the weights as constants. Off as published: the gradient through them draws easy negatives nearer. H-SCL's
    published code and ADNCE detach. On BANKING77 through the weights was better at the best hardness, detached more
    forgiving of too much.
    """

    kappa: Number | None = None
    beta: Number | None = None
    ess: Number | None = None
    detach: bool = False
    normalised = True

    def __post_init__(self) -> None:
        refuse_other_kinds(self)
        given = [f"--{name}" for name in ("beta", "kappa", "ess") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)}: all say how hard; give one of --beta, --kappa and --ess")
        for name, least in (("beta", 0.0), ("kappa", 0.0), ("ess", 1.0)):
            refuse_below(f"--{name}", getattr(self, name), least)

    @property
    def given(self) -> tuple[Literal["beta", "kappa", "ess"], Number]:
        """In which way hardness is given, and how much."""
        if self.ess is not None:
            return "ess", self.ess
        if self.beta is not None:
            return "beta", self.beta
        return "kappa", KAPPA if self.kappa is None else self.kappa

    def fixed_beta(self, temperature: float) -> float | None:
        """β, or None where every batch solves for it."""
        way, value = self.given
        return None if way == "ess" else number(value) * (temperature if way == "kappa" else 1)


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """w = exp(−(cos − mu)²/2 sigma²): ADNCE (Wu et al., NeurIPS 2023, equation 11). sigma → ∞ is `Uniform`.

    The published README writes e^z where the code takes the cosine; the code is followed.
    """

    mu: Number = 0.7
    sigma: Number = 0.5
    normalised = True

    def __post_init__(self) -> None:
        refuse_other_kinds(self)
        refuse_below("sigma", self.sigma, 0.0, strictly=True)

    def log_weights(self, z: Tensor, temperature: float) -> Tensor:
        cosines = (z * temperature).masked_fill(z == -torch.inf, 0.0)
        log_w = -((cosines - number(self.mu)) ** 2) / (2 * number(self.sigma) ** 2)
        return log_w.masked_fill(z == -torch.inf, -torch.inf)


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """BCL (Liu, Wang, Wang, "Contrastive learning with Bayesian debiasing" 2023): the odds that a negative is true and hard.

    From the rank of a negative among those of its anchor. alpha: how well the encoder ranks (0.5 … 1, its AUC); beta:
    hardness (0.5 … 1); tau_plus: chance that a negative shares the class, here and not as the loss's own τ⁺. The sum is
    not normalised, as published. alpha = beta = 0.5 weighs all alike, but for the published code's guards against 0/0.
    """

    alpha: Number = 0.9
    beta: Number = 0.9
    tau_plus: Number = 0.1
    normalised = False

    def __post_init__(self) -> None:
        refuse_other_kinds(self)
        for name in ("alpha", "beta"):
            refuse_below(name, getattr(self, name), 0.5)
            if any(x > 1 for x in values(getattr(self, name))):
                raise UserError(f"{name} {getattr(self, name)}: must be 0.5 to 1")
        if not all(0 <= x < 1 for x in values(self.tau_plus)):
            raise UserError(f"tau_plus {self.tau_plus}: must be at least 0 and below 1")

    def log_weights(self, z: Tensor, temperature: float) -> Tensor:
        alpha, beta, tau = number(self.alpha), number(self.beta), number(self.tau_plus)
        masked = z == -torch.inf
        none = masked.sum(1, keepdim=True)  # they come first in order
        rank = torch.searchsorted(z.sort(1).values, z, right=True)
        share = (rank - none).to(z.dtype) / (z.shape[1] - none).clamp(min=1)
        # The share of true negatives below: the root of a quadratic (their equation 12), stable for a near 0.
        a = (1 - 2 * alpha) * (1 - 2 * tau) + 1e-3
        b = 2 * (alpha * (1 - tau) + (1 - alpha) * tau)
        below = 2 * share / (b + torch.sqrt((b**2 + 4 * a * share).clamp(min=0)))
        easy, hard = 2 * (1 - below), 2 * below
        true_hard = (alpha * (1 - beta) * easy + (1 - alpha) * beta * hard) / (
            alpha * (1 - beta) + (1 - alpha) * beta + 1e-3
        )
        any_true = alpha * easy + (1 - alpha) * hard
        any_false = (1 - alpha) * easy + alpha * hard
        weight = true_hard / (any_true * (1 - tau) + any_false * tau)
        return weight.log().masked_fill(masked, -torch.inf)


@dataclass(frozen=True, kw_only=True)
class Additive:
    """log w = alpha·cos + constant, not normalised: sentence-transformers' `hardness_mode`.

    alpha: LLaVE (Lan et al. 2025, equation 5: 9, in-batch), EmbeddingGemma (2025: 5, on explicit negatives).
    constant: supervised SimCSE's `hard_negative_weight` (on the anchor's own explicit negatives).
    on: which negatives get it: "in-batch" (all but the anchor's own explicit ones), "hard" (those alone), or "all".
    """

    alpha: Number = 9.0
    constant: Number = 0.0
    on: Literal["in-batch", "hard", "all"] = "in-batch"
    normalised = False

    def __post_init__(self) -> None:
        refuse_other_kinds(self)

    def log_weights(self, z: Tensor, temperature: float, own_explicit: Tensor | None = None) -> Tensor:
        cosines = (z * temperature).masked_fill(z == -torch.inf, 0.0)
        log_w = number(self.alpha) * cosines + number(self.constant)
        if self.on != "all":
            chosen = torch.zeros_like(z, dtype=torch.bool) if own_explicit is None else own_explicit
            log_w = torch.where(chosen == (self.on == "hard"), log_w, torch.zeros_like(log_w))
        return log_w.masked_fill(z == -torch.inf, -torch.inf)


Weights = Uniform | Exp | Gaussian | Posterior | Additive


def effective_sample_size(log_w: Tensor) -> Tensor:
    """(Σw)²/Σw² of each row's weights, −inf where there is none: from N for equal ones down to 1. (A, C) → (A,)."""
    return (2 * torch.logsumexp(log_w, 1) - torch.logsumexp(2 * log_w, 1)).exp()


def solve_beta(z: Tensor, ess: float) -> float:
    """The β at which the median effective sample size over these anchors is `ess`: bisection on log β.

    z: (A, C), −inf where a candidate is no negative. The size falls as β grows. A target of N or more gives 0; one that
    even the largest β (e^30) cannot reach gives that.
    """
    negatives = z > -torch.inf
    rows = negatives.any(1)
    if not rows.any():
        return 0.0
    negatives, z = negatives[rows], z[rows].double()
    if ess >= float(negatives.sum(1).median()):
        return 0.0
    shifted = (z - z.amax(1, keepdim=True)).masked_fill(~negatives, 0.0)  # weights are relative; no −inf · 0
    low, high = -LARGEST_LOG_BETA, LARGEST_LOG_BETA
    for _ in range(50):
        middle = (low + high) / 2
        log_w = (math.exp(middle) * shifted).masked_fill(~negatives, -torch.inf)
        if float(effective_sample_size(log_w).median()) > ess:
            low = middle
        else:
            high = middle
    return math.exp(high)
