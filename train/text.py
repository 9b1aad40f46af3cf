"""Fine-tuning text encoders: the whole encoder with SentenceTransformerTrainer, or a linear head over a frozen one."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import DefaultBatchSampler
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from retrieval.data import Texts
from retrieval.errors import UserError

from . import head as frozen
from .batches import Plan, Rows, as_codes
from .batches import plan as plan_pairs
from .curve import Curve
from .loss import LossConfig
from .sentence_loss import SentenceLoss

WHOLE_LEARNING_RATE = 2e-5


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How to train. batch_size counts pairs; one of steps and epochs is set; lr None takes the way's own default.

    mini_batch_size: how many texts are in the encoder at a time (GradCache), for batches larger than memory would hold.
    """

    head: bool = False
    steps: int | None = None
    epochs: float = 1.0
    batch_size: int | None = None
    mini_batch_size: int | None = None
    lr: float | None = None
    seed: int = 0


def train_text(
    model: SentenceTransformer,
    data: Texts,
    config: TextConfig,
    loss_config: LossConfig,
    *,
    source: str,
    encoded: Callable[[int], None] = lambda texts: None,
    progress: Callable[[Curve], None] = lambda curve: None,
) -> Curve:
    """Train `model` in place and return its curve. `encoded` and `progress` are told texts encoded and steps done."""
    plan = plan_batches(data, config, loss_config, source)
    torch.manual_seed(config.seed)
    if config.head:
        return _train_head(model, data, plan, config, loss_config, encoded, progress)
    return _train_whole(model, data, plan, config, loss_config, progress)


def used(plan: Plan, config: TextConfig) -> dict[str, object]:
    """What the settings left open came out as."""
    return {"steps": plan.steps, "batch_size": plan.pairs, "lr": _learning_rate(config)}


def _learning_rate(config: TextConfig) -> float:
    return config.lr or (frozen.LEARNING_RATE if config.head else WHOLE_LEARNING_RATE)


def plan_batches(data: Texts, config: TextConfig, loss_config: LossConfig, source: str) -> Plan:
    """Decide the batches. Raises UserError for data from which this way of training cannot make pairs."""
    labels = None if data.is_pairs else data.labels
    if config.head and not data.is_pairs and labels is None:
        raise UserError(
            f"{source}: plain lines are trained on two dropout views, which a frozen encoder makes equal; leave --head out"
        )
    if config.head and config.mini_batch_size:
        raise UserError("--mini-batch-size: a head's batches need no cutting; leave it out, or leave --head out")
    return plan_pairs(
        len(data),
        labels,
        source,
        masked=loss_config.label_mask,
        batch_size=config.batch_size,
        steps=config.steps,
        epochs=config.epochs,
        seed=config.seed,
    )


def identities(data: Texts) -> Rows:
    """(2, n) identity of each row's text on the anchors' and on the positives' side: equal texts are not negatives."""
    if data.is_pairs:
        return np.stack(np.split(as_codes(data.columns["anchor"] + data.columns["positive"]), 2))
    return np.stack([as_codes(data.texts)] * 2)


def _train_head(
    model: SentenceTransformer,
    data: Texts,
    plan: Plan,
    config: TextConfig,
    loss_config: LossConfig,
    encoded: Callable[[int], None],
    progress: Callable[[Curve], None],
) -> Curve:
    head, curve = frozen.train_head(
        frozen.freeze(model, list(data.columns.values()), encoded),
        plan.batches(),
        loss_config,
        labels=plan.labels,
        steps=plan.steps,
        lr=_learning_rate(config),
        progress=progress,
    )
    frozen.append_head(model, head)
    return curve


def _train_whole(
    model: SentenceTransformer,
    data: Texts,
    plan: Plan,
    config: TextConfig,
    loss_config: LossConfig,
    progress: Callable[[Curve], None],
) -> Curve:
    loss = SentenceLoss(model, loss_config, plan.steps, config.mini_batch_size, progress)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=scratch,
            max_steps=plan.steps,
            per_device_train_batch_size=plan.pairs,
            learning_rate=_learning_rate(config),
            warmup_steps=max(1, plan.steps // 10),
            seed=config.seed,
            batch_sampler=lambda dataset, batch_size, drop_last, **_: PairSampler(dataset, batch_size, drop_last, plan),
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=model.device.type != "cpu",
        )
        model.model_card_data.widget = [
            {"text": ""}
        ]  # else the trainer looks for examples, with a bar; our card has none
        trainer = Trainer(model=model, args=arguments, train_dataset=_dataset(data, plan), loss=loss)
        for printer in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printer)
        trainer.train()
    model.eval()
    return loss.curve


def _dataset(data: Texts, plan: Plan) -> Dataset:
    """Columns of text in order, and one `label` a row: [class or 0, identity of the row's text on either side]."""
    columns: dict[str, list[str]] = dict(data.columns)
    if data.labels is None and not data.is_pairs:
        columns = {"view": data.texts, "other_view": data.texts}
    classes = plan.labels if plan.labels is not None else np.zeros(len(data), np.int64)
    return Dataset.from_dict({**columns, "label": np.stack([classes, *identities(data)], axis=1).tolist()})


class Trainer(SentenceTransformerTrainer):
    """Logs a `SentenceLoss`'s diagnostics beside the loss: to the trainer's history and whatever it reports to."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        curve = self.loss.curve if isinstance(self.loss, SentenceLoss) else []
        super().log({**curve[-1], **logs} if "loss" in logs and curve else logs, start_time)


class PairSampler(DefaultBatchSampler):
    """Gives the trainer a plan's batches: pairs of one row, or of labelled data the anchors' rows and then the positives'."""

    def __init__(self, dataset: Dataset, batch_size: int, drop_last: bool, plan: Plan) -> None:
        super().__init__(dataset, batch_size, drop_last)
        self.plan = plan

    def __iter__(self) -> Iterator[list[int]]:
        for anchors, positives in islice(self.plan.batches(), self.plan.steps):
            yield (anchors if self.plan.labels is None else np.concatenate([anchors, positives])).tolist()

    def __len__(self) -> int:
        return self.plan.steps
