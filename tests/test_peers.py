"""`--like`: other tools' figures, against those tools where they install, and else against their definitions."""

import random

import numpy as np
import pytest
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import v_measure_score

from retrieval.eval.peers import dino, mteb, oml, pml


def test_pytorch_metric_learning(clusters):
    vectors, labels = clusters
    labels = [*labels[:-1], "alone"]
    codes = np.unique(labels, return_inverse=True)[1]
    names = (
        "precision_at_1",
        "r_precision",
        "mean_average_precision_at_r",
        "mean_average_precision",
        "mean_reciprocal_rank",
    )
    theirs = AccuracyCalculator(include=names).get_accuracy(vectors, codes)
    ours = pml(vectors, labels)
    assert {name: ours[name] for name in names} == pytest.approx(theirs, abs=1e-6)
    clustered = AccuracyCalculator(include=("NMI", "AMI")).get_accuracy(vectors, codes)
    assert {name: ours[name] for name in ("NMI", "AMI")} == pytest.approx(clustered, abs=0.15)  # of another start


def test_open_metric_learning(clusters):
    """By its definitions: a query with one hit among its first k has a map of that hit's precision alone."""
    vectors, labels = clusters
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    np.fill_diagonal(cosines, -2)
    expected = {f"{name}/{k}": [] for name in ("cmc", "precision", "map") for k in (1, 5, 10)}
    for i, row in enumerate(cosines):
        hits = [labels[j] == labels[i] for j in np.argsort(-row, kind="stable")[:-1]]
        for k in (1, 5, 10):
            top = hits[:k]
            expected[f"cmc/{k}"].append(any(top))
            expected[f"precision/{k}"].append(sum(top) / min(k, sum(hits)))
            precisions = [sum(top[: n + 1]) / (n + 1) for n, hit in enumerate(top) if hit]
            expected[f"map/{k}"].append(np.mean(precisions) if precisions else 0)
    assert oml(vectors, labels) == pytest.approx({name: np.mean(each) for name, each in expected.items()})


def test_dino(clusters):
    vectors, labels = clusters
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -2)
    names = sorted(set(labels))
    for k in (10, 20, 100):
        right = 0
        for i, row in enumerate(cosines):
            best = np.argsort(-row)[:k]
            votes = [sum(np.exp(row[j] / 0.07) for j in best if labels[j] == name) for name in names]
            right += names[int(np.argmax(votes))] == labels[i]
        assert dino(vectors, labels)[f"{k}-NN top1"] == pytest.approx(100 * right / len(labels))


@pytest.mark.slow
def test_mteb():
    generator = np.random.default_rng(0)
    labels = [str(i % 5) for i in range(4000)]
    vectors = (np.eye(5)[np.arange(4000) % 5] + generator.standard_normal((4000, 5)) * 0.4).astype(np.float32)
    drawn = random.Random(42)
    rows = drawn.sample(range(4000), 160)
    model = MiniBatchKMeans(n_clusters=5, batch_size=512, init="k-means++", n_init=1, random_state=42)
    scores = []
    for _ in range(10):
        some = [rows[i] for i in drawn.choices(range(160), k=16_384)]
        scores.append(v_measure_score([labels[i] for i in some], model.fit_predict(vectors[some])))
    assert mteb(vectors, labels) == pytest.approx({"v_measure": np.mean(scores), "v_measure_std": np.std(scores)})
