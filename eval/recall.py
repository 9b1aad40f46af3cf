"""What approximation costs: which true neighbours are found, how fast, and what that changes for the task.

For the k true neighbours of a query and as many that were found:

    recall              share of the true neighbours that were found
    recall-by-distance  share of the found that are as near as the k-th true one, to 10⁻³: of equally near items any will do
                        (ann-benchmarks' rule)
    rbo                 rank-biased overlap, extrapolated, p = .9: the first ranks count most (Webber, Moffat, Zobel, TOIS
                        2010, equation 32)
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.intervals import Doubles
from retrieval.neighbors import Floats, Ints, Neighbors, without

EPSILON = 1e-3
PERSISTENCE = 0.9
ROUNDS = 5
SINGLES = 300

Find = Callable[[Floats, int], Neighbors]
"""Searches queries (q, d) for k neighbours; rows are −1 where there are fewer."""


@dataclass(frozen=True)
class Speed:
    """Queries a second in one batch, and milliseconds of single queries: median, 95th and 99th percentile."""

    batch_qps: float
    single_qps: float
    latency_ms: tuple[float, float, float]


def found_without(find: Find, queries: Floats, k: int, self_rows: Ints | None) -> Neighbors:
    """The k nearest found, and if the queries are stored themselves, without their own rows (q,)."""
    if self_rows is None:
        return find(queries, k)
    return without(find(queries, k + 1), self_rows, k)


def fidelity(found: Neighbors, truth: Neighbors, metric: str) -> dict[str, Doubles]:
    """The above for each query (q,); scores are distances by the metric "euclidean", else larger is nearer."""
    k = truth.ids.shape[1]
    there = found.ids >= 0
    same = (found.ids[:, :, None] == truth.ids[:, None, :]) & there[:, :, None]  # (q, found, true)
    last = truth.scores[:, -1:]
    near = found.scores <= last + EPSILON if metric == "euclidean" else found.scores >= last - EPSILON
    return {
        "recall": same.any(1).mean(1),
        "recall-by-distance": (near & there).sum(1) / k,
        "rbo": _overlap(same, k),
    }


def _overlap(same: NDArray[np.bool_], k: int) -> Doubles:
    """(q,) from which found item (q, k', k) is which true one."""
    padded = np.zeros((len(same), k, k), bool)
    padded[:, : same.shape[1]] = same[:, :k]
    depths = np.arange(1, k + 1)
    shared = padded.cumsum(1).cumsum(2)[:, depths - 1, depths - 1]  # of the first d of both
    weights = PERSISTENCE**depths
    seen = (1 - PERSISTENCE) / PERSISTENCE * (shared / depths * weights).sum(1)
    found: Doubles = seen + shared[:, -1] / k * weights[-1]
    return found


def timed(find: Find, queries: Floats, k: int) -> Speed:
    """Medians over rounds, of which the first, to warm up, does not count."""
    batches: list[float] = []
    singles: list[float] = []
    for turn in range(ROUNDS + 1):
        started = time.perf_counter()
        find(queries, k)
        spent = time.perf_counter() - started
        alone = [_seconds(find, queries[i : i + 1], k) for i in range(min(SINGLES, len(queries)))]
        if turn:
            batches.append(spent / len(queries))
            singles += alone
    p50, p95, p99 = (float(1e3 * each) for each in np.quantile(singles, [0.5, 0.95, 0.99]))
    return Speed(1 / float(np.median(batches)), 1 / float(np.mean(singles)), (p50, p95, p99))


def _seconds(find: Find, query: Floats, k: int) -> float:
    started = time.perf_counter()
    find(query, k)
    return time.perf_counter() - started


def ladder(limit: int, recall: Callable[[int], float], tuned: Sequence[int] = ()) -> list[int]:
    """Values of a search parameter: 1, 2, 4 and so on up to its limit, or until all is found or no more is; and the tuned."""
    values, value, before = [], 1, -1.0
    while True:
        now = recall(value)
        values.append(value)
        if value >= limit or now >= 0.999 or (value >= 64 and now - before < 0.001):
            return sorted({*values, *tuned})
        value, before = min(2 * value, limit), now
