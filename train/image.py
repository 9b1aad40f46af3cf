"""Fine-tuning image encoders: the whole encoder, a part of it, or a linear head over a frozen one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from retrieval.embed import encode_all
from retrieval.encoder import Encoder
from retrieval.errors import UserError
from retrieval.images import Images
from retrieval.pixels import pixels_of

from .augment import PRESETS
from .batches import Plan, Rows, as_codes
from .collate import Collator, Source
from .curve import Curve
from .fit import Running, fit, fit_head
from .head import Frozen
from .loss import LossConfig
from .near import near_rows
from .pictures import codes_of, pictures_of
from .projection import add_projection, remove_projection, without_projection
from .settings import Settings, refuse_mistaken


@dataclass(frozen=True, kw_only=True)
class ImageConfig(Settings):
    """How to train on pictures.

    scratch: the encoder's weights are random, which asks for larger steps. augment: "simclr", the default without labels, "light",
    the default with them, or "photo". apart: anchors and positives go through the network one after the other, each with batch
    statistics of its own, as in the paper's code; else together. projection: train through a head of that many dimensions that
    is taken off in the end, so that what is kept is the vector before it (the paper's way).
    """

    schedule: str = "cosine"
    warmup: float = 0.2
    scratch: bool = False
    augment: str | None = None
    apart: bool = False
    projection: int | None = None

    @property
    def whole_rate(self) -> float:
        return 4e-3 if self.scratch else 3e-5


def train_image(
    model: SentenceTransformer,
    data: Images,
    config: ImageConfig,
    loss_config: LossConfig,
    *,
    source: str,
    plan: Plan | None = None,
    encoded: Callable[[int], None] = lambda pictures: None,
    **running: Unpack[Running],
) -> Curve:
    """Train `model` in place and return its curve. `encoded` is told how many pictures more are encoded; plan: the batches, if they are
    decided; running: as in `fit` and `fit_head`."""
    refuse_mistaken(model, loss_config)
    pixels = pixels_of(model)
    plan = plan or plan_batches(data, config, loss_config, source, model, encoded)
    torch.manual_seed(config.seed)
    if config.head:
        vectors = torch.from_numpy(encode_all(Encoder(model, ""), data, progress=encoded))
        return fit_head(model, Frozen(vectors, np.arange(len(data))[None]), plan, config, loss_config, **running)
    rows = np.arange(len(data))
    pictures = pictures_of(data, pixels, PRESETS[augmentation(config, plan)])
    sources = [Source([rows, rows], (None, None), np.stack([pictures.codes] * 2), plan)]
    if config.projection:
        add_projection(model, config.projection)
        if watch := running.get("watch"):
            judge = watch.judge
            running["watch"] = replace(watch, judge=lambda trained, step: judge(without_projection(trained), step))
    model.to(memory_format=torch.channels_last)
    collator = Collator(model, sources, config.mini_batch_size, pictures, config.apart)
    curve = fit(model, collator, config, loss_config, **running)
    model.to(memory_format=torch.contiguous_format)  # as it is loaded: convolutions round otherwise in the other
    if config.projection:
        remove_projection(model)
    return curve


def augmentation(config: ImageConfig, plan: Plan) -> str:
    return config.augment or ("light" if plan.labels is not None else "simclr")


def plan_batches(
    data: Images,
    config: ImageConfig,
    loss_config: LossConfig,
    source: str,
    model: SentenceTransformer | None = None,
    encoded: Callable[[int], None] = lambda pictures: None,
) -> Plan:
    """Pairs of one class where there are labels, two views of one picture where there are none.

    model: needed to draw hard batches, not to check. Raises UserError for data, or settings, from which no pairs can be made.
    """
    config.refuse_contradictions()
    for name in ("projection", "apart", "augment") if config.head else ():
        if getattr(config, name):
            raise UserError(f"--{name}: is for training the encoder itself; leave it out, or leave --head out")
    if config.dims and config.projection:
        raise UserError("--dims: are of the encoder's own vectors, which --projection trains at one remove; choose one")
    if len(data) < 2:
        raise UserError(f"{source}: has one image; give at least two")
    if config.head and data.labels is None:
        raise UserError(
            f"{source}: has no labels, and two views of a picture are for training the network itself; leave --head out"
        )
    if config.drawing.tokens:
        raise UserError("--batch-tokens: is for texts; use --batch-size")
    codes = codes_of(data)
    return config.plan(
        len(data),
        data.labels,
        source,
        loss_config,
        identities=lambda: np.stack([codes] * 2),
        near=None if model is None else lambda: _near(model, data, encoded),
    )


def _near(model: SentenceTransformer, data: Images, encoded: Callable[[int], None]) -> Rows:
    vectors = encode_all(Encoder(model, ""), data, progress=encoded)
    return near_rows(vectors, None if data.labels is None else as_codes(data.labels))
