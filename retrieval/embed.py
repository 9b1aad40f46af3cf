"""Encode a corpus into an embedding store, resumably."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from retrieval.artifact import creating, sha256_json, staging_folder, write_atomically
from retrieval.data import Texts
from retrieval.encoder import Encoder
from retrieval.errors import UserError
from retrieval.images import Images
from retrieval.store import KIND, Floats, Rows, Store, finished_shards, open_store, read_shard, shard_name, write_shard

SHARD_ROWS = 8192
PLAN = "plan.json"


def embed(
    encoder: Encoder,
    data: Texts | Images,
    output: Path,
    *,
    batch_size: int = 64,
    overwrite: bool = False,
    resumed: Callable[[int], None] = lambda rows: None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Store:
    """Encode every row of `data` and write a store.

    `resumed` is told how many rows of an earlier call are kept, `progress` the rows done since it was last called.

    A call that was killed is taken up where it stopped: shards that are whole are kept if encoder and data are the same.
    Batches never cross shards, so the result is bit for bit that of an unbroken call.
    """
    plan = sha256_json([encoder.fingerprint, _content(data), SHARD_ROWS, batch_size])
    ids = data.ids or [str(row) for row in range(len(data))]
    with creating(output, KIND, overwrite=overwrite, resume=True) as (folder, manifest):
        done = _resume(folder, plan)
        resumed(done * SHARD_ROWS)
        shards = -(-len(data) // SHARD_ROWS)
        for number in range(shards):
            start, stop = number * SHARD_ROWS, min((number + 1) * SHARD_ROWS, len(data))
            if number >= done:
                vectors = _encode_block(encoder, data, start, stop, batch_size, progress)
                labels = data.labels[start:stop] if data.labels is not None else None
                text = data.texts[start:stop] if isinstance(data, Texts) else None
                write_shard(folder, number, Rows(vectors, ids[start:stop], labels, text))
            else:
                progress(stop - start)
        (folder / PLAN).unlink()
        manifest |= {
            "count": len(data),
            "dim": encoder.dim,
            "shards": shards,
            "dtype": "float32",
            "normalized": True,
            "modality": "text" if isinstance(data, Texts) else "image",
            "encoder": {"name": lasting_name(encoder.name), "fingerprint": encoder.fingerprint},
            "skipped": [str(path) for path in data.skipped] if isinstance(data, Images) else [],
        }
    return open_store(output)


def encode_all(
    encoder: Encoder, data: Texts | Images, *, batch_size: int = 64, progress: Callable[[int], None] = lambda rows: None
) -> Floats:
    """Every row of `data` as unit vectors (n, dim), in memory: the vectors that `embed` would store."""
    starts = range(0, len(data), SHARD_ROWS)
    blocks = [_encode_block(encoder, data, a, min(a + SHARD_ROWS, len(data)), batch_size, progress) for a in starts]
    return np.concatenate(blocks)


def _content(data: Texts | Images) -> str:
    """A hash of what is encoded and stored."""
    if isinstance(data, Texts):
        return sha256_json([data.texts, data.labels, data.ids])
    if isinstance(data.source, list):
        return sha256_json(
            [[[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in data.source if p.exists()], data.labels]
        )
    return sha256_json(
        [data.source.shape, hashlib.sha256(np.ascontiguousarray(data.source).data).hexdigest(), data.labels]
    )


def _resume(folder: Path, plan: str) -> int:
    """How many shards of the same plan are already there; a folder of another plan is emptied."""
    path = folder / PLAN
    if not (path.exists() and path.read_text() == plan):
        for stale in folder.iterdir():
            stale.unlink()
        write_atomically(path, plan.encode())
        return 0
    done = finished_shards(folder)
    for number in range(done):
        try:
            read_shard(folder / shard_name(number))
        except UserError:
            return number
    return done


def left_behind(output: Path) -> int:
    """How many rows an interrupted call left behind for `output`."""
    return finished_shards(staging_folder(output)) * SHARD_ROWS


def forget_if_empty(output: Path) -> None:
    """Remove what a call left behind that finished no shard."""
    if not left_behind(output):
        shutil.rmtree(staging_folder(output), ignore_errors=True)


def lasting_name(name: str) -> str:
    """An encoder's name as another folder or another day understands it: a folder by its whole path."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _encode_block(
    encoder: Encoder, data: Texts | Images, start: int, stop: int, batch_size: int, progress: Callable[[int], None]
) -> Floats:
    """Rows start:stop as unit vectors (stop - start, dim). Texts go in together, so that encode can sort them by length;
    pictures a few batches at a time, since they are large once decoded."""
    step = 16 * batch_size if isinstance(data, Texts) else 4 * batch_size
    parts = []
    for first in range(start, stop, step):
        last = min(first + step, stop)
        items = data.texts[first:last] if isinstance(data, Texts) else [data[row] for row in range(first, last)]
        parts.append(encoder.encode(items, batch_size))
        progress(last - first)
    return np.concatenate(parts)
