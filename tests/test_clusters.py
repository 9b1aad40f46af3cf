"""Clustering metrics against a slow loop, scikit-learn and pytorch-metric-learning."""

import numpy as np
import pytest
from reference import average_precision_at_r
from sklearn.neighbors import KNeighborsClassifier

from retrieval.errors import UserError
from retrieval.eval import clusters as module
from retrieval.eval.clusters import Settings, cluster_metrics, confusion, evaluate_clusters
from retrieval.eval.labels import levels
from retrieval.eval.neighborhood import vote
from retrieval.neighbors import exact_neighbors

KS = (1, 3, 10)


def slow(vectors, labels, related=str.__eq__, reference=None):
    """Every metric that depends on the ranking only, one query at a time."""
    base, base_labels = reference or (vectors, labels)
    found = []
    for i, row in enumerate(vectors.astype(np.float64)):
        others = [j for j in range(len(base)) if reference or j != i]
        order = sorted(others, key=lambda j: (-np.float32(base[j].astype(np.float64) @ row), j))
        relevant = [related(labels[i], base_labels[j]) for j in order]
        r = sum(relevant)
        if r == 0:
            continue
        precision = [sum(relevant[: n + 1]) / (n + 1) for n in range(len(order))]
        gained = [p * hit for p, hit in zip(precision, relevant, strict=True)]
        values = {f"r@{k}": any(relevant[:k]) for k in KS}
        for k in KS[1:]:
            values |= {
                f"p@{k}": precision[k - 1],
                f"map@{k}": sum(gained[:k]) / r,
                f"map@{k}/min": sum(gained[:k]) / min(k, r),
            }
        values |= {
            "r-precision": precision[r - 1],
            "map@r": average_precision_at_r(relevant, r),
            "mrr": 1 / (relevant.index(True) + 1),
        }
        found.append(values)
    return {name: [float(each[name]) for each in found] for name in found[0]}


def assert_values(found, expected):
    for name, values in expected.items():
        assert found.queries.values[name] == pytest.approx(values, abs=1e-12), name


def test_neighbour_metrics_equal_the_loop_with_classes_of_one(clusters):
    vectors, labels = clusters
    labels = [*labels[:-2], "alone", "solitary"]
    found = evaluate_clusters(vectors, labels, Settings(ks=KS))
    assert_values(found, slow(vectors, labels))
    expected = {"n": 120, "queries": 118, "unanswerable": 2, "tied": 0, "classes": 8, "singletons": 2}
    assert found.counts == expected
    flat = cluster_metrics(vectors, labels)
    assert (flat["n"], flat["classes"], flat["singletons"]) == (120, 8, 2)
    assert flat["map@r"] == found.means()["map@r"]


def test_a_reference_of_its_own(clusters):
    vectors, labels = clusters
    queries, asked = vectors[::3], [*labels[::3][:-1], "unknown"]
    base, held = np.delete(vectors, np.s_[::3], 0), [label for i, label in enumerate(labels) if i % 3]
    found = evaluate_clusters(queries, asked, Settings(ks=KS), reference=(base, held))
    assert_values(found, slow(queries, asked, reference=(base, held)))
    assert found.counts["unanswerable"] == 1 and found.queries.ids == [str(i) for i in range(39)]
    same = evaluate_clusters(vectors, labels, reference=(vectors, labels))
    assert same.means()["r@1"] == 1  # nothing is left out: each finds itself


def test_several_labels_an_item(clusters):
    vectors, _ = clusters
    generator = np.random.default_rng(3)
    names = [f"n{i}" for i in range(70)]  # more than a word of bits
    labels = [" | ".join(generator.choice(names, generator.integers(0, 4), replace=False)) for _ in vectors]

    def related(one, other):
        return bool(set(one.split(" | ")) & set(other.split(" | ")) - {""})

    found = evaluate_clusters(vectors, labels, Settings(ks=KS, separator="|"))
    expected = slow(vectors, labels, related)
    assert_values(found, expected)
    assert 0 < found.counts["unanswerable"] == 120 - len(expected["mrr"])
    assert not {"nmi", "silhouette", "knn@20", "classes"} & {*found.means(), *found.counts}


def test_levels_of_a_hierarchy():
    assert levels(["a/b/c", "a/ d", "e"], "/") == [["a", "a", "e"], ["a/b", "a/d", "e"], ["a/b/c", "a/d", "e"]]


def test_a_sample_is_some_of_the_queries_among_all_items(clusters):
    vectors, labels = clusters
    whole, some = (evaluate_clusters(vectors, labels, Settings(sample=sample, seeds=0)) for sample in (None, 30))
    assert len(some.rows) == 30 and some.counts["n"] == 120
    for name, values in some.queries.values.items():
        assert values == pytest.approx(whole.queries.values[name][some.rows], abs=1e-12)


@pytest.mark.parametrize("metric", ["euclidean", "inner_product"])
def test_other_metrics_rank_by_themselves(clusters, metric):
    vectors, labels = clusters
    stretched = vectors * np.linspace(1, 3, len(vectors), dtype=np.float32)[:, None]
    found = evaluate_clusters(stretched, labels, Settings(metric=metric))
    ids = exact_neighbors(stretched, stretched, 1, metric=metric, self_rows=np.arange(120)).ids[:, 0]
    assert found.queries.values["r@1"].tolist() == [float(labels[j] == labels[i]) for i, j in enumerate(ids)]
    assert "knn@20" not in found.means() and "nmi" in found.means()


def test_equal_scores_are_ranked_by_row_and_counted():
    vectors = np.tile(np.float32([[0.6, 0.8]]), (6, 1))
    found = evaluate_clusters(vectors, list("aabbbb"), Settings(seeds=0))
    assert found.counts["tied"] == 6
    assert found.queries.values["r@1"].tolist() == [1, 1, 0, 0, 0, 0]


def test_what_is_mixed_up(clusters):
    eye = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 1, 1, 2, 2, 2]]
    labels = list("aabbbcccc")  # one b lies among the a, one c among the b
    found = evaluate_clusters(eye, labels, Settings(seeds=0))
    mixed = confusion(found)
    slow_shares = {}
    for row, ids in enumerate(found.nearest.ids):
        for j in ids[: labels.count(labels[row]) - 1]:
            if labels[j] != labels[row]:
                slow_shares.setdefault((labels[row], labels[j]), []).append((row, int(j)))
    looked = {name: labels.count(name) * (labels.count(name) - 1) for name in "abc"}
    assert {(m.query, m.neighbor): m.share for m in mixed} == pytest.approx(
        {pair: len(each) / looked[pair[0]] for pair, each in slow_shares.items()}
    )
    assert all(m.example in slow_shares[m.query, m.neighbor] for m in mixed)
    assert [m.share for m in mixed] == sorted((m.share for m in mixed), reverse=True)


@pytest.mark.parametrize("metric,most", [("cosine", max), ("inner_product", max), ("euclidean", min)])
def test_the_example_of_what_is_mixed_up_is_the_pair_most_alike(clusters, metric, most):
    vectors, labels = clusters
    vectors = vectors + np.random.default_rng(4).standard_normal(vectors.shape).astype(np.float32)
    found = evaluate_clusters(vectors, labels, Settings(metric=metric, seeds=0))
    scores = {}
    for row, (ids, values) in enumerate(zip(found.nearest.ids, found.nearest.scores, strict=True)):
        for other, value in zip(ids[:19].tolist(), values.tolist(), strict=False):
            scores.setdefault((labels[row], labels[other]), []).append(value)
    mixed = confusion(found)
    assert len(mixed) > 3 and max(len(scores[m.query, m.neighbor]) for m in mixed) > 1
    assert all(m.similarity == most(scores[m.query, m.neighbor]) for m in mixed)


@pytest.mark.parametrize(
    "name,voters,temperature", [("knn@20", 20, 0.07), ("knn@200/.1", 119, 0.1), ("knn@200/.5", 119, 0.5)]
)
def test_the_vote_equals_scikit_learn(clusters, name, voters, temperature):
    vectors, labels = clusters
    vectors = vectors + np.random.default_rng(4).standard_normal(vectors.shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    got = evaluate_clusters(vectors, labels, Settings(seeds=0)).queries.values[name]
    right = []
    for i in range(len(labels)):
        others = np.arange(len(labels)) != i
        weights = lambda d: np.exp((1 - d) / temperature)  # noqa: E731
        knn = KNeighborsClassifier(voters, metric="cosine", algorithm="brute", weights=weights)
        right.append(knn.fit(vectors[others], np.array(labels)[others]).predict(vectors[i : i + 1])[0] == labels[i])
    assert got.tolist() == right and 0 < np.mean(right) < 1


def test_of_equal_votes_the_nearest_wins():
    codes = np.array([[2, 1, 1, 2, 0], [1, 2, 2, 1, 0]])
    (winners,) = vote(np.zeros((2, 5), np.float32), codes, [0.1])
    assert winners.tolist() == [2, 1]


def test_small_tiles_change_nothing(clusters, monkeypatch):
    vectors, labels = clusters
    whole = evaluate_clusters(vectors, labels)
    monkeypatch.setattr("retrieval.neighbors.exact.HELD", 7 * len(vectors))
    monkeypatch.setattr("retrieval.neighbors.exact.WHOLE", 5 * len(vectors))
    monkeypatch.setattr("retrieval.eval.neighborhood.CHUNK", 3 * len(vectors))
    for name in ("geometry", "kmeans"):
        monkeypatch.setattr(f"retrieval.eval.{name}.TILE", 3 * 8)
    assert evaluate_clusters(vectors, labels).means() == pytest.approx(whole.means(), abs=1e-6)


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
    with pytest.raises(UserError, match="none of the 120 items shares its class"):
        cluster_metrics(vectors, [str(i) for i in range(120)])
    with pytest.raises(UserError, match="120 vectors but 119 labels"):
        cluster_metrics(vectors, labels[1:])
    with pytest.raises(UserError, match="-k 120: there are only 119 other items"):
        evaluate_clusters(vectors, labels, Settings(ks=(1, 120)))
    with pytest.raises(UserError, match="the queries have 16 dimensions, the reference 8"):
        evaluate_clusters(vectors, labels, reference=(vectors[:, :8], labels))
    broken = vectors.copy()
    broken[7] = 0
    with pytest.raises(UserError, match="1 of 120 vectors are all zeros, the first in row 7"):
        cluster_metrics(broken, labels)
    broken[3] = np.nan
    with pytest.raises(UserError, match="1 of 120 vectors are not finite"):
        cluster_metrics(broken, labels)


@pytest.mark.parametrize("metric", ["cosine", "inner_product", "euclidean"])
@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int64])
def test_vectors_of_other_numbers_are_judged_as_float32(kind, metric):
    vectors = np.round(np.random.default_rng(0).normal(0, 9, (60, 5))).astype(kind)
    labels, settings = [str(row % 3) for row in range(60)], Settings(metric=metric)
    same = evaluate_clusters(vectors.astype(np.float32), labels, settings).means()
    assert evaluate_clusters(vectors, labels, settings).means() == same
    reference = (vectors, labels)
    assert evaluate_clusters(vectors, labels, settings, reference=reference).means().keys() <= same.keys()
