"""`retrieval train text`."""

import hashlib
import os
import shutil
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval.artifact import refuse_to_clobber
from retrieval.errors import UserError

from .columns import columns, training_data
from .losses import HEAD_PASSES, HEAD_STEPS, fit_to_data, length, loss_config
from .options import Number, existing, pick_device, quiet_libraries, together
from .output import progress, say
from .processes import count, is_first, join, leave, of_first
from .train import train
from .training import changes, finish, judge, run_folder, show, tell, trains

if TYPE_CHECKING:
    from retrieval.data import Texts
    from retrieval.encoder import Encoder
    from retrieval.train.curve import Curve
    from retrieval.train.loss import LossConfig
    from retrieval.train.text import TextConfig
    from retrieval.train.whole import Watch

    from .held import Held

RUN_KIND = "run"
LEAST_STEPS = 100  # of an encoder, however few texts there are, unless epochs are asked for
GENERAL = 400  # texts of the general set that comes with Python, about


class Dims(click.ParamType[tuple[int, ...]]):
    """Numbers with commas between them."""

    name = "dims"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        try:
            found = value if isinstance(value, tuple) else tuple(int(part) for part in str(value).split(","))
        except ValueError:
            return self.fail(f"{value!r} is not understood; write numbers such as 256,128,64.", param, ctx)
        return tuple(sorted(set(found)))


data_sets = together(
    click.option("--data", type=click.Path(path_type=Path), required=True, multiple=True, help="Training data; several may be given."),
    click.option("--weight", type=Number(positive=True), multiple=True, help="How often each --data has its turn, one after the other.  [default: by size]"),
)  # fmt: skip
what_learns = together(
    click.option("--head", is_flag=True, help="Freeze the encoder and train a linear head on it: seconds on a laptop."),
    click.option("--last-layers", type=click.IntRange(min=1), help="Train only so many of the last layers."),
    click.option(
        "--lora", type=click.IntRange(min=1), metavar="RANK", help="Train low-rank additions, merged in the end."
    ),
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
        "--batch-tokens", type=click.IntRange(min=1), help="Cut batches by tokens with padding, not by pairs."
    ),
    click.option(
        "--mini-batch-size",
        type=click.IntRange(min=1),
        help="Texts in the encoder at a time, so that --batch-size may exceed memory (GradCache: exact, a third slower).",
    ),
    click.option("--accumulate", type=click.IntRange(min=1), default=1, show_default=True, help="Batches a step."),
)
steps = together(
    click.option("--schedule", type=click.Choice(["linear", "cosine", "constant"]), default="linear", show_default=True, help="Of the learning rate after warm-up."),
    click.option("--warmup", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Share of all steps."),
    click.option("--layer-decay", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Learning rate of each layer over that of the next."),
    click.option("--compute", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True, help="Type of the forward and backward pass."),
    click.option("--compile", "compiled", is_flag=True, help="Compile the encoder by torch.compile."),
    click.option("--dims", type=Dims(), default=(), help="Matryoshka: dimensions that are to serve alone too, as 128,64."),
    click.option("--prompt", help="Put before every text, now and when the encoder is used."),
    click.option("--query-prompt", help="Put before anchors of pairs, and kept as the encoder's prompt `query`."),
    click.option("--document-prompt", help="Likewise of the other texts, `document`."),
)  # fmt: skip
judging = together(
    click.option("--general-data", type=existing("any"), help="Judged before and after too, against forgetting.  [default: documentation that comes with Python]"),
    click.option("--no-general", is_flag=True, help="Leave that out."),
    click.option("--eval-every", type=click.IntRange(min=1), help="Judge by --eval-data every so many steps, and keep the best."),
    click.option("--patience", type=click.IntRange(min=1), help="Stop when so many judgements in a row brought nothing better."),
    click.option("--metric", help="What is best.  [default: map@r, of pairs mrr, of judgments ndcg@10, of scores spearman]"),
    click.option("--interpolate", type=click.FloatRange(0, 1), metavar="SHARE", help="Weights in the end: so much of the trained, the rest of the old encoder."),
    click.option("--report-to", type=click.Choice(["none", "tensorboard", "wandb", "mlflow"]), default="none", show_default=True, help="Where to log every step besides."),
)  # fmt: skip


@train.command()
@data_sets
@columns
@what_learns
@batches
@steps
@judging
@trains
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
    loss = loss_config(flags)
    quiet_libraries()
    from retrieval.encoder import Encoder, load_encoder
    from retrieval.train.text import plan_batches

    device = join(pick_device(flags["device"]))
    _refuse_flags(flags, device)
    names = [str(path) for path in flags["data"]]
    data = [training_data(path, flags) for path in flags["data"]]
    labelled = any(each.labels is not None and not each.is_pairs for each in data)
    loss = fit_to_data(loss, {**flags, "data": ", ".join(names)}, labelled)
    config, sets = _config(flags), _sets(flags)
    for name, each in zip(names, data, strict=True):
        plan_batches(each, config, loss, name)  # refuses bad data before the encoder loads
    refuse_to_clobber(flags["output"], RUN_KIND, flags["overwrite"])
    encoder = load_encoder(flags["model"], device)
    if not encoder.takes("text"):
        raise UserError(f"{flags['model']}: takes no text; choose a text encoder, or `retrieval train image`")
    summary = _describe(names, data, encoder, sets.get("held-out"))
    base = {
        "data": [_mark(each) for each in data],
        "encoder": encoder.fingerprint,
        "config": asdict(config),
        "loss": loss.name,
        "processes": count(),
        **{name: flags[name] for name in ("weight", "eval_every", "patience", "metric")},
    }
    before = judge(encoder, sets, flags["seed"], config.dims)
    with run_folder(flags["output"], base, flags["overwrite"]) as (folder, manifest):
        curve, used = _trained(encoder, data, config, loss, sets, folder / "checkpoints", flags)
        fresh = Encoder(encoder.model, encoder.name)  # whose fingerprint is not that of before
        metrics = changes(sets, before, judge(fresh, sets, flags["seed"], config.dims), flags["seed"])
        if is_first():
            saved = {
                "kind": "text",
                **asdict(config),
                **used,
                "epochs": None if config.steps else config.epochs,
                "model": flags["model"],
                "data": names,
                "summary": summary,
            }
            saved |= {"loss": loss.name, "loss_settings": asdict(loss), "interpolate": flags["interpolate"]}
            result = finish(folder, manifest, fresh, curve, saved, loss, metrics, flags)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            (folder / "base.json").unlink()
    leave()
    if is_first():
        tell(result, curve, flags["as_json"])


def _trained(
    encoder: "Encoder",
    data: "list[Texts]",
    config: "TextConfig",
    loss: "LossConfig",
    sets: "dict[str, Held]",
    scratch: Path,
    flags: dict[str, Any],
) -> "tuple[Curve, dict[str, object]]":
    """Train the encoder in place, from where a killed call stopped; the curve, and what settings left open came out as."""
    from retrieval.train.adapt import interpolate
    from retrieval.train.text import plan_batches, total_steps, train_text, used
    from retrieval.train.whole import last_checkpoint

    share = flags["interpolate"]
    old = {} if share is None else {name: value.clone() for name, value in encoder.model.state_dict().items()}
    names = [str(path) for path in flags["data"]]
    with progress("encode", len(data[0]) * len(data[0].columns) if config.head else 0) as encoded:
        plans = [plan_batches(each, config, loss, name, encoder.model, encoded) for each, name in zip(data, names, strict=True)]  # fmt: skip
        steps = total_steps(plans, config)
        batches = steps * config.accumulate
        if flags["eval_every"] and flags["eval_every"] > steps:
            raise UserError(f"--eval-every {flags['eval_every']}: training has {steps} steps; give at most that")
        if scratch.is_dir() and (found := last_checkpoint(scratch)):
            say(f"goes on from step {found.rsplit('-', 1)[1]} of an interrupted training")
        _watch_by_tensorboard(flags["report_to"], scratch.parent)
        with progress("train", batches) as bar:
            curve = train_text(
                encoder.model,
                data,
                config,
                loss,
                source=", ".join(names),
                plans=plans,
                weights=flags["weight"] or None,
                encoded=encoded,
                progress=lambda curve: show(bar, curve, batches),
                scratch=scratch,
                watch=_watch(flags, sets, encoder),
                report_to=flags["report_to"],
            )
    if old:
        interpolate(encoder.model, old, share)
        say(f"weights: {share:g} of the trained and {1 - share:g} of the old")
    return curve, used(plans, config)


def _watch_by_tensorboard(asked: str, folder: Path) -> None:
    """Its events belong to the run. Raises UserError where what is reported to is not installed."""
    if asked == "none":
        return
    if find_spec(asked) is None:
        raise UserError(f"--report-to {asked}: is not installed; pip install {asked}")
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "run" / "tensorboard"))


def _config(flags: dict[str, Any]) -> "TextConfig":
    from retrieval.train.batches import Drawing
    from retrieval.train.text import TextConfig

    steps, epochs = length(flags, HEAD_PASSES if flags["head"] else 1.0)
    same: tuple[str, ...] = (
        "head",
        "last_layers",
        "lora",
        "batch_size",
        "mini_batch_size",
        "accumulate",
        "lr",
        "schedule",
        "warmup",
    )
    same += ("layer_decay", "dims", "compute", "compiled", "prompt", "query_prompt", "document_prompt", "seed")
    drawing = Drawing(how=flags["how"], per_class=flags["per_class"], tokens=flags["batch_tokens"])
    bounds = (1, None) if flags["epochs"] else HEAD_STEPS if flags["head"] else (LEAST_STEPS, None)
    return TextConfig(
        steps=steps, epochs=epochs, step_bounds=bounds, drawing=drawing, **{name: flags[name] for name in same}
    )


def _refuse_flags(flags: dict[str, Any], device: str) -> None:
    """Raises UserError for options that do not go together, before any file is read."""
    if flags["compute"] == "float16" and not device.startswith("cuda"):
        raise UserError(f"--compute float16: needs a GPU of NVIDIA, and this is {device}; use bfloat16 or leave it out")
    if flags["general_data"] and flags["no_general"]:
        raise UserError("--general-data and --no-general: give one of them")
    for name in ("eval_every", "patience", "metric"):
        if flags[name] is not None and not flags["eval_data"]:
            raise UserError(f"--{name.replace('_', '-')}: there is nothing to judge by; give --eval-data")
    if flags["weight"] and len(flags["weight"]) != len(flags["data"]):
        raise UserError(f"--weight: {len(flags['weight'])} for {len(flags['data'])} --data; give one each, or none")
    if flags["head"] and len(flags["data"]) > 1:
        raise UserError("--head: is trained on one data set; give one, or leave --head out")
    if (flags["patience"] or flags["metric"]) and not flags["eval_every"]:
        given = "--patience" if flags["patience"] else "--metric"
        raise UserError(f"{given}: say how often to judge, by --eval-every STEPS")
    if flags["eval_every"] and flags["head"]:
        raise UserError("--eval-every: is for training the encoder itself; a head takes seconds")


def _sets(flags: dict[str, Any]) -> "dict[str, Held]":
    """What is judged before and after."""
    from retrieval.samples import docs_as_texts, library_docs

    from .held import by_classes, read_held

    sets = {}
    if flags["eval_data"]:
        sets["held-out"] = read_held(flags["eval_data"])
    if flags["general_data"]:
        sets["general"] = read_held(flags["general_data"])
    elif not flags["no_general"]:
        docs = docs_as_texts(library_docs())
        sets["general"] = by_classes(docs.take(range(0, len(docs), max(1, len(docs) // GENERAL))))
    return sets


def _describe(
    names: list[str], data: "list[Texts]", encoder: "Encoder", held_out: "Held | None"
) -> list[dict[str, Any]]:
    """What is in the data: told, and kept with the run."""
    from retrieval.data import leaked, summarise, told_summary
    from retrieval.encode import lengths

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
            asked_for = held_out.items.texts[held_out.documents or 0 :]  # type: ignore[union-attr]
            told["leaked"] = leaked(each, asked_for)
            if told["leaked"]:
                say(f"Warning: {told['leaked']:,} of the {len(asked_for):,} queries of --eval-data stand in {name}")
        found.append(told)
    return found


def _mark(data: "Texts") -> str:
    """Names all that is trained on."""
    from retrieval.data import text_codes

    digest = hashlib.sha256()
    for codes in (*data.codes.values(), text_codes(data.labels or ())):
        digest.update(len(codes).to_bytes(8, "little") + codes.tobytes())
    return digest.hexdigest()


def _watch(flags: dict[str, Any], sets: "dict[str, Held]", encoder: "Encoder") -> "Watch | None":
    from retrieval.encoder import Encoder
    from retrieval.train.whole import Watch

    if not flags["eval_every"]:
        return None
    held = sets["held-out"]
    metric = flags["metric"] or held.metric

    def judged(model: Any, step: int) -> dict[str, float]:
        found = of_first(lambda: held.judge(Encoder(model, encoder.name), flags["seed"]).means())
        if metric not in found:
            raise UserError(f"--metric {metric}: is not among {', '.join(found)}")
        say(f"step {step}: {metric} {found[metric]:.4f}")
        return found

    return Watch(judged, flags["eval_every"], metric, flags["patience"], say)
