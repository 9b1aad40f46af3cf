"""`retrieval train text`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval.errors import UserError

from .amounts import Number
from .columns import asked_columns, columns, several_training_data
from .commands import together
from .held import HeldOut, by_classes, read_held
from .losses import LEAST_STEPS, fit_to_data, loss_config
from .options import quiet_libraries, refuse_missing
from .output import say
from .train import train
from .training import Course, carry_out, refuse_output, tell_other_kind, without_singles
from .training_flags import batches, device_of, judging, refuse_flags, settings, steps, the_model, trains, what_learns

if TYPE_CHECKING:
    from retrieval.data import Texts
    from retrieval.encoder import Encoder
    from retrieval.train.text import TextConfig

GENERAL = 400  # texts of the general set that comes with Python, about


data_sets = together(
    click.option("--data", type=click.Path(path_type=Path), required=True, multiple=True, help="Training data; several may be given."),
    click.option("--weight", type=Number(positive=True), multiple=True, help="How often each --data has its turn, one after the other.  [default: by size]"),
)  # fmt: skip
of_texts = together(
    click.option("--guide", help="Another encoder, by which --loss gist tells what is too near to be a negative."),
    click.option("--batch-tokens", type=click.IntRange(min=1), help="Cut batches by tokens with padding, not by pairs."),
    click.option("--prompt", help="Put before every text, now and when the encoder is used."),
    click.option("--query-prompt", help="Put before anchors of pairs, and kept as the encoder's prompt `query`."),
    click.option("--document-prompt", help="Likewise of the other texts, `document`."),
    title="Texts",
)  # fmt: skip


@train.command()
@data_sets
@columns
@the_model
@what_learns
@batches
@steps
@of_texts
@judging
@together(click.option("--no-general", is_flag=True, help="Judge by no general set."), title="Judging")
@trains()
def text(**flags: Any) -> None:
    """Fine-tune a text encoder.

    DATA is CSV, TSV, JSONL or Parquet with columns text,label, or anchor,positive[,negative…], or pairs with a score; a .txt of
    plain lines; query,pos,neg rows; a BEIR folder; a data set saved by `datasets`, or its name on the hub. MODEL is a
    sentence-transformers folder or name. The result opens with plain SentenceTransformer(OUTPUT). The same command goes on
    after a kill. Under torchrun all processes train together.

    \b
    Example:
      retrieval train text --data train.csv --model all-MiniLM-L6-v2 --head --output run
    """
    refuse_missing(*flags["data"])
    refuse_output(flags)
    _refuse_flags(flags)
    quiet_libraries()
    read = several_training_data(flags["data"], flags)
    data = [without_singles(each, str(path)) for each, path in zip(read, flags["data"], strict=True)]
    sets = _sets(flags)
    loss, device = loss_config(flags), device_of(flags)
    # What follows takes seconds to import; everything above is said before.
    from retrieval.encoder import load_encoder
    from retrieval.train.text import plan_batches, train_text

    names = [str(path) for path in flags["data"]]
    bare = [name for name, each in zip(names, data, strict=True) if each.labels is None or each.is_pairs]
    labelled = not bare if loss.needs_labels else len(bare) < len(names)
    loss = fit_to_data(loss, {**flags, "data": ", ".join(bare or names)}, labelled)
    config = _config(flags)
    for name, each in zip(names, data, strict=True):
        plan_batches(each, config, loss, name)  # refuses bad data before the encoder loads
    encoder = load_encoder(flags["model"], device)
    if not encoder.takes("text"):
        raise UserError(f"{flags['model']}: takes no text; choose a text encoder, or `retrieval train image`")
    tell_other_kind(encoder, "text", flags["head"])
    guide = load_encoder(flags["guide"], device) if flags["guide"] else None
    if guide is not None and not guide.takes("text"):
        raise UserError(f"--guide {flags['guide']}: takes no text; choose a text encoder")
    summary = _describe(names, data, encoder, sets.get("held-out"))
    if "general" in sets:
        there = "" if flags["general_data"] else " of Python's documentation (--no-general leaves that out)"
        say(f"also judged before and after, against forgetting, on {sets['general'].count:,} texts{there}")
    told = {"kind": "text", "data": names, "summary": summary, "guide": flags["guide"]}
    course = Course(encoder, names, data, config, loss, sets, flags)
    train = partial(train_text, weights=flags["weight"] or None, guide=None if guide is None else guide.model)
    marks = [each.mark for each in data] + ([guide.fingerprint] if guide else [])
    carry_out(course, plan_batches, train, marks, told)


def _config(flags: dict[str, Any]) -> "TextConfig":
    from retrieval.train.text import TextConfig

    prompts = {name: flags[name] for name in ("prompt", "query_prompt", "document_prompt")}
    return settings(flags, TextConfig, 1.0, LEAST_STEPS, **prompts)


def _refuse_flags(flags: dict[str, Any]) -> None:
    """Raises UserError for options that do not go together, before any file is read."""
    refuse_flags(flags)
    if flags["general_data"] and flags["no_general"]:
        raise UserError("--general-data and --no-general: give one of them")
    if flags["weight"] and len(flags["weight"]) != len(flags["data"]):
        raise UserError(f"--weight: {len(flags['weight'])} for {len(flags['data'])} --data; give one each, or none")
    if flags["weight"] and len(flags["data"]) == 1:
        raise UserError("--weight: is for several --data; leave it out, or give another")
    if flags["head"] and len(flags["data"]) > 1:
        raise UserError("--head: is trained on one data set; give one, or leave --head out")


def _sets(flags: dict[str, Any]) -> dict[str, HeldOut]:
    """What is judged before and after."""
    from retrieval.samples import docs_as_texts, library_docs

    sets = {}
    asked = asked_columns(flags, optional=True)
    if flags["eval_data"]:
        sets["held-out"] = read_held(flags["eval_data"], asked, flags["eval_split"])
    if flags["general_data"]:
        sets["general"] = read_held(flags["general_data"], asked, flags["eval_split"])
    elif not flags["no_general"]:
        docs = docs_as_texts(library_docs())
        sets["general"] = by_classes(docs.take(range(0, len(docs), max(1, len(docs) // GENERAL))))
    return sets


def _describe(
    names: list[str], data: "list[Texts]", encoder: "Encoder", held_out: "HeldOut | None"
) -> list[dict[str, Any]]:
    """What is in the data: told, and kept with the run."""
    from retrieval.data import leaked, summarise, told_summary
    from retrieval.tokens import lengths

    found = []
    for name, each in zip(names, data, strict=True):
        told = summarise(each, lambda texts: lengths(encoder.model, texts), encoder.model.max_seq_length)
        views = (
            ""
            if each.is_pairs or each.labels is not None
            else "; no labels, so two dropout views of each text make a pair"
        )
        for line in (f"{name}: {each.origin}{views}", *told_summary(told)):
            say(line if line.startswith(("Warning", name)) else f"  {line}")
        if held_out is not None:
            asked_for = held_out.parts[-1].items.texts  # type: ignore[union-attr]
            told["leaked"] = leaked(each, asked_for)
            if told["leaked"]:
                say(f"Warning: {told['leaked']:,} of the {len(asked_for):,} queries of --eval-data stand in {name}")
        found.append(told)
    return found
