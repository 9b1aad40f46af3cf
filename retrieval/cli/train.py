"""`retrieval train`: the group, and `train image`; `train text` is in train_text.py."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval.errors import UserError

from .losses import IMAGE_EPOCHS, fit_to_data, length, loss_config
from .options import pick_device, quiet_libraries
from .output import progress, say
from .training import changes, finish, judge, run_folder, show, tell, trains

if TYPE_CHECKING:
    from .held import Held


@click.group()
def train() -> None:
    """Fine-tune an encoder with the hardness-controlled contrastive loss."""


@train.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Training data.")
@click.option(
    "--augment", type=click.Choice(["simclr", "light"]), help="[default: simclr without labels, light with them]"
)
@click.option(
    "--split", default="train", show_default=True, help="Of a data set with several; of --eval-data it is test."
)
@click.option("--skip-bad", is_flag=True, help="Leave out files that do not decode, and count them.")
@trains
def image(augment: str | None, split: str, skip_bad: bool, **flags: Any) -> None:
    """Fine-tune an image encoder, or train a small one from scratch.

    DATA is a folder of class folders, an unlabelled folder (two augmented views make a pair), a table of path,label (CSV, TSV,
    JSONL, Parquet), a Hugging Face data set (saved, or owner/name), tar shards as WebDataset has them, an .npz with images and
    labels, or an IDX file. MODEL is `small` (a ResNet from scratch), or a vision model that transformers
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
    from retrieval.pixels import pixels_of
    from retrieval.train.image import ImageConfig, longest_side, plan_batches, train_image, used
    from retrieval.train.vision import small_network

    refuse_to_clobber(flags["output"], RUN_KIND, flags["overwrite"])
    data = read_images(flags["data"], skip_bad=skip_bad, split=split)
    loss = fit_to_data(loss, flags, data.labels is not None)
    held_out = _held_out(flags["eval_data"])
    steps, epochs = length(flags, IMAGE_EPOCHS)
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
    sets = {"held-out": held_out} if held_out else {}
    before = judge(encoder, sets, flags["seed"])
    with run_folder(flags["output"], None, flags["overwrite"]) as (folder, manifest):
        with progress("train", plan.steps) as trained:
            curve = train_image(
                encoder.model,
                data,
                config,
                loss,
                source=str(flags["data"]),
                from_scratch=scratch,
                progress=lambda curve: show(trained, curve, plan.steps),
            )
        saved = {"kind": "image", **asdict(config), **used(plan, config, scratch), "model": flags["model"]}
        saved |= {
            "skipped": len(data.skipped),
            "data": str(flags["data"]),
            "loss": loss.name,
            "loss_settings": asdict(loss),
        }
        metrics = changes(sets, before, judge(encoder, sets, flags["seed"]), flags["seed"])
        result = finish(folder, manifest, encoder, curve, saved, loss, metrics, flags)
    tell(result, curve, flags["as_json"])


def _held_out(path: Path | None) -> "Held | None":
    from retrieval.images import read_images

    from .held import SPLIT, by_classes

    data = read_images(path, split=SPLIT) if path else None
    if data is not None and data.labels is None:
        raise UserError(f"{path}: --eval-data needs labels; give class folders or a column label")
    return None if data is None else by_classes(data)
