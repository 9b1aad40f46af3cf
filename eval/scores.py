"""Pairs of texts with a score each: how well cosines put them in the same order."""

import numpy as np
from scipy.stats import rankdata

from retrieval.intervals import Doubles


def correlation_parts(similarities: np.ndarray[tuple[int], np.dtype[np.floating]], scores: Doubles) -> Doubles:
    """(n,) values whose mean is Spearman's rank correlation of similarities (n,) and scores (n,): products of standardised ranks,
    equal ones sharing their mean rank. Intervals over them hold the ranks fixed, so they are approximate.

    Zero everywhere if either side is constant, which orders nothing.
    """
    ranks = [rankdata(side) for side in (similarities, scores)]
    if any(side.std() == 0 for side in ranks):
        return np.zeros(len(scores))
    one, other = ((side - side.mean()) / side.std() for side in ranks)
    return np.asarray(one * other, np.float64)
