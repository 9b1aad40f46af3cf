"""A linear probe: how well a linear classifier of frozen vectors tells the classes apart on items that it has not seen."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from retrieval.errors import UserError
from retrieval.neighbors import Floats, Ints

SHARE = 0.2  # of each class, held out
ROUNDS = 1000


def linear_probe(vectors: Floats, codes: Ints, seed: int = 0) -> dict[str, float]:
    """Logistic regression on four fifths of each class of vectors (n, d), judged on the rest. With its weights W (a row a
    class), class means M less their mean, and what it decides (Papyan, Han, Donoho, PNAS 2020):

    linear-probe    accuracy on the held-out items
    nc3             ‖W/‖W‖ − M/‖M‖‖ (Frobenius): 0 when the classifier is the class means
    nc4             share of held-out items that it and the nearest class mean decide differently

    Raises UserError where a class has fewer than two items, or the fit does not converge.
    """
    sizes = np.bincount(codes)
    if sizes.min() < 2 or int(SHARE * len(codes)) < len(sizes):
        raise UserError("--probe: needs five items a class or so, and two of each; leave out small classes, or --probe")
    train, test = train_test_split(np.arange(len(codes)), test_size=SHARE, random_state=seed, stratify=codes)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            fitted = LogisticRegression(max_iter=ROUNDS).fit(vectors[train], codes[train])
        except ConvergenceWarning:
            raise UserError(f"--probe: logistic regression did not settle in {ROUNDS:,} rounds; leave it out") from None
    weights = fitted.coef_ if len(sizes) > 2 else np.vstack([-fitted.coef_, fitted.coef_])
    means = np.stack([vectors[train][codes[train] == c].mean(0, dtype=np.float64) for c in range(len(sizes))])
    decided = fitted.predict(vectors[test])
    nearest = (vectors[test] @ means.T - (means**2).sum(1) / 2).argmax(1)
    weights, centred = weights - weights.mean(0), means - means.mean(0)
    return {
        "linear-probe": float((decided == codes[test]).mean()),
        "nc3": float(np.linalg.norm(weights / np.linalg.norm(weights) - centred / np.linalg.norm(centred))),
        "nc4": float((decided != nearest).mean()),
    }
