"""`retrieval report`."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval.errors import UserError
from retrieval.metrics import METRICS

from .commands import refuse_unused
from .evaluated import KIND, PAIRS, named_paths, read_labels, read_vectors
from .index import findings
from .options import checks, common, existing, refuse_existing
from .output import emit, progress, say, told_size

if TYPE_CHECKING:
    from retrieval.eval.report.items import Items
    from retrieval.eval.report.page import Section
    from retrieval.images import Images
    from retrieval.store import Rows

LARGE = 5_000_000


@click.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="HTML file to write.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier report.")
@click.option(
    "--figures", type=click.Path(path_type=Path, file_okay=False), help="Folder for every figure as SVG and PNG."
)
@click.option("--title", default="Retrieval report", show_default=True, help="Title of the page.")
@click.option(
    "--images", type=existing("any"), help="The pictures that were embedded, if they are not where they were."
)
@click.option("--labels", type=existing("file"), help="Labels, one a line, for files of vectors.")
@click.option("--metric", type=click.Choice(METRICS), help="How vectors are compared.  [default: as in the store]")
@click.option(
    "--map",
    "way",
    type=click.Choice(["tsne", "umap", "pca"]),
    default="tsne",
    show_default=True,
    help="How items are laid out; umap needs the extra [umap].",
)
@click.option(
    "--sample", type=click.IntRange(min=2), help="Judge so many items.  [default: all up to 20,000, else 10,000]"
)
@checks
@common
def report(sources: tuple[str, ...], as_json: bool, seed: int, **flags: Any) -> None:  # fmt: skip
    """One HTML page of SOURCES that opens anywhere, without a network.

    Each is PATH or NAME=PATH: a store, an index or a file of vectors, a run of training, an evaluation (what `eval … --output` writes,
    `eval compare` too), a sweep. Several stores of the same items stand side by side, such as before and after training.

    \b
    Examples:
      retrieval report store --output report.html
      retrieval report before=store-0 after=store-1 run sweep --output report.html --figures figures
    """
    refuse_existing(flags["overwrite"], flags["output"])
    named = [(name, paths[0]) for name, paths in named_paths(sources, several=False)]
    from retrieval.artifact import now, write_atomically
    from retrieval.eval.report.page import render, write_figures

    if flags["figures"] is not None:
        if flags["figures"].exists() and any(flags["figures"].iterdir()) and not flags["overwrite"]:
            raise UserError(f"--figures {flags['figures']}: is not empty; choose another folder, or add --overwrite")
        flags["figures"].mkdir(parents=True, exist_ok=True)
    sections = list(_sections(named, flags, seed))
    foot = f"Made by retrieval report on {now()[:10]}. Intervals are 95 %."
    page = render(flags["title"], "", sections, foot).encode(errors="backslashreplace")
    write_atomically(flags["output"], page)
    files = [] if flags["figures"] is None else write_figures(flags["figures"], sections)
    if len(page) > LARGE:
        say(f"Warning: {flags['output']} has {told_size(len(page))}; report fewer things on a page")
    result = {
        "output": str(flags["output"]),
        "bytes": len(page),
        "figures": files,
        "sections": [{"kind": each.template, "title": each.title, **each.values} for each in sections],
    }
    lines = [f"{flags['output']}: {told_size(len(page))}; " + ", ".join(each.title for each in sections)]
    emit(result, as_json, lines + ([f"{flags['figures']}: {len(files)} files"] if files else []))


def _sections(named: Sequence[tuple[str, Path]], flags: dict[str, Any], seed: int) -> "Iterator[Section]":
    """In the order that they were named; items of the same ids and labels together, where the first of them stands."""
    from retrieval.artifact import stated_kind

    vectors = [
        (name, path, *read_vectors(path, flags["metric"], flags["check"])[:2])
        for name, path in named
        if not path.is_dir() or stated_kind(path) in ("store", "index", None)
    ]
    if not vectors:
        refuse_unused("nothing here is vectors", "--metric", "--map", "--sample", "--images")
    if flags["labels"] is not None and all(rows.labels is not None for _, _, rows, _ in vectors):
        raise UserError(f"--labels {flags['labels']}: nothing here is without labels; leave it out")
    opened = {each[0]: _items(*each, flags) for each in vectors}
    shown: set[str] = set()
    for name, path in named:
        if name not in opened:
            yield _of_artifact(name, path, flags["check"])
        elif name not in shown:
            alike = [each for each in opened.values() if each.name not in shown and each.same_items(opened[name])]
            shown |= {each.name for each in alike}
            yield _of_items(_once(alike), flags, seed)


def _once(alike: "list[Items]") -> "list[Items]":
    """Those of the same vectors, such as a store and its index, as one."""
    kept: list[Items] = []
    for side in alike:
        at = next((at for at, each in enumerate(kept) if each.same_vectors(side)), None)
        if at is None:
            kept.append(side)
        else:
            both = " ".join(note for note in (kept[at].note, side.note) if note)
            kept[at] = replace(kept[at], also=(*kept[at].also, side.name), note=both)
    return kept


def _of_items(sides: "list[Items]", flags: dict[str, Any], seed: int) -> "Section":
    from retrieval.eval.report.items import items_section

    title = " and ".join(name for side in sides for name in (side.name, *side.also))
    return items_section(title, "", sides, way=flags["way"], sample=flags["sample"], seed=seed, stage=progress)


def _items(name: str, path: Path, rows: "Rows", metric: str, flags: dict[str, Any]) -> "Items":
    from retrieval.eval.report.items import Items

    labels = read_labels(flags["labels"]) if rows.labels is None and flags["labels"] is not None else rows.labels
    if labels is not None and len(labels) != len(rows):
        raise UserError(f"{flags['labels']}: has {len(labels):,} labels, {path} {len(rows):,} vectors")
    pictures = _pictures(path, rows, flags["images"])
    if metric != "cosine":
        say(f"Note: {path} is compared by {metric}; the map and the histograms are of directions all the same")
    ids, texts = [str(i) for i in rows.ids], rows.payload.get("text") or rows.payload.get("caption")
    return Items(name, rows.embeddings, labels, ids, metric, texts, pictures, note=_recall(name, path))


def _recall(name: str, path: Path) -> str:
    """What an index finds, as it was measured when it was tuned."""
    from retrieval.artifact import stated_kind

    if not path.is_dir() or stated_kind(path) != "index":
        return ""
    from retrieval.index.bundle import open_index

    opened = open_index(path)
    return f"{name}: {opened.about['factory']}, {findings(opened)[0].strip()}."


def _pictures(path: Path, rows: "Rows", given: Path | None) -> "Images | None":
    """What was embedded, from where it was, or from where it is now said to be."""
    from retrieval.images import Images, picture_at, read_images

    if given is not None and "text" in rows.payload:
        raise UserError(f"--images {given}: {path} is of texts; leave it out")
    if given is not None:
        images = read_images(given)
        place = {name: row for row, name in enumerate(images.ids or [str(row) for row in range(len(images))])}
        missing = next((str(i) for i in rows.ids if str(i) not in place), None)
        if missing is not None:
            raise UserError(f"--images {given}: has no picture {missing!r}, which {path} has")
        return images.take(place[str(i)] for i in rows.ids)
    found = [picture_at(each) for each in rows.payload.get("path", ())]
    if not found:
        return None
    pictures = [picture for picture in found if picture is not None]
    if len(pictures) < len(found):
        say(f"Note: the pictures of {path} are not where they were; say where they are by --images")
        return None
    return Images(pictures, None, "")


def _told(path: Path) -> dict[str, list[str]]:
    """What the pairs of an evaluation are, by query; nothing where an older version wrote it."""
    if not path.exists():
        return {}
    from retrieval.data.rows import LONGEST_CELL

    csv.field_size_limit(LONGEST_CELL)
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return {query: told for query, *told in csv.reader(file)}


def _of_artifact(name: str, path: Path, check: bool) -> "Section":
    """A run, a sweep, or an evaluation by what it is of."""
    from retrieval.artifact import RUN_KIND, read_manifest, stated_kind
    from retrieval.eval.report import artifacts
    from retrieval.eval.values import read_per_query
    from retrieval.train.run import read_run

    kind = stated_kind(path)
    if kind == RUN_KIND:
        return artifacts.run_section(name, *read_run(path, check=check))
    if kind == "sweep":
        return artifacts.sweep_section(name, read_manifest(path, kind, check=check)["sweep"])
    if kind != KIND:
        raise UserError(f"{path}: is of kind {kind}; give stores, indexes, vectors, runs, evaluations or sweeps")
    manifest = read_manifest(path, KIND, check=check)
    found, of = manifest["evaluation"], manifest.get("of")
    if of == "relevance":
        return artifacts.relevance_section(name, found, read_per_query(path / "queries.csv"))
    if of == "pairs":
        return artifacts.pairs_section(name, found, read_per_query(path / "queries.csv"), _told(path / PAIRS))
    made = {
        "clusters": artifacts.clusters_section,
        "recall": artifacts.recall_section,
        "compare": artifacts.comparison_section,
    }
    if of not in made:
        raise UserError(f"{path}: does not say what it evaluates, an older version wrote it; evaluate again")
    return made[of](name, found)
