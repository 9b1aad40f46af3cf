"""The embedding store: a folder of immutable HDF5 shards and a manifest written last.

    STORE/manifest.json      counts, dimension, the encoder's fingerprint, size and hash of each shard
    STORE/part-00000.h5      embeddings (n, d) float32, ids (n,), and where there are any: labels (n,), text (n,)

A shard appears under its name only when it is whole (temp → fsync → rename), so that resuming means listing shards.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from retrieval.artifact import Manifest, read_manifest, sha256_json, write_atomically
from retrieval.errors import UserError

KIND = "store"
COLUMNS = ("ids", "labels", "text")
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a store: embeddings (n, d) float32 of unit length; ids, labels, text: n strings, or None."""

    embeddings: Floats
    ids: list[str]
    labels: list[str] | None = None
    text: list[str] | None = None

    def __len__(self) -> int:
        return len(self.embeddings)


def shard_name(number: int) -> str:
    return f"part-{number:05d}.h5"


def write_shard(folder: Path, number: int, rows: Rows) -> None:
    """Write one shard durably. Raises UserError naming the ids of rows that are not finite or are zero."""
    refuse_bad_vectors(rows.embeddings, rows.ids)
    for name in COLUMNS:
        column = getattr(rows, name)
        assert column is None or len(column) == len(rows), name
    _write_hdf5(folder / shard_name(number), rows, np.ascontiguousarray(rows.embeddings, dtype=np.float32))


def write_items(path: Path, rows: Rows) -> None:
    """What each row of an index is: the columns of `rows` without the vectors."""
    _write_hdf5(path, rows, None)


def _write_hdf5(path: Path, rows: Rows, embeddings: Floats | None) -> None:
    """Composed in memory, then written in one piece: HDF5 itself crashes the process when the disk fills up under it."""
    composed = io.BytesIO()
    with h5py.File(composed, "w") as file:
        if embeddings is not None:
            file.create_dataset("embeddings", data=embeddings)
        for name in COLUMNS:
            column = getattr(rows, name)
            if column is not None:
                file.create_dataset(name, data=np.array(column, dtype=object), dtype=h5py.string_dtype())
    with composed.getbuffer() as content:  # released before its owner goes, which Python 3.13 insists on
        write_atomically(path, content)


def read_items(path: Path, rows: NDArray[np.int64]) -> dict[int, tuple[str, str | None, str | None]]:
    """(id, label, text) of some rows, given in rising order without repeats."""
    try:
        with h5py.File(path, "r") as file:
            columns: list[list[Any]] = [
                file[name].asstr()[rows].tolist() if name in file else [None] * len(rows) for name in COLUMNS
            ]
    except (OSError, KeyError, RuntimeError) as error:
        raise UserError(f"{path}: damaged ({str(error).splitlines()[0]}); build the index again") from None
    return {int(row): (columns[0][i], columns[1][i], columns[2][i]) for i, row in enumerate(rows)}


def refuse_bad_vectors(embeddings: Floats, ids: Sequence[str]) -> None:
    """Raise UserError, naming the first ids, if a row is not finite or has length zero."""
    norms = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    for bad, what in (
        (~np.isfinite(norms), "not finite (NaN or infinity)"),
        (norms == 0, "zero, so have no direction"),
    ):
        if bad.any():
            named = ", ".join(str(ids[row]) for row in np.flatnonzero(bad)[:3])
            raise UserError(
                f"{bad.sum():,} of {len(ids):,} vectors are {what}: ids {named}; look at these inputs, or the encoder"
            )


def finished_shards(folder: Path) -> int:
    """How many shards, counted from the first without a gap, are whole."""
    number = 0
    while (folder / shard_name(number)).exists():
        number += 1
    return number


def read_shard(path: Path) -> Rows:
    """All rows of one shard. Raises UserError for a file that is damaged."""
    try:
        with h5py.File(path, "r") as file:
            columns: dict[str, Any] = {name: file[name].asstr()[:].tolist() for name in COLUMNS if name in file}
            return Rows(file["embeddings"][:], columns.pop("ids"), **columns)
    except (OSError, KeyError, RuntimeError) as error:
        raise UserError(f"{path}: damaged shard ({str(error).splitlines()[0]}); make the store again") from None


@dataclass(frozen=True)
class Store:
    """A whole store, opened for reading."""

    folder: Path
    manifest: Manifest

    @property
    def count(self) -> int:
        return int(self.manifest["count"])

    @property
    def dim(self) -> int:
        return int(self.manifest["dim"])

    @property
    def manifest_hash(self) -> str:
        """Names this very content: it covers every shard's hash."""
        return sha256_json(self.manifest)

    def __iter__(self) -> Iterator[Rows]:
        """The shards in order."""
        for number in range(self.manifest["shards"]):
            yield read_shard(self.folder / shard_name(number))

    def load(self) -> Rows:
        """Every row, in memory: 4 · count · dim bytes and the strings."""
        parts = list(self)
        join: dict[str, list[str] | None] = {}
        for name in COLUMNS:
            columns = [getattr(part, name) for part in parts]
            join[name] = None if None in columns else [value for column in columns for value in column]
        ids = join.pop("ids")
        assert ids is not None
        return Rows(np.concatenate([part.embeddings for part in parts]), ids, **join)


def open_store(folder: Path, *, check: bool = False) -> Store:
    """Open a store; its checked by its manifest, with `check` every hash whatever its size."""
    manifest = read_manifest(folder, KIND, check=check)
    return Store(folder, manifest)
