"""The rows of an index: the shards of the stores that it is made from, linked."""

import os
import shutil
from pathlib import Path

from retrieval.artifact import Manifest, seal, writing_atomically
from retrieval.store import Store
from retrieval.store.compact import repack
from retrieval.store.journal import JOURNAL
from retrieval.store.shard import shard_name

from .bundle import KIND

NOT_ROWS = ("kind", "format", "made_by", "index")


def link_rows(stores: list[Store], folder: Path) -> Manifest:
    """Give a new index the rows of stores: hard links to their shards where the file system has them, copies where not.

    Returns the manifest fields of one store without deleted rows; shards that had some are written anew.
    """
    first = stores[0]
    fields = {k: v for k, v in first.manifest.items() if k not in NOT_ROWS}
    fields |= {"shards": [], "files": {}, "generation": 1, "plan": None, "next_part": 0}
    fields |= {"count": sum(s.count for s in stores), "next_id": max(s.manifest["next_id"] for s in stores)}
    for store in stores:
        for shard in store.shards:
            _link_shard(store, dict(shard), folder, fields)
    if any("deleted" in shard for shard in fields["shards"]):
        seal(folder, KIND, fields)
        with Store(folder, kind=KIND, trusted=True) as linked:
            repack(folder, linked, fields)
    for path in folder.iterdir():
        if path.name.startswith(("part-", JOURNAL)) and path.name not in fields["files"]:
            path.unlink()
    return fields


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
