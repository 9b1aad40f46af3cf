"""Pairs of texts with a score each: how well cosines put them in the same order."""

from typing import Any

import numpy as np
from scipy.stats import rankdata

from retrieval.intervals import Doubles

Numbers = np.ndarray[Any, np.dtype[np.floating]]


def correlation_parts(similarities: Numbers, scores: Numbers) -> Doubles:
    """(n,) values whose mean is Spearman's rank correlation ρ of similarities (n,) and scores (n,), equal ones sharing their
    mean rank: ρ plus each pair's influence on it (Hampel, JASA 69, 1974; Croux and Dehon, Stat. Methods Appl. 19, 2010), so
    that intervals over them are those of ρ. Of the plain products of ranks they would be far too wide.

    Zero everywhere if either side is constant, which orders nothing.
    """
    places = [(rankdata(side) - 0.5) / len(scores) for side in (similarities, scores)]
    if any(place.std() == 0 for place in places):
        return np.zeros(len(scores))
    one, other = ((place - place.mean()) / place.std() for place in places)
    correlation = (one * other).mean()
    moved = [
        _below(similarities, other - correlation * one) / places[0].std(),
        _below(scores, one - correlation * other) / places[1].std(),
    ]
    own = one * other - correlation * (one**2 + other**2) / 2
    return np.asarray(correlation + own + moved[0] + moved[1], np.float64)


def _below(values: Numbers, weights: Doubles) -> Doubles:
    """How much a pair changes ρ by moving others' places: for each of values (n,) the mean of the weights (n,) of all larger
    ones, those of its equals by half."""
    _, which = np.unique(values, return_inverse=True)
    together = np.bincount(which, weights)
    above = together[::-1].cumsum()[::-1] - together
    return np.asarray((above + together / 2)[which] / len(values), np.float64)
