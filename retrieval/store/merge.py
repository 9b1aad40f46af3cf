"""One artifact of the rows of several: their shards, linked. Parts of one corpus (`create` with `part`) are put in order again."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from retrieval.artifact import Manifest, creating, seal, sha256_json, writing_atomically
from retrieval.errors import UserError

from .compact import repack
from .ids import first_repeated, named
from .journal import JOURNAL
from .reader import KIND, Store
from .shard import shard_name
from .writer import made_by

NOT_ROWS = ("kind", "format", "made_by", "index")
TOLD = ("skipped", "computed")  # fields that say something of each change, joined
TOLD_APART = {"shard_rows": "--shard-rows", "dtype": "--dtype", "dim": "the dimension", "columns": "what its rows have"}
ALIKE = ("dim", "dtype", "metric", "normalized", "modality", "ids", "columns")


class Holds(Protocol):
    """What has rows: a store, or an index."""

    @property
    def folder(self) -> Path: ...
    @property
    def manifest(self) -> Manifest: ...


T = TypeVar("T", bound=Holds)
Progress = Callable[[int], None]


def merge(
    folders: Sequence[Store | Path | str],
    output: Path | str,
    *,
    overwrite: bool = False,
    progress: Progress = lambda rows: None,
) -> Store:
    """A new store of the rows of several, in the order given; parts of one corpus in theirs.

    Shards are hard links where the file system has them, so that nothing is encoded or, without deleted rows, written again.
    The parts of a corpus give, shard by shard and byte by byte, the store that one call makes of it. `progress` is told the rows of
    each shard. What the same call made already is left as it is.
    Raises UserError where parts are missing, rows differ in kind, or an id stands in two stores.
    """
    output = Path(output).resolve()
    stores = in_order([each if isinstance(each, Store) else Store(Path(each)) for each in folders])
    refuse_unlike(stores)
    plan = plan_of_merge(stores, output)
    part = stores[0].manifest.get("part")
    if part is not None and all(store.manifest["generation"] == 1 for store in stores):
        plan = part["whole"]  # parts as they were made are what one call makes
    if made_by(output, plan):
        return Store(output)
    with creating(output, KIND, overwrite=overwrite) as (folder, manifest):
        manifest |= link_rows(stores, folder, KIND, progress) | {"plan": plan}
        manifest.pop("part", None)  # of one part that is all
    return Store(output, trusted=True)


def plan_of_merge(given: Sequence[Holds], output: Path) -> str:
    """Names what is merged, and in which order. Raises UserError where the result would replace one of them."""
    if any(one.folder.resolve() == output.resolve() for one in given):
        raise UserError(f"--output {output}: is one of those that are merged; choose another")
    return sha256_json(["merge", *(one.manifest for one in given)])


def in_order(given: Sequence[T]) -> list[T]:
    """Parts of one corpus, or indexes over such parts, by number; others as they come. Raises UserError where a part is missing,
    there twice, or of something else than the rest: a machine that failed must not be missed only by its rows."""
    wholes = Counter(mark for one in given if (mark := _cut(one)) is not None)
    if not wholes:
        return list(given)
    most = wholes.most_common(1)[0][0]
    first = next(one for one in given if _cut(one) == most)
    count = most[1]
    found: dict[int, T] = {}
    for one in given:
        part = one.manifest.get("part")
        if part is None:
            raise UserError(
                f"{one.folder}: is no part, and {first.folder} is one; merge the parts first, or leave it out"
            )
        if _cut(one) != most:
            raise UserError(f"{one.folder}: is no part of what {first.folder} is a part of: {_difference(one, first)}")
        if part["number"] in found:
            other = found[part["number"]].folder
            raise UserError(f"{one.folder}: is part {part['number']} of {count}, as is {other}; give each part once")
        found[part["number"]] = one
    missing = [number for number in range(1, count + 1) if number not in found]
    if missing:
        raise UserError(f"{first.folder}: of its corpus's {count} parts, {named(missing)} are not given; merge all")
    return [found[number] for number in sorted(found)]


def _cut(one: Holds) -> tuple[str, int] | None:
    """Of what it is a part, and of how many parts that is cut into; None if it is whole."""
    part = one.manifest.get("part")
    return None if part is None else (part["whole"], part["of"])


def _difference(one: Holds, first: Holds) -> str:
    """In which respect two parts are of different wholes, and what to do."""
    made, wanted = one.manifest, first.manifest
    for name, word in TOLD_APART.items():
        if made[name] != wanted[name]:
            return f"{word} is {made[name]}, not {wanted[name]}; embed it again"
    for name in ("of", "rows"):
        if made["part"][name] != wanted["part"][name]:
            what = "parts" if name == "of" else "rows"
            return f"it is of {made['part'][name]:,} {what}, not {wanted['part'][name]:,}; embed it again"
    if _encoder(one) != _encoder(first):
        return "it is by another encoder; embed it again"
    if made["part"]["settings"] != wanted["part"]["settings"]:
        return f"--batch-size is {made['part']['settings']}, not {wanted['part']['settings']}; embed it again"
    if made.get("computed") != wanted.get("computed"):
        return "it was computed in another way (`store info` of both); embed it again"
    return (
        "of other data, in which pictures, and tars of them, count by name, size and time; embed it again from the same"
    )


def _encoder(one: Holds) -> str | None:
    return (one.manifest["encoder"] or {}).get("fingerprint")


def refuse_unlike(given: Sequence[Holds]) -> None:
    """Raise UserError where rows differ in kind or encoder."""
    first = given[0]
    for other in given[1:]:
        for name in ALIKE:
            found, wanted = other.manifest[name], first.manifest[name]
            if found != wanted:
                raise UserError(f"{other.folder}: {name} is {found}, of {first.folder} {wanted}; they cannot be merged")
        if _encoder(other) != _encoder(first):
            raise UserError(f"{other.folder}: is by another encoder than {first.folder}; embed one of them again")


def link_rows(stores: Sequence[Store], folder: Path, kind: str, progress: Progress = lambda rows: None) -> Manifest:
    """Give a new artifact of this kind the rows of stores: hard links to their shards where the file system has them, copies where not.

    Returns the manifest fields of one store without deleted rows; shards that had some are written anew. Raises UserError where an id
    stands in two of them.
    """
    first = stores[0]
    fields = {k: v for k, v in first.manifest.items() if k not in NOT_ROWS}
    fields |= {"shards": [], "files": {}, "generation": 1, "plan": None, "next_part": 0}
    fields |= {"count": sum(s.count for s in stores), "next_id": max(s.manifest["next_id"] for s in stores)}
    if len(stores) > 1:
        _refuse_shared_ids(stores)
        fields.pop("part", None)
        fields |= {name: _joined([s.manifest.get(name, []) for s in stores]) for name in TOLD if name in fields}
    for store in stores:
        for shard in store.shards:
            _link_shard(store, dict(shard), folder, fields)
            progress(shard["live"])
    if any("deleted" in shard for shard in fields["shards"]):
        seal(folder, kind, fields)
        with Store(folder, kind=kind, trusted=True) as linked:
            repack(folder, linked, fields)
    for path in folder.iterdir():
        if path.name.startswith(("part-", JOURNAL)) and path.name not in fields["files"]:
            path.unlink()
    return fields


def _refuse_shared_ids(stores: Sequence[Store]) -> None:
    repeated = first_repeated([store.ids(number) for store in stores for number in range(len(store.shards))])
    if repeated is not None:
        raise UserError(f"id {repeated!r} stands in more than one of them; remove it from all but one")


def _joined(lists: list[list[object]]) -> list[object]:
    """What all say, each thing once."""
    return list({json.dumps(each, sort_keys=True): each for several in lists for each in several}.values())


def _link_shard(store: Store, shard: Manifest, folder: Path, fields: Manifest) -> None:
    number = fields["next_part"]
    fields["next_part"] += 1
    for what, name in (("name", shard_name(number)), ("deleted", f"part-{number:05d}.deleted-0.npy")):
        if what in shard:
            if not (folder / name).exists():
                _link(store.folder / shard[what], folder / name)
            fields["files"][name] = store.manifest["files"][shard[what]]
            shard[what] = name
    fields["shards"].append(shard)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        with open(source, "rb") as old, writing_atomically(target) as new:
            shutil.copyfileobj(old, new, 1 << 24)
