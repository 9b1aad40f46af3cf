"""Pairs: does each side find the other among all that there are, and is a picture nearer its caption than a wrong one?"""

import numpy as np
from numpy.typing import NDArray

from retrieval.intervals import Doubles
from retrieval.neighbors import Floats

KS = (1, 5, 10)
WAYS = {"i2t": "picture → caption", "t2i": "caption → picture", "i2i": "first → second", "i2i_back": "second → first"}
BLOCK = 1 << 24  # scores at a time
CLOSE = 1e-5  # more than float32 products of unit vectors are off
Rows = NDArray[np.int64]


def pair_ranks(queries: Floats, documents: Floats, asked: Rows, relevant: Rows) -> Rows:
    """Of unit vectors (q, d) and (m, d), of which query asked[i] and document relevant[i] belong together: the rank (q,), from 1 on,
    of each query's best document among all, by cosine. Documents that are as near as it, and belong elsewhere, come first: an encoder
    that gives all the same vector finds nothing. Every query needs a document.

    A matrix product gives equal vectors unequal last bits, so what is near the best is scored again in float64, and rounded.
    """
    order = np.argsort(asked, kind="stable")
    starts = np.searchsorted(asked[order], np.arange(len(queries)))
    ends = np.append(starts[1:], len(asked))
    ranks = np.empty(len(queries), np.int64)
    step = max(1, BLOCK // len(documents))
    for first in range(0, len(queries), step):
        scores = queries[first : first + step] @ documents.T
        for row, line in enumerate(scores, first):
            own = np.unique(relevant[order[starts[row] : ends[row]]])
            best = line[own].max()
            close = np.flatnonzero(np.abs(line - best) <= CLOSE)
            line[close] = np.einsum("nd,d->n", documents[close], queries[row], dtype=np.float64)
            best = line[own].max()
            ranks[row] = 1 + np.count_nonzero(line >= best) - np.count_nonzero(line[own] >= best)
    return ranks


def found_by_rank(name: str, ranks: Rows) -> dict[str, Doubles]:
    """What ranks (n,) are worth: recall at each of KS, here whether any relevant document is so near, and the reciprocal rank."""
    way = f"{name}_" if name else ""
    found = {f"{way}r@{k}": (ranks <= k).astype(np.float64) for k in KS}
    return found | {f"{way}mrr": 1.0 / ranks}


def right_over_wrong(pictures: Floats, right: Floats, wrong: Floats, pair: Rows) -> Doubles:
    """(n,) for each pair the share of its wrong captions (w, d), of pair `pair` (w,), that are farther from its picture than the
    right one; equally near is no better than a guess, .5. NaN for a pair without one."""
    margin = (pictures * right).sum(1)[pair] - (pictures[pair] * wrong).sum(1)
    won = (margin > 0) + 0.5 * (margin == 0)
    with np.errstate(invalid="ignore"):
        return np.bincount(pair, won, len(pictures)) / np.bincount(pair, minlength=len(pictures))


def meaning(metric: str) -> str:
    """What a metric of pairs says, for people; "" for any other."""
    if metric == "captions":
        return "the right caption is nearer its picture than a wrong one; a guess has .5, and what has no wrong one counts so"
    way, _, what = metric.rpartition("_")
    if way not in WAYS:
        return ""
    if what == "mrr":
        return f"{WAYS[way]}: the mean of one over the rank of the first right one"
    return f"{WAYS[way]}: " + (
        "the nearest is right" if what == "r@1" else f"a right one is among the {what[2:]} nearest"
    )
