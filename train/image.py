"""Fine-tuning image encoders: pictures in memory as bytes, augmented in batches on the training device."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from torch import Tensor

from retrieval.errors import UserError
from retrieval.images import Images
from retrieval.pixels import Pixels, pixels_of

from .augment import PRESETS, augment
from .batches import Plan
from .batches import plan as plan_pairs
from .curve import Curve, looked_at, record
from .loss import ContrastiveLoss, LossConfig

SCRATCH_LEARNING_RATE = 4e-3
FINE_TUNING_LEARNING_RATE = 3e-5
MEMORY_LIMIT = 8 << 30  # bytes of pictures held in memory


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How to train. batch_size counts pairs; one of steps and epochs is set; lr and augment None take the defaults.

    augment: "simclr", the default without labels, or "light", the default with them.
    """

    steps: int | None = None
    epochs: float = 1.0
    batch_size: int | None = None
    lr: float | None = None
    seed: int = 0
    augment: str | None = None


def train_image(
    model: SentenceTransformer,
    data: Images,
    config: ImageConfig,
    loss_config: LossConfig,
    *,
    source: str,
    from_scratch: bool,
    progress: Callable[[Curve], None] = lambda curve: None,
) -> Curve:
    """Train `model` in place and return its curve: AdamW, one cycle of the learning rate, both views in one forward pass."""
    pixels = pixels_of(model)
    plan = plan_batches(data, config, loss_config, source)
    pictures = in_memory(data, max(pixels.size), source).to(model.device)
    labels = torch.from_numpy(plan.labels) if plan.labels is not None else None
    how = PRESETS[_augmentation(config, plan)]
    lr = _learning_rate(config, from_scratch)
    loss_of = ContrastiveLoss(loss_config).to(model.device)
    optimizer = torch.optim.AdamW([*model.parameters(), *loss_of.parameters()], lr=lr, weight_decay=1e-4)
    total = max(2, plan.steps)
    warm_up = 0.2 if total != 5 else 0.3  # a first phase of exactly one step is divided by its length less one
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=total, pct_start=warm_up)
    curve: Curve = []
    torch.manual_seed(config.seed)
    model.train().to(memory_format=torch.channels_last)
    for anchors, positives in islice(plan.batches(), plan.steps):
        rows = torch.from_numpy(np.concatenate([anchors, positives]))
        anchor, positive = _embed(model, augment(pictures[rows], pixels.size, how), pixels).chunk(2)
        classes = labels[rows[: len(anchors)]].to(model.device) if labels is not None else None
        items = rows.to(model.device) if labels is not None else None  # the same picture drawn twice is no negative
        loss_of.progress = len(curve) / plan.steps
        loss_of.diagnose = looked_at(len(curve), anchor.device)
        loss = loss_of(anchor, positive, labels=classes, items=items)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        record(curve, loss, loss_of.diagnostics)
        progress(curve)
    model.eval()
    return curve


def _learning_rate(config: ImageConfig, from_scratch: bool) -> float:
    return config.lr or (SCRATCH_LEARNING_RATE if from_scratch else FINE_TUNING_LEARNING_RATE)


def _augmentation(config: ImageConfig, plan: Plan) -> str:
    return config.augment or ("light" if plan.labels is not None else "simclr")


def used(plan: Plan, config: ImageConfig, from_scratch: bool) -> dict[str, object]:
    """What the settings left open came out as."""
    found = {"lr": _learning_rate(config, from_scratch), "augment": _augmentation(config, plan)}
    return {"steps": plan.steps, "batch_size": plan.pairs, **found}


def _embed(model: SentenceTransformer, views: Tensor, pixels: Pixels) -> Tensor:
    """float (B, 3, S, S) in [0, 1] → (B, d)."""
    values = ((views - pixels.mean) / pixels.std).contiguous(memory_format=torch.channels_last)
    embedding: Tensor = model({"pixel_values": values, "modality": "image"})["sentence_embedding"]
    return embedding


def plan_batches(data: Images, config: ImageConfig, loss_config: LossConfig, source: str) -> Plan:
    """Pairs of one class where there are labels, two views of one picture where there are none.

    Raises UserError for data from which no pairs can be made.
    """
    if len(data) < 2:
        raise UserError(f"{source}: has one image; give at least two")
    return plan_pairs(
        len(data),
        data.labels,
        source,
        masked=loss_config.label_mask,
        batch_size=config.batch_size,
        steps=config.steps,
        epochs=config.epochs,
        seed=config.seed,
    )


def in_memory(data: Images, side: int, source: str) -> Tensor:
    """All pictures as uint8 (n, 1 or 3, h, w): arrays as they are, files decoded and made squares of at most `side`."""
    if not isinstance(data.source, list):
        array = torch.from_numpy(np.ascontiguousarray(data.source))
        return array[:, None] if array.ndim == 3 else array.permute(0, 3, 1, 2).contiguous()
    needed = len(data) * 3 * side * side
    if needed > MEMORY_LIMIT:
        raise UserError(
            f"{source}: {len(data):,} images of {side} × {side} need {needed / 2**30:.0f} GiB of memory; train on fewer"
        )
    pictures = torch.empty(len(data), 3, side, side, dtype=torch.uint8)
    for row in range(len(data)):
        square = data[row].resize((side, side), Image.Resampling.BILINEAR)
        pictures[row] = torch.from_numpy(np.array(square)).permute(2, 0, 1)
    return pictures


def longest_side(data: Images) -> int:
    """The longest side among the first hundred pictures, from which the small network takes its input size."""
    if not isinstance(data.source, list):
        return int(max(data.source.shape[1:3]))
    return max(max(data[row].size) for row in range(min(100, len(data))))
