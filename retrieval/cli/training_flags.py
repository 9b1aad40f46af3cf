"""Options of every way of training, and the settings that they make."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from retrieval.errors import UserError

from .amounts import Number, Numbers
from .commands import F, together
from .losses import HEAD_PASSES, HEAD_STEPS, lasts, length, masks
from .options import common, existing, pick_device, uses_device, writes
from .processes import count, join

if TYPE_CHECKING:
    from retrieval.train.settings import Settings

T = TypeVar("T", bound="Settings")
SAME = (  # settings that are called as their flags
    *("head", "last_layers", "lora", "batch_size", "mini_batch_size", "accumulate", "lr", "schedule", "warmup"),
    *("layer_decay", "dims", "compute", "compiled", "average", "seed"),
)


what_learns = together(
    click.option("--head", is_flag=True, help="Freeze the encoder and train a linear head on it: seconds on a laptop."),
    click.option("--last-layers", type=click.IntRange(min=1), help="Train only so many of the last layers."),
    click.option(
        "--lora", type=click.IntRange(min=1), metavar="RANK", help="Train low-rank additions, merged in the end."
    ),
    title="What learns",
)
batches = together(
    click.option(
        "--batches",
        "how",
        type=click.Choice(["auto", "random", "classes", "distinct", "hard"]),
        default="auto",
        show_default=True,
        help="Which rows stand together: by class, with no text twice, or those near each other.",
    ),
    click.option(
        "--per-class", type=click.IntRange(min=2), help="Rows of each class in a batch.  [default: as it comes]"
    ),
    click.option(
        "--mini-batch-size",
        type=click.IntRange(min=1),
        help="Items in the encoder at a time, so that --batch-size may exceed memory (GradCache: exact, a third slower).",
    ),
    click.option("--accumulate", type=click.IntRange(min=1), default=1, show_default=True, help="Batches a step."),
    title="Batches",
)
steps = together(
    click.option("--schedule", type=click.Choice(["linear", "cosine", "constant"]), help="Of the learning rate after warm-up.  [default: linear; of images cosine]"),
    click.option("--warmup", type=click.FloatRange(0, 1), help="Share of all steps.  [default: 0.1; of images 0.2]"),
    click.option("--layer-decay", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Learning rate of each layer over that of the next."),
    click.option("--compute", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True, help="Type of the forward and backward pass."),
    click.option("--compile", "compiled", is_flag=True, help="Compile the encoder by torch.compile."),
    click.option("--ema", "average", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="DECAY", help="Keep a running mean of the weights in their place, as 0.999."),
    click.option("--dims", type=Numbers(whole=True), default=(), help="Matryoshka: dimensions that are to serve alone too, as 128,64."),
    title="Optimisation",
)  # fmt: skip
judging = together(
    click.option("--general-data", type=existing("any"), help="Judged before and after too, against forgetting.  [default: of texts documentation that comes with Python]"),
    click.option("--eval-split", default="test", show_default=True, help="Of --eval-data and --general-data, where they have several."),
    click.option("--eval-every", type=click.IntRange(min=1), help="Judge by --eval-data every so many steps, and keep the best."),
    click.option("--patience", type=click.IntRange(min=1), help="Stop when so many judgements in a row brought nothing better."),
    click.option("--value", "metric", help="The metric by which it is best.  [default: map@r, of pairs mrr, of judgments ndcg@10, of scores spearman]"),
    click.option("--interpolate", type=click.FloatRange(0, 1), metavar="SHARE", help="Weights in the end: so much of the trained, the rest of the old encoder."),
    click.option("--report-to", type=click.Choice(["none", "tensorboard", "wandb", "mlflow"]), default="none", show_default=True, help="Where to log every step besides."),
    title="Judging",
)  # fmt: skip
the_model = click.option("--model", required=True, help="Encoder to start from.")


def trains(loss: str = "hcl") -> Callable[[F], F]:
    """The options of a loss that is `loss` by default, of how long to train and what to judge by, and what all commands have."""
    hardness = together(
        click.option(
            "--loss",
            default=loss,
            show_default=True,
            help='hcl, debiased, infonce, h-scl, supcon, … (docs/losses.md), also with settings: "adnce(mu=0.4)", "hcl(kappa=linear(4, 0))".',
        ),
        click.option(
            "--kappa",
            type=Number(),
            help="Hardness as concentration on the cosine, κ = β/t.  [default: of hcl and hn-nce 2]",
        ),
        click.option("--beta", type=Number(), help="Hardness as the paper's β."),
        click.option("--ess", type=Number(), help="Hardness as the effective number of negatives to keep."),
        click.option(
            "--tau-plus",
            type=Number(),
            help="Debiasing: the chance τ⁺ that a negative shares the anchor's class.  [default: 0]",
        ),
        click.option(
            "--temperature",
            type=Number(),
            help="Temperature t.  [default: the loss's own, of hcl 0.1, of hn-nce 0.07]",
        ),
        masks,
        title="Loss",
    )
    return together(
        hardness,
        lasts,
        click.option(
            "--eval-data", type=existing("any"), help="Data that are never trained on, to judge before and after."
        ),
        writes,
        uses_device,
        common,
    )


def settings(flags: dict[str, Any], kind: type[T], epochs: float, least_steps: int, **own: Any) -> T:
    """The settings of a `kind` of training: what the flags say, and where they say nothing its defaults. epochs, least_steps: how
    long it lasts then, if the encoder itself is trained."""
    from retrieval.train.batches import Drawing

    steps, passes = length(flags, HEAD_PASSES if flags["head"] else epochs)
    bounds = (1, None) if flags["epochs"] else HEAD_STEPS if flags["head"] else (least_steps, None)
    given = {name: flags[name] for name in SAME if flags[name] is not None}
    drawing = Drawing(how=flags["how"], per_class=flags["per_class"], tokens=flags.get("batch_tokens"))
    return kind(steps=steps, epochs=passes, step_bounds=bounds, drawing=drawing, **given, **own)


def device_of(flags: dict[str, Any]) -> str:
    """Where to train, for this process. Raises UserError for a device that is not there, or cannot compute as asked."""
    device = join(pick_device(flags["device"]))
    if flags["compute"] == "float16" and not device.startswith("cuda"):
        raise UserError(f"--compute float16: needs a GPU of NVIDIA, and this is {device}; use bfloat16 or leave it out")
    return device


def refuse_flags(flags: dict[str, Any]) -> None:
    """Raises UserError for options that do not go together, before any file is read."""
    length(flags, 1)
    for name in ("eval_every", "patience", "metric"):
        if flags[name] is not None and not flags["eval_data"]:
            flag = {"metric": "value"}.get(name, name.replace("_", "-"))
            raise UserError(f"--{flag}: there is nothing to judge by; give --eval-data")
    if (flags["patience"] or flags["metric"]) and not flags["eval_every"]:
        given = "--patience" if flags["patience"] else "--value"
        raise UserError(f"{given}: say how often to judge, by --eval-every STEPS")
    if flags["head"] and count() > 1:
        raise UserError(
            f"--head: is trained by one process in seconds, and there are {count()}; start it without torchrun"
        )
    if flags["report_to"] != "none" and flags["head"]:
        raise UserError("--report-to: is for training the encoder itself; leave it out, or leave --head out")
    if flags["eval_every"] and flags["head"]:
        raise UserError("--eval-every: is for training the encoder itself; a head takes seconds")
