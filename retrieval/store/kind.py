"""What all rows of a store have in common."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval.errors import UserError
from retrieval.metrics import METRICS

from .dtypes import STORED_AS
from .reader import Store
from .shard import Rows

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
