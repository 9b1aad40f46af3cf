"""`retrieval store info | verify | delete | compact | merge`; import and export are in store_files.py."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval.wording import plural

from .commands import Group
from .options import checks, common, existing, named_ids, read_ids, verify_artifact, writes
from .output import emit, progress, say, told_addition

if TYPE_CHECKING:
    from retrieval.store import Store

store_argument = click.argument("folder", metavar="STORE", type=existing("folder"))


@click.group(cls=Group)
def store() -> None:
    """Look at, check and change embedding stores, and exchange them with other tools."""


@store.command()
@store_argument
@checks
@common
def info(folder: Path, check: bool, seed: int, as_json: bool) -> None:
    """Say what the store STORE holds, and who made it.

    \b
    Example:
      retrieval store info store
    """
    from retrieval.store import open_store
    from retrieval.store.journal import rows_left

    opened = open_store(folder, check=check)
    made, shards = opened.manifest, opened.shards
    encoder = made["encoder"] or {"name": "unknown", "fingerprint": "imported vectors"}
    deleted = sum(shard["rows"] - shard["live"] for shard in shards)
    size = _bytes(opened)
    pending = rows_left(folder, made["next_part"])
    result = {
        **{k: v for k, v in made.items() if k not in ("files", "shards")},
        **{"shards": len(shards), "deleted": deleted, "bytes": size, "pending": pending},
    }
    lines = [
        f"{folder}: {opened.count:,} {made['modality'] or 'item'}s × {opened.dim} in {opened.dtype}, {made['metric']}, "
        f"generation {made['generation']}",
        f"  ids are {made['ids']}s; columns {', '.join(made['columns']) or 'none'}",
        f"  {plural(len(shards), 'shard')}, {size / 1e6:,.1f} MB, {deleted:,} deleted rows"
        + ("; `retrieval store compact` removes them" if deleted else ""),
        f"  by encoder {encoder['name']} ({encoder['fingerprint'][:16]})",
    ]
    for computed in made.get("computed", []):
        if "rows" not in computed:
            continue
        lines.append(
            f"  computed by {computed['backend']} in {computed['compute']}: cosine with torch in float32 at least "
            f"{computed['cosine_min']:.5f}, {computed['neighbours_kept']:.1%} of ten neighbours kept "
            f"({computed['rows']:.0f} rows)"
        )
    if "part" in made:
        part = made["part"]
        lines.append(
            f"  part {part['number']} of {part['of']} of {part['rows']:,} rows ({part['whole'][:12]}, the same of all its parts); "
            f"`retrieval store merge` joins them"
        )
    lines += [f"  an interrupted change left {pending:,} rows; the same command again goes on"] if pending else []
    lines += ["  every file matches its hash"] if check else []
    emit(result, as_json, lines)


@store.command()
@store_argument
@common
def verify(folder: Path, seed: int, as_json: bool) -> None:
    """Hash every file of STORE against its manifest. Exit code 2 and the names of the files that differ.

    \b
    Example:
      retrieval store verify store
    """
    from retrieval.store import KIND

    verify_artifact(folder, KIND, as_json)


@store.command()
@store_argument
@click.argument("other", type=existing("folder"))
@click.option("--replace", is_flag=True, help="Rows whose ids are there replace the old ones.")
@checks
@common
def add(folder: Path, other: Path, replace: bool, check: bool, seed: int, as_json: bool) -> None:
    """Add the rows of the store OTHER to STORE.

    \b
    Example:
      retrieval store add store new-store --replace
    """
    from retrieval.store import add as add_rows
    from retrieval.store import open_store

    with open_store(other, check=check) as given:
        with open_store(folder) as opened:
            before, generation = opened.count, opened.manifest["generation"]
        made = add_rows(folder, given, replace=replace)
        again = made.manifest["generation"] == generation
        what = told_addition(before, made.count, given.count, replace, again)
    result = {"store": str(folder), "count": made.count, "generation": made.manifest["generation"]}
    emit(result, as_json, [f"{folder}: {what}, {made.count:,} in all"])


@store.command()
@store_argument
@named_ids
@common
def delete(
    folder: Path, named: tuple[str, ...], ids_path: Path | None, missing_ok: bool, seed: int, as_json: bool
) -> None:
    """Delete rows of STORE by id. The space comes back with `retrieval store compact`.

    \b
    Example:
      retrieval store delete store --id doc-17 --id doc-18
    """
    from retrieval.store import delete as delete_rows
    from retrieval.store import open_store
    from retrieval.store.ids import typed_ids

    ids = read_ids(named, ids_path)
    with open_store(folder) as opened:
        before, typed = opened.count, typed_ids(opened, ids)
    left = delete_rows(folder, typed, missing_ok=missing_ok)
    gone = before - left.count
    missing = len(ids) - gone if missing_ok else 0
    result = {"store": str(folder), "deleted": gone, "count": left.count, "generation": left.manifest["generation"]}
    result["missing"] = missing
    already = "these rows were deleted already" if ids else "no ids, nothing was done"
    what = f"{gone:,} deleted" if gone or missing else already
    what += f", {plural(missing, 'id')} not there" if missing else ""
    emit(result, as_json, [f"{folder}: {what}, {left.count:,} left"])


@store.command()
@store_argument
@common
def compact(folder: Path, seed: int, as_json: bool) -> None:
    """Remove deleted rows of STORE from disk and merge small shards. Readers of the old generation go on undisturbed.

    \b
    Example:
      retrieval store compact store
    """
    from retrieval.store import compact as compact_store
    from retrieval.store import open_store

    with open_store(folder) as opened:
        before = _bytes(opened)
    made = compact_store(folder)
    after = _bytes(made)
    result: dict[str, Any] = {"store": str(folder), "count": made.count, "shards": len(made.shards)}
    result |= {"bytes_before": before, "bytes": after}
    shards = plural(len(made.shards), "shard")
    if any(path.name.startswith("part-") and path.name not in made.manifest["files"] for path in folder.iterdir()):
        say(f"Note: files of older generations stay until {folder} is changed when nobody reads them any more")
    emit(result, as_json, [f"{folder}: {made.count:,} rows in {shards}, {before / 1e6:,.1f} → {after / 1e6:,.1f} MB"])


@store.command()
@click.argument("folders", metavar="STORE STORE ...", nargs=-1, required=True, type=existing("folder"))
@writes
@checks
@common
def merge(folders: tuple[Path, ...], output: Path, overwrite: bool, check: bool, seed: int, as_json: bool) -> None:
    """Make one store of several, as hard links where the file system has them. The parts that `embed --part` made come in their
    order, and all must be there.

    \b
    Example:
      retrieval store merge part-1 part-2 part-3 --output store
    """
    from retrieval.store import merge as merge_stores
    from retrieval.store import open_store

    opened = [open_store(folder, check=check) for folder in folders]
    with progress("merge", sum(store.count for store in opened)) as advance:
        made = merge_stores(opened, output, overwrite=overwrite, progress=advance)
    result = {"output": str(output), "count": made.count, "dim": made.dim, "shards": len(made.shards)}
    emit(result, as_json, [f"{output}: of {len(folders)} stores, {made.count:,} × {made.dim} in all"])


def _bytes(opened: "Store") -> int:
    return sum(part["bytes"] for part in opened.manifest["files"].values())
