"""How sure a mean over queries is: bootstrap intervals, over queries or over whole groups of them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
RESAMPLES = 1000
DRAWN = 2**22  # numbers drawn at a time: 32 MB


def bootstrap(
    values: Doubles,
    *,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    bounded: bool | Sequence[bool] = True,
) -> Doubles:
    """95 % percentile intervals (m, 2) of the means of values (q, m) (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, §13.3).

    Queries are drawn with replacement; with groups (q,), such as classes, whole groups are, for queries of one group are not
    independent. bounded: values, all or by column, are in 0…1; a column that is 1 throughout, or 0, then has the interval of the rule of three,
    3/units wide, and not none.
    """
    totals, sizes = group_totals(values, groups)
    units = len(totals)
    found = np.empty((resamples, values.shape[1]))
    generator = np.random.default_rng(seed)
    step = max(1, DRAWN // units)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = generator.integers(0, units, (count, units)) + np.arange(count)[:, None] * units
        times = np.bincount(drawn.ravel(), minlength=count * units).reshape(count, units).astype(np.float64)
        found[start : start + count] = (times @ totals) / (times @ sizes)[:, None]
    ends = np.quantile(found, [0.025, 0.975], axis=0).T
    within = np.broadcast_to(bounded, values.shape[1])
    for column, (low, high) in enumerate(zip(values.min(0), values.max(0), strict=True)):
        if within[column] and low == high and low in (0.0, 1.0):
            ends[column] = [max(0.0, low - 3 / units), low] if low else [0.0, min(1.0, 3 / units)]
    return ends


def group_totals(values: Doubles, groups: NDArray[np.int64] | None) -> tuple[Doubles, Doubles]:
    """Sums (g, m) and sizes (g,) of what is drawn as one."""
    if groups is None:
        return values, np.ones(len(values))
    _, codes = np.unique(groups, return_inverse=True)
    totals = np.zeros((int(codes.max()) + 1, values.shape[1]))
    np.add.at(totals, codes, values)
    return totals, np.bincount(codes).astype(np.float64)
