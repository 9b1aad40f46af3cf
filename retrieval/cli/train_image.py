"""`retrieval train image`."""

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval.errors import UserError

from . import columns
from .columns import asked_columns
from .commands import together
from .held import HeldOut, by_classes, warn_of_pictures
from .losses import IMAGE_EPOCHS, fit_to_data, loss_config
from .options import quiet_libraries, refuse_missing
from .output import say, tell_skipped
from .train import train
from .training import SETS, Course, carry_out, of_one, refuse_output, tell_other_kind, without_singles
from .training_flags import batches, device_of, judging, refuse_flags, settings, steps, the_model, trains, what_learns

if TYPE_CHECKING:
    from retrieval.encoder import Encoder
    from retrieval.images import Images


@train.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Training data.")
@click.option("--split", default="train", show_default=True, help="Of a data set with several.")
@together(columns.image, columns.label, columns.no_labels, title="Columns")
@click.option("--skip-bad", is_flag=True, help="Leave out files that do not decode, and name them.")
@click.option(
    "--augment",
    type=click.Choice(["simclr", "light", "photo"]),
    help="light: crops; photo: smaller ones, mirrored; simclr: colours too.  [default: simclr without labels, light with them]",
)
@together(
    click.option("--apart", is_flag=True, help="Anchors and positives in two forward passes, as in the paper's code."),
    title="Batches",
)
@click.option(
    "--projection",
    type=click.IntRange(min=2),
    metavar="DIM",
    help="Train through a head that is taken off in the end, as the paper does.",
)
@the_model
@what_learns
@batches
@steps
@judging
@trains()
def image(augment: str | None, split: str, skip_bad: bool, apart: bool, projection: int | None, **flags: Any) -> None:
    """Fine-tune an image encoder, or train one from scratch.

    DATA is a folder of class folders, an unlabelled folder (two augmented views make a pair), a table of path,label (CSV, TSV,
    JSONL, Parquet), a Hugging Face data set (saved, or owner/name), tar shards as WebDataset has them, an .npz with images and
    labels, or an IDX file. MODEL is a vision model that transformers loads, or `small`, `resnet18`, `resnet50`:
    ResNets from scratch. The result opens with plain SentenceTransformer(OUTPUT) and encodes PIL images. The same command goes
    on after a kill. Under torchrun all processes train together.

    \b
    Example:
      retrieval train image --data photos/ --model small --output run
    """
    refuse_missing(flags["data"])
    refuse_output(flags)
    refuse_flags(flags)
    quiet_libraries()
    from retrieval.images import read_images

    read = read_images(flags["data"], skip_bad=skip_bad, split=split, asked=asked_columns(flags))
    data = without_singles(read, str(flags["data"]))
    sets = {name: held for name, flag in SETS.items() if (held := _held_out(flags, flag, data))}
    loss, device = loss_config(flags), device_of(flags)
    # What follows takes seconds to import; everything above is said before.
    from retrieval.pixels import pixels_of
    from retrieval.train.image import ImageConfig, augmentation, plan_batches, train_image
    from retrieval.train.vision import SCRATCH

    loss = fit_to_data(loss, flags, data.labels is not None)
    scratch = flags["model"] in SCRATCH
    config = settings(
        flags, ImageConfig, IMAGE_EPOCHS, 1, scratch=scratch, augment=augment, apart=apart, projection=projection
    )
    plan = plan_batches(data, config, loss, str(flags["data"]))
    views = "" if data.labels is not None else "; no labels, so two views of each picture make a pair"
    say(f"{flags['data']}: {data.origin}{views}")
    tell_skipped(read.skipped)
    encoder = _encoder(flags, data, device)
    tell_other_kind(encoder, "image", flags["head"])
    pixels_of(encoder.model)  # refuses an unknown kind of preprocessing before any work is done
    told = {
        "kind": "image",
        "data": str(flags["data"]),
        "skipped": len(read.skipped),
        "skipped_images": list(map(str, read.skipped)),
        "augment": augmentation(config, plan),
    }
    course = Course(encoder, [str(flags["data"])], [data], config, loss, sets, flags)
    carry_out(course, plan_batches, of_one(train_image), data.fingerprint, told)


def _encoder(flags: dict[str, Any], data: "Images", device: str) -> "Encoder":
    """An encoder that takes images, or a network from scratch."""
    from retrieval.train.vision import SCRATCH, start

    if flags["model"] in SCRATCH and flags["head"]:
        raise UserError("--head: a linear layer on random weights learns little; leave it out, or give an encoder")
    close = get_close_matches(flags["model"], SCRATCH, 1)
    if close and close != [flags["model"]] and not Path(flags["model"]).exists():
        raise UserError(f"--model {flags['model']}: no such folder; did you mean {close[0]}?")
    encoder = start(flags["model"], data, device, flags["seed"])
    if not encoder.takes("image"):
        raise UserError(f"{flags['model']}: takes no images; choose an image encoder, or --model small")
    return encoder


def _held_out(flags: dict[str, Any], name: str, trained: "Images") -> HeldOut | None:
    """What is judged before and after, of --eval-data or --general-data."""
    from retrieval.images import read_images

    path = flags[name]
    data = read_images(path, split=flags["eval_split"], asked=asked_columns(flags, optional=True)) if path else None
    if data is not None and data.labels is None:
        raise UserError(f"{path}: --{name.replace('_', '-')} needs labels; give class folders or a column label")
    if data is None:
        return None
    say(f"{path}: {data.origin}")
    warn_of_pictures(data, trained, name, str(flags["data"]))
    return by_classes(data)
