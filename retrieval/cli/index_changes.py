"""`retrieval index add | remove | compact | merge`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from retrieval.errors import UserError
from retrieval.wording import plural

from .index import index, index_argument, late_rows
from .options import checks, common, existing, named_ids, read_ids, writes
from .output import emit, progress, say, told_addition

if TYPE_CHECKING:
    from retrieval.index.bundle import Index


@index.command()
@index_argument
@click.argument("store", type=existing("folder"))
@click.option("--replace", is_flag=True, help="Rows whose ids are there replace the old ones.")
@checks
@common
def add(folder: Path, store: Path, replace: bool, check: bool, seed: int, as_json: bool) -> None:
    """Add the rows of STORE to INDEX. They are found at once; FAISS gets them when they are many.

    \b
    Example:
      retrieval index add index new-store
    """
    from retrieval.index.bundle import KIND
    from retrieval.index.change import add as add_rows
    from retrieval.store import Store, open_store

    with open_store(store, check=check) as opened:
        with Store(folder, kind=KIND) as rows:
            before, generation = rows.count, rows.manifest["generation"]
        made = add_rows(folder, opened, replace=replace)
        again = made.manifest["generation"] == generation
        _say(folder, made, told_addition(before, made.rows.count, opened.count, replace, again), as_json)


@index.command()
@index_argument
@named_ids
@common
def remove(
    folder: Path, named: tuple[str, ...], ids_path: Path | None, missing_ok: bool, seed: int, as_json: bool
) -> None:
    """Remove rows of INDEX by id. The space comes back with `retrieval index compact`.

    \b
    Example:
      retrieval index remove index --id doc-17 --id doc-18
    """
    from retrieval.index.bundle import KIND
    from retrieval.index.change import remove as remove_rows
    from retrieval.store import Store
    from retrieval.store.ids import typed_ids

    ids = read_ids(named, ids_path)
    with Store(folder, kind=KIND) as opened:
        before, typed = opened.count, typed_ids(opened, ids)
    made = remove_rows(folder, typed, missing_ok=missing_ok)
    gone = before - made.rows.count
    missing = len(ids) - gone if missing_ok else 0
    already = "these rows were removed already, nothing was done" if ids else "no ids, nothing was done"
    what = f"{plural(gone, 'row')} removed" if gone or missing else already
    what += f", {plural(missing, 'id')} not there" if missing else ""
    _say(folder, made, what, as_json, missing=missing)


@index.command()
@index_argument
@common
def compact(folder: Path, seed: int, as_json: bool) -> None:
    """Take removed rows out of INDEX, and give FAISS all rows that it does not cover yet. Readers go on undisturbed.

    \b
    Example:
      retrieval index compact index
    """
    from retrieval.index.bundle import open_index
    from retrieval.index.change import compact as compact_index

    with open_index(folder).rows as rows:
        total, generation = rows.count, rows.manifest["generation"]
    with progress("compact", total) as advance:
        made = compact_index(folder, advance)
    nothing = made.manifest["generation"] == generation
    _say(folder, made, "there was nothing to compact" if nothing else "compacted", as_json)


@index.command()
@click.argument("folders", metavar="INDEX INDEX ...", nargs=-1, required=True, type=existing("folder"))
@writes
@checks
@common
def merge(folders: tuple[Path, ...], output: Path, overwrite: bool, check: bool, seed: int, as_json: bool) -> None:
    """Make one index of several, built as the first is. Those built with --trained-by the first are merged without new work.

    \b
    Example:
      retrieval index merge index-a index-b --output whole
    """
    from retrieval.index.bundle import open_index
    from retrieval.index.change import merge as merge_indexes

    if len(folders) < 2:
        raise UserError("INDEX: give two or more to merge")
    opened = [open_index(folder, check=check) for folder in folders]
    with progress("merge", sum(one.rows.count for one in opened)) as advance:
        made = merge_indexes(opened, output, overwrite=overwrite, progress=advance)
    _say(output, made, f"of {len(opened)} indexes", as_json)
    if not made.exact:
        say("Note: it is tuned and measured as the first of them was; `retrieval index tune` does both for the whole")


def _say(folder: Path, made: "Index", what: str, as_json: bool, **more: int) -> None:
    late = made.rows.count - made.covered
    result = {"index": str(folder), "count": made.rows.count, "generation": made.manifest["generation"], "late": late}
    emit(result | more, as_json, [f"{folder}: {what}, {made.rows.count:,} × {made.rows.dim} in all", *late_rows(made)])
