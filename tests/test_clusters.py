"""Clustering metrics against a slow loop, scikit-learn and pytorch-metric-learning."""

import numpy as np
import pytest
import reference
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.neighbors import KNeighborsClassifier

from retrieval.errors import UserError
from retrieval.eval import clusters as module
from retrieval.eval.clusters import cluster_metrics


def slow(vectors, labels):
    """R@1, R@10, R-precision and MAP@R, one query at a time."""
    found = []
    for i, row in enumerate(vectors.astype(np.float64)):
        r = labels.count(labels[i]) - 1
        if r == 0:
            continue
        order = sorted((j for j in range(len(labels)) if j != i), key=lambda j: -(vectors[j].astype(np.float64) @ row))
        relevant = [labels[j] == labels[i] for j in order]
        found.append(
            [relevant[0], any(relevant[:10]), sum(relevant[:r]) / r, reference.average_precision_at_r(relevant, r)]
        )
    return np.mean(found, axis=0)


def test_neighbour_metrics_equal_the_loop_with_classes_of_one(clusters):
    vectors, labels = clusters
    labels = [*labels[:-2], "alone", "solitary"]
    got = cluster_metrics(vectors, labels)
    assert [got[m] for m in ("r@1", "r@10", "r-precision", "map@r")] == pytest.approx(slow(vectors, labels), abs=1e-12)
    assert (got["n"], got["classes"], got["singletons"]) == (120, 8, 2)


def test_it_equals_pytorch_metric_learning(clusters):
    vectors, labels = clusters
    codes = np.unique(labels, return_inverse=True)[1]
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    theirs = AccuracyCalculator(include=names, k=19).get_accuracy(vectors, codes)
    got = cluster_metrics(vectors, labels)
    assert [got["r@1"], got["r-precision"], got["map@r"]] == pytest.approx([theirs[n] for n in names], abs=1e-6)


def test_the_vote_equals_scikit_learn(clusters):
    vectors, labels = clusters
    got = cluster_metrics(vectors, labels)["knn@20"]
    right = 0
    for i in range(len(labels)):
        others = np.arange(len(labels)) != i
        knn = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
        right += knn.fit(vectors[others], np.array(labels)[others]).predict(vectors[i : i + 1])[0] == labels[i]
    assert got == pytest.approx(right / len(labels))


def test_small_tiles_change_nothing(clusters, monkeypatch):
    vectors, labels = clusters
    whole = cluster_metrics(vectors, labels)
    monkeypatch.setattr("retrieval.neighbors.exact.HELD", 7 * len(vectors))
    assert cluster_metrics(vectors, labels) == pytest.approx(whole)


def test_perfect_and_random_clusters():
    eye = np.repeat(np.eye(4, dtype=np.float32), 6, axis=0)
    labels = np.repeat(list("abcd"), 6).tolist()
    perfect = cluster_metrics(eye, labels)
    assert all(perfect[name] == pytest.approx(1) for name in module.NAMES)
    shuffled = cluster_metrics(eye, np.random.default_rng(0).permutation(labels).tolist())
    assert shuffled["map@r"] < 0.4 and abs(shuffled["ari"]) < 0.3


def test_what_cannot_be_measured_is_refused(clusters):
    vectors, labels = clusters
    with pytest.raises(UserError, match="one class"):
        cluster_metrics(vectors, ["a"] * 120)
    with pytest.raises(UserError, match="one member"):
        cluster_metrics(vectors, [str(i) for i in range(120)])
    broken = vectors.copy()
    broken[3] = np.nan
    with pytest.raises(UserError, match="1 of 120 vectors are not finite"):
        cluster_metrics(broken, labels)
