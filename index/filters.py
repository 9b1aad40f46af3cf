"""Which rows of an index may be found: by label, by id."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import UserError
from retrieval.neighbors import Ints
from retrieval.store import Ids
from retrieval.store.ids import among, as_list, hashes, named, typed_ids

from .bundle import Index

Mask = NDArray[np.bool_]


def allowed(index: Index, labels: Collection[str] = (), ids: list[str] | None = None) -> Mask | None:
    """(n,) which rows have one of the labels, if there are any, and one of the ids, if they are not None; None where all may be found."""
    where = rows_of_labels(index, labels) if labels else None
    if ids is None:
        return where
    named_ones = rows_of_ids(index, typed_ids(index.rows, ids))
    return named_ones if where is None else where & named_ones


def rows_of_labels(index: Index, labels: Collection[str]) -> Mask:
    """(n,) which rows have one of the labels. Raises UserError for a label that none has."""
    if isinstance(labels, str):
        raise UserError(f"labels {labels!r}: give a list, also of one")
    known, codes = index.labels
    missing = set(labels) - known.keys()
    if missing:
        raise UserError(f"label {sorted(missing)[0]!r}: no item of {index.folder} has it; check its spelling")
    chosen = np.zeros(len(known), bool)
    chosen[[known[label] for label in labels]] = True
    return chosen[codes]


def rows_of_ids(index: Index, ids: Ids) -> Mask:
    """(n,) which rows have one of the ids. Raises UserError for ids that none has."""
    where = np.zeros(index.rows.count, bool)
    where[row_numbers(index, ids)] = True
    return where


def row_numbers(index: Index, ids: Ids) -> Ints:
    """(k,) the rows of ids (k,). Raises UserError for ids that none has."""
    rows = index.rows
    maybe = np.flatnonzero(among(index.marks, np.unique(hashes(ids))))
    places: dict[str | int, int] = {}
    for number in np.unique(np.searchsorted(rows.starts, maybe, side="right") - 1).tolist():
        first, end = int(rows.starts[number]), int(rows.starts[number + 1])
        held = as_list(rows.ids(number))
        places |= {held[row - first]: row for row in maybe[(maybe >= first) & (maybe < end)].tolist()}
    missing = [i for i in as_list(ids) if i not in places]
    if missing:
        raise UserError(f"{index.folder}: lacks {named(missing)} of these ids; check them")
    return np.array([places[i] for i in as_list(ids)], np.int64)
