"""The contrastive losses: small orthogonal parts, and names for what they make together.

    which negatives count    label mask, identities, FalseNegatives, explicit negatives, memory    tasks.py, blocks.py, memory.py
    how they weigh           Uniform, Exp (HCL), Gaussian (ADNCE), Posterior (BCL), Additive       weights.py
    how they enter           coupled, decoupled, shared (SupCon); debiased with τ⁺                 rows.py
    in which directions      symmetric or forward, within a side or not                            tasks.py
    synthetic negatives      Mix (SSCL, MoCHi)                                                     mix.py

With unit embeddings, temperature t, logits z = cos/t, positive logit p and the N negatives j of one anchor, HCL (Robinson,
Chuang, Sra, Jegelka, "Contrastive Learning with Hard Negative Samples", ICLR 2021, arXiv 2010.04592) is

    log R = log N + LSE_j((1+β) z_j) − LSE_j(β z_j)        importance-sampled N · E_q[e^z],  q ∝ e^{βz}
    Ng    = max((R − τ⁺ N e^p) / (1 − τ⁺), N e^{−1/t})      debiased: a "negative" shares the anchor's class with chance τ⁺
    loss  = log(1 + Ng / e^p)

β = τ⁺ = 0 is InfoNCE (NT-Xent); β = 0 is the debiased loss (Chuang et al. 2020); β → ∞ keeps the hardest negative alone. R/N is
the Lehmer mean of e^z of order 1+β, so the loss never falls as β grows.
"""

from .config import FalseNegatives, LossConfig, Mix
from .contrastive import OWN_RATE, ContrastiveLoss, LossOutput, contrastive_loss, loss
from .names import METHODS, named, open_settings, with_settings
from .observe import Diagnostics
from .schedule import Schedule
from .weights import Additive, Exp, Gaussian, Posterior, Uniform

__all__ = [
    "METHODS",
    "OWN_RATE",
    "Additive",
    "ContrastiveLoss",
    "Diagnostics",
    "Exp",
    "FalseNegatives",
    "Gaussian",
    "LossConfig",
    "LossOutput",
    "Mix",
    "Posterior",
    "Schedule",
    "Uniform",
    "contrastive_loss",
    "loss",
    "named",
    "open_settings",
    "with_settings",
]
