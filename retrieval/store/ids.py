"""Finding rows by id, and ids that stand twice, in eight bytes of memory an id."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.errors import UserError

from .reader import Store
from .shard import Ids, Ints

NAMED = 3
LARGEST = np.iinfo(np.int64).max
Place = tuple[int, int]  # shard, row within it


def find(store: Store, blocks: Iterable[Ids]) -> dict[Any, Place]:
    """Where ids are: {id: place} of those that are in the store and not deleted. `blocks` is gone through twice.

    Compared by hash first, so that memory is eight bytes an id.
    """
    wanted = np.unique(np.concatenate([np.empty(0, np.int64), *(hashes(block) for block in blocks)]))
    maybe: dict[Any, Place] = {}
    for number in range(len(store.shards)):
        held, live = store.ids(number), store.live(number)
        names = as_list(held)
        for row in np.flatnonzero(among(hashes(held), wanted)).tolist():
            maybe[names[row]] = (number, row if live is None else int(live[row]))
    return {i: maybe[i] for block in blocks for i in as_list(block) if i in maybe} if maybe else {}


def among(values: Ints, ordered: Ints) -> Any:
    """(n,) which values (n,) stand in an ordered list: np.isin would sort both each time."""
    if not len(ordered):
        return np.zeros(len(values), bool)
    return ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values


def first_repeated(blocks: Iterable[Ids]) -> Any:
    """An id that stands twice, or None. `blocks` is gone through twice only if there seems to be one."""
    marks = np.sort(np.concatenate([np.empty(0, np.int64), *(hashes(block) for block in blocks)]))
    suspects = set(marks[1:][marks[1:] == marks[:-1]].tolist())
    seen: set[Any] = set()
    for block in blocks if suspects else ():
        for i, mark in zip(as_list(block), hashes(block).tolist(), strict=True):
            if mark in suspects:
                if i in seen:
                    return i
                seen.add(i)
    return None


def hashes(ids: Ids) -> Ints:
    given: object = ids
    if isinstance(given, str):
        raise UserError(f"id {ids!r}: give a list of ids, not one string")
    return (
        ids
        if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu"
        else np.fromiter(map(hash, ids), np.int64, len(ids))
    )


def as_list(ids: Ids) -> list[Any]:
    """Strings, or Python's own integers."""
    return ids.tolist() if isinstance(ids, np.ndarray) else ids


def typed_ids(store: Store, ids: list[str]) -> Ids:
    """Ids as a store has them: strings, or integers. Raises UserError for what is no integer."""
    if store.manifest["ids"] == "string":
        return ids
    numbers = np.zeros(len(ids), np.int64)
    for at, text in enumerate(ids):
        with suppress(ValueError, OverflowError):
            numbers[at] = int(text)
        if str(numbers[at]) != text.strip():  # Python takes 1_0 for 10
            raise UserError(f"{store.folder}: its ids are integers, {text!r} is none")
    return numbers


def named(ids: Iterable[Any]) -> str:
    every = list(ids)
    return f"{len(every):,} ({', '.join(map(str, every[:NAMED]))})"


def refuse_without_numbers(folder: Path, first: int, count: int) -> None:
    """Raise UserError where rows without ids, which are numbered from `first`, would pass the largest integer."""
    if first + count - 1 > LARGEST:
        raise UserError(f"{folder}: has ids up to {first - 1}, so no numbers are left for new rows; give them ids")
