"""Encode a corpus into an embedding store: overlapped, on one device or several, and resumable by the shard."""

import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.artifact import MANIFEST, Manifest, read_sealed, sha256_json, staging_folder
from retrieval.data import TextFile, Texts
from retrieval.encode import BLOCK, Encoding, Prepared, ahead_of
from retrieval.encoder import Encoder
from retrieval.errors import UserError
from retrieval.heads import Headed, head_over
from retrieval.images import Images
from retrieval.locks import sole_writer
from retrieval.neighbors import exact_neighbors
from retrieval.pixels import least_side
from retrieval.store import SHARD_ROWS, Floats, Ids, Job, Kind, Rows, Store, append, create
from retrieval.store.journal import Entry, rows_left
from retrieval.store.writer import write_in_turn, write_rows
from retrieval.tokens import prompt_of
from retrieval.workers import run_on_devices

COST_ROWS = 512
LEAST_COSINE = 0.99
Data = Texts | TextFile | Images
Progress = Callable[[int], None]
Done = Callable[[int, Entry], None]


@dataclass(frozen=True)
class Corpus:
    """Data and what encodes them: a store's source of rows.

    `mark` is the encoder's fingerprint, and the type it computes in.
    """

    data: Data
    mark: str
    encoding: Encoding | None

    @property
    def count(self) -> int:
        return len(self.data)

    @property
    def fingerprint(self) -> str:
        return sha256_json([self.mark, self.data.fingerprint])

    @property
    def columns(self) -> list[str]:
        if isinstance(self.data, Images):
            payload = ["payload/path"] if isinstance(self.data.source, list) else []
            payload += ["payload/caption"] if self.data.captions is not None else []
        else:
            payload = ["payload/text"]
        kept = [f"payload/{name}" for name in self.data.payload]
        return [*(["labels"] if self.data.has_labels else []), *payload, *kept]

    def ids(self, start: int, stop: int) -> Ids | None:
        ids = self.data.part(start, stop).ids if self.data.has_ids else None
        return None if ids is None else list(ids)

    def prepare(self, start: int, stop: int) -> tuple[Texts | Images, Prepared]:
        assert self.encoding is not None
        block = self.data.part(start, stop)
        return block, prepare(self.encoding, block)

    def rows(self, start: int, stop: int, ids: Ids) -> Rows:
        block, prepared = self.prepare(start, stop)
        assert self.encoding is not None
        return rows_of(block, self.encoding.run(prepared), ids)


def prepare(encoding: Encoding, block: Texts | Images) -> Prepared:
    return encoding.prepare_texts(block.texts) if isinstance(block, Texts) else encoding.prepare_pictures(block)


def rows_of(block: Texts | Images, vectors: Floats, ids: Ids) -> Rows:
    if isinstance(block, Texts):
        payload = {"text": list(block.texts)}
    else:
        payload = {"path": [str(path) for path in block.source]} if isinstance(block.source, list) else {}
        payload |= {} if block.captions is None else {"caption": block.captions}
    payload |= {name: list(column) for name, column in block.payload.items()}
    return Rows(vectors, ids, None if block.labels is None else list(block.labels), payload)


def embed(
    encoder: Encoder,
    data: Data | Store,
    output: Path | str,
    *,
    dtype: str = "float32",
    compute: str = "float32",
    backend: str = "torch",
    batch_size: int = 64,
    role: str = "document",
    shard_rows: int = SHARD_ROWS,
    add: bool = False,
    replace: bool = False,
    overwrite: bool = False,
    devices: list[str] | None = None,
    part: tuple[int, int] | None = None,
    resumed: Callable[[int], None] = lambda rows: None,
    progress: Progress = lambda rows: None,
) -> Store:
    """Encode every row of `data` into a new store, or with `add` or `replace` (rows whose ids are there) into one that exists.

    A store can be the data too, where `encoder` is the one that made it with a head on top: only the head runs then.

    `resumed` is told how many rows of an interrupted call are kept, `progress` the rows done since it was last called.
    role: what texts are, "document" or "query", for encoders with prompts for those.
    dtype: as stored. compute: the type the encoder runs in; backend: "torch" or "openvino"; what they cost against torch in
    float32 is measured, and kept in the manifest. devices: more than one are used by a process each. part: (i, n), only the i-th
    of n parts of the data, for as many machines (`store.merge`).

    A call that was killed is taken up where it stopped, if encoder and data are the same: its whole shards are kept. Batches
    never cross shards, so the result is bit for bit that of an unbroken call.
    """
    prompt = prompt_of(encoder.model, role)
    drawn = _drawn(encoder, data)
    told = [part for part in (prompt, drawn) if part]
    mark = sha256_json([encoder.fingerprint, compute, backend, *told])  # before the encoder changes its type
    settings: dict[str, Any] = {"compute": compute, "backend": backend, "batch_size": batch_size, "role": role}
    modality = data.manifest["modality"] if isinstance(data, Store) else "image" if isinstance(data, Images) else "text"
    if not isinstance(data, Store):
        encoder.require(modality)
    made_by = {"name": lasting_name(encoder.name), "fingerprint": encoder.fingerprint}
    kind = Kind(encoder.dim, dtype, modality=modality, encoder=made_by, shard_rows=shard_rows)
    source: Corpus | Headed
    notes: Manifest = {"skipped": [str(path) for path in data.skipped] if isinstance(data, Images) else []}
    if isinstance(data, Store):
        source = Headed(data, head_over(encoder, data), mark)
        notes["computed"] = data.manifest.get("computed", [])
    else:
        how, encoding = _prepared(encoder, data, settings, shard_rows)
        notes["computed"] = [how | ({"prompt": prompt} if prompt else {}) | drawn]
        source = Corpus(data, mark, encoding)

    def run(job: Job) -> None:
        resumed(job.shards.rows)
        if job.shards.rows:
            progress(job.shards.rows)
        if isinstance(source, Headed):
            write_in_turn(job, progress)
        elif devices and len(devices) > 1:
            run_on_devices(encoder.name, devices, settings, job, progress)
        else:
            overlapped(source, job, job.todo, job.shards.add, progress)

    if add or replace:
        return append(output, source, kind, settings=batch_size, notes=notes, replace=replace, run=run)
    return create(output, source, kind, settings=batch_size, notes=notes, overwrite=overwrite, run=run, part=part)


def _drawn(encoder: Encoder, data: Data | Store) -> dict[str, Any]:
    """How large JPEGs are decoded at least, if some may be."""
    if not (isinstance(data, Images) and isinstance(data.source, list)):
        return {}
    at_least = least_side(encoder.model)
    return {} if at_least is None else {"jpeg_at_least": at_least}


def _prepared(
    encoder: Encoder, data: Data, settings: dict[str, Any], shard_rows: int
) -> tuple[dict[str, Any], Encoding]:
    """What runs the encoder, and how: for anything but torch in float32 with what that costs on the first rows."""
    how = {name: settings[name] for name in ("backend", "compute")}
    if how == {"backend": "torch", "compute": "float32"}:
        return how, Encoding(encoder.model, **settings)
    first = data.part(0, min(shard_rows, len(data)))
    sample = first.part(0, min(COST_ROWS, len(first)))
    plain = Encoding(encoder.model, role=settings["role"])
    exact = plain.run(prepare(plain, sample))
    encoding = Encoding(encoder.model, **settings)
    cost = cost_of(exact, encoding.run(prepare(encoding, sample)))
    if not cost["cosine_min"] >= LEAST_COSINE:
        raise UserError(
            f"--backend {how['backend']} --compute {how['compute']}: gives other vectors for {encoder.name} (cosine "
            f"{cost['cosine_min']:.3f} with torch in float32); leave it out"
        )
    return how | cost, encoding


def cost_of(exact: Floats, other: Floats) -> dict[str, float]:
    """How far unit vectors (n, d) are from the exact ones: the least and the mean cosine, and the share of each row's ten
    nearest neighbours that stay the same."""
    cosines = np.einsum("nd,nd->n", exact, other, dtype=np.float64)
    found = {"rows": len(exact), "cosine_min": cosines.min(), "cosine_mean": cosines.mean(), "neighbours_kept": 1}
    depth = min(10, len(exact) - 1)
    if depth:
        itself = np.arange(len(exact))
        one, two = (exact_neighbors(x, x, depth, self_rows=itself).ids for x in (exact, other))
        found["neighbours_kept"] = (one[:, :, None] == two[:, None, :]).any(2).mean()
    return {name: float(value) for name, value in found.items()}


def overlapped(corpus: Corpus, job: Job, numbers: Iterable[int], done: Done, progress: Progress) -> None:
    """Write shards; while the encoder runs on one, a thread reads and tokenises the next and another writes the last, and
    waits for a GPU where that still computes it."""

    encoding = corpus.encoding
    assert encoding is not None

    def finish(number: int, block: Texts | Images, vectors: Callable[[], Floats]) -> None:
        ids = list(block.ids) if block.ids is not None else job.numbers(number)
        done(number, write_rows(job.shards.path(number), rows_of(block, vectors(), ids), job.kind))

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        written: Future[None] | None = None
        ahead = ahead_of(((number, reader.submit(corpus.prepare, *job.span(number))) for number in numbers), 1)
        for number, upcoming in ahead:
            block, prepared = upcoming.result()
            vectors = encoding.start(prepared, progress)
            if written is not None:
                written.result()
            written = writer.submit(finish, number, block, vectors)
        if written is not None:
            written.result()


def encode_all(
    encoder: Encoder, data: Texts | Images, *, role: str | None = None, progress: Progress = lambda rows: None
) -> Floats:
    """Every row of `data` as unit vectors (n, dim), in memory: the vectors that `embed` would store. role: as in `Encoding`."""
    encoder.require("image" if isinstance(data, Images) else "text")
    encoding = Encoding(encoder.model, role=role)
    blocks = (data.part(start, start + BLOCK) for start in range(0, len(data), BLOCK))
    return encoding.run_all((partial(prepare, encoding, block) for block in blocks), progress)


def left_behind(output: Path) -> int:
    """How many rows an interrupted call has already written for `output`."""
    manifest = read_sealed(output / MANIFEST) if (output / MANIFEST).exists() else None
    return max(rows_left(staging_folder(output)), rows_left(output, (manifest or {}).get("next_part", 0)))


def forget_if_empty(output: Path) -> None:
    """Remove what a call left behind that finished no shard, unless another is at work there."""
    staging = staging_folder(output)
    with suppress(UserError, OSError), sole_writer(staging):
        if not rows_left(staging):
            shutil.rmtree(staging, ignore_errors=True)


def lasting_name(name: str) -> str:
    """An encoder's name as another folder or another day understands it: a folder by its whole path."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name
