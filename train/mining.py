"""Hard negatives: of each anchor, documents that are near to it and yet none of its positives."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.data import Texts
from retrieval.data.texts import taken
from retrieval.errors import UserError

from .batches import Rows

Floats = NDArray[np.float32]
ANCHORS = 1024  # searched at a time
Search = Callable[[Rows, int], tuple[Floats, Rows]]
Judge = Callable[[Rows, Rows], Floats]


@dataclass(frozen=True, kw_only=True)
class Mining:
    """Which candidates become negatives.

    negatives: of each row, at most. first, last: ranks that are looked at, the nearest being 0, known positives and the anchor
    itself not counted. A candidate's score must be at least `least` and at most `most`; below its row's positive's by more than
    `absolute_margin`; and at most (1 − `relative_margin`) of it, in magnitude (NV-Retriever's positive-aware mining, de Souza P.
    Moreira et al. 2024, at .05). choose: the nearest that pass, or any, at random.
    """

    negatives: int = 3
    first: int = 0
    last: int = 100
    least: float | None = None
    most: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    choose: Literal["top", "random"] = "top"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.last - self.first < self.negatives or self.first < 0:
            raise UserError(
                f"--ranks {self.first}:{self.last}: leaves no {self.negatives} candidates; give at least as many ranks as negatives (--count)"
            )


class Relations(NamedTuple):
    """Who belongs to whom: anchor (n,), positive (n,), the number of each row's anchor and positive among the distinct ones; and by
    the codes of their texts which documents are an anchor itself or a positive of it: codes of anchors (a,), positives (p,) and
    documents (d,). has: (2, m) numbers of anchors, and codes of negatives that they have already."""

    anchor: Rows
    positive: Rows
    anchors: Rows
    positives: Rows
    documents: Rows
    has: Rows = np.empty((2, 0), np.int64)


class Mined(NamedTuple):
    """rows: (r,) of the data, in order within their anchors. negatives: (r, ≤ negatives) documents, −1 where there are fewer.
    scores: theirs, NaN where there are fewer. positives: (r,), the score of each row's positive."""

    rows: Rows
    negatives: Rows
    scores: Floats
    positives: Floats


class Distinct(NamedTuple):
    """The different texts of a column, in the order of their codes (m,), and which of them each row has (n,)."""

    texts: list[str]
    codes: Rows
    of: Rows


def distinct(data: Texts, column: str) -> Distinct:
    codes, first, of = np.unique(data.codes[column], return_index=True, return_inverse=True)
    return Distinct(taken(data.columns[column], first.tolist()), codes, of)


def relations(data: Texts, anchors: Distinct, positives: Distinct, documents: Rows) -> Relations:
    """Who belongs to whom among pairs, their own negatives included, and documents of these codes."""
    own = [np.stack([anchors.of, codes]) for name, codes in data.codes.items() if name not in ("anchor", "positive")]
    has = np.concatenate([np.empty((2, 0), np.int64), *own], axis=1)
    return Relations(anchors.of, positives.of, anchors.codes, positives.codes, documents, has)


def mine(of: Relations, search: Search, score: Judge, mining: Mining, judge: Judge | None = None) -> Iterator[Mined]:
    """Negatives of every row, some anchors at a time.

    search: numbers of anchors (b,) and k → scores and documents (b, k), best first, −1 where there are fewer. score: numbers of
    anchors (b,) and of positives (b,) → similarities (b,). judge: numbers of anchors (b,) and of documents (b,) → (b,), in place of
    what the search scored; documents from len(of.documents) on are positives. Memory: a block of anchors.
    """
    order = np.argsort(of.anchor, kind="stable")
    starts = np.searchsorted(of.anchor[order], np.arange(len(of.anchors) + 1))
    known = _known(of, order)
    spare = int(np.diff(known.starts).max(initial=0)) + 1
    for first in range(0, len(of.anchors), ANCHORS):
        block = np.arange(first, min(first + ANCHORS, len(of.anchors)))
        scores, found = _searched(search, block, mining.last, mining.last + spare, of, known)
        scores, found = scores[:, mining.first : mining.last], found[:, mining.first : mining.last]
        rows = order[starts[block[0]] : starts[block[-1] + 1]]
        if judge is None:
            own = score(of.anchor[rows], of.positive[rows])
        else:
            scores, found = _judged(scores, found, block, judge)
            own = judge(of.anchor[rows], len(of.documents) + of.positive[rows])
        yield _chosen(rows, scores[of.anchor[rows] - first], found[of.anchor[rows] - first], own, mining)


class _Known(NamedTuple):
    """Codes of texts that are no negatives of each anchor: codes[starts[a] : starts[a + 1]]."""

    codes: Rows
    starts: Rows


def _known(of: Relations, order: Rows) -> _Known:
    """Every anchor's positives, the anchor, and the negatives that it has."""
    anchors = np.concatenate([of.anchor[order], np.arange(len(of.anchors)), of.has[0]])
    codes = np.concatenate([of.positives[of.positive[order]], of.anchors, of.has[1]])
    by = np.argsort(anchors, kind="stable")
    return _Known(codes[by], np.searchsorted(anchors[by], np.arange(len(of.anchors) + 1)))


def _searched(search: Search, block: Rows, last: int, k: int, of: Relations, known: _Known) -> tuple[Floats, Rows]:
    """Candidates in order, `last` of them where there are so many: further ones are asked for where texts that stand in the corpus
    several times, each of which counts once, leave fewer of the first k."""
    k = min(k, len(of.documents))
    scores, found = search(block, k)
    ended = found[:, -1] < 0
    scores, found = _without_known(scores, found, block, of, known)
    if k < len(of.documents) and (~ended & (found[:, last - 1] < 0)).any():
        return _searched(search, block, last, 2 * k, of, known)
    return scores, found


def _without_known(scores: Floats, found: Rows, block: Rows, of: Relations, known: _Known) -> tuple[Floats, Rows]:
    """Candidates in order, with known positives and anchors, and missing ones, moved to the end as −1."""
    codes = np.where(found >= 0, of.documents[found], 0)
    bad = found < 0
    for line, anchor in enumerate(block.tolist()):
        bad[line] |= np.isin(codes[line], known.codes[known.starts[anchor] : known.starts[anchor + 1]])
        again = np.ones(len(codes[line]), bool)  # a text that stands in the corpus twice counts once
        again[np.unique(codes[line], return_index=True)[1]] = False
        bad[line] |= again
    by = np.argsort(bad, axis=1, kind="stable")
    found = np.where(bad, -1, found)
    return np.take_along_axis(scores, by, 1), np.take_along_axis(found, by, 1)


def _judged(scores: Floats, found: Rows, block: Rows, judge: Judge) -> tuple[Floats, Rows]:
    """The candidates scored, and ordered, by the judge."""
    there = found >= 0
    scores = np.full(found.shape, -np.inf, np.float32)
    scores[there] = judge(np.broadcast_to(block[:, None], found.shape)[there], found[there])
    by = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, by, 1), np.take_along_axis(found, by, 1)


def _chosen(rows: Rows, scores: Floats, found: Rows, own: Floats, mining: Mining) -> Mined:
    """The negatives of each row among its candidates (r, k), by the scores and that of its positive (r,)."""
    allowed = found >= 0
    if mining.most is not None:
        allowed &= scores <= mining.most
    if mining.least is not None:
        allowed &= scores >= mining.least
    if mining.absolute_margin is not None:
        allowed &= scores <= own[:, None] - mining.absolute_margin
    if mining.relative_margin is not None:
        allowed &= scores <= (own - mining.relative_margin * np.abs(own))[:, None]
    if mining.choose == "random" and mining.negatives < found.shape[1]:
        draw = np.stack([np.random.default_rng([mining.seed, row]).random(found.shape[1]) for row in rows.tolist()])
        draw = np.where(allowed, draw, np.inf)
        allowed &= draw <= np.partition(draw, mining.negatives - 1, axis=1)[:, mining.negatives - 1 : mining.negatives]
    by = np.argsort(~allowed, axis=1, kind="stable")[:, : mining.negatives]
    kept = np.take_along_axis(allowed, by, 1)
    negatives = np.where(kept, np.take_along_axis(found, by, 1), -1)
    return Mined(rows, negatives, np.where(kept, np.take_along_axis(scores, by, 1), np.float32(np.nan)), own)
