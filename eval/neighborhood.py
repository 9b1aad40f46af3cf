"""What the neighbours of each query say about its class.

For a query with R relevant items (of its class, itself left out), its neighbours ranked by similarity, equal ones by row:

    r@k          1 if any of the k nearest is relevant (metric learning's Recall@k)
    p@k          share of the k nearest that are relevant, for k > 1, as p@1 is r@1
    r-precision  share of the R nearest that are relevant
    map@r        (1/R) Σ_{i ≤ R} P@i · rel_i          (Musgrave, Belongie, Lim, "A Metric Learning Reality Check", 2020, §3.2)
    map@k        (1/R) Σ_{i ≤ k} P@i · rel_i          (trec_eval's map_cut, pytorch-metric-learning's mean_average_precision)
    map@k/min    the same with 1/min(k, R), which a perfect ranking brings to 1
    mrr          1/rank of the first relevant item, however far down it is
    knn@20       right class in a vote of the 20 nearest weighing e^{cos/0.07}   (DINO, solo-learn)
    knn@200/.1   200 nearest, e^{cos/0.1}                                        (InstDisc, MoCo, lightly)
    knn@200/.5   200 nearest, e^{cos/0.5}                                        (Robinson et al.'s code)

Votes are by all neighbours where there are fewer; of classes with equal votes that of the nearest neighbour wins.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.intervals import Doubles
from retrieval.neighbors import Base, Floats, Ints, Neighbors, neighbor_tiles

from .labels import Classes, Relevance

VOTES = {20: {"knn@20": 0.07}, 200: {"knn@200/.1": 0.1, "knn@200/.5": 0.5}}  # voters: temperatures
SHOWN = 10  # neighbours of each query that are kept
CHUNK = 2**18  # neighbours judged at a time, which stay in cache


class Neighborhood(NamedTuple):
    """values: by metric, (q,); nearest: the first neighbours of each query, scores and rows (q, at most SHOWN)."""

    values: dict[str, Doubles]
    nearest: Neighbors


def neighborhood(
    queries: Floats,
    base: Base,
    relevance: Relevance,
    rows: Ints,
    found: Ints,
    *,
    itself: bool,
    ks: Sequence[int],
    similarities: bool = True,
    progress: Callable[[int], None] = lambda count: None,
) -> Neighborhood:
    """Judge the neighbours in `base` of the queries (q, d) of these rows, each with `found` (q,) relevant items to find.

    itself: the queries are rows of the base, left out by row. ks: for r@k, p@k and map@k; none beyond the base. similarities:
    scores are cosines, by which neighbours can vote.
    """
    assert (found > 0).all()
    votes = VOTES if isinstance(relevance, Classes) and similarities else {}
    available = len(base) - itself
    depth = min(available, max(int(found.max()), *ks, SHOWN, *votes))
    parts: list[dict[str, Doubles]] = []
    nearest: list[Neighbors] = []
    start = 0
    for tile in neighbor_tiles(queries, base, depth, self_rows=rows if itself else None):
        some = slice(start, start + len(tile.ids))
        start = some.stop
        parts.append(_judged(tile, relevance, rows[some], found[some], ks))
        for voters, temperatures in votes.items():
            parts[-1] |= _votes(tile, relevance, rows[some], voters, temperatures)
        nearest.append(Neighbors(tile.scores[:, :SHOWN].copy(), tile.ids[:, :SHOWN].copy()))
        progress(len(tile.ids))
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    late = np.flatnonzero(values["mrr"] == 0)
    if len(late) and depth < available:
        values["mrr"][late] = _far(queries[late], base, relevance, rows[late], itself)
    return Neighborhood(values, Neighbors(*(np.concatenate(each) for each in zip(*nearest, strict=True))))


def _judged(tile: Neighbors, relevance: Relevance, rows: Ints, found: Ints, ks: Sequence[int]) -> dict[str, Doubles]:
    """Every metric but the votes, of the queries of one tile, so many at a time."""
    step = max(1, CHUNK // tile.ids.shape[1])
    parts = [
        ranked(relevance.relevant(rows[i : i + step], tile.ids[i : i + step]), found[i : i + step], ks)
        for i in range(0, len(rows), step)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def ranked(relevant: NDArray[np.bool_], found: Ints, ks: Sequence[int]) -> dict[str, Doubles]:
    """Metrics of rankings: whether each of the first items is relevant (q, depth), of `found` (q,) that are.

    depth is at least every k and every R. mrr is 0 where nothing relevant is among them.
    """
    ranks = np.arange(1, relevant.shape[1] + 1)
    hits = np.cumsum(relevant, axis=1, dtype=np.int32)
    gained = hits * (1 / ranks)
    gained *= relevant
    within = ranks <= found[:, None]
    first = relevant.argmax(axis=1)
    values = {f"r@{k}": (hits[:, k - 1] > 0).astype(np.float64) for k in ks}
    wider = [k for k in ks if k > 1]
    values |= {f"p@{k}": hits[:, k - 1] / k for k in wider}
    values |= {f"map@{k}": gained[:, :k].sum(1) / found for k in wider}
    values |= {f"map@{k}/min": gained[:, :k].sum(1) / np.minimum(found, k) for k in wider}
    values["r-precision"] = hits[np.arange(len(hits)), np.minimum(found, len(ranks)) - 1] / found
    values["map@r"] = (gained * within).sum(1) / found
    values["mrr"] = np.where(relevant.any(axis=1), 1 / (first + 1), 0.0)
    return values


def _far(queries: Floats, base: Base, relevance: Relevance, rows: Ints, itself: bool) -> Doubles:
    """1/rank of the first relevant item among all."""
    found, start = np.empty(len(rows)), 0
    for tile in neighbor_tiles(queries, base, len(base) - itself, self_rows=rows if itself else None):
        some = slice(start, start + len(tile.ids))
        found[some] = 1 / (relevance.relevant(rows[some], tile.ids).argmax(axis=1) + 1)
        start = some.stop
    return found


def _votes(
    tile: Neighbors, relevance: Relevance, rows: Ints, voters: int, temperatures: dict[str, float]
) -> dict[str, Doubles]:
    """Whether each query's class is elected, by the name of the vote."""
    assert isinstance(relevance, Classes)
    right = {name: np.empty(len(rows)) for name in temperatures}
    step = max(1, CHUNK // voters)
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        codes = relevance.codes[tile.ids[some, :voters]]
        elected = vote(tile.scores[some, :voters], codes, list(temperatures.values()))
        for name, winners in zip(temperatures, elected, strict=True):
            right[name][some] = winners == relevance.query_codes[rows[some]]
    return right


def vote(scores: Floats, codes: Ints, temperatures: Sequence[float]) -> list[Ints]:
    """For each temperature the class with the heaviest vote of each query; of equal ones, that of the nearest neighbour.

    scores, codes: (q, voters), nearest first.
    """
    count, voters = codes.shape
    keys = np.sort(codes * voters + np.arange(voters), axis=1)  # each class's voters together, the nearest first
    order, sorted_codes = keys % voters, keys // voters
    starts = np.ones(codes.shape, bool)
    starts[:, 1:] = sorted_codes[:, 1:] != sorted_codes[:, :-1]
    begin = np.flatnonzero(starts)  # of each class in each query
    nearest = order.ravel()[begin]
    firsts = np.concatenate([[0], np.cumsum(starts.sum(axis=1))[:-1]])  # where each query's classes begin
    similarity = np.take_along_axis(scores, order, 1).ravel().astype(np.float64) - 1
    winners = []
    for temperature in temperatures:
        heavy = np.add.reduceat(np.exp(similarity / temperature), begin)
        most = np.repeat(np.maximum.reduceat(heavy, firsts), starts.sum(axis=1))
        winner = np.minimum.reduceat(np.where(heavy == most, nearest, voters), firsts)
        winners.append(codes[np.arange(count), winner])
    return winners
