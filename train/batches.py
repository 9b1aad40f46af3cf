"""Batches of pairs: which rows of a labelled or unlabelled set stand together in one training step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import UserError

Rows = NDArray[np.int64]
DEFAULT_PAIRS = 128


class Pairs(NamedTuple):
    """anchors, positives: (B,) row numbers of one batch."""

    anchors: Rows
    positives: Rows


def as_codes(values: Sequence[str]) -> Rows:
    """Strings as int64 codes, equal for equal strings."""
    return np.unique(np.asarray(values, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True)
class Plan:
    """Endless batches of `pairs` pairs, how many steps of them to train, and the classes (n,) where there are any."""

    batches: Callable[[], Iterator[Pairs]]
    pairs: int
    steps: int
    labels: Rows | None


def plan(
    count: int,
    labels: Sequence[str] | None,
    source: str,
    *,
    masked: bool,
    batch_size: int | None,
    steps: int | None,
    epochs: float,
    seed: int,
) -> Plan:
    """Decide the batches of `count` rows: pairs of one class where there are labels, else of each row with itself.

    masked: same-class items will be no negatives; then classes take turns, otherwise rows are drawn at random. Raises
    UserError for data from which no pairs can be made.
    """
    codes = None
    available = count
    if labels is not None:
        check_labels(labels, source, masked=masked)
        codes = as_codes(labels)
        available = disjoint_pairs(codes) if masked else count
    pairs = pairs_per_batch(batch_size, available, source)

    def batches() -> Iterator[Pairs]:
        if codes is None:
            return (Pairs(rows, rows) for rows in shuffled_rows(count, pairs, seed))
        return (balanced_batches if masked else random_batches)(codes, pairs, seed)

    rows_a_step = pairs if codes is None else 2 * pairs
    return Plan(batches, pairs, steps or max(1, int(epochs * count / rows_a_step)), codes)


def check_labels(labels: Sequence[str], source: str, *, masked: bool) -> None:
    """Raises UserError where no pairs can be made: a class of one, or one class alone when classes are masked."""
    names, counts = np.unique(np.asarray(labels, dtype=object).astype(str), return_counts=True)
    single = names[counts == 1]
    if len(single):
        others = f" (and {len(single) - 1:,} more labels)" if len(single) > 1 else ""
        raise UserError(
            f"{source}: label {str(single[0])!r}{others} has one member, so no pair; give it a second or remove it"
        )
    if masked and len(names) < 2:
        raise UserError(
            f"{source}: only one class ({str(names[0])!r}), so nothing to tell it from; give two classes or --no-label-mask"
        )


def pairs_per_batch(asked: int | None, available: int, source: str) -> int:
    """The batch size in pairs: as asked, or the default as far as the data reach."""
    if asked is None:
        return min(DEFAULT_PAIRS, available)
    if asked > available:
        raise UserError(f"--batch-size {asked}: {source} has only {available:,} pairs for a batch; use at most that")
    return asked


def disjoint_pairs(labels: Rows) -> int:
    """How many pairs of one class can be drawn without using a row twice."""
    return int((np.bincount(labels) // 2).sum())


def balanced_batches(labels: Rows, pairs: int, seed: int) -> Iterator[Pairs]:
    """Endless batches of P classes × K rows: classes take turns, in random order, at giving a pair of rows not yet in the batch.

    So P is the number of classes or of pairs, whichever is less, and K the even number nearest to 2·pairs/P that the
    class has rows for. A class gives each of its rows once before any comes again.
    """
    random = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == c) for c in range(labels.max() + 1)]
    waiting: list[list[int]] = [[] for _ in members]
    while True:
        chosen: list[tuple[int, int]] = []
        used: dict[int, set[int]] = {}
        while len(chosen) < pairs:
            before = len(chosen)
            for c in random.permutation(len(members)):
                mine = used.setdefault(c, set())
                if len(mine) + 2 > len(members[c]):
                    continue
                if len(waiting[c]) < 2:  # a new round through the class; what this batch already holds comes last
                    order = random.permutation(members[c]).tolist()
                    waiting[c] = sorted(order, key=lambda row, mine=mine: row not in mine)  # type: ignore[misc]
                pair = (waiting[c].pop(), waiting[c].pop())
                mine.update(pair)
                chosen.append(pair)
                if len(chosen) == pairs:
                    break
            assert len(chosen) > before, "fewer disjoint pairs than the batch asks for"
        anchors, positives = np.array(chosen, np.int64).T
        yield Pairs(anchors, positives)


def random_batches(labels: Rows, pairs: int, seed: int) -> Iterator[Pairs]:
    """Endless batches of rows drawn at random, each with another row of its class: the paper's setting.

    The classes come as often as in the data, so that τ⁺, the chance that a negative shares the class, has its meaning.
    """
    random = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    place = np.empty(len(labels), np.int64)  # of each row within its class
    place[order] = np.arange(len(labels)) - starts[labels[order]]
    for anchors in shuffled_rows(len(labels), pairs, seed):
        size = sizes[labels[anchors]]
        other = (place[anchors] + random.integers(1, size)) % size
        yield Pairs(anchors, order[starts[labels[anchors]] + other])


def shuffled_rows(count: int, size: int, seed: int) -> Iterator[Rows]:
    """Endless batches of `size` different rows; every row once an epoch, less the remainder."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
