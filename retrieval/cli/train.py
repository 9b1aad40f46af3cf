"""`retrieval train text | image`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval.errors import UserError

from .losses import HEAD_STEPS, IMAGE_EPOCHS, fit_to_data, lasts, length, loss_config, masks
from .options import (
    Advance,
    F,
    Number,
    common,
    emit,
    existing,
    pick_device,
    progress,
    quiet_libraries,
    say,
    uses_device,
    writes,
)

if TYPE_CHECKING:
    from retrieval.data import Texts
    from retrieval.encoder import Encoder
    from retrieval.images import Images
    from retrieval.train.curve import Curve
    from retrieval.train.loss import LossConfig


@click.group()
def train() -> None:
    """Fine-tune an encoder with the hardness-controlled contrastive loss."""


def trains(command: F) -> F:
    """The options that both ways of training share."""
    for option in reversed(
        (
            click.option("--data", type=click.Path(path_type=Path), required=True, help="Training data."),
            click.option("--model", required=True, help="Encoder to start from."),
            click.option(
                "--loss",
                default="hcl",
                show_default=True,
                help='hcl, debiased, infonce, h-scl, supcon, … (docs/losses.md), also with settings: "adnce(mu=0.4)".',
            ),
            click.option(
                "--kappa", type=Number(), help="Hardness as concentration on the cosine, κ = β/t.  [default: 2]"
            ),
            click.option("--beta", type=Number(), help="Hardness as the paper's β."),
            click.option("--ess", type=Number(), help="Hardness as the effective number of negatives to keep."),
            click.option(
                "--tau-plus",
                type=Number(),
                help="Debiasing: the chance τ⁺ that a negative shares the anchor's class.  [default: 0]",
            ),
            click.option("--temperature", type=Number(), help="Temperature t.  [default: 0.1]"),
            masks,
            lasts,
            click.option(
                "--eval-data", type=existing("any"), help="Labelled data, never trained on, to judge before and after."
            ),
            writes,
            uses_device,
            common,
        )
    ):
        command = option(command)
    return command


@train.command()
@click.option("--head", is_flag=True, help="Freeze the encoder and train a linear head on it: seconds on a laptop.")
@click.option(
    "--mini-batch-size",
    type=click.IntRange(min=1),
    help="Texts in the encoder at a time, so that --batch-size may exceed memory (GradCache: exact, a third slower).",
)
@trains
def text(head: bool, mini_batch_size: int | None, **flags: Any) -> None:
    """Fine-tune a text encoder.

    DATA is CSV, TSV or JSONL with columns text,label or anchor,positive[,negative…], or a .txt of plain lines. MODEL is a
    sentence-transformers folder or name. The result opens with plain SentenceTransformer(OUTPUT).

    \b
    Example:
      retrieval train text --data train.csv --model all-MiniLM-L6-v2 --head --output run
    """
    loss = loss_config(flags)
    quiet_libraries()
    from retrieval.artifact import refuse_to_clobber
    from retrieval.data import read_texts
    from retrieval.encoder import RUN_KIND, load_encoder
    from retrieval.train.text import TextConfig, plan_batches, train_text, used

    refuse_to_clobber(flags["output"], RUN_KIND, flags["overwrite"])
    data = read_texts(flags["data"])
    loss = fit_to_data(loss, flags, data.labels is not None and not data.is_pairs)
    held_out = _held_out_texts(flags["eval_data"])
    steps, epochs = length(flags, HEAD_STEPS if head else None, 1.0)
    config = TextConfig(
        head=head,
        steps=steps,
        epochs=epochs,
        batch_size=flags["batch_size"],
        mini_batch_size=mini_batch_size,
        lr=flags["lr"],
        seed=flags["seed"],
    )
    plan = plan_batches(data, config, loss, str(flags["data"]))  # refuses bad data before the encoder loads
    say(f"{flags['data']}: {data.origin}")
    encoder = load_encoder(flags["model"], pick_device(flags["device"]))
    if not encoder.takes("text"):
        raise UserError(f"{flags['model']}: takes no text; choose a text encoder, or `retrieval train image`")
    before = _judge(encoder, held_out, flags["seed"])
    with (
        progress("encode", len(data) * len(data.columns) if head else 0) as encoded,
        progress("train", plan.steps) as trained,
    ):
        curve = train_text(
            encoder.model,
            data,
            config,
            loss,
            source=str(flags["data"]),
            encoded=encoded,
            progress=lambda curve: _show(trained, curve, plan.steps),
        )
    _finish(
        encoder,
        curve,
        before,
        held_out,
        {"kind": "text", **asdict(config), **used(plan, config), "model": flags["model"]},
        loss,
        flags,
    )


@train.command()
@click.option(
    "--augment", type=click.Choice(["simclr", "light"]), help="[default: simclr without labels, light with them]"
)
@click.option("--skip-bad", is_flag=True, help="Leave out files that do not decode, and count them.")
@trains
def image(augment: str | None, skip_bad: bool, **flags: Any) -> None:
    """Fine-tune an image encoder, or train a small one from scratch.

    DATA is a folder of class folders, an unlabelled folder (two augmented views make a pair), a CSV of path,label, an .npz
    with images and labels, or an IDX file. MODEL is `small` (a ResNet from scratch), or a vision model that transformers
    loads. The result opens with plain SentenceTransformer(OUTPUT) and encodes PIL images.

    \b
    Example:
      retrieval train image --data photos/ --model small --output run
    """
    loss = loss_config(flags)
    quiet_libraries()
    from retrieval.artifact import refuse_to_clobber
    from retrieval.encoder import RUN_KIND, Encoder, load_encoder
    from retrieval.images import read_images
    from retrieval.train.image import ImageConfig, longest_side, plan_batches, train_image, used
    from retrieval.train.vision import pixels_of, small_network

    refuse_to_clobber(flags["output"], RUN_KIND, flags["overwrite"])
    data = read_images(flags["data"], skip_bad=skip_bad)
    loss = fit_to_data(loss, flags, data.labels is not None)
    held_out = _held_out_images(flags["eval_data"])
    steps, epochs = length(flags, None, IMAGE_EPOCHS)
    config = ImageConfig(
        steps=steps, epochs=epochs, batch_size=flags["batch_size"], lr=flags["lr"], seed=flags["seed"], augment=augment
    )
    plan = plan_batches(data, config, loss, str(flags["data"]))
    say(f"{flags['data']}: {data.origin}" + (f", {len(data.skipped):,} skipped" if data.skipped else ""))
    device = pick_device(flags["device"])
    scratch = flags["model"] == "small"
    if scratch:
        encoder = Encoder(small_network(longest_side(data), device, flags["seed"]), "small")
    else:
        encoder = load_encoder(flags["model"], device)
        if not encoder.takes("image"):
            raise UserError(f"{flags['model']}: takes no images; choose an image encoder, or --model small")
        pixels_of(encoder.model)  # refuses an unknown kind of preprocessing before any work is done
    before = _judge(encoder, held_out, flags["seed"])
    with progress("train", plan.steps) as trained:
        curve = train_image(
            encoder.model,
            data,
            config,
            loss,
            source=str(flags["data"]),
            from_scratch=scratch,
            progress=lambda curve: _show(trained, curve, plan.steps),
        )
    saved = {"kind": "image", **asdict(config), **used(plan, config, scratch), "model": flags["model"]}
    saved["skipped"] = len(data.skipped)
    _finish(encoder, curve, before, held_out, saved, loss, flags)


def _show(advance: Advance, curve: "Curve", steps: int) -> None:
    """A step on the progress line; early on, once, a warning if the setting is broken while it can still be stopped."""
    from retrieval.train.curve import warnings

    last = curve[-1]
    if len(curve) == max(20, steps // 10) < steps:
        for note in warnings(curve):
            say(f"Warning, step {len(curve)}: {note}")
    advance(1, note=f"loss {last['loss']:.3f}  κ {last['kappa']:.2g}  ess {last['ess']:.0f}  floor {last['floor']:.0%}")


def _held_out_texts(path: Path | None) -> "Texts | None":
    from retrieval.data import read_texts

    data = read_texts(path) if path else None
    if data is not None and data.labels is None:
        raise UserError(f"{path}: --eval-data needs labels; add a column label")
    return data


def _held_out_images(path: Path | None) -> "Images | None":
    from retrieval.images import read_images

    data = read_images(path) if path else None
    if data is not None and data.labels is None:
        raise UserError(f"{path}: --eval-data needs labels; give class folders or a column label")
    return data


def _judge(encoder: "Encoder", held_out: "Texts | Images | None", seed: int) -> dict[str, Any] | None:
    if held_out is None:
        return None
    from retrieval.embed import encode_all
    from retrieval.eval.clusters import cluster_metrics

    with progress("judge", len(held_out)) as advance:
        vectors = encode_all(encoder, held_out, progress=advance)
    assert held_out.labels is not None
    return dict(cluster_metrics(vectors, held_out.labels, seed=seed))


def _finish(
    encoder: "Encoder",
    curve: "Curve",
    before: dict[str, Any] | None,
    held_out: "Texts | Images | None",
    config: dict[str, Any],
    loss: "LossConfig",
    flags: dict[str, Any],
) -> None:
    """Judge the trained encoder, write the run, print what came out."""
    from retrieval.train.curve import warnings
    from retrieval.train.run import save_run

    after = _judge(encoder, held_out, flags["seed"])
    metrics = {"before": before, "after": after} if after else None
    config = {**config, "data": str(flags["data"]), "loss": loss.name, "loss_settings": asdict(loss)}
    mark = save_run(flags["output"], encoder, curve, config, metrics, overwrite=flags["overwrite"])
    notes = warnings(curve)
    if flags["ess"] and curve[-1]["beta"] == 0:
        notes.append(
            f"--ess {flags['ess']:g}: a batch has no more negatives than that, so none weighs more than another; "
            "lower it, or raise --batch-size"
        )
    for note in notes:
        say(f"Warning: {note}")
    last = curve[-1]
    lines = [f"{flags['output']}: trained {len(curve):,} steps, loss {curve[0]['loss']:.3f} → {last['loss']:.3f}"]
    if before and after:
        lines += [f"  {name:<12} {before[name]:.3f} → {after[name]:.3f}" for name in ("r@1", "map@r", "knn@20", "ami")]
    result = {
        "output": str(flags["output"]),
        "fingerprint": mark,
        "steps": len(curve),
        "last": last,
        "metrics": metrics,
        "warnings": notes,
    }
    emit(result, flags["as_json"], lines)
