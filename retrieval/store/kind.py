"""What all rows of a store have in common, and where new ones come from."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from retrieval.errors import UserError
from retrieval.given import listed, numbers, strings
from retrieval.metrics import METRICS

from .dtypes import STORED_AS
from .reader import Store
from .shard import Ids, Rows

SHARD_ROWS = 4096


@dataclass(frozen=True)
class Kind:
    """What all rows of a store share. dtype: one of `STORED_AS`. metric: one of `metrics.METRICS`. normalized: whether all vectors have
    length 1, which an index by cosines needs. encoder: {"name", "fingerprint"}, None for foreign vectors. shard_rows: how many are in a
    full shard. Raises UserError for what no store has."""

    dim: int
    dtype: str = "float32"
    metric: str = "cosine"
    normalized: bool = True
    modality: str | None = None
    encoder: dict[str, Any] | None = None
    shard_rows: int = SHARD_ROWS

    def __post_init__(self) -> None:
        for name, value, known in (("dtype", self.dtype, tuple(STORED_AS)), ("metric", self.metric, METRICS)):
            if value not in known:
                raise UserError(f"{name} {value!r}: unknown; known are {', '.join(known)}")
        for name, number in (("dim", self.dim), ("shard_rows", self.shard_rows)):
            if not isinstance(number, int | np.integer) or number < 1:
                raise UserError(f"{name} {number}: must be a whole number of at least 1")
            object.__setattr__(self, name, int(number))


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


def refuse_unfit(rows: Rows, kind: Kind) -> None:
    """Raise UserError for vectors of other dimensions."""
    if rows.embeddings.shape[1:] != (kind.dim,):
        raise UserError(f"the vectors are {rows.embeddings.shape}, the store has {kind.dim} dimensions")


def refuse_other_rows(store: Store, new: dict[str, Any]) -> None:
    """Raise UserError unless new rows, by their kind, type of ids and columns, are as the store's."""
    for name, value in new.items():
        if name == "shard_rows":
            continue
        found = store.manifest[name]
        if name == "encoder":
            told = [_who(found), _who(value)]
            found, value = ((v or {}).get("fingerprint") for v in (found, value))
        else:
            told = [", ".join(v) or "none" if isinstance(v, list) else str(v) for v in (found, value)]
        if found != value:
            remedy = (
                "; `store import --ids ids.npy` makes integers of them"
                if (found, value) == ("integer", "string")
                else ""
            )
            raise UserError(
                f"{store.folder}: {name} of the store: {told[0]}; of the new rows: {told[1]}; make them agree{remedy}, or make a "
                f"store of their own"
            )


def _who(encoder: dict[str, Any] | None) -> str:
    return f"{encoder['name']} ({encoder['fingerprint'][:12]})" if encoder else "unknown"
