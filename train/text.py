"""Fine-tuning text encoders: the whole encoder with SentenceTransformerTrainer, or a linear head over a frozen one."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch import Tensor, nn
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from retrieval.data import Texts
from retrieval.errors import UserError

from . import head as frozen
from .batches import Plan, Rows, as_codes
from .batches import plan as plan_pairs
from .curve import Curve, record
from .loss import ContrastiveLoss, LossConfig

WHOLE_LEARNING_RATE = 2e-5


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How to train. batch_size counts pairs; one of steps and epochs is set; lr None takes the way's own default."""

    head: bool = False
    steps: int | None = None
    epochs: float = 1.0
    batch_size: int | None = None
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


def plan_batches(data: Texts, config: TextConfig, loss_config: LossConfig, source: str) -> Plan:
    """Decide the batches. Raises UserError for data from which this way of training cannot make pairs."""
    labels = None if data.is_pairs else data.labels
    if config.head and not data.is_pairs and labels is None:
        raise UserError(
            f"{source}: plain lines are trained on two dropout views, which a frozen encoder makes equal; leave --head out"
        )
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
    columns = [frozen.frozen_embeddings(model, texts, encoded) for texts in data.columns.values()]
    head, curve = frozen.train_head(
        columns[0],
        plan.batches(),
        loss_config,
        positives=columns[1] if data.is_pairs else None,
        negatives=columns[2:],
        labels=plan.labels,
        items=identities(data),
        steps=plan.steps,
        lr=config.lr or frozen.LEARNING_RATE,
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
    loss = SentenceLoss(model, loss_config, plan.steps, progress)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=scratch,
            max_steps=plan.steps,
            per_device_train_batch_size=plan.pairs,
            learning_rate=config.lr or WHOLE_LEARNING_RATE,
            warmup_steps=max(1, plan.steps // 10),
            seed=config.seed,
            batch_sampler=lambda dataset, batch_size, drop_last, **_: PairSampler(dataset, batch_size, drop_last, plan),
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=model.device.type != "cpu",
        )
        trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=_dataset(data, plan), loss=loss)
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


class SentenceLoss(nn.Module):
    """The contrastive loss under sentence-transformers' contract.

    `model` is a load-bearing name: under DDP the trainer swaps the wrapped model in under it.
    """

    def __init__(
        self, model: SentenceTransformer, config: LossConfig, steps: int, progress: Callable[[Curve], None]
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = ContrastiveLoss(config)
        self.steps = steps
        self.curve: Curve = []
        self.progress = progress

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """One column of 2B rows (anchors, then positives), or columns anchor, positive, negatives… of B rows each."""
        columns = [self.model(features)["sentence_embedding"] for features in sentence_features]
        if len(columns) == 1:
            anchor, positive = columns[0].chunk(2)
            classes, items = labels[: len(anchor), 0], labels[:, 1]
        else:
            anchor, positive = columns[:2]
            classes, items = None, torch.cat([labels[:, 1], labels[:, 2]])
        negative = torch.cat(columns[2:]) if len(columns) > 2 else None
        self.loss.progress = len(self.curve) / self.steps
        loss: Tensor = self.loss(anchor, positive, negative, labels=classes, items=items)
        record(self.curve, loss, self.loss.diagnostics)
        self.progress(self.curve)
        return loss

    def get_config_dict(self) -> dict[str, object]:
        return {"loss": self.loss.config.name}

    @property
    def citation(self) -> str:
        return (
            "@inproceedings{robinson2021contrastive, title={Contrastive Learning with Hard Negative Samples}, "
            "author={Robinson, Joshua and Chuang, Ching-Yao and Sra, Suvrit and Jegelka, Stefanie}, booktitle={ICLR}, year={2021}}"
        )
