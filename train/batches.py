"""Batches of pairs: which rows of a labelled or unlabelled set stand together in one training step.

    an order of all rows, epoch after epoch (shuffled, or neighbours together)
    → cut into batches (by size, by tokens, or so that no text stands in one twice) → each row with itself or another of its class

or, by class: P classes give K rows each.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import UserError

Rows = NDArray[np.int64]
DEFAULT_PAIRS = 128
MISSING = -1  # stands for an item that a row lacks
WINDOW = 64  # batches' worth of rows, among which those of like lengths are put together


class Pairs(NamedTuple):
    """anchors, positives: (B,) row numbers of one batch."""

    anchors: Rows
    positives: Rows


def as_codes(values: Iterable[str]) -> Rows:
    """Strings as int64 codes in their sorted order, equal for equal strings."""
    values = list(values)
    number = {value: code for code, value in enumerate(sorted(set(values)))}
    return np.array([number[value] for value in values], np.int64)


@dataclass(frozen=True)
class Plan:
    """Endless batches of `pairs` pairs, how many steps to train, the classes (n,) where there are any, and the steps of an epoch."""

    batches: Callable[[], Iterator[Pairs]]
    pairs: int
    steps: int
    labels: Rows | None
    per_epoch: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How rows are drawn into batches.

    how: "auto", by class where same-class items are no negatives, else at random; "random"; "classes", P classes × `per_class` rows;
    "distinct", no text twice in a batch; "hard", rows, or classes, that are near each other together.
    tokens: cut batches by that many padded tokens instead of by size.
    """

    how: str = "auto"
    per_class: int | None = None
    tokens: int | None = None


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
    accumulate: int = 1,
    drawing: Drawing | None = None,
    identities: Callable[[], Rows] | None = None,
    lengths: Callable[[], Rows] | None = None,
    near: Callable[[], Rows] | None = None,
    least: int = 2,
) -> Plan:
    """Decide the batches of `count` rows: pairs of one class where there are labels, else of each row with itself.

    masked: same-class items will be no negatives; then classes take turns, otherwise rows are drawn at random. What some ways of
    drawing need: identities (c, n) of each row's texts, MISSING where it lacks one, lengths (c, n) in tokens of each row's texts, near (n, k) the nearest rows of each row, or
    (classes, k) the nearest classes of each class, which is asked for now, of the encoder as it is: a training that goes on from a
    checkpoint has another. Raises UserError for data from which no pairs can be made.

    accumulate: how many batches a step has. least: how many pairs a batch that is cut by tokens has at least.
    """
    drawing = drawing or Drawing()
    codes = None
    if labels is not None:
        check_labels(labels, source, masked=masked)
        codes = as_codes(labels)
    by_class = codes is not None and (drawing.how in ("classes", "hard") or drawing.how == "auto" and masked)
    _refuse_drawing(drawing, codes, by_class)
    kinds = count if codes is None else int(codes.max()) + 1
    if drawing.how == "hard" and kinds < 2:
        of = "row" if codes is None else "class"
        raise UserError(
            f"--batches hard: {source} has one {of}, which is near no other; leave it out, or give more data"
        )
    available = disjoint_pairs(codes) if codes is not None and (masked or by_class) else count
    pairs = pairs_per_batch(batch_size, available, source)
    quota = _quota(drawing, codes, labels, pairs, source) if by_class else None

    hard = drawing.how == "hard"
    nearest = near() if hard and near is not None else None

    def batches() -> Iterator[Pairs]:
        assert not hard or nearest is not None, "hard batches are drawn with an encoder"
        if by_class:
            assert codes is not None
            return balanced_batches(codes, pairs, seed, quota, None if nearest is None else near_first(nearest, seed))
        order = shuffled(count, seed) if nearest is None else neighbours_together(nearest, seed)
        if drawing.tokens:
            assert lengths is not None
            rows = by_tokens(order, lengths(), drawing.tokens, pairs, seed, least)
        elif drawing.how == "distinct":
            assert identities is not None
            rows = distinct(order, pairs, identities(), source)
        else:
            rows = by_size(order, pairs)
        return (Pairs(r, r) for r in rows) if codes is None else partners(rows, codes, seed)

    made = count / pairs
    if drawing.tokens and lengths is not None:
        made = len(cut_by_tokens(np.arange(count), lengths(), drawing.tokens, pairs, least))
    per_epoch = made / accumulate / (1 if codes is None else 2)  # a row of a class brings another with it
    return Plan(batches, pairs, steps or max(1, int(epochs * per_epoch)), codes, per_epoch)


def _refuse_drawing(drawing: Drawing, codes: Rows | None, by_class: bool) -> None:
    """Raises UserError for ways of drawing that the data, or each other, rule out."""
    if drawing.how == "classes" and codes is None:
        raise UserError("--batches classes: the data have no labels; leave it out, or add a column label")
    if drawing.how == "distinct" and codes is not None:
        raise UserError(
            "--batches distinct: is for pairs and plain lines; labelled rows stand once in a batch by themselves"
        )
    if drawing.per_class and not by_class:
        raise UserError("--per-class: is for labelled data with --batches classes or hard; leave it out")
    if drawing.tokens and (by_class or drawing.how == "distinct"):
        raise UserError(
            "--batch-tokens: cuts rows drawn at random or with --batches hard of pairs; give --batches random, or leave it out"
        )


def _quota(drawing: Drawing, codes: Rows | None, labels: Sequence[str] | None, pairs: int, source: str) -> int | None:
    """How many pairs each class gives a batch; None: as many as it takes, in turns."""
    k = drawing.per_class or (4 if drawing.how == "hard" else None)
    if k is None:
        return None
    assert codes is not None and labels is not None
    if k < 2 or k % 2:
        raise UserError(f"--per-class {k}: rows are drawn in pairs; give an even number")
    sizes = np.bincount(codes)
    smallest = int(sizes.argmin())
    if sizes[smallest] < k:
        name = labels[int(np.flatnonzero(codes == smallest)[0])]
        raise UserError(
            f"--per-class {k}: label {name!r} of {source} has only {sizes[smallest]} rows; give at most that, or remove the label"
        )
    if pairs * 2 % k or pairs * 2 // k > len(sizes):
        raise UserError(
            f"--per-class {k}: a batch of {pairs} pairs needs {2 * pairs / k:g} classes, and there are {len(sizes)}; "
            f"give --batch-size {min(len(sizes), max(1, 2 * pairs // k)) * k // 2}"
        )
    return k // 2


def check_labels(labels: Sequence[str], source: str, *, masked: bool) -> None:
    """Raises UserError where no pairs can be made: a class of one, or one class alone when classes are masked."""
    counts: dict[str, int] = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
    single = sorted(label for label, count in counts.items() if count == 1)
    if single:
        named = ", ".join(repr(label) for label in single[:5]) + (
            f" and {len(single) - 5:,} more" if len(single) > 5 else ""
        )
        raise UserError(
            f"{source}: label {named} has one member, so no pair; give it a second or remove it"
            if len(single) == 1
            else f"{source}: labels {named} have one member each, so no pair; give each a second or remove them"
        )
    if masked and len(counts) < 2:
        raise UserError(
            f"{source}: only one class ({next(iter(counts))!r}), so nothing to tell it from; give two classes, or texts without labels as plain lines"
        )


def pairs_per_batch(asked: int | None, available: int, source: str) -> int:
    """The batch size in pairs: as asked, or the default as far as the data reach."""
    if asked is None:
        return min(DEFAULT_PAIRS, available)
    if asked > available:
        raise UserError(
            f"--batch-size {asked}: {source} has only {available:,} pairs (of two rows of a class, where there are classes) for a "
            f"batch; use at most that"
        )
    return asked


def disjoint_pairs(labels: Rows) -> int:
    """How many pairs of one class can be drawn without using a row twice."""
    return int((np.bincount(labels) // 2).sum())


def balanced_batches(
    labels: Rows, pairs: int, seed: int, quota: int | None = None, order: Iterator[Rows] | None = None
) -> Iterator[Pairs]:
    """Endless batches of P classes × K rows: classes take turns at giving pairs of rows not yet in the batch.

    quota: how many pairs a class gives a batch, K/2. Without it each gives one a turn until there are enough, so that P is
    the number of classes or of pairs, whichever is less. order: the classes of each batch, in turn; at random if not given.
    A class gives each of its rows once before any comes again.
    """
    random = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == c) for c in range(labels.max() + 1)]
    waiting: list[list[int]] = [[] for _ in members]
    while True:
        chosen: list[tuple[int, int]] = []
        used: dict[int, set[int]] = {}
        turns = next(order) if order is not None else None
        while len(chosen) < pairs:
            before = len(chosen)
            for c in random.permutation(len(members)) if turns is None else turns:
                mine = used.setdefault(c, set())
                for _ in range(quota or 1):
                    if len(mine) + 2 > len(members[c]):
                        break
                    if len(waiting[c]) < 2:
                        waiting[c] = _next_round(random.permutation(members[c]).tolist(), waiting[c], mine)
                    pair = (waiting[c].pop(), waiting[c].pop())
                    mine.update(pair)
                    chosen.append(pair)
                if len(chosen) >= pairs:
                    break
            assert len(chosen) > before, "fewer disjoint pairs than the batch asks for"
        anchors, positives = np.array(chosen[:pairs], np.int64).T
        yield Pairs(anchors, positives)


def _next_round(rows: list[int], left: list[int], held: set[int]) -> list[int]:
    """A new round through a class, to be taken from the end: first what the last round left over, and last that row again and what
    the batch already holds."""
    return sorted(rows, key=lambda row: row not in held and row not in left) + left


def partners(batches: Iterable[Rows], labels: Rows, seed: int) -> Iterator[Pairs]:
    """Each row of the batches with another row of its class, drawn at random."""
    random = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    place = np.empty(len(labels), np.int64)  # of each row within its class
    place[order] = np.arange(len(labels)) - starts[labels[order]]
    for anchors in batches:
        size = sizes[labels[anchors]]
        other = (place[anchors] + random.integers(1, size)) % size
        yield Pairs(anchors, order[starts[labels[anchors]] + other])


def random_batches(labels: Rows, pairs: int, seed: int) -> Iterator[Pairs]:
    """Endless batches of rows drawn at random, each with another row of its class: the paper's setting.

    The classes come as often as in the data, so that τ⁺, the chance that a negative shares the class, has its meaning.
    """
    return partners(by_size(shuffled(len(labels), seed), pairs), labels, seed)


def shuffled(count: int, seed: int) -> Iterator[Rows]:
    """Endless orders of all rows."""
    random = np.random.default_rng(seed)
    while True:
        yield random.permutation(count)


def neighbours_together(near: Rows, seed: int, group: int = 8) -> Iterator[Rows]:
    """Endless orders of all rows in which a row, drawn at random, is followed by those of its nearest that are left, `group` in all.

    near: (n, k) the nearest rows of each row. A batch so cut holds some groups: hard negatives, and strangers.
    """
    random = np.random.default_rng(seed)
    while True:
        free = np.ones(len(near), bool)
        order: list[Rows] = []
        for row in random.permutation(len(near)):
            if not free[row]:
                continue
            free[row] = False
            others = near[row][free[near[row]]][: group - 1]
            free[others] = False
            order.append(np.concatenate([[row], others]))
        random.shuffle(order)
        yield np.concatenate(order)


def near_first(near: Rows, seed: int) -> Iterator[Rows]:
    """Endless orders of the classes: one drawn at random, then the others from its nearest on. near: (classes, classes − 1)."""
    random = np.random.default_rng(seed)
    while True:
        for c in random.permutation(len(near)):
            yield np.concatenate([[c], near[c]])


def by_size(orders: Iterator[Rows], size: int) -> Iterator[Rows]:
    """Batches of `size` rows; every row once an epoch, less the remainder."""
    for order in orders:
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]


def by_tokens(
    orders: Iterator[Rows], lengths: Rows, budget: int, size: int, seed: int, least: int = 2
) -> Iterator[Rows]:
    """Batches of at most `budget` padded tokens, of rows of like lengths, in random order; every row once an epoch.

    lengths: (c, n) tokens of each text of a row, 0 where it lacks one.
    """
    random = np.random.default_rng([seed, 2])
    for order in orders:
        batches = cut_by_tokens(order, lengths, budget, size, least)
        random.shuffle(batches)
        yield from batches


def cut_by_tokens(order: Rows, lengths: Rows, budget: int, size: int, least: int = 2) -> list[Rows]:
    """One epoch of `by_tokens`, unshuffled: in windows of WINDOW · size rows the longest first. Every batch has `least` rows, since
    one alone has no negative, and every process needs one: what is left of a window joins the batch before. All texts of a batch
    count as its longest one, to which they are padded."""
    longest, texts = lengths.max(0), (lengths > 0).sum(0)
    batches: list[Rows] = []
    for start in range(0, len(order), WINDOW * size):
        window = order[start : start + WINDOW * size]
        window = window[np.argsort(-longest[window], kind="stable")]
        before = np.concatenate([[0], np.cumsum(texts[window])])
        first = 0
        while first < len(window):
            most = before[first] + budget // longest[window[first]]
            fits = max(least, int(np.searchsorted(before, most, side="right")) - 1 - first)
            batches.append(window[first : first + fits])
            first += fits
        if len(batches) > 1 and len(batches[-1]) < least:
            batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def distinct(orders: Iterator[Rows], size: int, identities: Rows, source: str) -> Iterator[Rows]:
    """Batches of `size` rows in which no text stands twice. identities: (c, n), as in `plan`. A row that clashes waits for the next
    batch.

    Raises UserError where an epoch gives no batch.
    """
    late: deque[int] = deque()
    for order in orders:
        rows, made = map(int, order), 0
        while len(chosen := _next_distinct(late, rows, size, identities)) == size:
            made += 1
            yield np.array(chosen, np.int64)
        late.extendleft(reversed(chosen))  # what is left begins the next epoch
        if not made:
            raise UserError(
                f"--batches distinct: {source} has no {size} rows without a text in common; lower --batch-size"
            )


def _next_distinct(late: deque[int], rows: Iterator[int], size: int, identities: Rows) -> list[int]:
    """As many rows as can stand together, of those that are late and then of `rows`; those passed over are late now."""
    chosen: list[int] = []
    seen: set[int] = set()
    passed: list[int] = []
    while len(chosen) < size:
        row = late.popleft() if late else next(rows, None)
        if row is None:
            break
        texts = set(identities[:, row].tolist()) - {MISSING}
        if texts & seen:
            passed.append(row)
        else:
            seen |= texts
            chosen.append(row)
    late.extendleft(reversed(passed))
    return chosen
