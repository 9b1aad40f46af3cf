"""Which setting of a loss is best? Parts of a training file to train on and to judge by, settings to try, and what is shown.

A sweep holds out a part of the training file, tries every setting on the rest with one seed, and the best few with more. Nothing
here looks at a test set. The best of many settings looks better than it is: its figure on the held-out part is no estimate of
how it will do elsewhere, which is why a test set is wanted afterwards.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import norm, qmc
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from retrieval.errors import UserError
from retrieval.intervals import Doubles, bootstrap
from retrieval.neighbors import Ints

from .compare import Compared, compare, corrected, mixed
from .values import Interval, PerQuery

HELD_OUT = 5  # one part of so many is held out
FINALISTS = 3
APART = 0.02  # of the range, at least, between settings that are tried
CANDIDATES = 1024  # settings among which the next one is chosen
Setting = Mapping[str, float]
Axes = Mapping[str, Sequence[float]]
"""By the name of a setting, the values to try; in an adaptive search the ends of a range."""


@dataclass(frozen=True)
class Point:
    """A loss, the settings that were tried with it, how many runs it got, their mean and its 95 % interval; against the best: the
    paired difference, None for the best itself."""

    loss: str
    method: str
    setting: Setting
    runs: int
    mean: float
    interval: Interval
    against_best: Compared | None

    @property
    def label(self) -> str:
        """The setting for people."""
        return " ".join([self.method, *(f"{name}={value:g}" for name, value in self.setting.items())])

    @property
    def verdict(self) -> str:
        """Against the best; another one may be shown to be better where it was run fewer times."""
        return "best" if self.against_best is None else self.against_best.verdict()


def hold_out(codes: Ints, seed: int) -> tuple[Ints, Ints]:
    """Rows to train on and rows to judge by: a fifth of each class (n,) of four items or more, at least two, for a class of one
    has no pair. Raises UserError if no class is that large."""
    order = np.random.default_rng(seed).permutation(len(codes))
    sizes = np.bincount(codes)
    taken = np.where(sizes >= 4, np.maximum(2, sizes // HELD_OUT), 0)
    by_class = order[np.argsort(codes[order], kind="stable")]
    place = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    held = place < taken[codes[by_class]]
    if np.count_nonzero(taken) < 2:
        raise UserError(
            "fewer than two classes have the four items that it takes to hold out two; give --held-out FILE"
        )
    return np.sort(by_class[~held]), np.sort(by_class[held])


def hold_out_groups(groups: Ints, seed: int) -> tuple[Ints, Ints]:
    """The same for pairs: whole groups (n,) with at most a fifth of the pairs, so that nothing to judge by was trained on."""
    names, sizes = np.unique(groups, return_counts=True)
    chosen, room = [], len(groups) // HELD_OUT
    for at in np.random.default_rng(seed).permutation(len(names)).tolist():
        if sizes[at] <= room:
            chosen.append(names[at])
            room -= sizes[at]
    if len(names) < 2 * HELD_OUT or not chosen:
        raise UserError(
            f"the pairs hang together in {len(names):,} groups, too few to hold out a fifth; give --held-out FILE"
        )
    held = np.isin(groups, chosen)
    return np.flatnonzero(~held), np.flatnonzero(held)


def grid(axes: Axes) -> list[dict[str, float]]:
    """Every combination of the values."""
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def propose(axes: Axes, tried: Sequence[Setting], scores: Sequence[float], seed: int) -> dict[str, float]:
    """The next setting of an adaptive search within the ranges of `axes`, from the scores of those tried; larger is better.

    The first few are quasi-random. Then each is where a Gaussian process expects the largest improvement over the best so far
    (Jones, Schonlau, Welch, Efficient Global Optimization, 1998, equation 15). Values have three digits. The same
    history gives the same setting, so that an interrupted search goes on as if it had not been.
    """
    points = qmc.Halton(len(axes), scramble=True, rng=seed).random(CANDIDATES)
    start = 2 * len(axes) + 2
    if len(tried) < start:
        return _setting(axes, points[len(tried)])
    seen = np.array([_place(axes, setting) for setting in tried])
    kernel = ConstantKernel(1.0) * Matern(np.full(len(axes), 0.3), (0.05, 10.0), nu=2.5) + WhiteKernel(0.01, (1e-5, 1))
    model = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=2, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a bound of the kernel is reached, which does no harm
        model.fit(seen, scores)
    mean, deviation = model.predict(points, return_std=True)
    best = model.predict(seen).max()  # as the model sees it: the scores themselves are noisy
    away = (mean - best) / np.maximum(deviation, 1e-12)
    gain = deviation * (away * norm.cdf(away) + norm.pdf(away))
    apart = cdist(points, seen).min(1)
    gain[apart < APART] = -1  # a setting that is as good as tried teaches nothing
    if gain.max() < 0:  # nothing else is left of the range
        gain = apart
    return _setting(axes, points[int(gain.argmax())])


def _place(axes: Axes, setting: Setting) -> list[float]:
    """A setting as a point of the unit cube."""
    place = []
    for name, values in axes.items():
        low, high = _scaled(name, min(values)), _scaled(name, max(values))
        place.append((_scaled(name, setting[name]) - low) / (high - low or 1))
    return place


def _setting(axes: Axes, place: Doubles) -> dict[str, float]:
    setting = {}
    for (name, values), x in zip(axes.items(), place.tolist(), strict=True):
        low, high = _scaled(name, min(values)), _scaled(name, max(values))
        setting[name] = float(f"{_unscaled(name, low + x * (high - low)):.3g}")
    return setting


def _scaled(name: str, value: float) -> float:
    """Temperatures by their logarithm; hardness by that of 1 + κ, for 0 is a setting; τ⁺ as it is."""
    return float(np.log(value) if name == "temperature" else value if name == "tau_plus" else np.log1p(value))


def _unscaled(name: str, value: float) -> float:
    return float(np.exp(value) if name == "temperature" else value if name == "tau_plus" else np.expm1(value))


def finalists(tried: Mapping[str, PerQuery], metric: str) -> list[str]:
    """The losses that are worth more runs: the best few by one."""
    return sorted(tried, key=lambda loss: -float(tried[loss].values[metric].mean()))[:FINALISTS]


def judge(
    runs: Mapping[str, Sequence[PerQuery]], named: Mapping[str, tuple[str, Setting]], metric: str, seed: int = 0
) -> list[Point]:
    """Every loss by its runs on the same queries, the best first: the best mean among those with the most runs, then by mean.

    named: each loss's method and setting. Differences to the best are corrected for their number (Holm).
    """
    means = {loss: float(np.mean([run.values[metric].mean() for run in each])) for loss, each in runs.items()}
    most = max(len(each) for each in runs.values())
    order = sorted(runs, key=lambda loss: (-means[loss], loss))
    best = next(loss for loss in order if len(runs[loss]) == most)
    others = [loss for loss in order if loss != best]
    against = corrected([compare(runs[best], runs[loss], metric, seed=seed) for loss in others])
    compared = dict(zip(others, against, strict=True))
    return [
        Point(loss, *named[loss], len(runs[loss]), means[loss], _interval(runs[loss], metric, seed), compared.get(loss))
        for loss in (best, *others)
    ]


def _interval(runs: Sequence[PerQuery], metric: str, seed: int) -> Interval:
    """Over queries; of several runs over queries and runs, as the difference from a system that always scores 0."""
    values = np.stack([run.values[metric] for run in runs])
    if len(values) > 1:
        low, high = mixed(np.zeros((1, values.shape[1])), values)[0]
        # Of what is never below 0, or above 1, its mean is not either.
        return (low if values.min() < 0 else max(0.0, low)), (high if values.max() > 1 else min(1.0, high))
    low, high = bootstrap(values.T, seed=seed)[0]
    return float(low), float(high)
