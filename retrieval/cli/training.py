"""What both ways of training share: options, the progress line, before and after, and the end of a run."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .held import Held, before_and_after, told_changes
from .losses import lasts, masks
from .options import Number, common, existing, together, uses_device, writes
from .output import Advance, emit, progress, say
from .processes import is_first, of_first

if TYPE_CHECKING:
    from retrieval.artifact import Manifest
    from retrieval.encoder import Encoder
    from retrieval.eval.values import PerQuery
    from retrieval.train.curve import Curve
    from retrieval.train.loss import LossConfig

FORGOTTEN = 0.05  # of a metric on texts of another kind, beyond which a warning is due


trains = together(  # what both ways of training share
    click.option("--model", required=True, help="Encoder to start from."),
    click.option(
        "--loss",
        default="hcl",
        show_default=True,
        help='hcl, debiased, infonce, h-scl, supcon, … (docs/losses.md), also with settings: "adnce(mu=0.4)".',
    ),
    click.option("--kappa", type=Number(), help="Hardness as concentration on the cosine, κ = β/t.  [default: 2]"),
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
        "--eval-data", type=existing("any"), help="Data that are never trained on, to judge before and after."
    ),
    writes,
    uses_device,
    common,
)


def show(advance: Advance, curve: "Curve", batches: int) -> None:
    """A batch on the progress line; early on, once, a warning if the setting is broken while it can still be stopped."""
    from retrieval.train.curve import warnings

    last = curve[-1]
    if len(curve) == max(20, batches // 10) < batches:
        for note in warnings(curve):
            say(f"Warning, step {len(curve)}: {note}")
    advance(1, note=f"loss {last['loss']:.3f}  κ {last['kappa']:.2g}  ess {last['ess']:.0f}  floor {last['floor']:.0%}")


def judge(encoder: "Encoder", sets: dict[str, Held], seed: int, dims: tuple[int, ...] = ()) -> "dict[str, PerQuery]":
    """Each set by its name, as the first process finds it; what is held out also by the first `dims` dimensions alone."""

    from retrieval.eval.clusters import unit

    def found() -> "dict[str, PerQuery]":
        tables = {}
        for name, held in sets.items():
            with progress(f"judge, {name}", len(held.items)) as advance:
                vectors = held.encode(encoder, advance)
            tables[name] = held.measure(vectors, seed)
            for d in dims if name == "held-out" else ():
                tables[f"{name}, first {d}"] = held.measure(unit(vectors[:, :d]), seed)
        return tables

    return of_first(found)


def changes(
    sets: dict[str, Held], before: "dict[str, PerQuery]", after: "dict[str, PerQuery]", seed: int
) -> dict[str, Any]:
    return {name: before_and_after(sets[name.partition(",")[0]], before[name], after[name], seed) for name in before}


@contextmanager
def run_folder(output: Path, base: "Manifest | None", overwrite: bool) -> "Iterator[tuple[Path, Manifest]]":
    """A run's folder while it is made. base: what a killed call must have had in common, for its checkpoints to be kept."""
    from retrieval.artifact import creating, settle, staging_folder
    from retrieval.encoder import RUN_KIND

    if not is_first():
        of_first(lambda: None)
        yield staging_folder(output), {}
        return
    with creating(output, RUN_KIND, overwrite, resume=base is not None) as (folder, manifest):
        if base is not None:
            kept = any((folder / "checkpoints").glob("checkpoint-*"))
            settle(folder, base, "training", "checkpoints" if kept else "", overwrite)
        of_first(lambda: None)
        try:
            yield folder, manifest
        except BaseException:
            if not list((folder / "checkpoints").glob("checkpoint-*")):
                shutil.rmtree(folder)  # nothing to go on from
            raise


def finish(
    folder: Path,
    manifest: "Manifest",
    encoder: "Encoder",
    curve: "Curve",
    config: dict[str, Any],
    loss: "LossConfig",
    metrics: dict[str, Any],
    flags: dict[str, Any],
) -> dict[str, Any]:
    """Write the run; what came out, for `tell`."""
    from retrieval.eval.report.artifacts import run_section
    from retrieval.train.curve import warnings
    from retrieval.train.run import write_run

    plots = {f"{f.name}.svg": f.svg().encode() for f in run_section("", config, None, curve).figures.values()}
    mark = write_run(folder, manifest, encoder, curve, config, metrics, plots)
    notes = warnings(curve)
    if flags["ess"] and curve[-1]["beta"] == 0:
        notes.append(
            f"--ess {flags['ess']:g}: a batch has no more negatives than that, so none weighs more than another; "
            "lower it, or raise --batch-size"
        )
    lost = [
        f"{metric} {each['before']:.3f} → {each['after']:.3f}"
        for metric, each in metrics.get("general", {"metrics": {}})["metrics"].items()
        if each["verdict"] == "worse" and each["after"] < (1 - FORGOTTEN) * each["before"]
    ]
    if lost:
        notes.append(
            f"worse on texts of another kind ({', '.join(lost)}); --interpolate 0.5, a lower --lr"
            f"{', fewer --steps' if flags.get('head') else ', --last-layers or --lora'} keep more of what the encoder knew"
        )
    return {
        "output": str(flags["output"]),
        "fingerprint": mark,
        "steps": len(curve),
        "last": curve[-1],
        "metrics": metrics or None,
        "warnings": notes,
    }


def tell(result: dict[str, Any], curve: "Curve", as_json: bool) -> None:
    """What came out, for people or as JSON."""
    from retrieval.train.curve import ends

    for note in result["warnings"]:
        say(f"Warning: {note}")
    first, last = ends(curve)
    lines = [f"{result['output']}: trained {len(curve):,} steps, loss {first:.3f} → {last:.3f}"]
    for name, found in (result["metrics"] or {}).items():
        lines += told_changes(name, found)
    emit(result, as_json, lines)
