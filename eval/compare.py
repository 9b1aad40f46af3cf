"""Is one system better than another? Differences query by query, with an interval, a test, and a correction for many tests.

One run of each: the paired bootstrap gives the interval, and the paired permutation test p: if the systems were alike, each
difference might as well have had the other sign (Smucker, Allan, Carterette, CIKM 2007, recommend both for retrieval).

Several runs of each, such as seeds of training: queries and runs both vary, and the interval is for other queries and other
runs. With d_q the difference of the systems' means over their runs on query q, and m the means of runs,

    variance = var(d)/Q + var(m_A)/S_A + var(m_B)/S_B

has Satterthwaite's degrees of freedom, of which two or three runs leave few, and the interval is Student's. What queries and
runs share is counted in both terms, so it errs on the wide side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t as student

from retrieval.errors import UserError
from retrieval.intervals import Doubles, bootstrap, group_totals
from retrieval.neighbors import Ints

from .values import PerQuery, Unit

NOT_SHOWN = "no difference shown"
FLIPS = 10_000
DRAWN = 2**22  # signs drawn at a time


@dataclass(frozen=True)
class Compared:
    """The means of two systems in one metric, how much the second is better, a 95 % interval, and p, later `adjusted` for all
    tests that were made with it. runs: of each system; units: how many queries, or classes, were compared."""

    metric: str
    means: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    p: float
    adjusted: float
    runs: tuple[int, int]
    units: int

    def verdict(self) -> str:
        """Which is better, if that is shown: the interval excludes 0, and so does the adjusted test."""
        if self.adjusted >= 0.05 or self.interval[0] <= 0 <= self.interval[1]:
            return NOT_SHOWN
        return "better" if self.difference > 0 else "worse"


def paired(systems: Sequence[Sequence[PerQuery]]) -> tuple[list[list[PerQuery]], int]:
    """The runs of each system on the queries that all of them have, in one order; and how many queries are left out.

    Raises UserError where they have none in common, a run names a query twice, or their classes differ.
    """
    for run in (run for runs in systems for run in runs):
        if len(set(run.ids)) < len(run.ids):
            repeated = next(name for name in run.ids if run.ids.count(name) > 1)
            raise UserError(
                f"query {repeated!r} stands twice in one evaluation; queries need names of their own to be paired"
            )
    if len({run.groups is None for runs in systems for run in runs}) > 1:
        raise UserError(
            "some of the evaluations have classes and some have not; they must be of the same queries and kind"
        )
    every = [set(run.ids) for runs in systems for run in runs]
    common = set.intersection(*every)
    if not common:
        raise UserError("the evaluations have no query in common; they must be of the same queries, named alike")
    order = [name for name in systems[0][0].ids if name in common]
    rows = [[_rows(run, order) for run in runs] for runs in systems]
    for run in (run for runs in rows for run in runs):
        _refuse_other_classes(rows[0][0], run)
    return rows, len(set.union(*every)) - len(common)


def compare(
    first: Sequence[PerQuery], second: Sequence[PerQuery], metric: str, *, unit: Unit = "query", seed: int = 0
) -> Compared:
    """Of runs that are `paired`. unit: what might have been another: queries, or whole classes with all their queries."""
    if any(run.ids != first[0].ids for run in (*first, *second)):
        raise UserError("the evaluations are not of the same queries in one order; `paired` puts them so")
    one, other = (np.stack([run.values[metric] for run in runs]) for runs in (first, second))
    difference = other.mean(0) - one.mean(0)
    groups = first[0].group_codes[1] if unit == "class" else None
    if len(one) == len(other) == 1:
        low, high = bootstrap(difference[:, None], groups=groups, seed=seed, bounded=False)[0]
        interval, p = (float(low), float(high)), flipped(difference, groups, seed)
    else:
        interval, p = mixed(one, other, groups)
    units = len(difference) if groups is None else int(groups.max()) + 1
    means = float(one.mean()), float(other.mean())
    return Compared(metric, means, float(difference.mean()), interval, p, p, (len(one), len(other)), units)


def flipped(difference: Doubles, groups: Ints | None = None, seed: int = 0, flips: int = FLIPS) -> float:
    """p of the paired permutation test of differences (q,): how often random signs, of queries or of whole groups, make a sum
    as far from 0; the case itself counts, so that p is never 0."""
    sums = group_totals(difference[:, None], groups)[0][:, 0]
    generator, found = np.random.default_rng(seed), 0
    reached = abs(sums.sum()) * (1 - 1e-12)
    step = max(1, DRAWN // len(sums))
    for start in range(0, flips, step):
        bits = generator.integers(0, 2, (min(step, flips - start), len(sums)), dtype=np.int8)
        found += int((np.abs(2 * (bits @ sums) - sums.sum()) >= reached).sum())
    return (found + 1) / (flips + 1)


def mixed(one: Doubles, other: Doubles, groups: Ints | None = None) -> tuple[tuple[float, float], float]:
    """Interval and p of the difference of values (runs, q) of two systems, of which at least one has several runs."""
    difference = other.mean(0) - one.mean(0)
    totals, sizes = group_totals(difference[:, None], groups)
    if len(sizes) < 2:
        raise UserError("the evaluations have one query, or class, in common; several runs are compared from two on")
    deviations = (totals[:, 0] - sizes * difference.mean()) / sizes.mean()  # of a ratio of means
    parts = [(float(deviations.var(ddof=1)) / len(sizes), len(sizes) - 1)]
    parts += [(float(runs.mean(1).var(ddof=1)) / len(runs), len(runs) - 1) for runs in (one, other) if len(runs) > 1]
    variance = sum(part for part, _ in parts)
    centre = float(difference.mean())
    if variance == 0:
        return (centre, centre), 1.0 if centre == 0 else 0.0
    freedom = variance**2 / sum(part**2 / free for part, free in parts)
    half = float(student.ppf(0.975, freedom)) * variance**0.5
    return (centre - half, centre + half), float(2 * student.sf(abs(centre) / variance**0.5, freedom))


def corrected(found: Sequence[Compared]) -> list[Compared]:
    """Comparisons that were made together, each with its p adjusted for all of them (Holm)."""
    return [replace(each, adjusted=p) for each, p in zip(found, holm([each.p for each in found]), strict=True)]


def told_p(p: float) -> str:
    """A p for people, after the letter."""
    return "< .001" if p < 0.001 else f"= {p:.3f}".replace("0.", ".")


def holm(ps: Sequence[float]) -> list[float]:
    """Each p adjusted for all of them, so that the chance of any false alarm stays below the level (Holm, 1979)."""
    order = np.argsort(ps)
    rising = np.maximum.accumulate(np.asarray(ps)[order] * np.arange(len(ps), 0, -1))
    adjusted = np.empty(len(ps))
    adjusted[order] = rising.clip(max=1)
    return [float(p) for p in adjusted]


def _refuse_other_classes(one: PerQuery, other: PerQuery) -> None:
    if one.groups is not None and other.groups is not None and one.groups != other.groups:
        at = next(row for row, (a, b) in enumerate(zip(one.groups, other.groups, strict=True)) if a != b)
        raise UserError(
            f"query {one.ids[at]!r} is of class {one.groups[at]!r} in one evaluation and {other.groups[at]!r} in another; "
            f"they are not of the same queries, or the labels are in another order"
        )


def _rows(run: PerQuery, order: list[str]) -> PerQuery:
    place = {name: row for row, name in enumerate(run.ids)}
    rows = np.array([place[name] for name in order])
    groups = None if run.groups is None else [run.groups[row] for row in rows.tolist()]
    return PerQuery(order, groups, {name: each[rows] for name, each in run.values.items()})
