"""A loss, put together from its parts."""

import math
from dataclasses import dataclass, field
from typing import Literal

from retrieval.errors import UserError

from .rows import Entry
from .schedule import Number, Schedule, refuse_below, refuse_other_kinds, values
from .weights import Exp, Posterior, Uniform, Weights


@dataclass(frozen=True, kw_only=True)
class FalseNegatives:
    """Candidates too like the anchor's positive are taken for false negatives and left out.

    Left out where sim(anchor, candidate) > sim(anchor, positive) − margin ("absolute"), or − margin·|that| ("relative").
    guide: judge by a guide encoder's embeddings, which the call then needs (GISTEmbed, Solatorio 2024), else by the
    embeddings being trained (NV-Retriever's positive-aware mining, relative 0.05; Qwen3-Embedding, absolute −0.1).
    """

    kind: Literal["absolute", "relative"] = "absolute"
    margin: float = 0.0
    guide: bool = False

    def __post_init__(self) -> None:
        refuse_other_kinds(self)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Synthetic negatives from each anchor's `hardest` ones, made unit again and taken as constants.

    pairs: a·n + (1 − a)·n' of two of them, a ~ U(0, 1): SSCL (Dong et al. 2024) and MoCHi (Kalantidis et al., NeurIPS
    2020, equation 3). with_anchor: b·q + (1 − b)·n, b ~ U(0, ½): MoCHi equation 4. They are weighed like real ones.
    """

    hardest: int = 64
    pairs: int = 32
    with_anchor: int = 0

    def __post_init__(self) -> None:
        refuse_other_kinds(self)
        if self.hardest < 2 or self.pairs < 0 or self.with_anchor < 0:
            raise UserError("Mix: needs at least 2 hardest; pairs and with_anchor must be at least 0")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which negatives count, how they weigh, how they enter, in which directions. Defaults are HCL with κ = 2.

    weights: how negatives weigh. entry: how they meet the positive; see `rows.row_losses`. tau_plus: debiasing, the chance
    τ⁺ that a negative shares the anchor's class. label_mask: where labels are given, same-class items are positives and
    never negatives; needs_labels: refuse to go without. directions: "symmetric", both sides are anchors, or "forward", the
    anchors' side alone; within_side: items of the anchor's own side are negatives too (SimCLR). false_negatives: leave out
    likely ones. mix: synthetic negatives. memory: how many embeddings of past batches are further negatives (XBM,
    Wang et al., CVPR 2020). published_count: take N = 2B − 2 under a label mask too, as H-SCL's code does, not the true
    number. own_negatives: explicit negatives are negatives of their own pair's anchors alone, as an altered caption is of its
    picture, not of every anchor's. bias: added to every logit, which only "sigmoid" feels. learn_temperature: t, and that bias,
    are trained from their starting values. Numbers may be a `Schedule` over training.
    """

    weights: Weights = field(default_factory=Exp)
    temperature: Number = 0.1
    tau_plus: Number = 0.0
    entry: Entry = "coupled"
    label_mask: bool = True
    needs_labels: bool = False
    directions: Literal["symmetric", "forward"] = "symmetric"
    within_side: bool = True
    false_negatives: FalseNegatives | None = None
    mix: Mix | None = None
    memory: int = 0
    published_count: bool = False
    own_negatives: bool = False
    bias: Number = 0.0
    learn_temperature: bool = False

    def __post_init__(self) -> None:
        refuse_other_kinds(self)
        for t in values(self.temperature):
            if not (t > 0 and math.isfinite(t)):
                raise UserError(f"--temperature {t}: must be above 0; 0.05 to 0.5 is usual")
        for tau in values(self.tau_plus):
            if not 0 <= tau < 1:
                raise UserError(
                    f"--tau-plus {tau}: must be at least 0 and below 1; one over the number of classes is usual"
                )
        if self.tau_plus and isinstance(self.weights, Posterior):
            raise UserError("--tau-plus: BCL has it among its weights; say bcl(tau_plus=…)")
        if self.tau_plus and self.needs_labels:
            raise UserError(f"--tau-plus {self.tau_plus}: with labels nothing is left to correct; leave it out")
        if self.mix is not None and not isinstance(self.weights, Exp | Uniform):
            raise UserError("Mix: synthetic negatives are weighed by Exp or Uniform only; choose one of them")
        if self.learn_temperature and isinstance(self.temperature, Schedule):
            raise UserError("--temperature: is either scheduled or learned; choose one")
        if self.learn_temperature and isinstance(self.bias, Schedule):
            raise UserError("bias: is either scheduled or learned; choose one")
        if self.entry == "joint" and not (self.within_side and self.directions == "symmetric"):
            raise UserError("entry joint: adds up what both sides see; needs within_side and directions symmetric")
        if self.entry == "sigmoid" and (self.tau_plus or self.mix or not isinstance(self.weights, Uniform)):
            raise UserError(
                "entry sigmoid: negatives are not averaged, so no hardness, --tau-plus or Mix; use --loss hcl"
            )
        if self.bias and self.entry != "sigmoid":
            raise UserError(f"bias {self.bias}: has no effect but with entry sigmoid; leave it out")
        if self.own_negatives and self.published_count:
            raise UserError(
                "own_negatives: published_count takes every candidate for a negative; leave one of them out"
            )
        if self.published_count and not (self.within_side and self.entry != "sigmoid"):
            raise UserError(
                "published_count: N = 2B − 2 counts both sides of a mean; needs within_side, and no entry sigmoid"
            )
        refuse_below("memory", self.memory, 0)
        if self.memory and self.guided:
            raise UserError(
                "memory: embeddings of past batches have none of the guide encoder's; leave one of them out"
            )

    @property
    def guided(self) -> bool:
        """Whether a guide encoder's embeddings are needed."""
        return self.false_negatives is not None and self.false_negatives.guide

    @property
    def hardness(self) -> dict[str, float]:
        """β and κ = β/t of weights e^{βz}: those of the two that stay what they are over all of training."""
        if not isinstance(self.weights, Exp):
            return {}
        way, value = self.weights.given
        if way == "ess" or isinstance(value, Schedule):
            return {}
        if isinstance(self.temperature, Schedule) or self.learn_temperature:
            return {way: value}
        return {
            "kappa": value if way == "kappa" else value / self.temperature,
            "beta": value if way == "beta" else value * self.temperature,
        }

    @property
    def name(self) -> str:
        """What this loss is called, with the settings that differ from the name's own."""
        from .names import describe

        return describe(self)


UNIFORM = Uniform()
