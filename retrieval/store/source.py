"""Where a store's rows come from: whatever gives them a shard at a time, what is in memory, another store."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from retrieval.artifact import sha256_json
from retrieval.errors import UserError
from retrieval.given import listed, numbers, strings

from .ids import as_list, first_repeated
from .reader import Store
from .shard import Ids, Rows


class Source(Protocol):
    """Rows to be stored, asked for a shard at a time, in any order.

    fingerprint names the content. columns: "labels", "payload/NAME". ids(start, stop) is None where rows have none: they
    are numbered then.
    """

    @property
    def count(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def columns(self) -> list[str]: ...
    def ids(self, start: int, stop: int) -> Ids | None: ...
    def rows(self, start: int, stop: int, ids: Ids) -> Rows: ...


def plain(rows: Rows) -> Rows:
    """Rows with columns as `Rows` has them, from whatever holds numbers or strings: lists, arrays, pandas. Raises UserError for
    values of other types, and columns that differ in length."""
    vectors = numbers(rows.embeddings)
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise UserError(f"vectors {vectors.shape} of {vectors.dtype}: give numbers, (n, d)")
    count = len(vectors)
    ids = _ids(rows.ids, count)
    labels = None if rows.labels is None else strings("labels", rows.labels, count)
    payload = {name: strings(name, held, count) for name, held in rows.payload.items()}
    return Rows(vectors, ids, labels, payload)


def _ids(held: Any, count: int) -> Ids:
    if isinstance(held, np.ndarray) and held.dtype.kind in "iu" and len(held) == count:
        return held
    values = listed("ids", held, count)
    if values and all(isinstance(value, int | np.integer) and not isinstance(value, bool) for value in values):
        return np.array(values, np.int64)
    return strings("ids", values)


@dataclass(frozen=True)
class Held:
    """A source of rows that are in memory."""

    held: Rows

    def __post_init__(self) -> None:
        object.__setattr__(self, "held", plain(self.held))

    @property
    def count(self) -> int:
        return len(self.held)

    @property
    def columns(self) -> list[str]:
        return [*(["labels"] if self.held.labels is not None else []), *(f"payload/{n}" for n in self.held.payload)]

    @property
    def fingerprint(self) -> str:
        vectors = hashlib.sha256(np.ascontiguousarray(self.held.embeddings).data).hexdigest()
        return sha256_json([vectors, as_list(self.held.ids), self.held.labels, self.held.payload])

    def ids(self, start: int, stop: int) -> Ids:
        return self.held.ids[start:stop]

    def rows(self, start: int, stop: int, ids: Ids) -> Rows:
        return self.held[start:stop]


def source_of(given: Source | Rows) -> Source:
    return Held(given) if isinstance(given, Rows) else given


@dataclass(frozen=True)
class StoreRows:
    """A source of rows that are those of another store, or of an index."""

    store: Store

    @property
    def count(self) -> int:
        return self.store.count

    @property
    def columns(self) -> list[str]:
        return list(self.store.manifest["columns"])

    @property
    def fingerprint(self) -> str:
        return self.store.manifest_hash

    def ids(self, start: int, stop: int) -> Ids:
        return self.store.ids_between(start, stop)

    def rows(self, start: int, stop: int, ids: Ids) -> Rows:
        return self.store.between(start, stop)


@dataclass(frozen=True)
class IdBlocks:
    """The ids of a source, so many rows at a time, as often as one likes."""

    source: Source
    rows: int

    def __iter__(self) -> Iterator[Ids]:
        for start in range(0, self.source.count, self.rows):
            ids = self.source.ids(start, min(start + self.rows, self.source.count))
            assert ids is not None
            yield ids


def ids_of(source: Source, rows: int) -> IdBlocks | None:
    """The ids of a source, None if it has none."""
    first = source.ids(0, min(rows, source.count))
    return None if first is None else IdBlocks(source, rows)


def id_type(source: Source, rows: int) -> str:
    return "string" if isinstance(source.ids(0, min(rows, source.count)), list) else "integer"


def refuse_repeated(source: Source, rows: int) -> None:
    """Raise UserError for an id that stands twice."""
    ids = ids_of(source, rows)
    repeated = first_repeated(ids) if ids is not None else None
    if repeated is not None:
        raise UserError(f"id {repeated!r} stands more than once among the new rows; ids must be unique")
