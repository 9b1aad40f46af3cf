"""`retrieval eval recall`."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval.errors import UserError

from .amounts import Numbers
from .evaluate import evaluate, keeps
from .evaluated import as_run, refuse_evaluation, write_evaluation
from .options import checks, common, existing
from .output import emit, progress, say

if TYPE_CHECKING:
    from retrieval.eval.recall import Find
    from retrieval.eval.values import PerQuery
    from retrieval.index.bundle import Index
    from retrieval.neighbors import Floats, Ints, Neighbors

    Task = Callable[[Neighbors], PerQuery]

SAMPLED = 1000


@dataclass(frozen=True)
class _Asked:
    """Queries (q, d), their ids and labels, whether they are the index's own items, their rows if it finds these too, and what exact
    search finds."""

    vectors: "Floats"
    ids: list[str]
    labels: list[str] | None
    own: bool
    rows: "Ints | None"
    truth: "Neighbors"


@evaluate.command()
@click.argument("index", type=existing("folder"))
@click.option(
    "--queries", type=existing("folder"), help="A store of queries.  [default: 1,000 of the index's own rows]"
)
@click.option(
    "--qrels", type=existing("file"), help="Judgments of the queries: what approximation does to nDCG and recall."
)
@click.option(
    "--settings",
    type=Numbers(whole=True),
    help="Values of the type's search parameter (nprobe, effort) to measure beside the tuned one, such as 16,32,64.  [default: from 1 on, doubled until recall reaches .999 or grows no more]",
)
@click.option("-k", "k", type=click.IntRange(min=1), default=10, show_default=True, help="Neighbours of a query.")
@keeps
@checks
@common
def recall(index: Path, as_json: bool, **flags: Any) -> None:
    """What approximate search in INDEX costs, by its search parameters: recall, speed, and the change in the task's metric.

    Every setting is compared with exact search on the same queries. Where rows have labels, or with --qrels, it is told how
    much the metric that people care about changes.

    \b
    Examples:
      retrieval eval recall index
      retrieval eval recall index --queries query-store --qrels qrels.tsv -k 100 --json
    """
    from retrieval.index.bundle import open_index

    if flags["qrels"] is not None and flags["queries"] is None:
        raise UserError("--qrels: judges the queries of a store; give --queries too")
    refuse_evaluation(flags)
    opened = open_index(index, check=flags["check"])
    _refuse_settings(opened, flags["settings"])
    most = opened.rows.count - (flags["queries"] is None)  # a row of its own is not to find itself
    if flags["k"] > most:
        raise UserError(f"-k {flags['k']}: the index has {most:,} items to find; ask for fewer")
    with ExitStack() as stack:
        _judge(index, opened, _asked(opened, flags, stack), flags, as_json)


def _refuse_settings(opened: "Index", given: "tuple[int, ...] | None") -> None:
    """Raise UserError for what the index's search parameter cannot be, or where it has none."""
    if given is None:
        return
    knob, limit = opened.abilities.knob, opened.abilities.limit
    if opened.exact or knob is None:
        raise UserError(f"--settings: {opened.about['factory']} has no search parameter to measure by; leave it out")
    wrong = next((value for value in given if not 1 <= value <= limit), None)
    if wrong is not None:
        raise UserError(
            f"--settings {wrong}: {knob} of {opened.about['factory']} is from 1 to {limit}; give such values"
        )


def _judge(index: Path, opened: "Index", asked: _Asked, flags: dict[str, Any], as_json: bool) -> None:
    task = _task(opened, asked, flags)
    exact = task and task(asked.truth)
    if flags["qrels"] is not None and exact is not None and len(exact.ids) < len(asked.ids):
        say(f"Note: of {len(asked.ids):,} queries, {len(exact.ids):,} are judged and have a relevant document")
    points: list[dict[str, Any]] = []
    tables: dict[str, PerQuery] = {}
    settings = _settings(opened, asked, flags["k"], flags["settings"])
    total = sum(seconds for _, seconds in settings)
    steps = [1 + round(1000 * seconds / total) for _, seconds in settings]  # a setting takes as long as its searches
    with progress("measure", sum(steps)) as bar:
        for (some, _), count in zip(settings, steps, strict=True):
            point, table, judged = _point(opened, asked, some, task, exact, flags)
            points.append(point)
            name = "-".join(f"{name}{value}" for name, value in some.items()) or "exact"
            tables |= {name: table} | ({} if judged is None else {f"task-{name}": judged})
            bar(count, note=name)
    result = {
        "index": str(index),
        "factory": opened.about["factory"],
        "k": flags["k"],
        "queries": len(asked.ids),
        "rows": opened.rows.count,
        "points": points,
    }
    write_evaluation(flags, "recall", result, tables)
    emit(result, as_json, _lines(result))


def _asked(opened: "Index", flags: dict[str, Any], stack: ExitStack) -> _Asked:
    """The queries and their true neighbours. Stored items stand in for queries that are not given; a graph forgets them until `stack` is
    left."""
    import numpy as np

    from retrieval.index.bundle import read_queries
    from retrieval.index.forget import forgotten
    from retrieval.neighbors import exact_neighbors

    if flags["queries"] is not None:
        given = read_queries(opened.manifest, flags["queries"], check=flags["check"])
        truth = exact_neighbors(given.embeddings, opened.base, flags["k"])
        return _Asked(given.embeddings, [str(i) for i in given.ids], given.labels, False, None, truth)
    count = opened.rows.count
    rows = np.random.default_rng(flags["seed"]).choice(count, min(SAMPLED, count), replace=False)
    unseen = forgotten(opened, rows, flags["k"], stack)
    if unseen is not None:
        rows, truth = unseen
    vectors = opened.rows.take(rows)
    if unseen is None:
        truth = exact_neighbors(vectors, opened.base, flags["k"], self_rows=rows)
    ids, labels, _ = opened.rows.describe(rows)
    return _Asked(vectors, [str(i) for i in ids], labels, True, rows if unseen is None else None, truth)


def _settings(
    opened: "Index", asked: _Asked, k: int, given: "tuple[int, ...] | None"
) -> list[tuple[dict[str, int], float]]:
    """The given values of the parameter that trades time for recall, or a ladder of them, and the tuned one; the others as they are
    tuned. With each the seconds that one search of all queries took."""
    from retrieval.eval.recall import fidelity, found_without, ladder
    from retrieval.index.search import tuned_for

    knob, tuned = (None, {}) if opened.exact else (opened.abilities.knob, tuned_for(opened, k))
    if knob is None:
        return [(tuned, 1.0)]
    seconds: dict[int, float] = {}

    def recall_of(value: int) -> float:
        started = time.perf_counter()
        found = found_without(_find(opened, tuned | {knob: value}), asked.vectors, k, asked.rows)
        seconds[value] = time.perf_counter() - started
        return float(fidelity(found, asked.truth, opened.metric)["recall"].mean())

    values = sorted({*given, tuned[knob]}) if given else ladder(opened.abilities.limit, recall_of, [tuned[knob]])
    for value in values:
        if value not in seconds:
            recall_of(value)
    return [(tuned | {knob: value}, seconds[value]) for value in values]


def _find(opened: "Index", settings: dict[str, int]) -> "Find":
    from retrieval.index.search import search
    from retrieval.neighbors import Neighbors

    def find(queries: "Floats", k: int) -> "Neighbors":
        found = search(opened, queries, k, settings=settings or None)
        return Neighbors(found.scores, found.rows)

    return find


def _point(
    opened: "Index",
    asked: _Asked,
    settings: dict[str, int],
    task: "Task | None",
    exact: "PerQuery | None",
    flags: dict[str, Any],
) -> "tuple[dict[str, Any], PerQuery, PerQuery | None]":
    """One setting: what it finds, how fast with one thread and with all, and what that does to the task."""
    from retrieval.eval.compare import compare
    from retrieval.eval.recall import fidelity, found_without, timed
    from retrieval.eval.values import PerQuery
    from retrieval.index.backend import threads
    from retrieval.index.search import tuned_for

    find = _find(opened, settings)
    found = found_without(find, asked.vectors, flags["k"], asked.rows)
    table = PerQuery(asked.ids, None, fidelity(found, asked.truth, opened.metric))
    speeds = {}
    for name, count in (("one_thread", 1), ("all_threads", None)):
        with threads(count) as used:
            speeds[name] = asdict(timed(find, asked.vectors, flags["k"])) | {"threads": used}
    point: dict[str, Any] = {
        "settings": settings,
        "tuned": opened.exact or settings == tuned_for(opened, flags["k"]),
        "metrics": table.means(),
        "intervals": table.intervals(flags["seed"]),
        "speed": speeds,
    }
    judged = None if task is None else task(found)
    if judged is not None and exact is not None:
        point["task"] = {}
        for metric in judged.values:
            each = compare([exact], [judged], metric, seed=flags["seed"])
            point["task"][metric] = {
                "exact": each.means[0],
                "found": each.means[1],
                "difference": each.difference,
                "interval": each.interval,
            }
    return point, table, judged


def _task(opened: "Index", asked: _Asked, flags: dict[str, Any]) -> "Task | None":
    """What people search for: relevant documents if there are judgments, else items of the same class if there are labels."""
    if flags["qrels"] is not None:
        return _by_judgments(opened, asked, flags["qrels"], flags["k"])
    if asked.labels is None or "labels" not in opened.manifest["columns"]:
        return None
    labels = [label for number in range(len(opened.rows.shards)) for label in opened.rows.column(number, "labels")]
    return _by_classes(labels, asked, flags["k"])


def _by_judgments(opened: "Index", asked: _Asked, path: Path, k: int) -> "Task":
    from retrieval.eval.relevance import evaluate_relevance
    from retrieval.eval.values import PerQuery
    from retrieval.formats.trec import read_qrels

    qrels = read_qrels(path)
    ids = [str(i) for i in opened.rows.ids_between(0, opened.rows.count)]

    def judge(found: "Neighbors") -> "PerQuery":
        run = as_run(asked.ids, ids, found.scores, found.ids, opened.metric)
        judged = evaluate_relevance(qrels, run, ks=(k,)).queries
        return PerQuery(judged.ids, None, {name: judged.values[name] for name in (f"ndcg@{k}", f"recall@{k}")})

    return judge


def _by_classes(labels: list[str], asked: _Asked, k: int) -> "Task | None":
    import numpy as np

    from retrieval.eval.labels import classes
    from retrieval.eval.neighborhood import ranked
    from retrieval.eval.values import PerQuery

    relevance = classes(labels, asked.labels)
    relevant = relevance.counts() - asked.own
    rows = np.flatnonzero(relevant > 0)
    ids = [asked.ids[row] for row in rows.tolist()]
    names = ["r@1", f"map@{k}/min"] if k > 1 else ["r@1"]

    def judge(found: "Neighbors") -> "PerQuery":
        right = np.zeros((len(rows), k), bool)
        right[:, : found.ids.shape[1]] = relevance.relevant(rows, found.ids[rows]) & (found.ids[rows] >= 0)
        values = ranked(right, relevant[rows], tuple(sorted({1, k})))
        return PerQuery(ids, None, {name: values[name] for name in names})

    return judge if len(rows) else None


def _lines(result: dict[str, Any]) -> list[str]:
    task = list(result["points"][0].get("task", ()))
    head = f"{'':<24}{'recall':>8}  {'95 % interval':<15}{'by dist.':>9}{'rbo':>8}{'batch/s':>10}{'1 thread':>10}{'p50 ms':>8}{'p99 ms':>8}"
    lines = [f"{result['factory']} over {result['rows']:,} items, {result['queries']:,} queries, k {result['k']}", ""]
    lines.append(head + "".join(f"   {name}" + " " * max(0, 24 - len(name)) for name in task).rstrip())
    for point in result["points"]:
        named = ", ".join(f"{name} {value}" for name, value in point["settings"].items()) or "every vector"
        (low, high), metrics = point["intervals"]["recall"], point["metrics"]
        one, every = point["speed"]["one_thread"], point["speed"]["all_threads"]
        line = f"{named + (' *' if point['tuned'] else ''):<24}{metrics['recall']:>8.4f}  {f'{low:.4f}–{high:.4f}':<15}"
        line += f"{metrics['recall-by-distance']:>9.4f}{metrics['rbo']:>8.4f}{every['batch_qps']:>10,.0f}{one['batch_qps']:>10,.0f}"
        line += f"{every['latency_ms'][0]:>8.3f}{every['latency_ms'][2]:>8.3f}"
        for each in point.get("task", {}).values():
            least, most = each["interval"]
            line += f"   {each['difference']:+.4f} [{least:+.4f}, {most:+.4f}]"
        lines.append(line)
    lines += ["", "* as tuned; rbo: rank-biased overlap; p50, p99: milliseconds of a query alone"]
    for name in task:
        lines.append(
            f"{name}: change against exact search, which reaches {result['points'][0]['task'][name]['exact']:.4f}"
        )
    return lines
