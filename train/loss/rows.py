"""From what an anchor's negatives add up to, and its positives, to its loss. Rows are independent of each other.

Everything here is small: one number a row, one a positive. Letters: A anchors, P positives of all anchors together.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Entry = Literal["coupled", "decoupled", "shared", "joint", "sigmoid"]


def row_losses(
    log_r: Tensor,
    count: Tensor,
    z_pos: Tensor,
    owner: Tensor,
    *,
    entry: Entry,
    tau_plus: float,
    beta: Tensor,
    floor: Tensor | float,
    views: int = 1,
) -> tuple[Tensor, Tensor]:
    """The loss of each anchor, and whether its negative term sits on the debiasing floor, both (A,).

    log_r, count: (A,) log of the negative term R and how many negatives N it stands for. z_pos, owner: (P,) logit of each
    positive and the anchor it belongs to; every anchor has at least one. floor: −1/t. With Ng from `debias`, mean over the
    positives p of
        coupled    log(1 + Ng/e^p): HCL; several positives make H-SCL (arXiv 2209.00078), and SINCERE (2309.14277) at β = 0
        decoupled  log Ng − p: the positive leaves the denominator (Yeh et al., ECCV 2022); may be negative
        shared     log(Ng + Σ_p' e^p') − p: all positives in the denominator, SupCon (Khosla et al., NeurIPS 2020, L_out)
        joint      log(V + Σ_v Ng_v/e^p): one denominator of all V = `views` anchors of a pair, which follow one another; each
                   counts the positive, as GTE's improved contrastive loss does (Li et al. 2023, arXiv 2308.03281, eq. 2)
        sigmoid    log(1 + e^{−p}), summed over the positives, + R, which is then Σ log(1 + e^z): SigLIP (Zhai et al., ICCV 2023)
    An anchor without negatives has loss 0, but for `shared`, where its positives still compete, and `sigmoid`.
    """
    rows = len(log_r)
    log_ng, on_floor = log_r, torch.zeros_like(log_r, dtype=torch.bool)
    if tau_plus > 0:
        log_ng, on_floor = debias(log_r, count, _expected_positive(z_pos, owner, rows, beta), tau_plus, floor)
    positives = torch.zeros_like(log_r).index_add(0, owner, torch.ones_like(z_pos))
    if entry == "joint":
        log_ng = torch.logsumexp(log_ng.view(-1, views), 1).repeat_interleave(views)
        each = softplus(log_ng[owner] - z_pos - math.log(views)) + math.log(views)
    elif entry == "coupled":
        each = softplus(log_ng[owner] - z_pos)
    elif entry == "sigmoid":
        each = softplus(-z_pos) * positives[owner] + log_ng.exp()[owner]
    elif entry == "decoupled":
        each = torch.where(count[owner] > 0, log_ng[owner] - z_pos, torch.zeros_like(z_pos))
    else:
        each = torch.logaddexp(log_ng, segment_logsumexp(z_pos, owner, rows))[owner] - z_pos
    return torch.zeros_like(log_r).index_add(0, owner, each) / positives, on_floor


def _expected_positive(z_pos: Tensor, owner: Tensor, rows: int, beta: Tensor) -> Tensor:
    """log E[e^p] over an anchor's positives under weights e^{βp} (HCL section 3.2 with M positives); p itself for M = 1."""
    if len(z_pos) == rows:
        return z_pos
    return segment_logsumexp((1 + beta) * z_pos, owner, rows) - segment_logsumexp(beta * z_pos, owner, rows)


def debias(
    log_r: Tensor, count: Tensor, positive: Tensor, tau_plus: float, floor: Tensor | float
) -> tuple[Tensor, Tensor]:
    """log max((R − τ⁺ N e^p)/(1 − τ⁺), N e^floor) and who is on that floor (HCL equation 4; Chuang et al., NeurIPS 2020).

    log_r, count, positive: (A,). floor: −1/t, the least a cosine allows. Returns (A,) and (A,) bool. On the floor no gradient
    reaches the negatives.
    """
    log_n = count.clamp(min=1).to(log_r.dtype).log()
    least = log_n + floor
    gap = math.log(tau_plus) + log_n + positive - log_r  # log of the share of R that is taken away
    on_floor = gap >= 0
    # The dead branch of a `where` still has a gradient, so it gets a harmless input.
    safe = torch.where(on_floor, torch.full_like(gap, -1.0), gap)
    log_ng = torch.where(on_floor, least, log_r + log1mexp(safe) - math.log1p(-tau_plus))
    on_floor = on_floor | (log_ng < least)
    log_ng = torch.where(on_floor, least, log_ng)
    none = count == 0
    return torch.where(none, log_r, log_ng), on_floor & ~none


def segment_logsumexp(values: Tensor, owner: Tensor, rows: int) -> Tensor:
    """LSE of the values of each owner: (P,) → (rows,); every owner has at least one."""
    top = values.detach().new_full((rows,), -torch.inf).scatter_reduce(0, owner, values.detach(), "amax")
    total = torch.zeros_like(top).index_add(0, owner, (values - top[owner]).exp())
    return top + total.log()


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − e^x) for x < 0, by the branch that is exact on each side of −log 2."""
    near = x > -math.log(2)
    small = torch.where(near, x, torch.full_like(x, -0.5))
    large = torch.where(near, torch.full_like(x, -1.0), x)
    return torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x); torch's own turns linear above 20 and so is off by 2e-9 there."""
    return -logsigmoid(-x)
