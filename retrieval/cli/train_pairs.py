"""`retrieval train pairs`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval.artifact import sha256_json
from retrieval.errors import UserError
from retrieval.train.words import KINDS

from .amounts import Number
from .columns import asked_columns, column
from .commands import F, together
from .held import HeldOut, by_shown, warn_of_pictures
from .losses import LEAST_STEPS, fit_to_data, loss_config
from .options import quiet_libraries, refuse_missing
from .output import say
from .train import train
from .training import SETS, Course, carry_out, of_one, refuse_output
from .training_flags import batches, device_of, judging, refuse_flags, settings, steps, trains, what_learns

if TYPE_CHECKING:
    from retrieval.encoder import Encoder
    from retrieval.images import Pairs
    from retrieval.train.pairs import PairConfig

SCRATCH_RATE = 1e-3  # of a network from scratch beside an encoder that is not


def pair_columns(split: str) -> Callable[[F], F]:
    """Options of which columns belong together, and of which `split` is read where none is asked for."""
    return together(
        column("anchor", "Column of pictures, or of the first picture of each pair."),
        column("positive", "Column of captions, or of the second picture."),
        column("negative", "Columns of wrong captions, or of pictures.  [default: negative…]", multiple=True),
        click.option("--split", default=split, show_default=True, help="Of data sets that have several."),
        title="Columns",
    )


encoders = together(
    click.option("--model", help="Encoder of both kinds to start from, such as CLIP or SigLIP, or of images alone."),
    click.option(
        "--image-model", help="Encoder of images that is joined with --text-model; or small, resnet18, resnet50."
    ),
    click.option("--text-model", help="Encoder of texts that is joined with --image-model."),
    click.option(
        "--dim",
        type=click.IntRange(min=2),
        help="Dimensions of joined encoders.  [default: of the frozen side, else of the narrower]",
    ),
    click.option("--freeze", type=click.Choice(["image", "text"]), help="The side that stays as it is (LiT)."),
    click.option("--image-lr", type=Number(positive=True), help="Learning rate of the image side, if another."),
    click.option("--text-lr", type=Number(positive=True), help="Learning rate of the text side, if another."),
    title="Encoders",
)
captions = together(
    click.option("--hard-captions", type=click.IntRange(min=0), default=0, show_default=True, help="Of each caption so many with a word changed, as further negatives."),
    click.option("--kind", "kinds", type=click.Choice(KINDS), multiple=True, help="What is changed in them.  [default: any]"),
    title="Changed captions",
)  # fmt: skip


@train.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Training data.")
@pair_columns("train")
@encoders
@captions
@together(
    click.option("--apart", is_flag=True, help="Pictures of the two sides in two forward passes."), title="Batches"
)
@what_learns
@batches
@steps
@judging
@trains("hn-nce")
def pairs(**flags: Any) -> None:
    """Fine-tune on pictures with captions, or on pairs of pictures.

    DATA is a table with columns image,caption or image1,image2, perhaps negative…; tar shards or a folder in which texts stand
    beside the pictures under the same names; or a Hugging Face data set. The default loss, hn-nce, is HCL in both directions,
    without negatives of the anchor's own side. Wrong captions are negatives of every picture. The result opens with plain
    SentenceTransformer(OUTPUT) and encodes pictures and texts.

    \b
    Example:
      retrieval train pairs --data captions.csv --image-model small --text-model all-MiniLM-L6-v2 --output run
    """
    refuse_missing(flags["data"])
    refuse_output(flags)
    _refuse_flags(flags)
    quiet_libraries()
    from retrieval.images import read_pairs

    asked = asked_columns(flags)
    data = read_pairs(flags["data"], split=flags["split"], asked=asked)
    loss, device = fit_to_data(loss_config(flags), flags, labelled=False), device_of(flags)
    # What follows takes seconds to import; everything above is said before.
    from retrieval.train.pairs import plan_batches, refuse_kinds, train_pairs

    config = _config(flags)
    sets = _sets(flags, data, asked_columns(flags, optional=True))
    plan_batches(data, config, loss, str(flags["data"]))
    say(f"{flags['data']}: {data.origin}")
    data = _with_hard_captions(data, flags)
    encoder = _encoder(flags, data, device)
    refuse_kinds(encoder.model, data, str(flags["data"]))
    mark = sha256_json([[c.fingerprint if not isinstance(c, list) else c for c in data.columns.values()]])
    told = {"kind": "pairs", "data": str(flags["data"]), "hard": flags["hard_captions"]}
    told |= {name: flags[name] for name in ("kinds", "image_model", "text_model")}
    course = Course(encoder, [str(flags["data"])], [data], config, loss, sets, flags)
    carry_out(course, plan_batches, of_one(train_pairs), mark, told)


def _refuse_flags(flags: dict[str, Any]) -> None:
    """Raises UserError for options that do not go together, before any file is read."""
    refuse_flags(flags)
    joined = [flags["image_model"], flags["text_model"]]
    if bool(flags["model"]) == any(joined) or any(joined) and not all(joined):
        raise UserError(
            "--model, or --image-model and --text-model: give one encoder, or the two that are to be joined"
        )
    if flags["dim"] and flags["model"]:
        raise UserError("--dim: is for --image-model and --text-model; leave it out")
    if flags["kinds"] and not flags["hard_captions"]:
        raise UserError("--kind: says what --hard-captions change; give their number, or leave it out")
    if flags["freeze"] and flags[f"{flags['freeze']}_lr"]:
        raise UserError(
            f"--{flags['freeze']}-lr: --freeze {flags['freeze']} leaves that side as it is; leave one of them out"
        )


def _config(flags: dict[str, Any]) -> "PairConfig":
    """What is asked, and larger steps for a network from scratch."""
    from retrieval.train.pairs import PairConfig
    from retrieval.train.vision import SCRATCH

    beside = SCRATCH_RATE if flags["image_model"] in SCRATCH and not flags["lr"] else None
    own = {
        "scratch": flags["model"] in SCRATCH,
        "freeze": flags["freeze"],
        "image_rate": flags["image_lr"] or beside,
        "text_rate": flags["text_lr"],
        "apart": flags["apart"],
    }
    return settings(flags, PairConfig, 1.0, LEAST_STEPS, **own)


def _with_hard_captions(data: "Pairs", flags: dict[str, Any]) -> "Pairs":
    """The data with the changed captions that are asked for; how many there are is told. Raises UserError for none."""
    from retrieval.train.pairs import with_hard_captions

    more = with_hard_captions(data, flags["hard_captions"], flags["kinds"], flags["seed"])
    if more is data:
        return data
    changed: Any = more.columns[f"negative_{len(data.columns) - 1}"]
    share = sum(map(bool, changed)) / len(changed)
    if not share:
        raise UserError(f"--hard-captions: no caption of {flags['data']} has a word that is known; leave it out")
    say(f"  {share:.0%} of the captions have a word that can be changed")
    return more


def _encoder(flags: dict[str, Any], data: "Pairs", device: str) -> "Encoder":
    import torch

    from retrieval.encoder import Encoder
    from retrieval.images import Images
    from retrieval.train.joined import join as joined
    from retrieval.train.vision import start

    pictures = next(column for column in data.columns.values() if isinstance(column, Images))
    if flags["model"]:
        return start(flags["model"], pictures, device, flags["seed"])
    image, text = (start(flags[side], pictures, device, flags["seed"]) for side in ("image_model", "text_model"))
    torch.manual_seed(flags["seed"])
    return Encoder(joined(image.model, text.model, flags["dim"], flags["freeze"]), f"{image.name} + {text.name}")


def _sets(flags: dict[str, Any], data: "Pairs", asked: Any) -> dict[str, HeldOut]:
    """What is judged before and after, with changed captions where training has them. Raises UserError for pairs of other kinds."""
    from retrieval.images import Images, read_pairs
    from retrieval.train.pairs import with_hard_captions

    def kinds(pairs: "Pairs") -> list[str]:
        return [
            "pictures" if isinstance(pairs.columns[name], Images) else "captions" for name in ("anchor", "positive")
        ]

    sets = {}
    for name, flag in SETS.items():
        if flags[flag]:
            judged = read_pairs(flags[flag], split=flags["eval_split"], asked=asked)
            say(f"{flags[flag]}: {judged.origin}")
            if kinds(judged) != kinds(data):
                what = " and ".join(kinds(judged)), " and ".join(kinds(data))
                raise UserError(
                    f"--{flag.replace('_', '-')} {flags[flag]}: has pairs of {what[0]}, --data of {what[1]}; give the same"
                )
            for column in ("anchor", "positive"):
                shown, trained = judged.columns[column], data.columns[column]
                if isinstance(shown, Images) and isinstance(trained, Images):
                    warn_of_pictures(shown, trained, flag, str(flags["data"]))
            hard = flags["hard_captions"] if "captions" in kinds(judged) else 0
            sets[name] = by_shown(with_hard_captions(judged, hard, flags["kinds"], flags["seed"]))
    return sets
