"""`retrieval sweep`."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from retrieval.errors import UserError

from . import columns, trials
from .amounts import Numbers
from .columns import asked_columns, training_data
from .commands import Command, refuse_unused, together
from .held import HeldOut
from .losses import HEAD_PASSES, HEAD_STEPS, IMAGE_EPOCHS, LEAST_STEPS, fit_to_data, lasts, length, loss_config, masks
from .options import common, existing, pick_device, quiet_libraries, uses_device, writes
from .output import emit, progress, say
from .recommend import lines_of, mean_of, result_of
from .training import without_singles
from .trials import Record, Trainer

if TYPE_CHECKING:
    from retrieval.data import Texts
    from retrieval.eval.sweep import Axes, Point, Setting
    from retrieval.eval.values import PerQuery
    from retrieval.images import Images
    from retrieval.train.loss import LossConfig

KIND = "sweep"
AXES = ("kappa", "beta", "tau_plus", "temperature")
GRID = {"kappa": (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0), "temperature": (0.05, 0.1, 0.2)}
RANGE = {"kappa": (0.0, 16.0), "temperature": (0.03, 0.5)}
FEW = 100
VECTORS = "vectors"


@click.command(cls=Command)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Training data, as for train.")
@click.option("--model", required=True, help="Encoder to start from.")
@click.option(
    "--held-out", type=existing("any"), help="Choose by these, never by your test set.  [default: a fifth of DATA]"
)
@click.option("--eval-split", default="validation", show_default=True, help="Of --held-out, where it has several.")
@click.option(
    "--loss",
    "methods",
    multiple=True,
    default=("hcl",),
    show_default=True,
    help="A loss to try, as for train; may be given several times.",
)
@click.option("--kappa", type=Numbers(), help="Hardness κ to try, with commas.")
@click.option("--beta", type=Numbers(), help="Hardness as the paper's β, instead.")
@click.option("--tau-plus", type=Numbers(), help="Debiasing τ⁺ to try.")
@click.option(
    "--temperature",
    type=Numbers(),
    help="Temperatures to try.  [default of the four: κ 0,0.5,1,2,4,8,16 at 0.05,0.1,0.2]",
)
@click.option(
    "--trials",
    type=click.IntRange(min=2),
    help="Search adaptively, so many settings a loss, between the least and the largest of the numbers.  [default: try every combination]",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Training runs of the best three; the others get one.",
)
@click.option("--whole", is_flag=True, help="Train the whole encoder in every trial, not a head on it.")
@click.option("--value", default=None, help="The metric to choose by.  [default: map@r, of pairs mrr]")
@together(columns.columns, columns.image, title="Columns")
@masks
@lasts
@writes
@uses_device
@common
def sweep(as_json: bool, **flags: Any) -> None:  # fmt: skip
    """Which hardness, temperature and loss suit your data? Tries them on a part of DATA that is held out.

    A linear head is trained on the frozen encoder for every setting, which takes seconds each. Killed, the same command goes on
    where it stopped. OUTPUT holds the figures, what each query scored, and a plot of hardness against quality.

    \b
    Examples:
      retrieval sweep --data train.csv --model all-MiniLM-L6-v2 --output sweep
      retrieval sweep --data train.csv --model all-MiniLM-L6-v2 --loss hcl --loss infonce --trials 16 --output sweep
    """
    quiet_libraries()
    from retrieval.artifact import creating, refuse_to_clobber

    refuse_to_clobber(flags["output"], KIND, flags["overwrite"])
    data, held_out = _read(flags)
    from retrieval.eval.report.figures import hardness

    flags["labelled"] = data.labels is not None and not data.is_pairs
    axes = {method: _axes(method, flags) for method in dict.fromkeys(flags["methods"])}
    _refuse_idle(axes, flags)
    losses = [_loss(method, {name: values[0] for name, values in of.items()}, flags) for method, of in axes.items()]
    train, held = trials.parts(data, held_out, str(flags["data"]), flags["seed"])
    flags["value"] = flags["value"] or held.metric
    is_open = not (flags["steps"] or flags["epochs"])  # then the number of steps is ours to choose, as `train` does
    passes = HEAD_PASSES if not flags["whole"] else 1.0 if held.is_text else IMAGE_EPOCHS
    flags["steps"], flags["epochs"] = length(flags, passes)
    out = f", {held.left_out:,} left out that are trained on" if held.left_out else ""
    # Refuses bad data before anything is encoded.
    plans = [trials.plan_of(train, loss, flags, flags["seed"]) for loss in losses]
    if is_open and not flags["whole"]:
        flags["steps"] = min(max(plans[0].steps, HEAD_STEPS[0]), HEAD_STEPS[1])
    elif is_open and held.is_text:
        flags["steps"] = max(plans[0].steps, LEAST_STEPS)
    say(f"{flags['data']}: {data.origin}; {len(train):,} to train on, {held.count:,} to judge by{out}")
    if held.count < FEW:
        say(f"Note: {held.count:,} queries tell settings apart only roughly; give more data, or --held-out FILE")
    with creating(flags["output"], KIND, flags["overwrite"], resume=True) as (folder, manifest):
        record, trainer = _prepared(train, held, flags, folder)
        before = held.measure(trainer.untrained())
        mean_of(before, flags["value"])  # now, and not after an hour: is it measured?
        result = result_of(_run(axes, record, trainer, held, flags), record, before, held, len(train), flags)
        manifest |= {"sweep": result}
        figure = hardness("hardness", result["points"], result["chosen_by"])
        (folder / "hardness.svg").write_text(figure.svg(), "utf-8")
        (folder / "hardness.png").write_bytes(figure.png())
        shutil.rmtree(folder / VECTORS, ignore_errors=True)
    emit(result | {"output": str(flags["output"])}, as_json, lines_of(result))


def _read(flags: dict[str, Any]) -> "tuple[Texts | Images, Texts | Images | None]":
    """Training data, and what to choose by if that is given. Raises UserError where there is nothing to choose by."""
    from retrieval.images import is_image_data, read_images

    of_pictures = is_image_data(flags["data"], flags["split"], asked_columns(flags))
    if of_pictures:
        refuse_unused(
            f"is for texts, and {flags['data']} has pictures", "--anchor", "--score", "--min-score", "--negatives"
        )

    def read(path: Path, split: str, *, optional: bool = False) -> "Texts | Images":
        if of_pictures:
            return read_images(path, split=split, asked=asked_columns(flags, optional=optional))
        return training_data(path, flags, split=split, optional=optional)

    data = without_singles(read(flags["data"], flags["split"]), str(flags["data"]))
    held_out = None if flags["held_out"] is None else read(flags["held_out"], flags["eval_split"], optional=True)
    judged, named = (data, "data") if held_out is None else (held_out, "held_out")
    if judged.labels is None and not judged.is_pairs:
        remedy = "; give --held-out a file that has" if held_out is None else ""
        raise UserError(f"{flags[named]}: has neither labels nor pairs to judge settings by{remedy}")
    if judged.is_pairs and not data.is_pairs:
        raise UserError(
            f"{flags['held_out']}: has pairs, {flags['data']} has not; judge labelled data by labelled data"
        )
    if not flags["whole"]:
        from retrieval.train.vision import SCRATCH

        if flags["model"] in SCRATCH:
            raise UserError(
                f"--model {flags['model']}: begins from nothing, so it has no embeddings for a head; add --whole"
            )
        if data.labels is None and not data.is_pairs:
            raise UserError(
                f"{flags['data']}: has neither labels nor pairs, from which no head is trained; add --whole"
            )
    return data, held_out


def _axes(method: str, flags: dict[str, Any]) -> "Axes":
    """What is tried of a loss: the settings that it has, of those given or, if none is, of the default."""
    from retrieval.train.loss import named, open_settings

    given = {name: flags[name] for name in AXES if flags[name] is not None}
    if "kappa" in given and "beta" in given:
        raise UserError("--kappa and --beta: say hardness in one way, not two")
    has = open_settings(method)
    tried = {name: each for name, each in (given or (RANGE if flags["trials"] else GRID)).items() if name in has}
    temperature = named(method).temperature
    if "temperature" not in tried and isinstance(temperature, float):
        tried["temperature"] = (temperature,)  # so that it is told with the others
    return tried


def _refuse_idle(axes: "dict[str, Axes]", flags: dict[str, Any]) -> None:
    """Raise UserError for what would do nothing: numbers that no loss has a use for, a search among single numbers."""
    for name in AXES:
        if flags[name] is not None and not any(name in of for of in axes.values()):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option}: no loss here leaves that open ({', '.join(axes)}); leave it out, or add one")
    if flags["trials"] is not None and all(len(values) == 1 for of in axes.values() for values in of.values()):
        raise UserError("--trials: there is nothing to search between single numbers; give two, such as --kappa 0,16")


def _loss(method: str, setting: "Setting", flags: dict[str, Any]) -> "LossConfig":
    """A loss with a setting, as `train` would have it for these data."""
    named = flags | dict.fromkeys((*AXES, "ess")) | dict(setting) | {"loss": method}
    return fit_to_data(loss_config(named), named, flags["labelled"])


def _prepared(train: "Texts | Images", held: HeldOut, flags: dict[str, Any], folder: Path) -> tuple[Record, Trainer]:
    """The record of an interrupted sweep of the same kind, or an empty one; and what trains."""
    from retrieval.artifact import sha256_json
    from retrieval.encoder import load_encoder
    from retrieval.train.vision import SCRATCH

    device = pick_device(flags["device"])
    encoder = None if flags["model"] in SCRATCH else load_encoder(flags["model"], device)
    if encoder is not None:
        encoder.require("text" if held.is_text else "image")
    same = ("whole", "steps", "epochs", "batch_size", "lr", "seed", "label_mask", "detach_weights")
    base = {
        "data": sha256_json([train.fingerprint, getattr(train, "mark", None), held.mark]),
        "encoder": flags["model"] if encoder is None else encoder.fingerprint,
        **{name: flags[name] for name in same},
    }
    record = Record.open(folder, base, flags["overwrite"])
    if record.done:
        say(f"{flags['output']}: {len(record.done):,} trials of an interrupted sweep are kept")
    if flags["whole"] or encoder is None:
        return record, trials.by_encoders(flags["model"], device, train, held, flags)
    return record, trials.by_heads(encoder, train, held, flags, folder / VECTORS)


def _run(
    axes: "dict[str, Axes]", record: Record, trainer: Trainer, held: HeldOut, flags: dict[str, Any]
) -> "list[Point]":
    """Every setting once, the best with more seeds; judged."""
    from retrieval.eval.sweep import FINALISTS, finalists, judge

    seed, metric = flags["seed"], flags["value"]
    found: dict[str, _Tried] = {}
    settings = sum(_count(of, flags["trials"]) for of in axes.values())
    total = settings + min(FINALISTS, settings) * (flags["seeds"] - 1)
    with progress("sweep", total) as bar:

        def run(loss: "LossConfig", seed: int) -> "PerQuery | None":
            table = record.run(loss, seed, trainer, held)
            bar(1, note="failed" if table is None else f"{metric} {mean_of(table, metric):.4f}  {loss.name}")
            return table

        for method, of in axes.items():
            found |= {each.loss.name: each for each in _try(method, of, flags, run)}
        if not found:
            failed = next(trial["failed"] for trial in record.done.values() if not trial["table"])
            raise UserError(f"every setting failed, the first so: {failed}")
        runs = {name: [each.table] for name, each in found.items()}
        for name in finalists({name: each.table for name, each in found.items()}, metric):
            more = (run(found[name].loss, seed + further) for further in range(1, flags["seeds"]))
            runs[name] += [table for table in more if table is not None]
    return judge(runs, {name: (each.method, each.setting) for name, each in found.items()}, metric, seed)


class _Tried(NamedTuple):
    method: str
    setting: "Setting"
    loss: "LossConfig"
    table: "PerQuery"


def _count(of: "Axes", trials: int | None) -> int:
    """How many settings of a loss are tried: every combination, or `trials` unless there is but one."""
    from retrieval.eval.sweep import grid

    combinations = len(grid(of))
    return combinations if trials is None or combinations == 1 else trials


def _try(
    method: str, of: "Axes", flags: dict[str, Any], run: "Callable[[LossConfig, int], PerQuery | None]"
) -> "list[_Tried]":
    """The settings of one loss, each once: all of a grid, or each proposed from how those before it did."""
    from retrieval.eval.sweep import grid, propose

    every, found = grid(of), []
    adaptive = flags["trials"] is not None and len(every) > 1
    tried: list[Setting] = []
    scores: list[float] = []
    for number in range(_count(of, flags["trials"])):
        setting = propose(of, tried, scores, flags["seed"]) if adaptive else every[number]
        loss = _loss(method, setting, flags)
        table = run(loss, flags["seed"])
        if table is not None:
            found.append(_Tried(method, setting, loss, table))
        tried.append(setting)
        scores.append(min(scores, default=0.0) if table is None else mean_of(table, flags["value"]))
    return found
