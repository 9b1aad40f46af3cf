"""`retrieval search`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from retrieval.errors import UserError
from retrieval.wording import plural

from .commands import refuse_unused
from .options import checks, common, existing, pick_device, quiet_libraries, refuse_existing, uses_device
from .output import as_line, emit

if TYPE_CHECKING:
    from retrieval.images import Picture
    from retrieval.index.bundle import Index
    from retrieval.index.filters import Mask
    from retrieval.index.search import Found, Hit

RUNS = (".run", ".trec")
ENDINGS = (*RUNS, ".jsonl", ".npy")


@click.command()
@click.argument("index", type=existing("folder"))
@click.option("--query", "queries", multiple=True, help="A text to search for; may be given several times.")
@click.option(
    "--image",
    "pictures",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A picture to search for: a file, or one in a tar (a.tar/1.jpg); likewise.",
)
@click.option("--store", type=existing("folder"), help="An embedding store whose every row is a query.")
@click.option("--encoder", "name", help="The encoder that made the index.  [default: as the index recorded it]")
@click.option("-k", type=click.IntRange(min=1), help="Results a query.  [default: 10, or all within --radius]")
@click.option("--radius", type=float, help="All with at least this cosine (by distance: at most); exact.")
@click.option("--label", "labels", multiple=True, help="Only items of this label; may be given several times.")
@click.option("--among", type=existing("file"), help="Only items whose ids are in this file, one a line.")
@click.option(
    "--index-device",
    "where_to",
    default="cpu",
    show_default=True,
    help="Where to search: cuda, or cuda:0,cuda:1, a copy each.",
)
@click.option("--shards", is_flag=True, help="A part of the index on each of several GPUs, instead of a copy.")
@click.option("--explain", is_flag=True, help="Say how it was searched, and how sure the result is.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to a file instead: .run or .trec (TREC), .jsonl, .npy (ids).",
)
@click.option("--overwrite", is_flag=True, help="Replace the file.")
@checks
@uses_device
@common
def search(
    index: Path,
    queries: tuple[str, ...],
    pictures: tuple[Path, ...],
    store: Path | None,
    name: str | None,
    k: int | None,
    radius: float | None,
    labels: tuple[str, ...],
    among: Path | None,
    where_to: str,
    shards: bool,
    explain: bool,
    output: Path | None,
    overwrite: bool,
    check: bool,
    device: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Search the index INDEX by text, by image, or by every row of a store.

    \b
    Examples:
      retrieval search index --encoder run --query "card not working" -k 5
      retrieval search index --store query-store -k 100 --output results.run
    """
    _refuse_queries(queries, pictures, store)
    if store:
        refuse_unused("--store holds vectors already", "--encoder", "--device")
    _refuse_output(output, overwrite, radius)
    from retrieval.index.ask import answer, plain
    from retrieval.index.bundle import open_index
    from retrieval.index.search import hits

    if shards and "," not in where_to:
        raise UserError("--shards: is for several GPUs; name them, as in --index-device cuda:0,cuda:1")
    if where_to != "cpu":
        from retrieval.index.gpu import gpus

        gpus(where_to)
    opened = open_index(index, check=check, device=where_to, shards=shards)
    where = _where(opened, labels, among)
    if output is not None and output.suffix in RUNS:
        _refuse_spaces(opened, where, [*queries, *map(str, pictures)], store)
    names, vectors = (
        _store_queries(opened, store, check) if store else _encoded_queries(opened, queries, pictures, name, device)
    )
    found = answer(opened, vectors, k, radius=radius, where=where)
    result: dict[str, Any]
    if output is not None:
        _write(output, opened, names, found)
        result = {"output": str(output), "queries": len(names), "results": int((found.rows >= 0).sum())}
        lines = [f"{output}: {plural(result['queries'], 'query')}, {plural(result['results'], 'result')}"]
    else:
        results = hits(opened, found)
        told = [{"query": q, "hits": [plain(hit) for hit in best]} for q, best in zip(names, results, strict=True)]
        result, lines = {"results": told}, _shown(opened, names, results)
    if explain:
        result["how"] = found.how
        lines += _explained(opened, found)
    emit(result, as_json, lines)


def _shown(opened: "Index", names: list[str], results: "list[list[Hit]]") -> list[str]:
    """The hits of each query, a line each."""
    lines, form = [], ".3f" if opened.metric == "cosine" else ".4g"
    for query, best in zip(names, results, strict=True):
        lines += [f"{query}"] if len(names) > 1 else []
        lines += [f"{rank:>3}  {hit.score:{form}}  {_described(hit)}" for rank, hit in enumerate(best, 1)]
    return lines if any(results) else [*lines, "nothing found"]


def _refuse_queries(texts: tuple[str, ...], pictures: tuple[Path, ...], store: Path | None) -> None:
    if sum(map(bool, (texts, pictures, store))) != 1:
        raise UserError("give one kind of query: --query TEXT, --image FILE, or --store STORE")
    if any(not text.strip() for text in texts):
        raise UserError("--query: is empty; give a text to search for")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"--query {text!r}: has bytes that are not UTF-8; convert it, or mend LANG") from None


def _where(opened: "Index", labels: tuple[str, ...], among: Path | None) -> "Mask | None":
    """Which rows may be found, None if all. Raises UserError for a label or an id that no row has."""
    from retrieval.formats import read_lines
    from retrieval.index.filters import allowed

    ids = None if among is None else read_lines(among)
    if ids == []:
        raise UserError(f"--among {among}: has no ids; give one a line")
    return allowed(opened, labels, ids)


def _refuse_output(output: Path | None, overwrite: bool, radius: float | None) -> None:
    if output is None:
        return
    if output.suffix not in ENDINGS:
        raise UserError(f"--output {output}: name a file that ends with {', '.join(ENDINGS)}")
    if output.suffix == ".npy" and radius is not None:
        raise UserError(f"--output {output}: --radius gives a different number for each query; write .jsonl or .run")
    refuse_existing(overwrite, output)


def _refuse_spaces(opened: "Index", where: "Mask | None", asked: list[str], store: Path | None) -> None:
    """Before anything is searched or encoded: names of queries, and of the items that may be found, that a run cannot hold."""
    from retrieval.formats.trec import refuse_spaces
    from retrieval.store import open_store

    if store:
        with open_store(store) as queries:
            asked = [str(i) for i in queries.ids_between(0, queries.count)]
    refuse_spaces("query", asked)
    ids = opened.rows.ids_between(0, opened.rows.count)
    if isinstance(ids, list):
        refuse_spaces("id", ids if where is None else (ids[row] for row in where.nonzero()[0]))


def _write(output: Path, opened: "Index", names: list[str], found: "Found") -> None:
    """All results to a file: whole, or not at all."""
    import numpy as np

    from retrieval.artifact import writing_atomically
    from retrieval.index.search import hits

    with writing_atomically(output) as file:
        if output.suffix == ".npy":
            np.save(file, _ids(opened, found), allow_pickle=False)
            return
        for start in range(0, len(names), 1000):
            part = found[start : start + 1000]
            for query, best in zip(names[start : start + 1000], hits(opened, part), strict=True):
                _write_one(file, output.suffix, query, best, opened.metric)


def _ids(opened: "Index", found: "Found") -> Any:
    """(q, k) ids; −1 or "" where there are fewer."""
    import numpy as np

    held = opened.rows.ids_between(0, opened.rows.count)
    if isinstance(held, np.ndarray):
        if (found.rows < 0).any() and -1 in held:
            raise UserError("--output: −1 stands for no result in .npy, and an item has this id; write .jsonl or .run")
        return np.where(found.rows >= 0, held[found.rows], -1) if len(held) else found.rows
    # Of the rows found alone: an array of strings is as wide as its longest.
    ids = [held[row] if row >= 0 else "" for row in found.rows.ravel().tolist()]
    return np.array(ids, dtype=str).reshape(found.rows.shape)


def _write_one(file: BinaryIO, ending: str, query: str, best: "list[Hit]", metric: str) -> None:
    if ending == ".jsonl":
        from retrieval.index.ask import plain

        file.write(as_line({"query": query, "hits": [plain(hit) for hit in best]}).encode() + b"\n")
        return
    from retrieval.formats.trec import run_lines

    sign = -1 if metric == "euclidean" else 1  # in a run larger is better
    file.write(run_lines(query, ((str(hit.id), sign * hit.score) for hit in best)))


def _explained(opened: "Index", found: "Found") -> list[str]:
    how, told = found.how, opened.about["measured"]
    lines = [f"{how['compared']:,} of {opened.rows.count:,} rows compared exactly"]
    if how["way"] == "approximate":
        low, high = told["interval"]
        tuned = ", ".join(f"{name} {value}" for name, value in how["settings"].items()) or "no parameters"
        lines = [
            f"{opened.about['factory']} over {how['covered']:,} rows, {tuned}",
            f"recall@{told['k']} {told['recall']:.3f} ({low:.3f}–{high:.3f}) when measured, with {told['rows']:,} rows",
        ] + ([f"{lines[0]}, which came later"] if how["compared"] else [])
        if "allowed" in how:
            whole = how["exact_queries"]
            compared = f"; all of them were compared for {whole:,} of the queries" if whole else ""
            lines.append(f"{how['allowed']:,} rows may be found; recall was measured without a filter{compared}")
    return [f"     {line}" for line in lines]


def _store_queries(opened: "Index", folder: Path, check: bool) -> tuple[list[str], Any]:
    from retrieval.index.bundle import read_queries

    rows = read_queries(opened.manifest, folder, check=check)
    return [str(i) for i in rows.ids], rows.embeddings


def _encoded_queries(
    opened: "Index", queries: tuple[str, ...], pictures: tuple[Path, ...], name: str | None, device: str | None
) -> tuple[list[str], Any]:
    quiet_libraries()
    from retrieval.index.ask import encoded, encoder_of

    items: list[Any] = list(queries) or [_picture(path) for path in pictures]
    names = list(queries) or [str(path) for path in pictures]
    encoder = encoder_of(opened, name, pick_device(device))
    if not encoder.takes("text" if queries else "image"):
        flag, kind, other = ("--query", "texts", "--image FILE") if queries else ("--image", "pictures", "--query TEXT")
        raise UserError(f"{flag}: {encoder.name}, which made this index, takes no {kind}; search by {other}")
    return names, encoded(encoder, items, names)


def _picture(path: Path) -> "Picture":
    """A picture by its path, by its tar and name there, or as a store of pictures tells it; one that decodes."""
    from retrieval.images import decode, picture_at

    found = picture_at(str(path))
    if found is None and path.is_dir():
        raise UserError(f"--image {path}: is a folder; give a picture, and --image once more for another")
    if found is None:
        raise UserError(f"{path}: no such file; give a picture, or a tar and the name of one in it (shard.tar/1.jpg)")
    decode(found)
    return found


def _described(hit: "Hit") -> str:
    from retrieval.data import shortened

    shown = shortened(hit.payload.get("text") or hit.payload.get("caption", ""), 100)
    name = hit.id if isinstance(hit.id, str) or not shown else ""  # numbers are mostly those of rows
    own = ("text", "caption", "path")  # a picture's path is its id, or says no more
    others = [f"{key}: {shortened(value, 60)}" for key, value in hit.payload.items() if key not in own and value]
    parts = (name, hit.label and f"[{hit.label}]", shown, *others)
    return "  ".join(str(part) for part in parts if part or part == 0)
