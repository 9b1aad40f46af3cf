"""Changing a store: every change writes new files, then one new manifest, and only then removes what nobody needs.

Until the new manifest is renamed into place the old generation stands, whole. A killed change leaves shards and a journal,
and the same change called again goes on from there.
"""

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.artifact import MANIFEST, Manifest, creating, read_sealed, seal, sha256_json, write_atomically
from retrieval.errors import UserError
from retrieval.locks import LOCK, is_read, no_reader_beginning, sole_writer

from .ids import Place, as_list, find, named, refuse_without_numbers
from .journal import JOURNAL, Entry, Shards, read_journal
from .kind import Kind, refuse_other_rows, refuse_unfit
from .reader import KIND, Store, open_store
from .shard import Ids, Rows, shard_name, write_shard
from .source import Source, StoreRows, id_type, ids_of, refuse_repeated, source_of

SUPERSEDED = re.compile(r"manifest-\d+\.json")  # of a generation that was followed by another
# Files of a store or an index.
OURS = re.compile(rf"part-\d+\..*|index(-\d+)?\.faiss|pending\.jsonl|\..*\.tmp|{SUPERSEDED.pattern}")


@dataclass(frozen=True)
class Job:
    """The shards of one change that are still to be written, and what is needed to write them, in any order, anywhere."""

    source: Source
    kind: Kind
    shards: Shards
    first_id: int
    asked: range  # rows

    @property
    def todo(self) -> list[int]:
        size = self.kind.shard_rows
        asked = range(self.asked.start // size, shards_of(self.asked.stop, size))
        return [number for number in asked if number not in self.shards.done]

    def span(self, number: int) -> tuple[int, int]:
        """Which of the source's rows are in a shard: start, stop."""
        start = number * self.kind.shard_rows
        return start, min(start + self.kind.shard_rows, self.source.count)

    def numbers(self, number: int) -> Ids:
        """The ids of a shard whose rows have none of their own."""
        return np.arange(*self.span(number)) + self.first_id


Runner = Callable[[Job], None]


def write_in_turn(job: Job, progress: Callable[[int], None] = lambda rows: None) -> None:
    """The simplest runner: one shard after the other. `progress` is told the rows of each."""
    for number in job.todo:
        own = job.source.ids(*job.span(number))
        rows = job.source.rows(*job.span(number), job.numbers(number) if own is None else own)
        job.shards.add(number, write_rows(job.shards.path(number), rows, job.kind))
        progress(len(rows))


def write_rows(path: Path, rows: Rows, kind: Kind) -> Entry:
    refuse_unfit(rows, kind)
    entry = write_shard(path, rows, kind.dtype, unit=kind.normalized)
    last = int(rows.ids.max()) if isinstance(rows.ids, np.ndarray) and len(rows) else -1
    return {**entry, "last_id": last}


def shards_of(rows: int, shard_rows: int) -> int:
    return -(-rows // shard_rows)


def rows_of_part(rows: int, shard_rows: int, part: tuple[int, int] | None) -> range:
    """Which of the rows part (i, n) has: the i-th, from 1, of n, in whole shards and as equal as may be; without a part all.
    Raises UserError where there is no such part, or there are more parts than shards."""
    shards, (number, of) = shards_of(rows, shard_rows), part or (1, 1)
    if not 1 <= number <= of:
        raise UserError(f"part {number} of {of}: there is none; parts are counted from 1")
    if of > max(1, shards):
        raise UserError(
            f"--part {number}/{of}: {rows:,} rows in shards of {shard_rows:,} are {shards:,}; ask for at most as many parts, or "
            f"smaller shards with --shard-rows"
        )
    first, last = (shards * count // of * shard_rows for count in (number - 1, number))
    return range(first, min(last, rows))


def create(
    output: Path | str,
    source: Source | Rows,
    kind: Kind,
    *,
    settings: Any = None,
    notes: Manifest | None = None,
    overwrite: bool = False,
    run: Runner = write_in_turn,
    part: tuple[int, int] | None = None,
) -> Store:
    """Write a new store. `settings`: whatever else decides its bytes; `notes`: further manifest fields, lists all.

    It stands under `output` only when it is whole. A killed call is taken up by the same call, which leaves what it made.
    part: (i, n), only the i-th of n parts of the rows, for as many machines; `merge` makes one store of all.
    """
    output, source = Path(output), source_of(source)
    asked = rows_of_part(source.count, kind.shard_rows, part)
    whole = plan = plan_of("create", source, kind, settings)
    if part is not None:
        plan = sha256_json([whole, part])
    if made_by(output, plan):
        if (output / JOURNAL).exists():  # of a call that was killed at the last, or of a change that goes on now
            with suppress(UserError), changing(output):
                pass
        return Store(output)
    refuse_repeated(source, kind.shard_rows)
    with creating(output, KIND, overwrite=overwrite, resume=True) as (folder, manifest):
        shards = Shards(folder, plan, 0)
        _remove_all_but(folder, {JOURNAL, *(shards.name(number) for number in shards.done)})
        manifest |= _without_rows(kind, source) | (notes or {}) | {"plan": plan}
        if part is not None:
            told = {"number": part[0], "of": part[1], "rows": source.count, "settings": settings, "whole": whole}
            manifest["part"] = told
        with shards.leaving_nothing():
            run(Job(source, kind, shards, 0, asked))
        _enter_all(manifest, shards)
    # Not before the store stands: until then the same call may have to go on.
    output = output.resolve()  # as it was written: by way of a folder that is not there, say
    (output / JOURNAL).unlink(missing_ok=True)
    return Store(output, trusted=True)


def append(
    folder: Path | str,
    source: Source | Rows,
    kind: Kind,
    *,
    settings: Any = None,
    notes: Manifest | None = None,
    replace: bool = False,
    run: Runner = write_in_turn,
    artifact: str = KIND,
) -> Store:
    """Add rows to a store, or to another `artifact` that holds its rows as one. Ids that it has already are refused, or with
    `replace` their old rows are deleted.

    The same call twice in a row adds nothing the second time.
    """
    folder, source = Path(folder), source_of(source)
    with changing(folder, artifact) as (store, manifest):
        plan = plan_of("replace" if replace else "append", source, kind, settings)
        if manifest["plan"] != plan:
            refuse_other_rows(
                store, {**asdict(kind), "ids": id_type(source, kind.shard_rows), "columns": source.columns}
            )
            kind = Kind(**{**asdict(kind), "shard_rows": store.manifest["shard_rows"]})
            refuse_repeated(source, kind.shard_rows)
            ids = ids_of(source, kind.shard_rows)
            known = find(store, ids) if ids is not None else {}
            if known and not replace:
                raise UserError(
                    f"{folder}: has {named(known)} of the new ids already; replace their rows with --replace"
                )
            first_id = manifest["next_id"]
            if ids is None:
                part = manifest.get("part", {"number": 1, "of": 1})
                if part["number"] < part["of"]:
                    raise UserError(
                        f"{folder}: is part {part['number']} of {part['of']}, and the next part's rows have the numbers that come after; "
                        f"give the new rows ids, or merge the parts first"
                    )
                refuse_without_numbers(folder, first_id, source.count)
            shards = Shards(folder, sha256_json([plan, first_id]), manifest["next_part"])
            run(Job(source, kind, shards, first_id, range(source.count)))
            _bury(folder, manifest, list(known.values()))
            _enter_all(manifest, shards)
            for name, value in (notes or {}).items():
                manifest[name] = [*manifest.get(name, []), *value]
            manifest["plan"] = plan
    return Store(folder, kind=artifact, trusted=True)


def add(folder: Path | str, store: Store | Path | str, *, replace: bool = False, artifact: str = KIND) -> Store:
    """`append` the rows of another store, in the dtype of this one."""
    folder, store = Path(folder), store if isinstance(store, Store) else open_store(store)
    with Store(folder, kind=artifact) as there:
        dtype = there.dtype
    made = store.manifest
    kind = Kind(store.dim, dtype, made["metric"], made["normalized"], made["modality"], made["encoder"])
    return append(folder, StoreRows(store), kind, replace=replace, artifact=artifact)


def delete(folder: Path | str, ids: Ids, artifact: str = KIND, *, missing_ok: bool = False) -> Store:
    """Delete rows by id. If some are not there it raises UserError, deleting nothing, or with `missing_ok` passes over them."""
    folder = Path(folder)
    plan = _plan_of_delete(as_list(ids))
    with changing(folder, artifact) as (store, manifest):
        if manifest["plan"] != plan:
            known = find(store, [ids])
            missing = [i for i in as_list(ids) if i not in known]
            if missing and not missing_ok:
                raise UserError(f"{folder}: lacks {named(missing)} of these ids; nothing was deleted")
            if known:
                _bury(folder, manifest, list(known.values()))
                manifest["plan"] = _plan_of_delete(known) if missing else plan
    return Store(folder, kind=artifact, trusted=True)


def _plan_of_delete(ids: Iterable[Any]) -> str:
    return sha256_json(["delete", sorted(map(str, ids))])


@contextmanager
def changing(folder: Path, artifact: str = KIND) -> Iterator[tuple[Store, Manifest]]:
    """Change a store: yields its present generation, and the fields of the next, committed when the block ends if changed."""
    if not (folder / MANIFEST).is_file():  # before a lock file is left in a folder that is not ours
        Store(folder, kind=artifact)  # says what is wrong with it
    with sole_writer(folder):
        with Store(folder, kind=artifact) as store:
            manifest = {k: v for k, v in store.manifest.items() if k not in ("kind", "format", "made_by")}
            manifest["shards"] = [dict(shard) for shard in store.shards]
            manifest["files"] = dict(manifest["files"])
            before = sha256_json(manifest)
            yield store, manifest
        if sha256_json(manifest) != before:
            _keep_superseded(folder, manifest["generation"])
            manifest["generation"] += 1
            seal(folder, artifact, manifest)
        _drop_superseded(folder, manifest)


def _keep_superseded(folder: Path, generation: int) -> None:
    """Give the manifest a second name before another takes its own, by which its readers are known."""
    kept = folder / f"manifest-{generation}.json"
    kept.unlink(missing_ok=True)  # of a change that did not come to an end
    with suppress(OSError):  # a file system without links: its readers may lose files, as where there are no locks
        os.link(folder / MANIFEST, kept)


def _drop_superseded(folder: Path, manifest: Manifest) -> None:
    """Remove the files of ours that only older generations need, but for those that somebody still reads; they go another time. Shards
    of an interrupted change that may still go on are kept."""
    needed = {MANIFEST, *manifest["files"], *(path.name for path in folder.iterdir() if not OURS.fullmatch(path.name))}
    head, pending = read_journal(folder)
    if head.get("first", -1) >= manifest["next_part"]:
        needed |= {JOURNAL, *(shard_name(head["first"] + number) for number in pending)}
    with no_reader_beginning(folder) as sure:
        if sure:
            _remove_all_but(folder, needed | _still_read(folder))
        elif JOURNAL not in needed:
            (folder / JOURNAL).unlink(missing_ok=True)


def _still_read(folder: Path) -> set[str]:
    """The manifests of older generations that somebody reads, and the files of those."""
    read = [path for path in folder.iterdir() if SUPERSEDED.fullmatch(path.name) and is_read(path)]
    stated = [read_sealed(path) or {"files": ()} for path in read]
    return {path.name for path in read}.union(*(each["files"] for each in stated))


def _remove_all_but(folder: Path, names: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in names and path.name != LOCK and path.is_file():
            path.unlink()


def plan_of(change: str, source: Source, kind: Kind, settings: Any) -> str:
    """Names a change: the same plan writes the same bytes."""
    return sha256_json([change, source.fingerprint, asdict(kind), settings])


def made_by(folder: Path, plan: str, artifact: str = KIND) -> bool:
    """Whether what stands there is what this plan makes."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        return bool(Store(folder, kind=artifact).manifest["plan"] == plan)
    except UserError:
        return False


def _without_rows(kind: Kind, source: Source) -> Manifest:
    return {
        "generation": 1,
        "count": 0,
        **asdict(kind),
        "ids": id_type(source, kind.shard_rows),
        "columns": source.columns,
        "next_id": 0,
        "next_part": 0,
        "shards": [],
        "files": {},
    }


def _enter_all(manifest: Manifest, shards: Shards) -> None:
    """Enter the shards of a finished change into the manifest, in order."""
    for number in sorted(shards.done):
        enter(manifest, shards, number)
        manifest["count"] += shards.done[number]["rows"]
        manifest["next_id"] = max(manifest["next_id"], shards.done[number]["last_id"] + 1)
    # So that the journal of every change is recognised as past.
    manifest["next_part"] += 1 + max(shards.done, default=0)


def enter(manifest: Manifest, shards: Shards, number: int) -> None:
    name, entry = shards.name(number), shards.done[number]
    manifest["files"][name] = {"bytes": entry["bytes"], "sha256": entry["sha256"]}
    manifest["shards"].append({"name": name, "rows": entry["rows"], "live": entry["rows"], "offset": entry["offset"]})


def _bury(folder: Path, manifest: Manifest, places: list[Place]) -> None:
    """Write tombstones and enter them into the next generation."""
    for number, together in groupby(sorted(places), lambda place: place[0]):
        shard = manifest["shards"][number]
        gone = np.array([row for _, row in together], np.int64)
        if "deleted" in shard:
            gone = np.union1d(gone, np.load(folder / shard["deleted"], allow_pickle=False))
            del manifest["files"][shard["deleted"]]
        composed = io.BytesIO()
        np.save(composed, gone, allow_pickle=False)
        content = composed.getvalue()
        shard["deleted"] = f"{shard['name'].removesuffix('.h5')}.deleted-{manifest['generation'] + 1}.npy"
        write_atomically(folder / shard["deleted"], content)
        manifest["files"][shard["deleted"]] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest["count"] += shard["rows"] - len(gone) - shard["live"]
        shard["live"] = shard["rows"] - len(gone)
