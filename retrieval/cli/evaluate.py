"""`retrieval eval`: the group, and `eval clusters`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval.errors import UserError
from retrieval.metrics import METRICS
from retrieval.wording import plural

from .commands import Group, refuse_unused, together
from .evaluated import Side, read_side, refuse_evaluation, rough, write_evaluation
from .options import checks, common, existing, pick_device, uses_device
from .output import emit, progress, say

if TYPE_CHECKING:
    from retrieval.eval.clusters import Clusters

SHOWN_CLASSES = 5
NOT_OF_PEERS = (
    "-k",
    "--sample",
    "--separator",
    "--hierarchy",
    "--runs",
    "--probe",
    "--reference",
    "--output",
    "--device",
)


keeps = together(  # for what can be kept as an evaluation
    click.option(
        "--output", type=click.Path(path_type=Path), help="Folder for everything, with the values of each query."
    ),
    click.option("--overwrite", is_flag=True, help="Replace what stands under a name that is to be written."),
)


@click.group("eval", cls=Group)
def evaluate() -> None:
    """Measure retrieval quality."""


@evaluate.command()
@click.argument("vectors", type=existing("any"))
@click.option("--labels", type=existing("file"), help="Labels, one a line; by default those of the store.")
@click.option("--reference", type=existing("any"), help="Search these items instead: vectors, or a store.")
@click.option("--reference-labels", type=existing("file"), help="Their labels, one a line.")
@click.option("--metric", type=click.Choice(METRICS), help="How vectors are compared.  [default: as in the store]")
@click.option("-k", "ks", type=click.IntRange(min=1), multiple=True, help="For r@k, p@k, map@k.  [default: 1, 5, 10]")
@click.option("--sample", type=click.IntRange(min=2), help="Judge so many items, drawn at random, among all.")
@click.option("--separator", help="Items have several labels, with this between them; one in common is enough.")
@click.option(
    "--hierarchy", help="Labels are paths, such as animal/cat, with this between their parts; judge each level."
)
@click.option("--runs", type=click.IntRange(min=0), default=3, show_default=True, help="How many times k-means runs.")
@click.option("--probe", is_flag=True, help="Fit a linear classifier too, on four fifths of each class.")
@click.option("--like", type=click.Choice(["pml", "oml", "mteb", "dino"]), help="Another tool's figures instead.")
@keeps
@checks
@uses_device
@common
def clusters(vectors: Path, as_json: bool, **flags: Any) -> None:
    """How tightly the classes of VECTORS cluster, by exact neighbours, each item itself left out.

    VECTORS is a store, or a file of vectors (.npy, .fvecs, .fbin, .parquet …) with --labels and --metric.

    \b
    Examples:
      retrieval eval clusters store --json
      retrieval eval clusters vectors.npy --labels labels.txt --metric cosine --output judged
    """
    _refuse_unclear(flags)
    refuse_evaluation(flags)
    side = read_side(vectors, flags["labels"], flags["metric"], flags["check"])
    other = None
    if flags["reference"] is not None:
        other = read_side(
            flags["reference"],
            flags["reference_labels"],
            flags["metric"] or side.metric,
            flags["check"],
            "--reference-labels",
        )
        if None not in (side.encoder, other.encoder) and side.encoder != other.encoder:
            raise UserError(f"{flags['reference']}: is of another encoder than {vectors}; embed both with one")
        if other.metric != side.metric:
            raise UserError(
                f"{flags['reference']}: is compared by {other.metric}, {vectors} by {side.metric}; say --metric"
            )
    labels = [*side.labels, *(other.labels if other else ())]
    for option in ("separator", "hierarchy"):
        if flags[option] is not None and not any(flags[option] in label for label in labels):
            raise UserError(f"--{option} {flags[option]!r}: no label has it, such as {labels[0]!r}; leave it out")
    if flags["like"]:
        _like(flags["like"], side, as_json)
        return
    judged_by = (side.labels, None if other is None else other.labels)
    levels = _levels(side, other, flags) if flags["hierarchy"] is not None else {}
    if levels and _unanswerable(*judged_by):
        deepest = max(levels)
        say(f"Note: no item shares its whole label with another; judged by level {deepest}")
        judged_by = levels[deepest]
    found = _judge(side, other, flags, *judged_by)
    result = {"vectors": str(vectors), "metric": side.metric, **_as_json(found, side, other, flags["seed"])}
    if flags["hierarchy"] is not None:
        result["levels"] = [
            {"level": depth, "classes": each.counts["classes"], "metrics": each.means()}
            for depth, labels in levels.items()
            for each in [found if labels == judged_by else _judge(side, other, flags, *labels)]
        ]
    if flags["probe"]:
        result["metrics"] |= _probe(side, flags["seed"])
    write_evaluation(flags, "clusters", result, {"": found.queries})
    emit(result, as_json, _lines(result))


def _refuse_unclear(flags: dict[str, Any]) -> None:
    if flags["separator"] is not None and flags["hierarchy"] is not None:
        raise UserError("give one of --separator and --hierarchy")
    if flags["separator"] is not None and flags["probe"]:
        raise UserError("--probe: needs one label an item; leave out --separator")
    if flags["separator"] is not None:
        refuse_unused("k-means' clusters are compared with classes of which an item has one", "--runs")
    if flags["like"]:
        refuse_unused(
            f"--like {flags['like']} judges one set of items with one label each, and writes nothing", *NOT_OF_PEERS
        )
    if flags["reference_labels"] is not None and flags["reference"] is None:
        raise UserError("--reference-labels: are for --reference, which is not given")


def _judge(
    side: Side, other: Side | None, flags: dict[str, Any], own: list[str], of_other: list[str] | None
) -> "Clusters":
    from retrieval.eval.clusters import Settings, evaluate_clusters

    settings = Settings(
        metric=side.metric,
        ks=flags["ks"] or None,
        sample=flags["sample"],
        seeds=flags["runs"],
        separator=flags["separator"],
        seed=flags["seed"],
        device=pick_device(flags["device"]),
    )
    reference = None if other is None or of_other is None else (other.vectors, of_other)
    return evaluate_clusters(side.vectors, own, settings, ids=side.ids, reference=reference, stage=progress)


def _like(name: str, side: Side, as_json: bool) -> None:
    from retrieval.eval.clusters import refuse_unclustered
    from retrieval.eval.labels import classes
    from retrieval.eval.peers import PEERS

    found = classes(side.labels)
    refuse_unclustered(found, found.counts() - 1)
    if side.metric != "cosine":
        raise UserError(f"--like: compares by cosine, these vectors are compared by {side.metric}; say --metric cosine")
    values = PEERS[name](side.unit(), side.labels)
    emit({"like": name, "metrics": values}, as_json, [f"{metric:<28} {value:.4f}" for metric, value in values.items()])


def _levels(side: Side, other: Side | None, flags: dict[str, Any]) -> dict[int, tuple[list[str], list[str] | None]]:
    """By level the labels of both sides, cut after so many parts, where there is something to judge; the last level is the
    labels themselves unless they were written in different ways."""
    from retrieval.eval.labels import levels

    own = levels(side.labels, flags["hierarchy"])
    of_reference: Sequence[list[str] | None] = [None] * len(own)
    if other is not None:
        of_reference = levels(other.labels, flags["hierarchy"])
    if len(of_reference) != len(own):
        raise UserError(f"--hierarchy: the labels have {len(own)} levels, those of the reference {len(of_reference)}")
    found = {}
    for depth, labels in enumerate(zip(own, of_reference, strict=True), 1):
        if len(set(labels[1] or labels[0])) < 2:  # the classes of what is searched
            say(f"Level {depth} has one class only, and is left out")
        elif _unanswerable(*labels):
            say(f"Level {depth} has no item that shares its class with another, and is left out")
        else:
            found[depth] = labels
    return found


def _unanswerable(own: list[str], of_reference: list[str] | None) -> bool:
    """Whether no item has another of its class to find."""
    return len(set(own)) == len(own) if of_reference is None else set(own).isdisjoint(of_reference)


def _probe(side: Side, seed: int) -> dict[str, float]:
    from retrieval.eval.labels import classes
    from retrieval.eval.probe import linear_probe

    return linear_probe(side.unit() if side.metric == "cosine" else side.vectors, classes(side.labels).codes, seed)


def _as_json(found: "Clusters", side: Side, other: Side | None, seed: int) -> dict[str, Any]:
    """Everything, with the examples of what is mixed up in words."""
    from retrieval.eval.clusters import summary

    result = summary(found, seed)
    for mixed in result.get("confusion", ()):
        row, neighbor = mixed["example"]
        mixed["example"] = [side.told(row), (other or side).told(neighbor)]
    return result


def _lines(result: dict[str, Any]) -> list[str]:
    """For people: figures with intervals, then what is wrong where."""
    metrics, counts = result["metrics"], result["counts"]
    lines = [f"{'':<16}{'mean':>8}   {'95 % interval':<18}by class"]
    for name, value in metrics.items():
        if name in result["intervals"]:
            (low, high), (least, most) = result["intervals"][name], result["intervals_by_class"][name]
            lines.append(f"{name:<16}{value:>8.4f}   {f'{low:.4f}–{high:.4f}':<18}{least:.4f}–{most:.4f}")
    rest = {name: value for name, value in metrics.items() if name not in result["intervals"]}
    if rest:
        lines += ["", f"{'':<16}{'value':>8}   over runs of k-means"]
    for name, value in rest.items():
        low_high = result["spread"].get(name)
        told = f"{low_high[0]:.4f}–{low_high[1]:.4f}" if low_high else ""
        lines.append(f"{name:<16}{value:>8.4f}   {told}".rstrip())
    lines += [""] if "levels" in result else []
    for level in result.get("levels", ()):
        shown = ", ".join(
            f"{name} {level['metrics'][name]:.4f}" for name in ("r@1", "map@r", "ami") if name in level["metrics"]
        )
        lines.append(f"level {level['level']}, {level['classes']:,} classes: {shown}")
    if "per_class" in result:
        worst = sorted(result["per_class"], key=lambda each: (each["map@r"], each["class"]))[:SHOWN_CLASSES]
        lines += ["", "classes that cluster least, by map@r:"]
        lines += [f"  {each['map@r']:.4f}  {each['class']}  ({plural(each['queries'], 'query')})" for each in worst]
        lines += ["", "neighbours of another class:"] if result["confusion"] else []
        for mixed in result["confusion"][:SHOWN_CLASSES]:
            one, other = mixed["example"]
            lines.append(
                f"  {mixed['share']:.1%} of those of {mixed['query']} are {mixed['neighbor']}, e.g. {one} ~ {other}"
            )
    told = f"{plural(counts['queries'], 'query')} among {plural(counts['n'], 'item')}"
    told += f" of {counts['classes']:,} classes" if "classes" in counts else ""
    return [*lines, "", told, *rough(counts["queries"], counts.get("classes")), *_notes(counts)]


def _notes(counts: dict[str, int]) -> list[str]:
    """What there is to know of some items."""
    alone, tied = counts["unanswerable"], counts["tied"]
    lines = []
    if alone == 1:
        lines.append("1 item shares its class with no other and is no query")
    elif alone:
        lines.append(f"{alone:,} items share their class with no other and are no queries")
    if tied:
        have = f"{plural(tied, 'query')} {'has' if tied == 1 else 'have'}"
        lines.append(f"{have} two nearest neighbours equally near; the first row counts as nearer")
    return lines
