"""Which rows of an index may be found: by label, by id."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import UserError
from retrieval.store import Ids
from retrieval.store.ids import find, listed, named

from .bundle import Index

Mask = NDArray[np.bool_]


def rows_of_labels(index: Index, labels: Collection[str]) -> Mask:
    """(n,) which rows have one of the labels. Raises UserError for a label that none has."""
    if "labels" not in index.manifest["columns"]:
        raise UserError(f"{index.folder}: its items have no labels")
    held = [label for number in range(len(index.rows.shards)) for label in index.rows.column(number, "labels")]
    wanted = set(labels)
    missing = wanted - set(held)
    if missing:
        raise UserError(f"label {sorted(missing)[0]!r}: no item of {index.folder} has it; check its spelling")
    return np.fromiter((label in wanted for label in held), bool, len(held))


def rows_of_ids(index: Index, ids: Ids) -> Mask:
    """(n,) which rows have one of the ids. Raises UserError for ids that none has."""
    known = find(index.rows, [ids])
    missing = [i for i in listed(ids) if i not in known]
    if missing:
        raise UserError(f"{index.folder}: lacks {named(missing)} of these ids; check them")
    where = np.zeros(index.rows.count, bool)
    for shard, row in known.values():
        live = index.rows.live(shard)
        where[index.rows.starts[shard] + (row if live is None else int(np.searchsorted(live, row)))] = True
    return where
