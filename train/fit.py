"""Training an encoder in place: what learns is chosen, it is trained, and what is left is a plain encoder."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict, Unpack

from sentence_transformers import SentenceTransformer

from . import adapt
from .batches import Plan
from .collate import Collator
from .curve import Curve
from .head import Frozen, append_head, train_head
from .loss import LossConfig
from .sentence_loss import SentenceLoss
from .settings import Settings
from .whole import Watch, train_whole


class Running(TypedDict, total=False):
    """What every way of training passes on to `fit`."""

    progress: Callable[[Curve], None]
    scratch: Path | None
    watch: Watch | None
    report_to: str


def fit(
    model: SentenceTransformer,
    collator: Collator,
    settings: Settings,
    loss_config: LossConfig,
    *,
    progress: Callable[[Curve], None] = lambda curve: None,
    scratch: Path | None = None,
    watch: Watch | None = None,
    report_to: str = "none",
) -> Curve:
    """Train `model` on the collator's batches and return the curve. `progress` is told it after each; scratch, watch, report_to: as in
    `train_whole`."""
    steps = settings.total_steps([source.plan for source in collator.sources])
    if settings.last_layers:
        adapt.train_last_layers(model, settings.last_layers)
    if settings.lora:
        adapt.add_lora(model, settings.lora)
    loss = SentenceLoss(
        model,
        loss_config,
        steps * settings.accumulate,
        dims=settings.dims,
        cached=settings.mini_batch_size is not None,
        progress=progress,
    )
    with tempfile.TemporaryDirectory() as passing:
        curve = train_whole(
            model,
            collator,
            loss,
            settings,
            steps,
            scratch or Path(passing),
            watch=watch,
            report_to=report_to,
        )
    if settings.lora:
        adapt.merge_lora(model)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return curve


def fit_head(
    model: SentenceTransformer,
    frozen: Frozen,
    plan: Plan,
    settings: Settings,
    loss_config: LossConfig,
    guide: Frozen | None = None,
    **running: Unpack[Running],
) -> Curve:
    """Train a linear head on what the encoder makes of the data, append it to the encoder, and return the curve. It takes seconds, and
    has no use for anything but `progress`. guide: as in `train_head`."""
    head, curve = train_head(
        frozen,
        plan.batches(),
        loss_config,
        labels=plan.labels,
        steps=settings.total_steps([plan]),
        lr=settings.head_rate(plan),
        dims=settings.dims,
        guide=guide,
        progress=running.get("progress", lambda curve: None),
    )
    append_head(model, head)
    return curve
