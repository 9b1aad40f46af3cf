"""k-means and its agreement with the classes, the geometry of classes, the linear probe: against scikit-learn, slow loops
and closed forms."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    completeness_score,
    homogeneity_score,
    normalized_mutual_info_score,
    silhouette_samples,
)

from retrieval.errors import UserError
from retrieval.eval.geometry import best_angle, geometry, item_values
from retrieval.eval.kmeans import agreement, kmeans
from retrieval.eval.probe import linear_probe


@pytest.fixture
def coded(clusters):
    vectors, labels = clusters
    return vectors, np.unique(labels, return_inverse=True)[1]


@pytest.mark.parametrize("first,second", [(3, 3), (1, 4), (40, 7), (120, 120), (1, 1), (120, 1)])
def test_agreement_is_scikit_learns(first, second):
    generator = np.random.default_rng(first + second)
    codes, clusters = generator.integers(0, first, 120), generator.integers(0, second, 120)
    if first == 120:
        codes, clusters = np.arange(120), np.arange(120) % second
    expected = {
        "nmi": normalized_mutual_info_score(codes, clusters),
        "ami": adjusted_mutual_info_score(codes, clusters),
        "ari": adjusted_rand_score(codes, clusters),
        "homogeneity": homogeneity_score(codes, clusters),
        "completeness": completeness_score(codes, clusters),
    }
    assert agreement(codes, clusters) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("count", [6, 40, 300])
def test_kmeans_is_as_tight_as_scikit_learns(count):
    """And settled: each item is in the cluster whose mean is nearest."""
    generator = np.random.default_rng(1)
    vectors = generator.standard_normal((1500, 8)).astype(np.float32)
    spread = []
    for run in range(4):
        found = kmeans(vectors, count, run)
        means = np.stack([vectors[found == c].mean(0) for c in range(count)])
        distances = ((vectors[:, None] - means) ** 2).sum(2)
        assert (distances.argmin(1) == found).mean() > 0.97
        spread.append(distances[np.arange(1500), found].sum())
    start = "k-means++" if count <= 256 else "random"
    theirs = [KMeans(count, init=start, n_init=1, random_state=run).fit(vectors).inertia_ for run in range(4)]
    assert np.mean(spread) < 1.03 * np.mean(theirs)
    assert (kmeans(vectors, count, 1) == kmeans(vectors, count, 1)).all()


def test_kmeans_finds_what_is_there_and_fills_every_cluster():
    points = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)
    assert agreement(np.repeat(np.arange(4), 5), kmeans(points, 4))["ari"] == 1
    many = np.random.default_rng(0).standard_normal((600, 3)).astype(np.float32)
    assert len(set(kmeans(many, 300).tolist())) == 300


def test_silhouette_is_scikit_learns(coded):
    vectors, codes = coded
    codes = np.append(codes[:-1], 6)  # alone
    found = item_values(vectors, codes, vectors, codes, itself=True)
    assert found["silhouette"] == pytest.approx(silhouette_samples(vectors, codes, metric="cosine"), abs=1e-6)


def test_nearest_mean_leaves_the_item_out(coded):
    vectors, codes = coded
    right = []
    for i, vector in enumerate(vectors.astype(np.float64)):
        others = np.arange(len(codes)) != i
        means = [vectors[others & (codes == c)].mean(0, dtype=np.float64) for c in range(codes.max() + 1)]
        right.append(np.argmax([mean @ vector / np.linalg.norm(mean) for mean in means]) == codes[i])
    found = item_values(vectors, codes, vectors, codes, itself=True)["nearest-mean"]
    assert found.tolist() == right and 0 < np.mean(right) < 1
    other = item_values(vectors[:5], np.array([0, 0, -1, 0, 0]), vectors, codes, itself=False)
    assert set(other) == {"nearest-mean"} and other["nearest-mean"][2] == 0


def test_geometry_is_what_loops_give(coded):
    vectors, codes = coded
    x, count = vectors.astype(np.float64), codes.max() + 1
    means = np.stack([x[codes == c].mean(0) for c in range(count)])
    centred = means - means.mean(0)
    within = sum(np.outer(v - means[c], v - means[c]) for v, c in zip(x, codes, strict=True)) / len(x)
    between = sum(np.outer(m, m) for m in centred) / count
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in combinations(centred, 2)]
    angles = [np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))) for a, b in combinations(means, 2)]
    variance = [((x[codes == c] - means[c]) ** 2).sum(1).mean() for c in range(count)]
    pairs = list(combinations(range(count), 2))
    lengths = np.linalg.norm(centred, axis=1)
    singular = np.linalg.svd(x, compute_uv=False)
    shares = singular / singular.sum()
    same = [((a - b) ** 2).sum() for (a, c), (b, e) in combinations(list(zip(x, codes, strict=True)), 2) if c == e]
    every = [np.exp(-2 * ((a - b) ** 2).sum()) for a, b in combinations(x, 2)]
    expected = {
        "nc1": np.trace(within @ np.linalg.pinv(between)) / count,
        "nc2-norms": lengths.std() / lengths.mean(),
        "nc2-angles": np.std(cosines),
        "nc2-simplex": np.mean([abs(c + 1 / (count - 1)) for c in cosines]),
        "cdnv": np.mean([(variance[a] + variance[b]) / (2 * ((means[a] - means[b]) ** 2).sum()) for a, b in pairs]),
        "angle": min(angles),
        "best-angle": best_angle(count, vectors.shape[1]),
        "alignment": np.mean(same),
        "uniformity": np.log(np.mean(every)),
        "effective-rank": np.exp(-(shares * np.log(shares)).sum()),
    }
    found = geometry(vectors, codes)
    assert found.values == pytest.approx(expected, rel=1e-5)
    assert tuple(sorted(found.smallest)) == pairs[int(np.argmin(angles))]
    assert found.spectrum == pytest.approx(singular, abs=1e-5)


def test_a_collapsed_simplex_has_reached_the_limit():
    """Every class a point, the points a simplex: the optimum that the paper proves."""
    corners = np.eye(5) - 1 / 5
    vectors = np.repeat(corners / np.linalg.norm(corners, axis=1)[:, None], 4, axis=0).astype(np.float32)
    found = geometry(vectors, np.repeat(np.arange(5), 4)).values
    assert found["angle"] == pytest.approx(found["best-angle"], abs=0.01) and found["best-angle"] == pytest.approx(
        104.4775, abs=1e-4
    )
    for name in ("nc1", "nc2-norms", "nc2-angles", "nc2-simplex", "cdnv", "alignment"):
        assert found[name] == pytest.approx(0, abs=1e-5), name


def test_best_angles():
    assert best_angle(2, 3) == pytest.approx(180) and best_angle(4, 3) == pytest.approx(109.4712, abs=1e-4)
    assert best_angle(5, 3) == best_angle(6, 3) == 90
    for points, optimum in ((8, 74.8585), (12, 63.4349), (24, 43.6908)):  # Tammes' problem, solved in three dimensions
        assert optimum <= best_angle(points, 3) < 90
    assert best_angle(100, 2) == pytest.approx(3.6)  # a circle has no gaps: the bound is reached


def test_the_probe(coded):
    vectors, codes = coded
    found = linear_probe(vectors, codes)
    assert 0.8 < found["linear-probe"] <= 1 and found["nc3"] > 0 and 0 <= found["nc4"] < 0.5
    corners = np.repeat(np.eye(4, dtype=np.float32), 25, axis=0)
    perfect = linear_probe(corners, np.repeat(np.arange(4), 25))
    assert perfect == pytest.approx({"linear-probe": 1, "nc3": 0, "nc4": 0}, abs=1e-3)
    assert linear_probe(vectors[:40], codes[:40] % 2)["linear-probe"] <= 1  # two classes have one row of weights
    with pytest.raises(UserError, match="--probe"):
        linear_probe(vectors, np.arange(len(codes)))


def test_silhouettes_of_collapsed_classes_are_between_minus_one_and_one():
    """Where all items of some classes are one point both distances are rounding noise; scikit-learn says 0 then."""
    points = np.random.default_rng(0).standard_normal((8, 384))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    vectors, codes = np.repeat(points, 6, axis=0), np.repeat(np.arange(8), 6)
    assert item_values(vectors, codes, vectors, codes, itself=True)["silhouette"] == pytest.approx(1, abs=1e-5)
    halved = 2 * codes + np.arange(48) % 2  # two classes a point
    assert (item_values(vectors, halved, vectors, halved, itself=True)["silhouette"] == 0).all()
