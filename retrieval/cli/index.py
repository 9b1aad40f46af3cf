"""`retrieval index build | tune | info | verify`; the rest is in index_changes.py and index_files.py."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval.errors import UserError
from retrieval.wording import plural

from .amounts import MEMORY, TIME
from .commands import Group, together
from .options import checks, common, existing, verify_artifact
from .output import emit, progress, say, told_size

if TYPE_CHECKING:
    from retrieval.index.bundle import Index
    from retrieval.index.plan import Candidate, Goal

index_argument = click.argument("folder", metavar="INDEX", type=existing("folder"))


@click.group(cls=Group)
def index() -> None:
    """Build, tune, change and check search indexes, and exchange them with FAISS."""


judged_by = click.option(
    "--queries", type=existing("folder"), help="A store of real queries to tune with.  [default: stored items]"
)


aims = together(  # what an index is to reach
    click.option("--recall", type=click.FloatRange(0.01, 1), help="Recall@k to reach.  [default: 0.95]"),
    click.option("--latency", type=TIME, help='How long one query may take: "5ms".'),
    click.option(
        "--for",
        "use",
        type=click.Choice(["batch", "single"]),
        help="Queries that come many at a time, or one by one.  [default: batch, single with --latency]",
    ),
    click.option("-k", type=click.IntRange(1, 1000), default=10, show_default=True, help="Of recall@k."),
)


@index.command()
@click.argument("store", type=existing("folder"))
@click.option("--factory", help='A FAISS factory string such as "IVF256,Flat", "HNSW32".  [default: by what is asked]')
@judged_by
@aims
@click.option("--memory", type=MEMORY, help='What the index may take when it is searched: "2GB".')
@click.option(
    "--trained-by", type=existing("folder"), help="An index whose training is taken over: the two can be merged."
)
@click.option(
    "--device", default="cpu", show_default=True, help="Where lists are trained and filled: cuda, cuda:0,cuda:1."
)
@click.option("--plan", is_flag=True, help="Only say what would be built.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder to write; not needed for a --plan.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier result under --output.")
@checks
@common
def build(
    store: Path,
    factory: str | None,
    recall: float | None,
    latency: float | None,
    use: str | None,
    k: int,
    queries: Path | None,
    memory: float | None,
    trained_by: Path | None,
    device: str,
    plan: bool,
    output: Path | None,
    overwrite: bool,
    check: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Build an index from the embedding store STORE, tune it, and measure it against exact search.

    Without --factory and aims: exact search up to 200,000 vectors, beyond that the type that is fastest at recall .95. A build
    that was killed goes on with the same command.

    \b
    Examples:
      retrieval index build store --output index
      retrieval index build store --recall 0.95 --memory 2GB --for single --output index
    """
    from retrieval.artifact import refuse_to_clobber
    from retrieval.index.build import build as build_index
    from retrieval.index.build import new_index
    from retrieval.index.bundle import open_index
    from retrieval.index.plan import candidates
    from retrieval.store import open_store

    source = open_store(store, check=check)
    goal = goal_of(recall, latency, use, k, memory)
    if memory and (factory or trained_by):
        given = "--factory" if factory else "--trained-by"
        raise UserError(f"--memory: chooses a type, and {given} has chosen; give one of them")
    taken = open_index(trained_by) if trained_by else None
    chosen = (
        [] if factory is not None or taken else candidates(source.count, source.dim, goal, source.manifest["metric"])
    )
    if plan:
        if factory is not None:
            new_index(factory, source, device)  # refuses what the build would
        named = factory or (str(taken.about["factory"]) if taken else "")
        emit({"plan": [vars(one) for one in chosen] or [{"factory": named}]}, as_json, _planned(chosen, named))
        return
    if output is None:
        raise UserError("--output: is missing; name a folder to write, or ask for the --plan alone")
    refuse_to_clobber(output, "index", overwrite)
    for line in _planned(chosen, "") if chosen and chosen[0].factory != "Flat" else []:
        say(line)
    vectors = _queries(queries, source.manifest, check)
    with progress("index", source.count * max(1, len(chosen))) as advance:
        made = build_index(
            source,
            output,
            factory=factory,
            goal=goal,
            queries=vectors,
            trained_by=taken,
            device=device,
            overwrite=overwrite,
            seed=seed,
            progress=advance,
        )
    emit({"output": str(output), **told_of(made)}, as_json, [f"{output}: {sentence(made)}", *findings(made)])


def goal_of(
    recall: float | None, latency: float | None, use: str | None, k: int, memory: float | None
) -> "Goal | None":
    from retrieval.index.plan import RECALL, Goal

    if (recall, latency, use, memory, k) == (None, None, None, None, 10):
        return None
    single = use == "single" or (use is None and latency is not None)
    return Goal(recall or RECALL, k, None if memory is None else int(memory), latency, single)


def _planned(chosen: "list[Candidate]", factory: str) -> list[str]:
    if factory:
        return [f"plan: {factory}, as asked"]
    return [f"plan: {one.factory}, {told_size(one.memory)} when searched: {one.why}" for one in chosen] + (
        ["plan: each is built, the fastest at this recall is kept"] if len(chosen) > 1 else []
    )


def _queries(folder: Path | None, made: dict[str, Any], check: bool) -> Any:
    """The vectors of a store of queries. Raises UserError unless they go with the index."""
    if folder is None:
        return None
    from retrieval.index.bundle import require_fitting
    from retrieval.store import open_store

    with open_store(folder, check=check) as opened:
        require_fitting(made, opened.manifest, f"--queries {folder}")
        if opened.count < 2:
            raise UserError(f"--queries {folder}: has {'1 query' if opened.count else 'no query'}; give two at least")
        return opened.embeddings()


def told_of(made: "Index") -> dict[str, Any]:
    about = made.about
    return {"count": made.rows.count, "dim": made.rows.dim, "metric": made.metric} | {
        name: about[name] for name in ("factory", "search", "measured", "why", "covers")
    }


def sentence(made: "Index") -> str:
    about = made.about
    tuned = ", ".join(f"{name} {value}" for name, value in about["search"].items())
    return f"{made.rows.count:,} × {made.rows.dim}, {made.metric}, in {about['factory']}" + (
        f", {tuned}" if tuned else ""
    )


def findings(made: "Index") -> list[str]:
    """How well and how fast it finds."""
    from retrieval.index.bundle import DECODED

    told, goal = made.about["measured"], made.about.get("goal", {})
    low, high = told["interval"]
    kind = "real queries" if told["queries_from"] == "given" else "stored items as queries"
    recall = "1, since every vector is compared" if made.exact else f"{told['recall']:.3f} ({low:.3f}–{high:.3f})"
    lines = [
        f"  recall@{told['k']} {recall}"
        + ("" if made.exact else f" against exact search, {told['queries']:,} {kind} that it was not tuned with"),
        f"  {told['batch_qps']:,.0f} queries/s in batches, {told['single_qps']:,.0f} one by one "
        f"({1e3 / told['single_qps']:.2f} ms each), on {plural(told['threads'], 'thread')}",
    ]
    if made.about["why"].endswith(DECODED):
        lines.append(f"  Note: {made.about['why']}, not of the vectors that were coded")
    if told["rows"] != made.rows.count:
        lines.append(f"  measured when it had {told['rows']:,} rows; `retrieval index tune` measures again")
    if not made.exact and high < goal.get("recall", 0):
        remedy = (
            "`retrieval index tune` with a higher --recall"
            if told.get("reached")
            else "build with another --factory, or more --memory"
        )
        lines.append(f"  Note: below the recall of {goal['recall']} that was asked; {remedy}")
    if goal.get("latency") and 1 / told["single_qps"] > goal["latency"]:
        lines.append(f"  Note: slower than the {goal['latency'] * 1e3:g} ms that were asked; ask for less --recall")
    # By the race that decided, in which all took turns with the same queries.
    for other in made.about.get("others", []):
        against = other["measured"]
        lines.append(
            f"  not kept: {other['factory']}, recall {against['recall']:.3f}, {against['raced'] / told['raced']:.2f} × the time a query "
            f"{'one by one' if goal.get('single') else 'in batches'}"
            + ("" if against["reached"] or not told["reached"] else ", below the recall asked")
        )
    return lines


def late_rows(opened: "Index") -> list[str]:
    """Said however few they are: a single query of a graph takes half as long again with one, three times as long with 9,000."""
    from retrieval.index.kinds import unfit

    late = opened.rows.count - opened.covered
    if not late or opened.exact:
        return []
    if not opened.covered and (why := unfit(opened.faiss, opened.rows)) is not None:
        return [f"  {plural(late, 'row')} compared exactly, {why.short} for a graph of this type"]
    return [f"  {plural(late, 'late row')} compared exactly; `retrieval index compact` gives them to FAISS"]


@index.command()
@index_argument
@judged_by
@aims
@checks
@common
def tune(
    folder: Path,
    recall: float | None,
    latency: float | None,
    use: str | None,
    k: int,
    queries: Path | None,
    check: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Choose the search parameters of INDEX anew, for another recall or by real queries, and measure it again.

    \b
    Example:
      retrieval index tune index --recall 0.99 --queries query-store
    """
    from retrieval.index.bundle import open_index
    from retrieval.index.change import retune
    from retrieval.index.plan import Goal

    goal = goal_of(recall, latency, use, k, None) or Goal()
    opened = open_index(folder, check=check)
    vectors = _queries(queries, opened.manifest, check)
    opened.rows.close()
    made = retune(folder, goal, vectors, seed)
    emit({"index": str(folder), **told_of(made)}, as_json, [f"{folder}: {sentence(made)}", *findings(made)])


@index.command()
@index_argument
@checks
@common
def info(folder: Path, check: bool, seed: int, as_json: bool) -> None:
    """Say what the index INDEX is, who made it, and how well it finds.

    \b
    Example:
      retrieval index info index
    """
    from retrieval.index.bundle import open_index

    opened = open_index(folder, check=check)
    made, rows = opened.manifest, opened.rows
    encoder = made["encoder"] or {"name": "unknown", "fingerprint": "imported vectors"}
    late, deleted = rows.count - opened.covered, rows.written - rows.count
    size = sum(part["bytes"] for part in made["files"].values())
    graph = made["files"][opened.about["file"]]["bytes"]
    lines = [
        f"{folder}: {sentence(opened)}, generation {made['generation']}",
        f"  {size / 1e6:,.1f} MB, of which FAISS {graph / 1e6:,.1f} MB ({graph / max(1, rows.written):,.0f} bytes a vector)",
        f"  by encoder {encoder['name']} ({encoder['fingerprint'][:16]})",
        *findings(opened),
    ]
    lines += late_rows(opened)
    if deleted:
        lines.append(f"  {plural(deleted, 'deleted row')} passed over; `retrieval index compact` takes them out")
    lines += ["  every file matches its hash"] if check else []
    told = {k: v for k, v in made.items() if k not in ("files", "shards")}
    emit(told | {"late": late, "deleted": deleted, "bytes": size}, as_json, lines)


@index.command()
@index_argument
@common
def verify(folder: Path, seed: int, as_json: bool) -> None:
    """Hash every file of INDEX against its manifest, and open what FAISS is to search. Exit code 2 if anything differs.

    \b
    Example:
      retrieval index verify index
    """
    from retrieval.index.bundle import KIND, open_index

    verify_artifact(folder, KIND, as_json)
    _ = open_index(folder).faiss
