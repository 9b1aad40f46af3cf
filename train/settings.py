"""How to train, whatever the items are: what learns, for how long, in which batches, at which rate."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass

from sentence_transformers import SentenceTransformer

from retrieval.errors import UserError

from . import adapt
from .batches import Drawing, Plan, Rows, plan
from .head import learning_rate
from .loss import LossConfig
from .loss.gather import world
from .loss.inputs import refuse_other_config
from .loss.schedule import refuse_below

LORA_RATE = 2e-4


@dataclass(frozen=True, kw_only=True)
class Settings(ABC):
    """What every way of training shares. batch_size counts pairs; one of steps and epochs is set, and epochs make as many steps as
    `step_bounds` allow, at least and at most; lr None takes the way's own default.

    head, last_layers, lora (a rank): what learns, all if none is set. mini_batch_size: how many items are in the encoder at a
    time (GradCache), for batches larger than memory would hold. accumulate: batches a step. dims: Matryoshka dimensions besides
    all. drawing: which rows stand together. schedule: of the learning rate after `warmup`, a share of all steps. layer_decay: the
    rate of each layer over that of the next. compute: the type of the forward and backward pass; weights stay float32. average:
    the decay of a running mean of the weights that is kept in their place (`average.Average`).
    """

    head: bool = False
    last_layers: int | None = None
    lora: int | None = None
    steps: int | None = None
    epochs: float = 1.0
    step_bounds: tuple[int, int | None] = (1, None)
    batch_size: int | None = None
    mini_batch_size: int | None = None
    accumulate: int = 1
    drawing: Drawing = Drawing()
    lr: float | None = None
    schedule: str = "linear"
    warmup: float = 0.1
    layer_decay: float = 1.0
    dims: tuple[int, ...] = ()
    compute: str = "float32"
    compiled: bool = False
    average: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("mini_batch_size", 1), ("accumulate", 1)):
            refuse_below(name, getattr(self, name), least)
        for name in ("epochs", "lr"):
            refuse_below(name, getattr(self, name), 0, strictly=True)

    @property
    @abstractmethod
    def whole_rate(self) -> float:
        """The learning rate of a whole encoder, where none is given."""

    @property
    def rate(self) -> float:
        """The learning rate of the encoder itself."""
        return self.lr or (LORA_RATE if self.lora else self.whole_rate)

    def head_rate(self, plan: Plan) -> float:
        """That of a head over it."""
        return self.lr or learning_rate(plan)

    def total_steps(self, plans: Sequence[Plan]) -> int:
        """As many as asked, or as the epochs of all data sets take, within the bounds."""
        least, most = self.step_bounds
        found = max(least, sum(plan.steps for plan in plans))
        return self.steps or (found if most is None else min(found, most))

    def encoded_first(self, data: Sized, model: SentenceTransformer) -> int:
        """How many items are encoded before the first step: for a head, or to see which are near."""
        return len(data) * (int(self.head) + int(self.drawing.how == "hard"))

    def rates(self, model: SentenceTransformer) -> dict[str, float]:
        """Learning rates of weights that differ from `rate`, by patterns of their names (as sentence-transformers has them)."""
        return adapt.learning_rates(model, self.rate, self.layer_decay) if self.layer_decay != 1 else {}

    def plan(
        self,
        count: int,
        labels: Sequence[str] | None,
        source: str,
        loss_config: LossConfig,
        *,
        identities: Callable[[], Rows],
        lengths: Callable[[], Rows] | None = None,
        near: Callable[[], Rows] | None = None,
    ) -> Plan:
        """`batches.plan` as these settings have it. Raises UserError for batches of which not every process has a pair."""
        _, processes = world()
        found = plan(
            count,
            labels,
            source,
            masked=loss_config.label_mask,
            batch_size=self.batch_size,
            steps=self.steps,
            epochs=self.epochs,
            seed=self.seed,
            accumulate=self.accumulate,
            drawing=self.drawing,
            identities=identities,
            lengths=lengths,
            near=near,
            least=max(2, processes),
        )
        if found.pairs < processes:
            raise UserError(
                f"--batch-size {found.pairs}: fewer pairs than the {processes} processes that share a batch; give at least "
                f"{processes}, or start fewer processes"
            )
        return found

    def used(self, plans: Sequence[Plan]) -> dict[str, object]:
        """What the settings left open came out as; the batch size that of the first data set."""
        rate = self.head_rate(plans[0]) if self.head else self.rate
        return {"steps": self.total_steps(plans), "batch_size": plans[0].pairs, "lr": rate}

    def refuse_contradictions(self) -> None:
        """Raises UserError for settings that do not go together."""
        if sum(map(bool, (self.head, self.last_layers, self.lora))) > 1:
            raise UserError("--head, --last-layers, --lora: say in one way what learns, not in two")
        if self.lora and self.layer_decay != 1:
            raise UserError("--layer-decay: is not for --lora, whose additions all start at zero; leave it out")
        if not self.head:
            return
        plain = type(self)(head=True)
        for name in (
            "mini_batch_size",
            "accumulate",
            "layer_decay",
            "compute",
            "compiled",
            "schedule",
            "warmup",
            "average",
        ):
            if getattr(self, name) != getattr(plain, name):
                flag = {"compiled": "compile", "average": "ema"}.get(name, name.replace("_", "-"))
                raise UserError(f"--{flag}: is for training the encoder itself; leave it out, or leave --head out")


def refuse_mistaken(model: object, loss_config: object) -> None:
    """Raise UserError for an `Encoder`, whose model is meant, for a loss or its name, and the like."""
    refuse_other_config(loss_config)
    if not isinstance(model, SentenceTransformer):
        raise UserError(
            f"model: is of type {type(model).__name__}; give a SentenceTransformer, such as an encoder's .model"
        )
