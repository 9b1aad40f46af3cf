"""Search parameters that reach a recall at the least time, and what they then reach on other queries."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from retrieval.artifact import Manifest
from retrieval.intervals import bootstrap
from retrieval.neighbors import Floats, Ints, Neighbors, exact_neighbors, score_rows, without

from .backend import faiss
from .bundle import Index, as_float32
from .forget import forgotten
from .kinds import Settings
from .plan import Goal
from .search import search

SAMPLED_QUERIES = 1000  # to tune with, and as many to measure with
RERANKS = (1, 2, 3, 5, 8, 12, 20, 32)
ROUNDS, SINGLES = 7, 200  # of a race; queries one by one in a round
RESAMPLES = 2000
SATURATED = 0.0005  # less than this gained by twice the effort: no more is to be had


@dataclass(frozen=True)
class Probe:
    """Queries to tune or to measure with, and their true neighbours (q, k). last: (q,) the score of the k-th, larger nearer.
    self_rows: the row that each is, if the index holds it."""

    queries: Floats
    truth: Ints
    last: Floats
    self_rows: Ints | None = None

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, part: slice) -> "Probe":
        rows = None if self.self_rows is None else self.self_rows[part]
        return Probe(self.queries[part], self.truth[part], self.last[part], rows)


Halves = tuple[Probe, Probe]


def probe(index: Index, queries: Floats, k: int, self_rows: Ints | None = None) -> Probe:
    return _judged_by(index, queries, exact_neighbors(queries, index.base, k, self_rows=self_rows), self_rows)


def _judged_by(index: Index, queries: Floats, truth: Neighbors, self_rows: Ints | None = None) -> Probe:
    last = truth.scores[:, -1]
    return Probe(queries, truth.ids, -last if index.metric == "euclidean" else last, self_rows)


def recalls(index: Index, of: Probe, settings: Settings | None = None) -> Floats:
    """(q,) the share of each query's true neighbours that the index finds among as many. What is as near as the last of them is one
    too: of items that stand more than once any will do."""
    k = of.truth.shape[1]
    own = of.self_rows is not None
    if own and settings and "rerank" in settings:
        settings = settings | {"rerank": one_more(settings["rerank"], k)}
    best = search(index, of.queries, k + own, settings=settings)
    found = Neighbors(best.scores, best.rows)
    if of.self_rows is not None:
        found = without(found, of.self_rows, k)
    there = found.ids >= 0
    true = (of.truth[:, :, None] == found.ids[:, None, :]).any(1)
    unsure = np.flatnonzero((there & ~true).any(1))
    rows = torch.from_numpy(np.maximum(found.ids[unsure], 0))
    scores = score_rows(torch.from_numpy(of.queries[unsure]), index.base, rows).float().cpu().numpy()
    true[unsure] |= there[unsure] & (scores >= of.last[unsure, None])
    shares: Floats = (true.sum(1) / k).astype(np.float32)
    return shares


def one_more(rerank: float, k: int) -> float:
    """How many times k + 1 candidates are `rerank` times k and one: a stored query, which finds itself, is to have no more than another."""
    return (rerank * k + 1.5) / (k + 1)  # FAISS rounds down


def interval(shares: Floats, seed: int = 0) -> tuple[float, float]:
    """A 95 % interval of their mean, by the bootstrap over queries; where all are alike, by the rule of three."""
    if shares.min() == shares.max():
        return float(max(0.0, shares[0] - 3 / len(shares))), float(min(1.0, shares[0] + 3 / len(shares)))
    low, high = bootstrap(shares[:, None].astype(np.float64), seed=seed, resamples=RESAMPLES)[0]
    return float(low), float(high)


def fitting(index: Index, on: Probe, target: float) -> tuple[list[Settings], bool]:
    """The least settings that reach the target by more than their recall's standard error, one for each `rerank` with which that can be
    reached, and True: the least that reached it with some queries would miss it with half of all others. Where it cannot be reached so
    the best that were tried, and whether these reach it at all."""
    able, knob = index.abilities, index.abilities.knob
    tried: dict[tuple[tuple[str, int], ...], tuple[float, float]] = {}

    def recall(settings: Settings) -> float:
        key = tuple(settings.items())
        if key not in tried:
            shares = recalls(index, on, settings)
            mean = float(shares.mean())
            tried[key] = mean - float(shares.std()) / len(shares) ** 0.5, mean
        return tried[key][0]

    found: list[Settings] = []
    for rerank in RERANKS if able.coded else RERANKS[:1]:
        settings: Settings = {"rerank": rerank} if able.coded else {}
        if knob is not None:
            value = least(lambda value, fixed=settings: recall(fixed | {knob: value}), target, able.limit)  # type: ignore[misc]
            if knob == "effort" and not able.grows:
                # An NSG takes k where it is less, and must be as wide for another k.
                value = max(value, on.truth.shape[1])
            settings = settings | {knob: value}
        if recall(settings) >= target:
            found.append(settings)
            if len(found) > 1 and knob is not None and settings[knob] == found[-2][knob]:
                break  # more candidates to score again find nothing more
    if found:
        return found, True
    best, (_, mean) = max(tried.items(), key=lambda pair: pair[1])
    return [dict(best)], mean >= target


def least(recall: Callable[[int], float], target: float, limit: int) -> int:
    """The least value up to the limit that reaches the target, or one from which on it does not rise any more."""
    value, before, now = 1, 0.0, recall(1)
    while now < target and value < limit:
        if value >= 64 and now - before < SATURATED:
            return value
        value, before = min(2 * value, limit), now
        now = recall(value)
    low, high = value // 2 + 1, value
    while low < high and now >= target:
        middle = (low + high) // 2
        if recall(middle) >= target:
            high = middle
        else:
            low = middle + 1
    return high


def race(entrants: Sequence[tuple[Index, Settings]], queries: Floats, k: int, single: bool) -> list[float]:
    """Median seconds of a query for each entrant, alone or in a batch of all. They take turns, so that a machine that is
    busy for a while is so for all."""
    blocks = [queries[i : i + 1] for i in range(min(len(queries), SINGLES))] if single else [queries]
    times: list[list[float]] = [[] for _ in entrants]
    for turn in range(ROUNDS + 1):
        for (index, settings), taken in zip(entrants, times, strict=True):
            started = time.perf_counter()
            for block in blocks:
                search(index, block, k, settings=settings)
            if turn:  # the first warms up
                taken.append((time.perf_counter() - started) / sum(map(len, blocks)))
    return [float(np.median(taken)) for taken in times]


def measured(index: Index, on: Probe, settings: Settings) -> dict[str, Any]:
    """What a manifest says of an index: recall with its interval, queries a second in batches and one at a time."""
    shares = recalls(index, on, settings)
    low, high = interval(shares)
    return {
        "k": int(on.truth.shape[1]),
        "recall": float(shares.mean()),
        "interval": [low, high],
        "queries": len(on),
        "rows": index.rows.count,
        "batch_qps": 1 / race([(index, settings)], on.queries, on.truth.shape[1], single=False)[0],
        "single_qps": 1 / race([(index, settings)], on.queries, on.truth.shape[1], single=True)[0],
        "threads": int(faiss().omp_get_max_threads()),
    }


def tune(indexes: list[Index], goal: Goal, queries: Floats | None, seed: int) -> list[Manifest]:
    """For each index over the same rows: the fastest search parameters that reach a goal, and what they give on other
    queries than they were chosen with."""
    with ExitStack() as stack:
        probes = _probes(indexes, goal, queries, seed, stack)
        return _tuned(indexes, probes, goal, "stored" if queries is None else "given")


def _tuned(indexes: list[Index], probes: list[Halves], goal: Goal, source: str) -> list[Manifest]:
    fit = [_fit(index, one, goal.recall) for index, (one, _) in zip(indexes, probes, strict=True)]
    entrants = [(index, settings) for index, (some, _) in zip(indexes, fit, strict=True) for settings in some]
    asked = max((one.queries for one, _ in probes), key=len)
    seconds = race(entrants, asked, goal.k, goal.single)
    found = []
    for index, (_, other), (_, reached) in zip(indexes, probes, fit, strict=True):
        own = [(spent, settings) for spent, (which, settings) in zip(seconds, entrants, strict=True) if which is index]
        spent, settings = min(own, key=lambda pair: pair[0])
        told = measured(index, other, settings) | {"raced": spent, "reached": reached}
        told["queries_from"] = source
        aim = {"recall": goal.recall, "k": goal.k, "single": goal.single, "latency": goal.latency}
        found.append({"search": settings, "measured": told, "goal": aim})
    return found


def _fit(index: Index, on: Probe, target: float) -> tuple[list[Settings], bool]:
    """The settings to choose from, and whether they reach the target; where FAISS is not asked, those that there are."""
    if index.exact or not index.covered:
        return [dict(index.about["search"])], True
    return fitting(index, on, target)


def _probes(indexes: list[Index], goal: Goal, queries: Floats | None, seed: int, stack: ExitStack) -> list[Halves]:
    """For each index queries to tune with, and others to measure with. Stored rows stand in for queries that are not given; graphs
    forget them until `stack` is left."""
    rng = np.random.default_rng([seed, 1])
    first, count = indexes[0], indexes[0].rows.count
    k = max(1, min(goal.k, count - 1))
    if queries is not None:
        order = rng.permutation(len(queries))[: 2 * SAMPLED_QUERIES]
        return [_halves(probe(first, as_float32(queries[order]), k))] * len(indexes)
    rows = rng.choice(count, min(2 * SAMPLED_QUERIES, count), replace=False)
    plain = _halves(probe(first, as_float32(first.rows.take(rows)), k, rows if count > 1 else None))
    unseen = [forgotten(index, rows, k, stack) for index in indexes]
    return [
        plain if some is None else _halves(_judged_by(index, as_float32(index.rows.take(some[0])), some[1]))
        for index, some in zip(indexes, unseen, strict=True)
    ]


def _halves(whole: Probe) -> Halves:
    half = max(1, len(whole) // 2)
    return whole[:half], whole[-half:]


def worth(about: Manifest) -> tuple[bool, float, float]:
    """Larger is better: whether the recall was reached in tuning; if not, what was found; then the speed when all took turns."""
    told = about["measured"]
    return told["reached"], 0.0 if told["reached"] else told["recall"], -told["raced"]
