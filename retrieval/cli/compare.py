"""`retrieval eval compare`."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval.errors import UserError
from retrieval.metrics import METRICS

from .commands import refuse_unused
from .evaluate import evaluate, keeps
from .evaluated import SHOWN, named_paths, read_side, refuse_evaluation, write_evaluation
from .options import checks, common, existing
from .output import emit, say

if TYPE_CHECKING:
    from retrieval.eval.compare import Compared
    from retrieval.eval.values import PerQuery, Unit
    from retrieval.formats.trec import Qrels

Shown = tuple[list[str], dict[str, list[str]]]  # ids, and by name what stores keep of them
LOOKED_AT = 20  # pictures whose paths differ
USED_BY_SOME = {"--qrels", "--labels", "--metric"}
HEADLINES = ("map@r", "r@1", "knn@20", "ndcg@10", "map@100", "recall@100")


@evaluate.command()
@click.argument("systems", nargs=-1, required=True)
@click.option(
    "--value", "values", multiple=True, help="A metric to compare; may be given several times.  [default: the headline]"
)
@click.option("--unit", type=click.Choice(["query", "class"]), default="query", show_default=True,
              help="What might have been another: the queries, or whole classes.")  # fmt: skip
@click.option("--qrels", type=existing("file"), help="Judgments, for runs in TREC's format.")
@click.option("--labels", type=existing("file"), help="Labels, one a line, for files of vectors.")
@click.option("--metric", type=click.Choice(METRICS), help="How vectors are compared.  [default: as in the store]")
@keeps
@checks
@common
def compare(
    systems: tuple[str, ...], values: tuple[str, ...], unit: Any, seed: int, as_json: bool, **flags: Any
) -> None:
    """Is any of SYSTEMS better than the first? Paired, query by query, with intervals and corrected tests.

    Each is PATH or NAME=PATH, or NAME=PATH,PATH,… for several runs of one system, such as seeds. A path is an evaluation (what
    `eval clusters --output` and `eval relevance --output` write), its queries.csv, a store or a file of vectors, or a TREC run
    with --qrels.

    \b
    Examples:
      retrieval eval compare before=judged-before after=judged-after
      retrieval eval compare bm25.run encoder.run --qrels qrels.txt --value ndcg@10
      retrieval eval compare infonce=a0,a1,a2 hcl=b0,b1,b2 --unit class
    """
    if len(systems) < 2:
        raise UserError("give two systems or more; the others are compared with the first")
    refuse_evaluation(flags)
    named = named_paths(systems)
    from retrieval.eval.compare import compare as compare_runs
    from retrieval.eval.compare import corrected, paired
    from retrieval.formats.trec import read_qrels

    used: set[str] = set()
    shown: dict[Path, Shown] = {}
    qrels = None if flags["qrels"] is None else read_qrels(flags["qrels"])
    runs, left_out = paired([[_read(path, seed, qrels, flags, used, shown) for path in paths] for _, paths in named])
    refuse_unused("nothing that is compared asks for it", *(USED_BY_SOME - used))
    chosen = _chosen(values, [run for each in runs for run in each])
    if unit == "class" and runs[0][0].groups is None:
        raise UserError("--unit class: these queries have no classes")
    if left_out:
        say(f"Note: {left_out:,} queries are not in every evaluation, and are left out")
    pairs = [(other, metric) for other in range(1, len(runs)) for metric in chosen]

    def tested(by: "Unit") -> "list[Compared]":
        return corrected([compare_runs(runs[0], runs[other], metric, unit=by, seed=seed) for other, metric in pairs])

    found = tested(unit)
    names = [name for name, _ in named]
    told = [
        {"first": names[0], "second": names[other], **asdict(each), "verdict": each.verdict()}
        for (other, _), each in zip(pairs, found, strict=True)
    ]
    notes = _other_items(shown) + _limits(names, runs, unit, found, tested)
    result = {"unit": unit, "left_out": left_out, "comparisons": told, "notes": notes}
    write_evaluation(flags, "compare", result, {})
    emit(
        result, as_json, [_sentence(names[0], names[o], each, unit) for (o, _), each in zip(pairs, found, strict=True)]
    )


def _said(text: str, kind: str = "Note") -> str:
    say(f"{kind}: {text}")
    return text


def _limits(
    names: list[str],
    runs: "list[list[PerQuery]]",
    unit: "Unit",
    found: "list[Compared]",
    tested: "Callable[[Unit], list[Compared]]",
) -> list[str]:
    """What the figures do not show."""
    notes, least = [], 2.0 ** (1 - found[0].units)
    if found[0].runs == (1, 1) and least * len(found) >= 0.05:
        units = f"{found[0].units:,} {'classes' if unit == 'class' else 'queries'}"
        remedy = "choose one --value, or another --unit"
        notes.append(
            _said(f"the signs of {units} cannot give a p below {least:.3f}, too much for {len(found)} tests; {remedy}")
        )
    if unit == "query" and len(set(runs[0][0].groups or ())) > 1:
        notes += _note_other_classes(found, tested("class"))
    alone = ", ".join(name for name, several in zip(names, runs, strict=True) if len(several) == 1)
    if alone and any(len(several) > 1 for several in runs):
        notes.append(
            _said(f"{alone}: of one run it is not known how another would do; intervals and p are for it as it is")
        )
    return notes


def _note_other_classes(found: "list[Compared]", by_class: "list[Compared]") -> list[str]:
    """Queries of one class fail together, so that what they show may be of these classes alone."""
    from retrieval.eval.compare import NOT_SHOWN

    pairs = zip(found, by_class, strict=True)
    lost = [one.metric for one, other in pairs if one.verdict() != NOT_SHOWN == other.verdict()]
    several = f"shown of other queries of these {by_class[0].units:,} classes, not of other classes (--unit class)"
    return [_said(f"{', '.join(dict.fromkeys(lost))}: {several}")] if lost else []


def _other_items(shown: dict[Path, Shown]) -> list[str]:
    """Where ids stand for other items than in the first: row numbers, and names such as cat/1.jpg, are often alike in sets that have nothing in
    common."""
    from retrieval.data import shortened

    if not shown:
        return []
    lines, (first, *others) = [], shown
    for path in others:
        (ids, payload), (other_ids, other_payload) = shown[first], shown[path]
        name = next((name for name in ("text", "path") if name in payload and name in other_payload), "")
        here = dict(zip(ids, payload.get(name, ()), strict=False))
        there = dict(zip(other_ids, other_payload.get(name, ()), strict=False))
        unlike = sorted(i for i in here.keys() & there.keys() if here[i] != there[i])
        found = next((i for i in unlike[:LOOKED_AT] if name == "text" or _differ(here[i], there[i])), None)
        if found is not None:
            mine, theirs = (shortened(each[found], SHOWN) for each in (here, there))
            what = f"{found} is {mine!r} in {first} and {theirs!r} in {path}: other items of the same ids"
            lines.append(_said(f"{what}, of which nothing is shown; compare systems by the same queries", "Warning"))
    return lines


def _differ(one: str, other: str) -> bool:
    """Whether the pictures at both paths are there, and not the same: folders are moved."""
    from retrieval.images import content, picture_at

    mine, theirs = picture_at(one), picture_at(other)
    return mine is not None and theirs is not None and content(mine) != content(theirs)


def _read(
    path: Path, seed: int, qrels: "Qrels | None", flags: dict[str, Any], used: set[str], shown: dict[Path, Shown]
) -> "PerQuery":
    """What each query scored, read or measured now; the flags that were needed for it are added to `used`, the items of what was measured now
    to `shown`."""
    from retrieval.artifact import read_manifest, stated_kind
    from retrieval.eval.values import read_per_query

    kind = stated_kind(path) if path.is_dir() else None
    if kind == "evaluation":
        files = read_manifest(path, kind, check=flags["check"])["files"]
        if not files:
            raise UserError(f"{path}: is a comparison, which has no values by query; name what was compared")
        if "queries.csv" not in files:
            raise UserError(f"{path}: has a table for each setting; name one, such as {path / min(files)}")
        return read_per_query(path / "queries.csv")
    if path.suffix == ".csv":
        return read_per_query(path)
    if kind == "index":
        raise UserError(
            f"{path}: is an index; judge it by `eval relevance --corpus {path} --output …`, or `eval recall`"
        )
    if qrels is not None:
        if path.is_dir():
            raise UserError(
                f"{path}: is a folder, and --qrels judges runs; search it by `eval relevance --corpus {path} --output …`, and "
                f"compare that"
            )
        used.add("--qrels")
        from retrieval.eval.relevance import evaluate_relevance
        from retrieval.formats.trec import read_run

        return evaluate_relevance(qrels, read_run(path)).queries
    if path.suffix in (".run", ".trec", ".txt"):
        raise UserError(f"{path}: --qrels is needed to judge a run")
    from retrieval.eval.clusters import Settings, evaluate_clusters

    used |= {"--labels", "--metric"}
    side = read_side(path, flags["labels"], flags["metric"], flags["check"])
    shown[path] = side.ids, side.payload
    settings = Settings(metric=side.metric, seeds=0, seed=seed)
    return evaluate_clusters(side.vectors, side.labels, settings, ids=side.ids).queries


def _chosen(values: tuple[str, ...], runs: "list[PerQuery]") -> list[str]:
    common = [name for name in runs[0].values if all(name in run.values for run in runs)]
    missing = [name for name in values if name not in common]
    if missing or not common:
        raise UserError(
            f"{', '.join(missing) or 'no metric'}: is not in every evaluation (in all: {', '.join(common) or 'none'})"
        )
    return list(dict.fromkeys(values)) or [name for name in HEADLINES if name in common] or common


def _sentence(first: str, second: str, found: "Compared", unit: str) -> str:
    from retrieval.eval.compare import NOT_SHOWN, told_p

    low, high = found.interval
    runs = "" if found.runs == (1, 1) else f", {found.runs[0]} and {found.runs[1]} runs"
    size = f"{found.units:,} {'queries' if unit == 'query' else 'classes'}{runs}, adjusted p {told_p(found.adjusted)}"
    verdict = found.verdict()
    means = f"{found.means[0]:.4f} → {found.means[1]:.4f}"
    if verdict == NOT_SHOWN:
        return f"{found.metric}: {NOT_SHOWN} between {first} and {second} at this size: {found.difference:+.4f} [{low:+.4f}, {high:+.4f}]  {means}  ({size})"
    return f"{found.metric}: {second} is {verdict} than {first} by {abs(found.difference):.4f} [{min(abs(low), abs(high)):.4f}, {max(abs(low), abs(high)):.4f}]  {means}  ({size})"
