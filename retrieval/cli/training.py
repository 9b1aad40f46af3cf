"""What every way of training shares: the progress line, judging, before and after, and a run from its beginning to its end."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from retrieval.artifact import RUN_KIND, refuse_to_clobber
from retrieval.errors import UserError
from retrieval.wording import plural

from .held import HeldOut, before_and_after, told_changes
from .output import Advance, emit, progress, say
from .processes import count, is_first, leave, of_first
from .recommend import mean_of

if TYPE_CHECKING:
    from retrieval.artifact import Manifest
    from retrieval.encoder import Encoder
    from retrieval.eval.values import PerQuery
    from retrieval.train.batches import Plan
    from retrieval.train.curve import Curve
    from retrieval.train.loss import LossConfig
    from retrieval.train.settings import Settings
    from retrieval.train.whole import Watch


class Labelled(Protocol):
    """Texts or pictures, with or without labels."""

    @property
    def labels(self) -> Sequence[str] | None: ...

    @property
    def is_pairs(self) -> bool: ...

    def take(self, rows: Iterable[int]) -> Self: ...


T = TypeVar("T", bound=Labelled)
SETS = {"held-out": "eval_data", "general": "general_data"}  # what is judged, by the flags that name it
FORGOTTEN = 0.05  # of a metric on texts of another kind, beyond which a warning is due


def refuse_output(flags: dict[str, Any]) -> None:
    """Raises UserError if the run cannot stand at --output. The first process looks alone: two that look at once would each take
    the other for a writer."""
    if is_first():
        refuse_to_clobber(flags["output"], RUN_KIND, flags["overwrite"])


def show(advance: Advance, curve: "Curve", batches: int) -> None:
    """A batch on the progress line; early on, once, a warning if the setting is broken while it can still be stopped."""
    from retrieval.train.curve import warnings

    last = curve[-1]
    if len(curve) == max(20, batches // 10) < batches:
        for note in warnings(curve):
            say(f"Warning, step {len(curve)}: {note}")
    advance(1, note=f"loss {last['loss']:.3f}  κ {last['kappa']:.2g}  ess {last['ess']:.0f}  floor {last['floor']:.0%}")


def judge(encoder: "Encoder", sets: dict[str, HeldOut], seed: int, dims: tuple[int, ...] = ()) -> "dict[str, PerQuery]":
    """Each set by its name, as the first process finds it; what is held out also by the first `dims` dimensions alone."""

    from retrieval.eval.clusters import unit

    def found() -> "dict[str, PerQuery]":
        tables = {}
        for name, held in sets.items():
            with progress(f"judge, {name}", held.size) as advance:
                vectors = held.encode(encoder, advance)
            tables[name] = held.measure(vectors)
            for d in dims if name == "held-out" else ():
                tables[f"{name}, first {d}"] = held.measure(unit(vectors[:, :d]))
        return tables

    return of_first(found)


def without_singles(data: T, name: str) -> T:
    """Labelled rows whose class has another: the rest make no pair, and are left out with a word. Where none would stay, all do."""
    labels = data.labels
    if labels is None or data.is_pairs:
        return data
    counts = Counter(labels)
    rows = [row for row, label in enumerate(labels) if counts[label] > 1]
    alone = [label for label, count in counts.items() if count == 1]
    if not alone or not rows:
        return data
    named = ", ".join(map(repr, alone[:3])) + (" …" if len(alone) > 3 else "")
    few = "a class has one row" if len(alone) == 1 else f"{len(alone):,} classes have one row each"
    say(f"Warning: {name}: {few}, which makes no pair and is left out: {named}")
    return data.take(rows)


def tell_other_kind(encoder: "Encoder", learns: str, head: bool) -> None:
    """What becomes of texts, or of pictures, where an encoder of both is trained on the other ("text" or "image") alone."""
    names = {"text": "texts", "image": "pictures"}
    other = "image" if learns == "text" else "text"
    if not encoder.takes(other):
        return
    ours, theirs = names[learns], names[other]
    what = (
        f"the head learns from {ours} alone, and changes {theirs} too"
        if head
        else f"{theirs} are not trained, and {ours} move away from them"
    )
    say(f"Note: {encoder.name} takes {theirs} too: {what}; `retrieval train pairs` trains both together")


def changes(
    sets: dict[str, HeldOut], before: "dict[str, PerQuery]", after: "dict[str, PerQuery]", seed: int
) -> dict[str, Any]:
    return {name: before_and_after(sets[name.partition(",")[0]], before[name], after[name], seed) for name in before}


@contextmanager
def run_folder(output: Path, base: "Manifest", overwrite: bool) -> "Iterator[tuple[Path, Manifest]]":
    """A run's folder while it is made. base: what a killed call must have had in common, for its checkpoints to be kept."""
    from retrieval.artifact import creating, settle, staging_folder

    if not is_first():
        of_first(lambda: None)
        yield staging_folder(output), {}
        return
    with creating(output, RUN_KIND, overwrite, resume=True) as (folder, manifest):
        kept = any((folder / "checkpoints").glob("checkpoint-*"))
        if (folder / "base.json").exists() and not kept:
            say(f"{output}: an interrupted training had no checkpoint yet; it begins anew")
        settle(folder, base, "training", "checkpoints" if kept else "", overwrite)
        of_first(lambda: None)
        try:
            yield folder, manifest
        except BaseException as error:
            step = _kept(folder / "checkpoints")
            if not step:
                shutil.rmtree(folder)  # nothing to go on from
            if step or isinstance(error, KeyboardInterrupt):
                left = f"goes on from step {step}" if step else "begins anew, since there is no checkpoint yet"
                say(f"{output}: the same command {left}")
            raise


def _kept(scratch: Path) -> int:
    """The step that a killed training goes on from, 0 where it has no checkpoint."""
    if not scratch.is_dir():  # a mistake is said before what takes seconds to import
        return 0
    from retrieval.train.whole import last_checkpoint

    found = last_checkpoint(scratch)
    return int(found.rsplit("-", 1)[1]) if found else 0


@dataclass(frozen=True)
class Course:
    """A training as a command has read it: what learns from which data sets, of these names, how, and what it is judged by."""

    encoder: "Encoder"
    names: list[str]
    data: list[Any]
    config: "Settings"
    loss: "LossConfig"
    sets: dict[str, HeldOut]
    flags: dict[str, Any]


def carry_out(
    course: Course,
    plan_batches: "Callable[..., Plan]",
    train: "Callable[..., Curve]",
    mark: str | list[str],
    told: dict[str, Any],
) -> None:
    """Judge, train, judge again, and write the run.

    plan_batches: of one data set. train: of a model, data sets, and their `plans`, as `train_text` has them. mark: of all that is
    trained on. A killed call's checkpoints are gone on from where that, the encoder and the settings are the same. told: what
    else config.json is to say.
    """
    from retrieval.encoder import Encoder
    from retrieval.train.adapt import interpolate

    encoder, config, loss, sets, flags = course.encoder, course.config, course.loss, course.sets, course.flags
    base: Manifest = {
        "data": mark,
        "encoder": encoder.fingerprint,
        "config": asdict(config),
        "loss": loss.name,
        "processes": count(),
        **{name: flags[name] for name in ("weight", "eval_every", "patience", "metric") if name in flags},
        "judged": sets["held-out"].mark if flags["eval_every"] else None,  # by what the best checkpoint was kept
    }
    before = judge(encoder, sets, flags["seed"], config.dims)
    if flags["metric"]:
        mean_of(before["held-out"], flags["metric"])  # now, and not after hours: is it measured?
    share = flags["interpolate"]
    old = {} if share is None else {name: value.clone() for name, value in encoder.model.state_dict().items()}
    with run_folder(flags["output"], base, flags["overwrite"]) as (folder, manifest):
        curve, plans = _trained(course, plan_batches, train, folder / "checkpoints")
        if old:
            interpolate(encoder.model, old, share)
            say(f"weights: {share:g} of the trained and {1 - share:g} of the old")
        fresh = Encoder(encoder.model, encoder.name)  # whose fingerprint is not that of before
        metrics = changes(sets, before, judge(fresh, sets, flags["seed"], config.dims), flags["seed"])
        if is_first():
            saved = {**asdict(config), **told, **config.used(plans), "epochs": None if config.steps else config.epochs}
            saved |= {"model": flags["model"], "loss": loss.name, "loss_settings": asdict(loss), "interpolate": share}
            saved |= loss.hardness  # the settings have it as it was asked for, or not at all
            result = finish(folder, manifest, fresh, curve, saved, metrics, flags)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            (folder / "base.json").unlink()
    leave()
    if is_first():
        tell(result, curve, flags["as_json"])


def _trained(
    course: Course, plan_batches: "Callable[..., Plan]", train: "Callable[..., Curve]", scratch: Path
) -> "tuple[Curve, list[Plan]]":
    """Train the encoder in place, from where a killed call stopped; the curve, and the batches."""
    model, config, loss, flags = course.encoder.model, course.config, course.loss, course.flags
    first = sum(config.encoded_first(each, model) for each in course.data)
    first += sum(len(each) * len(each.columns) for each in course.data) if flags.get("guide") else 0
    with progress("encode", first) as encoded:
        named = zip(course.names, course.data, strict=True)
        plans = [plan_batches(each, config, loss, name, model, encoded) for name, each in named]
        with _told(config, plans, scratch, flags) as bar:
            curve = train(
                model,
                course.data,
                config,
                loss,
                source=", ".join(course.names),
                plans=plans,
                encoded=encoded,
                progress=bar,
                scratch=scratch,
                watch=_watch(flags, course.sets, course.encoder),
                report_to=flags["report_to"],
            )
    return curve, plans


def of_one(train: "Callable[..., Curve]") -> "Callable[..., Curve]":
    """A way of training that takes one data set, as `carry_out` calls it."""
    return lambda model, data, *how, plans, **rest: train(model, *data, *how, plan=plans[0], **rest)


@contextmanager
def _told(
    config: "Settings", plans: "list[Plan]", scratch: Path, flags: dict[str, Any]
) -> "Iterator[Callable[[Curve], None]]":
    """The progress line of a training, which is told its curve; says where an interrupted one goes on."""
    steps = config.total_steps(plans)
    if flags["eval_every"] and flags["eval_every"] > steps:
        raise UserError(f"--eval-every {flags['eval_every']}: training has {steps} steps; give at most that")
    if begun := _kept(scratch):
        say(f"goes on from step {begun} of an interrupted training")
    _watch_by_tensorboard(flags["report_to"], scratch.parent)
    batches = steps * config.accumulate
    with progress("train", batches, begun * config.accumulate) as bar:
        yield lambda curve: show(bar, curve, batches)


def _watch_by_tensorboard(asked: str, folder: Path) -> None:
    """Its events belong to the run. Raises UserError where what is reported to is not installed."""
    if asked == "none":
        return
    if find_spec(asked) is None:
        raise UserError(f"--report-to {asked}: is not installed; pip install {asked}")
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "run" / "tensorboard"))


def _watch(flags: dict[str, Any], sets: "dict[str, HeldOut]", encoder: "Encoder") -> "Watch | None":
    from retrieval.encoder import Encoder
    from retrieval.train.whole import Watch

    if not flags["eval_every"]:
        return None
    held = sets["held-out"]
    metric = flags["metric"] or held.metric

    def judged(model: Any, step: int) -> dict[str, float]:
        found = of_first(lambda: held.judge(Encoder(model, encoder.name)).means())
        say(f"step {step}: {metric} {found[metric]:.4f}")
        return found

    return Watch(judged, flags["eval_every"], metric, flags["patience"], say)


def finish(
    folder: Path,
    manifest: "Manifest",
    encoder: "Encoder",
    curve: "Curve",
    config: dict[str, Any],
    metrics: dict[str, Any],
    flags: dict[str, Any],
) -> dict[str, Any]:
    """Write the run; what came out, for `tell`."""
    from retrieval.eval.report.artifacts import run_section
    from retrieval.train.run import steps_of, write_run

    plots = {f"{f.name}.svg": f.svg().encode() for f in run_section("", config, None, curve).figures.values()}
    mark = write_run(folder, manifest, encoder, curve, config, metrics, plots)
    return {
        "output": str(flags["output"]),
        "fingerprint": mark,
        "steps": steps_of(curve, config),
        "last": curve[-1],
        "metrics": metrics or None,
        "warnings": _warnings(curve, metrics, flags),
    }


def _warnings(curve: "Curve", metrics: dict[str, Any], flags: dict[str, Any]) -> list[str]:
    """What is wrong with the setting, and what became worse, each with its remedy."""
    from retrieval.train.curve import warnings

    notes = warnings(curve)
    if flags["ess"] and curve[-1]["beta"] == 0:
        notes.append(
            f"--ess {flags['ess']:g}: a batch has no more negatives than that, so none weighs more than another; "
            "lower it, or raise --batch-size"
        )
    if worse := _worse(metrics, "held-out"):
        notes.append(
            f"worse on --eval-data than before training ({worse}); lower --lr, or give fewer --steps, or data more like it"
        )
    if lost := _worse(metrics, "general", FORGOTTEN):
        notes.append(
            f"worse on texts of another kind ({lost}); --interpolate 0.5, a lower --lr"
            f"{', fewer --steps' if flags.get('head') else ', --last-layers or --lora'} keep more of what the encoder knew"
        )
    return notes


def _worse(metrics: dict[str, Any], name: str, share: float = 0.0) -> str:
    """The metrics of a set that are shown to be worse than before training, by more than this share of them."""
    told = metrics.get(name, {"metrics": {}})["metrics"]
    return ", ".join(
        f"{metric} {each['before']:.3f} → {each['after']:.3f}"
        for metric, each in told.items()
        if each["verdict"] == "worse" and each["after"] < (1 - share) * each["before"]
    )


def tell(result: dict[str, Any], curve: "Curve", as_json: bool) -> None:
    """What came out, for people or as JSON."""
    from retrieval.train.curve import ends

    for note in result["warnings"]:
        say(f"Warning: {note}")
    first, last = ends(curve)
    batches = len(curve) // result["steps"]
    of = f" of {batches} batches" if batches > 1 else ""
    lines = [
        f"{result['output']}: trained {plural(result['steps'], 'step')}{of}, loss {first:.3f} → {last:.3f} (their first and last tenth)"
    ]
    for name, found in (result["metrics"] or {}).items():
        lines += told_changes(name, found)
    emit(result, as_json, lines)
