"""Evaluation where two features meet: what is compared, which flags count, how sure a rank correlation is."""

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr
from test_cli import read_json

from retrieval.cli.evaluated import named_paths
from retrieval.errors import UserError
from retrieval.eval.scores import correlation_parts


def scored(count, noise, seed, steps=None):
    rng = np.random.default_rng(seed)
    one = rng.normal(size=count)
    other = one + noise * rng.normal(size=count)
    return one, other if steps is None else np.round(other * steps)


@pytest.mark.parametrize(("noise", "steps"), [(0.3, None), (0.3, 1), (2, 1), (2, None)])
def test_intervals_of_a_rank_correlation_are_as_wide_as_the_jackknifes(noise, steps):
    one, other = scored(400, noise, 0, steps)
    parts = correlation_parts(one, other)
    assert parts.mean() == pytest.approx(spearmanr(one, other)[0], abs=1e-12)
    rows = np.arange(len(one))
    without = np.array([spearmanr(one[rows != row], other[rows != row])[0] for row in rows])
    wanted = without.std() * np.sqrt(len(rows) - 1)
    assert parts.std() / np.sqrt(len(rows)) == pytest.approx(wanted, rel=0.05)
    if noise < 1:  # plain products of ranks have the same mean, and say far less
        ranks = [rankdata(side) for side in (one, other)]
        products = np.prod([(side - side.mean()) / side.std() for side in ranks], axis=0)
        assert products.std() / np.sqrt(len(rows)) > 3 * wanted


def test_ranks_of_what_orders_nothing():
    assert not correlation_parts(np.ones(5), np.arange(5.0)).any()


def test_a_path_that_exists_is_taken_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b", "lr=0.1", "c", "d"):
        (tmp_path / name).write_text("")
    told = [(name, [str(path) for path in paths]) for name, paths in named_paths(("a,b", "lr=0.1", "x=c,d", "y=a,b"))]
    assert told == [("a,b", ["a,b"]), ("lr=0.1", ["lr=0.1"]), ("x", ["c", "d"]), ("y", ["a,b"])]
    with pytest.raises(UserError, match="given twice as a run of x"):
        named_paths(("x=c,./c",))


@pytest.fixture
def judged(clusters, tmp_path, monkeypatch, run_cli):
    """Vectors with labels, and two evaluations of them."""
    x, labels = clusters
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", x)
    (tmp_path / "x.txt").write_text("\n".join(labels) + "\n")
    (tmp_path / "q").write_text("q 0 d 1\n")
    vectors = ("x.npy", "--labels", "x.txt", "--metric", "cosine")
    for name in ("a", "b"):
        run_cli("eval", "clusters", *vectors, "--output", name)
    return vectors


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("eval", "compare", "a", "b", "--metric", "cosine"), "--metric: nothing that is compared"),
        (("eval", "compare", "a", "b", "--labels", "x.txt"), "--labels: nothing that is compared"),
        (("report", "a", "--output", "o.html", "--sample", "9"), "--sample: nothing here is vectors"),
        (("report", "a", "--output", "o.html", "--map", "pca"), "--map: nothing here is vectors"),
        (("eval", "clusters", "x.npy", "--like", "pml", "--probe"), "--probe: --like pml judges"),
        (("eval", "clusters", "x.npy", "--like", "oml", "-k", "3"), "-k: --like oml judges"),
        (("eval", "relevance", "--qrels", "q", "--run", "q", "--split", "dev"), "--split: is for a BEIR folder"),
        (("eval", "relevance", "--qrels", "q", "--run", "q", "--check"), "--check: is for stores"),
        (("eval", "relevance", "--qrels", "q", "--run", "q", "--device", "cpu"), "--device: --run names results"),
        (("eval", "clusters", "x.npy", "--separator", "+", "--runs", "3"), "--runs: k-means' clusters are compared"),
    ],
)
def test_flags_that_have_nothing_to_judge_are_refused(judged, run_cli, asked, told):
    assert told in run_cli(*asked, code=2).output


def test_flags_of_some_that_are_compared_stay(judged, run_cli):
    run_cli("eval", "compare", "a", *judged)


def test_other_tools_judge_no_single_class(judged, tmp_path, run_cli):
    (tmp_path / "one.txt").write_text("c\n" * 120)
    asked = ("eval", "clusters", "x.npy", "--metric", "cosine", "--labels", "one.txt", "--like", "oml")
    assert "only one class" in run_cli(*asked, code=2).output


def test_few_classes_are_said(judged, run_cli):
    assert "6 classes are few: intervals by class are too narrow" in run_cli("eval", "clusters", *judged).stdout


@pytest.mark.parametrize(("asked", "searched", "depths"), [("two", "one", [2]), ("one", "two", [1, 2])])
def test_a_level_is_judged_by_the_classes_of_what_is_searched(judged, tmp_path, run_cli, asked, searched, depths):
    for name, tops in (("one", "pp"), ("two", "pq")):
        (tmp_path / name).write_text("".join(f"{tops[row % 2]}/{'ab'[row // 2 % 2]}\n" for row in range(120)))
    words = ("x.npy", "--metric", "cosine", "--labels", asked, "--hierarchy", "/", "--runs", 0)
    told = run_cli("eval", "clusters", *words, "--reference", "x.npy", "--reference-labels", searched, "--json")
    assert [level["level"] for level in read_json(told)["levels"]] == depths


def test_a_hierarchy_whose_leaves_have_one_item_each_is_judged_above_them(judged, tmp_path, run_cli):
    (tmp_path / "leaves").write_text("".join(f"{'ab'[row % 2]}/{row}\n" for row in range(120)))
    (tmp_path / "tops").write_text("".join(f"{'ab'[row % 2]}\n" for row in range(120)))
    words = ("eval", "clusters", "x.npy", "--metric", "cosine", "--json", "--labels")
    told = run_cli(*words, "leaves", "--hierarchy", "/")
    assert "Level 2 has no item that shares its class" in told.stderr and "judged by level 1" in told.stderr
    above, leaves = read_json(run_cli(*words, "tops")), read_json(told)
    assert leaves["metrics"] == above["metrics"] == leaves["levels"][0]["metrics"] and len(leaves["levels"]) == 1
    assert "none of the 120 items shares its class" in run_cli(*words, "leaves", code=2).stderr


def test_recall_of_as_many_as_there_are(judged, tmp_path, run_cli):
    run_cli("store", "import", "x.npy", "--metric", "cosine", "--output", "s")
    run_cli("index", "build", "s", "--output", "i")
    run_cli("eval", "recall", "i", "--queries", "s", "-k", 120)
    (tmp_path / "qrels.txt").write_text("0 0 1 1\n")
    words = ("eval", "relevance", "--qrels", "qrels.txt", "--queries", "s", "--corpus")
    run_cli(*words, "i")
    run_cli(*words, "s", "--device", "cpu")
    assert "--device: --corpus is an index" in run_cli(*words, "i", "--device", "cpu", code=2).output
    assert "119 items to find" in run_cli("eval", "recall", "i", "-k", 120, code=2).output
