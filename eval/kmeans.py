"""k-means (Lloyd), and how well its clusters agree with the classes."""

import numpy as np
import torch
from scipy.special import gammaln
from sklearn.cluster import kmeans_plusplus
from sklearn.metrics import adjusted_rand_score, homogeneity_completeness_v_measure, mutual_info_score

from retrieval.neighbors import Floats, Ints
from retrieval.neighbors.product import Block

from .labels import sums

SPREAD_UP_TO = 256  # clusters that start by k-means++; more start at random items, as FAISS's do
SAMPLED = 100  # items a cluster that k-means++ chooses from
ROUNDS = 100
STILL = 1e-4  # of the mean variance: centres that move less, all together, have arrived (scikit-learn's tolerance)
TILE = 2**21  # distances held at a time: 8 MiB


def kmeans(vectors: Floats, count: int, seed: int = 0) -> Ints:
    """The cluster (n,) of each vector (n, d). An empty cluster moves to the item that is farthest from its centre."""
    centres = _first_centres(vectors, count, np.random.default_rng(seed))
    arrived = STILL * float(vectors.var(axis=0, dtype=np.float64).mean())
    assigned = np.full(len(vectors), -1)
    worth = np.full(len(vectors), -np.inf, np.float32)
    moved = np.ones(count, bool)
    for _ in range(ROUNDS):
        _assign(vectors, centres, moved, assigned, worth)
        means = _means(vectors, assigned, worth, centres)
        shift = ((means - centres).astype(np.float64) ** 2).sum(axis=1)
        moved, centres = shift > 0, means
        if shift.sum() <= arrived:
            break
    return assigned


def agreement(codes: Ints, clusters: Ints) -> dict[str, float]:
    """Normalised and adjusted mutual information, adjusted Rand index, homogeneity and completeness, as scikit-learn defines
    them; the v-measure is nmi by another name."""
    homogeneity, completeness, v_measure = homogeneity_completeness_v_measure(codes, clusters)
    return {
        "nmi": float(v_measure),
        "ami": adjusted_mutual_information(codes, clusters),
        "ari": float(adjusted_rand_score(codes, clusters)),
        "homogeneity": float(homogeneity),
        "completeness": float(completeness),
    }


def adjusted_mutual_information(codes: Ints, clusters: Ints) -> float:
    """(MI − E[MI]) / (mean entropy − E[MI]); the expectation, over partitions with clusters of these sizes (Vinh, Epps, Bailey,
    JMLR 2010, equation 24a), depends on sizes only: each pair of sizes is summed once, however many clusters have it."""
    sizes = [np.unique(_sizes(side), return_counts=True) for side in (codes, clusters)]
    n = len(codes)
    expected = 0.0
    (first, first_times), (second, second_times) = sizes
    log_factorial = gammaln(np.arange(n + 1) + 1.0)
    for a, times in zip(first.tolist(), first_times.tolist(), strict=True):
        for b, other in zip(second.tolist(), second_times.tolist(), strict=True):
            both = np.arange(max(1, a + b - n), min(a, b) + 1)
            log_chance = (
                log_factorial[a] + log_factorial[b] + log_factorial[n - a] + log_factorial[n - b] - log_factorial[n]
                - log_factorial[both] - log_factorial[a - both] - log_factorial[b - both] - log_factorial[n - a - b + both]
            )  # fmt: skip
            expected += times * other * float((both / n * np.log(n * both / (a * b)) * np.exp(log_chance)).sum())
    entropies = [-float((times * (size / n) * np.log(size / n)).sum()) for size, times in sizes]
    gap = sum(entropies) / 2 - expected
    found = float(mutual_info_score(codes, clusters)) - expected
    if abs(gap) < 1e-12 * max(1.0, expected):  # one cluster, or each item its own: chance does as well as can be
        return 1.0
    return found / gap


def _sizes(side: Ints) -> Ints:
    counts = np.bincount(side)
    return counts[counts > 0]


def _first_centres(vectors: Floats, count: int, generator: np.random.Generator) -> Floats:
    if count > SPREAD_UP_TO:
        return vectors[generator.choice(len(vectors), count, replace=False)]
    sample = vectors
    if len(vectors) > SAMPLED * count:
        sample = vectors[generator.choice(len(vectors), SAMPLED * count, replace=False)]
    chosen: Floats = kmeans_plusplus(sample, count, random_state=int(generator.integers(2**31)))[0]
    return chosen


def _assign(vectors: Floats, centres: Floats, moved: Ints, assigned: Ints, worth: Floats) -> None:
    """The nearest centre of each item. Items whose centre stands still are compared with those that moved only."""
    unsure = moved[assigned] | (assigned < 0)
    _compare(vectors, centres, np.arange(len(centres)), np.flatnonzero(unsure), assigned, worth, anew=True)
    if not unsure.all():
        _compare(vectors, centres, np.flatnonzero(moved), np.flatnonzero(~unsure), assigned, worth, anew=False)


def _compare(
    vectors: Floats, centres: Floats, which: Ints, items: Ints, assigned: Ints, worth: Floats, *, anew: bool
) -> None:
    if not len(which) or not len(items):
        return
    table = torch.from_numpy(centres[which])
    step = max(1, TILE // len(which))
    block = Block(table, torch.linalg.vector_norm(table, dim=1), "euclidean", "float32", step)
    for start in range(0, len(items), step):
        some = items[start : start + step]
        scores = block.scores(torch.from_numpy(vectors[some])).numpy()  # x·c − ‖c‖²/2, larger is nearer
        best = scores.argmax(axis=1)
        value = scores[np.arange(len(some)), best]
        nearer = np.ones(len(some), bool) if anew else value > worth[some]
        assigned[some[nearer]], worth[some[nearer]] = which[best[nearer]], value[nearer]


def _means(vectors: Floats, assigned: Ints, worth: Floats, centres: Floats) -> Floats:
    sizes = np.bincount(assigned, minlength=len(centres))
    means = (sums(vectors, assigned, len(centres)).numpy() / np.maximum(sizes, 1)[:, None]).astype(np.float32)
    empty = np.flatnonzero(sizes == 0)
    if len(empty):
        distances = np.einsum("nd,nd->n", vectors, vectors) / 2 - worth
        means[empty] = vectors[np.argpartition(-distances, len(empty))[: len(empty)]]
    return means
