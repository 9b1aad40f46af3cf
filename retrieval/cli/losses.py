"""What `train` and `sweep` share: the options of a loss and of how long to train, and the loss that they name."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from retrieval.errors import UserError

from .amounts import Number
from .commands import together

if TYPE_CHECKING:
    from retrieval.train.loss import LossConfig

HEAD_PASSES, HEAD_STEPS = 40.0, (20, 1000)  # over the data, and steps at least and at most; measured in docs/log.md
IMAGE_EPOCHS = 6.0
LEAST_STEPS = 100  # of an encoder that reads texts, however few there are, unless epochs are asked for


masks = together(
    click.option(
        "--label-mask/--no-label-mask",
        default=None,
        help="Same-class items are no negatives (default where there are labels); --no-label-mask is the paper's setting.",
    ),
    click.option("--detach-weights", is_flag=True, help="Hold the negatives' weights constant in the gradient."),
    title="Loss",
)
lasts = together(
    click.option(
        "--epochs",
        type=Number(positive=True),
        help="Passes over the data.  [default: 1, of texts at least 100 steps; a head 40, in 20 to 1000 steps; images 6]",
    ),
    click.option(
        "--steps",
        type=click.IntRange(min=1),
        help="Training steps, instead of --epochs.",
    ),
    together(
        click.option(
            "--batch-size", type=click.IntRange(min=2), help="Pairs in a batch.  [default: 128, or all there are]"
        ),
        title="Batches",
    ),
    click.option(
        "--lr",
        type=Number(positive=True),
        help="Learning rate.  [default: head 1e-3, of pairs 1e-4, text encoder 2e-5, image encoder 3e-5, from scratch 4e-3]",
    ),
    title="Optimisation",
)


def loss_config(flags: dict[str, Any]) -> "LossConfig":
    """The loss that --loss names, with what other flags say on top."""
    from retrieval.train.loss import named, with_settings

    settings = {name: flags[name] for name in ("kappa", "beta", "ess", "tau_plus", "temperature", "label_mask")}
    settings["detach"] = flags["detach_weights"] or None
    given = {name: value for name, value in settings.items() if value is not None}
    return with_settings(named(flags["loss"]), given, f"--loss {flags['loss']}")


def fit_to_data(config: "LossConfig", flags: dict[str, Any], labelled: bool) -> "LossConfig":
    """Refuse a loss or a label mask without labels, a guide that is missing or not asked, and τ⁺ under a mask: nothing is left for it to
    correct."""
    if config.guided and not flags.get("guide"):
        raise UserError(
            f"--loss {flags['loss']}: judges by another encoder, named by `train text --guide`; or use --loss positive-aware"
        )
    if flags.get("guide") and not config.guided:
        raise UserError(f"--guide: --loss {flags['loss']} does not judge by one; leave it out, or use --loss gist")
    if config.needs_labels and not (labelled and config.label_mask):
        found = "--no-label-mask" if labelled else f"{flags['data']} has no labels"
        raise UserError(f"--loss {flags['loss']}: works by labels, but {found}; use --loss hcl")
    if not labelled:
        if flags["label_mask"]:
            raise UserError(f"--label-mask: {flags['data']} has no labels; leave it out, or add a column label")
        return replace(config, label_mask=False)
    if config.label_mask and config.tau_plus:
        raise UserError(
            f"--tau-plus {config.tau_plus}: the label mask already removes same-class negatives; add --no-label-mask"
        )
    return config


def length(flags: dict[str, Any], default_epochs: float) -> tuple[int | None, float]:
    if flags["steps"] and flags["epochs"]:
        raise UserError("--steps and --epochs: say how long to train in one way, not two")
    return flags["steps"], flags["epochs"] or default_epochs
