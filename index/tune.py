"""Search parameters that reach a recall at the least time, and what they then reach on other queries."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval.neighbors import Floats, Ints, exact_neighbors

from .backend import faiss
from .bundle import Index
from .kinds import Settings
from .search import search

RERANKS = (1, 2, 4, 8, 16, 32)
RESAMPLES = 2000
SATURATED = 0.0005  # less than this gained by twice the effort: no more is to be had


@dataclass(frozen=True)
class Probe:
    """Queries to tune or to measure with, and their true neighbours. self_rows: the row that each is, if it is stored."""

    queries: Floats
    truth: Ints
    self_rows: Ints | None

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, part: slice) -> "Probe":
        return Probe(self.queries[part], self.truth[part], None if self.self_rows is None else self.self_rows[part])


def probe(index: Index, queries: Floats, k: int, self_rows: Ints | None = None) -> Probe:
    found = exact_neighbors(queries, index.base, k, self_rows=self_rows)
    return Probe(queries, found.ids, self_rows)


def recalls(index: Index, of: Probe, settings: Settings | None = None) -> Floats:
    """(q,) the share of each query's true neighbours that the index finds among as many."""
    k = of.truth.shape[1]
    own = of.self_rows is not None
    found = search(index, of.queries, k + own, settings=settings).rows
    if of.self_rows is not None:
        others = found != of.self_rows[:, None]
        order = np.argsort(~others, axis=1, kind="stable")[:, :k]
        found = np.take_along_axis(found, order, 1)
    hit = (of.truth[:, :, None] == found[:, None, :]).any(2)
    shares: Floats = hit.mean(1, dtype=np.float32)
    return shares


def interval(shares: Floats, seed: int = 0) -> tuple[float, float]:
    """A 95 % interval of their mean, by the bootstrap over queries; where all are 1, by the rule of three."""
    if shares.min() == shares.max():
        return (float(max(0.0, shares[0] - 3 / len(shares))), float(shares[0]))
    picked = np.random.default_rng(seed).integers(0, len(shares), (RESAMPLES, len(shares)))
    low, high = np.quantile(shares[picked].mean(1), [0.025, 0.975])
    return float(low), float(high)


def tuned(index: Index, on: Probe, target: float, single: bool) -> Settings:
    """The fastest settings that reach the target; the best that were tried if none does."""
    able, knob = index.abilities, index.abilities.knob
    tried: dict[tuple[tuple[str, int], ...], float] = {}

    def recall(settings: Settings) -> float:
        key = tuple(settings.items())
        if key not in tried:
            tried[key] = float(recalls(index, on, settings).mean())
        return tried[key]

    times: list[tuple[float, Settings]] = []
    for rerank in RERANKS if able.coded else RERANKS[:1]:
        fixed: Settings = {"rerank": rerank} if able.coded else {}
        settings = fixed
        if knob is not None:
            value = least(lambda value, fixed=fixed: recall(fixed | {knob: value}), target, able.limit)  # type: ignore[misc]
            settings = fixed | {knob: value}
        if recall(settings) < target:
            continue
        times.append((seconds_per_query(index, on.queries, settings, single), settings))
        if times[-1][0] > 1.2 * min(taken for taken, _ in times):
            break  # more candidates to score again cost more than they save
    if times:
        return min(times, key=lambda pair: pair[0])[1]
    best, _ = max(tried.items(), key=lambda pair: pair[1])
    return dict(best)


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


def seconds_per_query(
    index: Index, queries: Floats, settings: Settings, single: bool, least_time: float = 0.3
) -> float:
    """Median time of a query, alone or in a batch of all."""
    k = 10
    times = []
    search(index, queries[:1], k, settings=settings)
    for block in _repeated(queries, 1 if single else len(queries), least_time):
        started = time.perf_counter()
        search(index, block, k, settings=settings)
        times.append((time.perf_counter() - started) / len(block))
    return float(np.median(times))


def _repeated(queries: Floats, size: int, least_time: float) -> Iterator[Floats]:
    """Blocks of queries, at least three, until the time is over."""
    end, given = time.perf_counter() + least_time, 0
    while given < 3 or time.perf_counter() < end:
        start = given * size % max(1, len(queries) - size + 1)
        yield queries[start : start + size]
        given += 1


def measured(index: Index, on: Probe, settings: Settings) -> dict[str, Any]:
    """What a manifest says of an index: recall with its interval, queries a second in batches and one at a time."""
    shares = recalls(index, on, settings)
    low, high = interval(shares)
    return {
        "k": int(on.truth.shape[1]),
        "recall": float(shares.mean()),
        "interval": [low, high],
        "queries": len(on),
        "batch_qps": 1 / seconds_per_query(index, on.queries, settings, single=False),
        "single_qps": 1 / seconds_per_query(index, on.queries, settings, single=True),
        "threads": int(faiss().omp_get_max_threads()),
    }
