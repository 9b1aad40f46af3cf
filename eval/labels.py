"""Which items belong together: one label an item, several, or labels that are paths in a hierarchy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.neighbors import Ints

TILE = 2**22  # comparisons held at a time


class Relevance(Protocol):
    """Whether an item of the reference set is relevant to a query: whether they share a class."""

    @property
    def groups(self) -> list[str]:
        """(q,) what each query is counted under."""
        ...

    def relevant(self, queries: Ints, items: Ints) -> NDArray[np.bool_]:
        """(q, k) for query rows (q,) and reference rows (q, k)."""
        ...

    def counts(self) -> Ints:
        """(q,) how many items of the reference are relevant to each query, itself among them if it is there."""
        ...


@dataclass(frozen=True)
class Classes:
    """One label an item. codes: (n,) of the reference, query_codes: (q,), both places in names; −1: a class without items."""

    names: list[str]
    codes: Ints
    query_codes: Ints
    groups: list[str]

    def relevant(self, queries: Ints, items: Ints) -> NDArray[np.bool_]:
        return self.codes[items] == self.query_codes[queries][:, None]  # type: ignore[no-any-return]

    def counts(self) -> Ints:
        return np.bincount(self.codes, minlength=len(self.names) + 1)[self.query_codes]


@dataclass(frozen=True)
class LabelSets:
    """Several labels an item; one in common makes relevant. sets: (n, words), query_sets: (q, words), bits of uint64."""

    sets: NDArray[np.uint64]
    query_sets: NDArray[np.uint64]
    groups: list[str]

    def relevant(self, queries: Ints, items: Ints) -> NDArray[np.bool_]:
        shared: NDArray[np.bool_] = np.any(self.sets[items] & self.query_sets[queries][:, None], axis=2)
        return shared

    def counts(self) -> Ints:
        found = np.empty(len(self.query_sets), np.int64)
        step = max(1, TILE // len(self.sets))
        for start in range(0, len(found), step):
            some = self.query_sets[start : start + step, None]
            found[start : start + step] = (self.sets[None] & some).any(axis=2).sum(axis=1)
        return found


def classes(labels: Sequence[str], queries: Sequence[str] | None = None) -> Classes:
    """Of the labels of the reference, and of the queries if those are others."""
    names, codes = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
    if queries is None:
        return Classes(names.tolist(), codes, codes, list(labels))
    asked = np.asarray(queries, dtype=object).astype(str)
    places = np.searchsorted(names, asked).clip(max=len(names) - 1)
    return Classes(names.tolist(), codes, np.where(names[places] == asked, places, -1), list(queries))


def label_sets(labels: Sequence[str], queries: Sequence[str] | None, separator: str) -> LabelSets:
    """Of labels such as "red|round". Spaces around and empty parts do not count; an item may have no label at all."""
    split = [[_parts(label, separator) for label in side] for side in (labels, labels if queries is None else queries)]
    place = {name: number for number, name in enumerate(sorted({n for side in split for parts in side for n in parts}))}
    sets, query_sets = (_bits(side, place) for side in split)
    return LabelSets(sets, query_sets, [separator.join(parts) for parts in split[1]])


def levels(labels: Sequence[str], separator: str) -> list[list[str]]:
    """Labels such as "animal/cat/tabby" cut after one part, two and so on. One of fewer parts stays as it is below them."""
    split = [_parts(label, separator) for label in labels]
    return [
        [separator.join(parts[: depth + 1]) for parts in split] for depth in range(max(map(len, split), default=0) or 1)
    ]


def _parts(label: str, separator: str) -> list[str]:
    return [part.strip() for part in label.split(separator) if part.strip()]


def _bits(side: list[list[str]], place: dict[str, int]) -> NDArray[np.uint64]:
    found = np.zeros((len(side), max(1, -(-len(place) // 64))), np.uint64)
    for row, parts in enumerate(side):
        for part in parts:
            found[row, place[part] // 64] |= np.uint64(1 << (place[part] % 64))
    return found


def sums(vectors: NDArray[np.float32], codes: Ints, count: int) -> torch.Tensor:
    """(count, d) float64: the sum of the vectors (n, d) of each class."""
    found = torch.zeros((count, vectors.shape[1]), dtype=torch.float64)
    for start in range(0, len(vectors), 2**14):
        part = torch.from_numpy(np.asarray(vectors[start : start + 2**14], np.float64))
        found.index_add_(0, torch.from_numpy(codes[start : start + 2**14]), part)
    return found
