"""Compacting: shards with deleted rows are rewritten, small ones merged; the live rows and their order stay the same."""

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.artifact import Manifest, sha256_json

from .dtypes import Encoded
from .journal import Shards
from .reader import Store
from .shard import concatenate, write_columns
from .writer import changing, enter, shards_of

Piece = tuple[int, slice]  # a shard, and which of its live rows


def compact(folder: Path | str) -> Store:
    """Rewrite what is worth it as a new generation. Full shards without deleted rows are left as they are."""
    folder = Path(folder)
    with changing(folder) as (store, manifest):
        repack(folder, store, manifest)
    return Store(folder, trusted=True)


def repack(folder: Path, store: Store, manifest: Manifest) -> bool:
    """Enter shards without deleted rows into the next generation; whether there was anything to do."""
    runs = [list(run) for _, run in groupby(range(len(store.shards)), lambda number: _is_full(store, number))]
    if not any(_gains(store, run) for run in runs):
        return False
    shards = Shards(folder, sha256_json(["compact", store.manifest_hash]), manifest["next_part"])
    manifest["shards"], number = [], 0
    for run in runs:
        if not _gains(store, run):
            manifest["shards"] += [store.shards[kept] for kept in run]
            continue
        old = [store.shards[i][part] for i in run for part in ("name", "deleted") if part in store.shards[i]]
        store.verify(old)  # or a damaged shard would get a new hash
        for name in old:
            del manifest["files"][name]
        for pieces in _repacked(store, run):
            if number not in shards.done:
                shards.add(number, _write(store, pieces, shards.path(number)))
            enter(manifest, shards, number)
            number += 1
    manifest["next_part"] += max(1, number)
    manifest["plan"] = None
    return True


def _is_full(store: Store, number: int) -> bool:
    shard = store.shards[number]
    return bool(shard["rows"] == shard["live"] == store.shard_rows)


def _gains(store: Store, run: list[int]) -> bool:
    """Whether rewriting these shards removes deleted rows or makes fewer files."""
    shards = [store.shards[number] for number in run]
    live = sum(shard["live"] for shard in shards)
    return live < sum(shard["rows"] for shard in shards) or shards_of(live, store.shard_rows) < len(shards)


def _repacked(store: Store, run: list[int]) -> list[list[Piece]]:
    """The live rows of some shards, cut into full shards and a rest."""
    starts = np.cumsum([0, *(store.shards[number]["live"] for number in run)]).tolist()
    return [
        [
            (number, slice(max(begin, start) - start, min(begin + store.shard_rows, stop) - start))
            for number, start, stop in zip(run, starts, starts[1:], strict=False)
            if start < begin + store.shard_rows and begin < stop
        ]
        for begin in range(0, starts[-1], store.shard_rows)
    ]


def _write(store: Store, pieces: list[Piece], path: Path) -> dict[str, Any]:
    """One new shard, its vectors copied as they are stored: decoded and encoded again, int8 would drift."""
    parts = [store.read_stored(number, where) for number, where in pieces]
    scales = [part.stored.scales for part in parts if part.stored.scales is not None]
    stored = Encoded(
        np.concatenate([part.stored.data for part in parts]),
        np.concatenate(scales) if scales else None,
    )
    norms = np.concatenate([part.norms for part in parts])
    rows = concatenate([part.columns for part in parts], 0)
    return {**write_columns(path, rows, stored, norms, store.dtype), "last_id": -1}
