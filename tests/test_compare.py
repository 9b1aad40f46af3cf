"""Comparisons: against exact enumeration and scipy, and whether they are right as often as they say."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import ttest_ind, ttest_rel
from test_cli import read_json

from retrieval.cli.compare import _note_other_classes
from retrieval.errors import UserError
from retrieval.eval.compare import compare, flipped, holm, mixed, paired
from retrieval.eval.values import PerQuery, read_per_query


def table(values, groups=None, ids=None):
    values = np.asarray(values, float)
    return PerQuery(ids or [f"q{i}" for i in range(len(values))], groups, {"r@1": values})


def test_the_permutation_test_is_that_of_all_signs():
    difference = np.random.default_rng(0).normal(0.3, 1, 10)
    sums = [abs((np.array(signs) * difference).sum()) for signs in product([-1, 1], repeat=10)]
    expected = np.mean(np.array(sums) >= abs(difference.sum()) * (1 - 1e-12))
    assert flipped(difference, flips=40_000) == pytest.approx(expected, abs=0.01)
    groups = np.repeat(np.arange(5), 2)
    by_group = difference.reshape(5, 2).sum(1)
    sums = [abs((np.array(signs) * by_group).sum()) for signs in product([-1, 1], repeat=5)]
    expected = np.mean(np.array(sums) >= abs(difference.sum()) * (1 - 1e-12))
    assert flipped(difference, groups, flips=40_000) == pytest.approx(expected, abs=0.01)
    large = np.random.default_rng(1).normal(0.06, 1, 2000)
    assert flipped(large) == pytest.approx(ttest_rel(large, np.zeros(2000)).pvalue, abs=0.01)
    assert flipped(np.zeros(20)) == 1 and flipped(np.ones(40)) == 1 / 10_001


def test_alike_systems_differ_as_seldom_as_it_says():
    generator = np.random.default_rng(2)
    ps = [flipped(generator.normal(0, 1, 60), seed=trial, flips=500) for trial in range(300)]
    assert 0.02 < np.mean(np.array(ps) < 0.05) < 0.085


def test_interval_and_verdict():
    generator = np.random.default_rng(3)
    one = generator.random(3000)
    other = one + 0.02 + 0.05 * generator.standard_normal(3000)
    found = compare([table(one)], [table(other)], "r@1")
    half = 1.96 * (other - one).std() / np.sqrt(3000)
    assert found.interval == pytest.approx((found.difference - half, found.difference + half), abs=4e-4)
    assert (found.verdict(), found.runs, found.units) == ("better", (1, 1), 3000)
    assert compare([table(other)], [table(one)], "r@1").verdict() == "worse"
    same = compare([table(one)], [table(one)], "r@1")
    assert (same.interval, same.p, same.verdict()) == ((0, 0), 1, "no difference shown")


def test_classes_that_move_together_are_weaker_evidence():
    generator = np.random.default_rng(4)
    groups = [f"c{c}" for c in np.repeat(np.arange(12), 50)]
    one = generator.random(600)
    other = one + np.repeat(generator.normal(0.05, 0.15, 12), 50)
    by_query, by_class = (
        compare([table(one, groups)], [table(other, groups)], "r@1", unit=unit) for unit in ("query", "class")
    )
    assert by_class.units == 12 and by_class.p > by_query.p
    assert by_class.interval[1] - by_class.interval[0] > 3 * (by_query.interval[1] - by_query.interval[0])


def test_with_one_source_of_variance_the_mixed_interval_is_students():
    """Runs that differ as wholes: then queries add nothing and it is the two-sample t of the runs' means."""
    generator = np.random.default_rng(5)
    one, other = generator.normal(0.5, 0.1, (4, 1)), generator.normal(0.6, 0.1, (6, 1))
    (low, high), p = mixed(np.tile(one, 50), np.tile(other, 50))
    theirs = ttest_ind(other[:, 0], one[:, 0], equal_var=False)
    assert p == pytest.approx(theirs.pvalue)
    assert (low, high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))


@pytest.mark.parametrize("by_run,by_query", [(0.0, 0.3), (0.05, 0.3), (0.1, 0.02)])
def test_the_mixed_interval_holds_the_truth_at_least_as_often_as_it_says(by_run, by_query):
    generator, held = np.random.default_rng(6), 0
    for _ in range(300):
        hard = generator.normal(0, 0.3, 80)  # the queries, which both systems share
        gain = generator.normal(0, by_query, 80)
        one = hard + generator.normal(0, by_run, (3, 1)) + generator.normal(0, 0.1, (3, 80))
        other = hard + 0.1 + gain + generator.normal(0, by_run, (3, 1)) + generator.normal(0, 0.1, (3, 80))
        (low, high), _ = mixed(one, other)
        held += low <= 0.1 <= high
    assert held / 300 > 0.92


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1] and holm([0.2]) == [0.2] and holm([]) == []


def test_queries_are_paired_by_name():
    one, other = table([1, 0, 1], ids=["a", "b", "c"]), table([0, 1, 1], ids=["c", "a", "x"])
    (first, second), left_out = paired([[one], [other]])
    assert (first[0].ids, second[0].values["r@1"].tolist(), left_out) == (["a", "c"], [1, 0], 2)
    with pytest.raises(UserError, match="no query in common"):
        paired([[one], [table([1], ids=["z"])]])
    with pytest.raises(UserError, match="'a' stands twice"):
        paired([[table([1, 1], ids=["a", "a"])], [one]])


@pytest.fixture
def evaluations(clusters, tmp_path, run_cli):
    """Evaluations of vectors as they are and with noise, three runs of that."""
    vectors, labels = clusters
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    for name, noise in (("a", 0), ("b0", 0.4), ("b1", 0.4), ("b2", 0.4)):
        noisy = vectors + noise * np.random.default_rng(len(name) + ord(name[-1])).standard_normal(vectors.shape)
        np.save(tmp_path / f"{name}.npy", noisy.astype(np.float32))
        words = ["--labels", tmp_path / "labels.txt", "--metric", "cosine", "--output", tmp_path / name]
        run_cli("eval", "clusters", tmp_path / f"{name}.npy", *words)
    return tmp_path


def test_on_the_command_line(evaluations, run_cli):
    folder = evaluations
    told = run_cli("eval", "compare", f"clean={folder / 'a'}", f"noisy={folder / 'b0'}").stdout.splitlines()
    assert told[0].startswith("map@r: noisy is worse than clean by 0.") and len(told) == 3
    runs = ",".join(str(folder / f"b{i}") for i in range(3))
    words = ["eval", "compare", folder / "a", f"noisy={runs}", "--unit", "class", "--value", "map@r", "--json"]
    (found,) = read_json(run_cli(*words))["comparisons"]
    assert (found["runs"], found["units"], found["verdict"]) == ([1, 3], 6, "worse")
    assert "of one run it is not known how another would do" in run_cli(*words).stderr
    words = ["eval", "compare", folder / "a", folder / "b0"]
    assert "of one run" not in run_cli(*words).stderr
    live = ["eval", "compare", folder / "a", folder / "a.npy", "--labels", folder / "labels.txt", "--metric", "cosine"]
    assert "no difference shown" in run_cli(*live).stdout
    csv = run_cli("eval", "compare", folder / "a" / "queries.csv", folder / "b0", "--value", "r@10")
    assert csv.stdout.startswith("r@10:")


@pytest.mark.parametrize(
    "words,message",
    [
        (["a"], "give two systems or more"),
        (["a", "a"], "a: is given twice; give each another name"),
        (["a", "gone"], "gone: no such file"),
        (["a", "b0", "--value", "r@2"], "r@2: is not in every evaluation (in all: r@1,"),
        (["a", "x.run"], "--qrels is needed"),
        (["x.run", "store", "--qrels", "q.txt"], "store: is a folder, and --qrels judges runs"),
        (["a", "b0.npy"], "add --metric"),
    ],
)
def test_mistakes(evaluations, run_cli, monkeypatch, words, message):
    monkeypatch.chdir(evaluations)
    (evaluations / "x.run").write_text("q Q0 d 1 1.0 x\n")
    (evaluations / "q.txt").write_text("q 0 d 1\n")
    (evaluations / "store").mkdir()
    assert message in run_cli("eval", "compare", *words, code=2).stderr


@pytest.mark.parametrize(
    "content,words",
    [
        (b"query,a\nq,1\nr,nan\n", "line 3: a is nan"),
        (b"query,a\nq,1\nr,inf\n", "line 3: a is inf"),
        (b"query,a\nq\xe9,1\n", "is no CSV in UTF-8"),
        (b"query,a\nq,x\n", "every metric needs a number"),
    ],
)
def test_values_that_cannot_be_compared(tmp_path, content, words):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_per_query(tmp_path / "a.csv")


def test_a_table_that_another_tool_wrote(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfquery,a\r\nq,1\r\n")
    assert read_per_query(tmp_path / "a.csv").values["a"].tolist() == [1]


def test_one_query_of_several_runs_says_nothing():
    with pytest.raises(UserError, match="one query, or class, in common"):
        compare([table([1]), table([0])], [table([1]), table([1])], "r@1")


def test_evaluations_of_other_queries_are_refused():
    """Row numbers match by chance: of another data set, or with the labels in another order."""
    one = table([1, 0], ["a", "b"])
    with pytest.raises(UserError, match="some of the evaluations have classes and some have not"):
        paired([[one], [table([1, 0])]])
    with pytest.raises(UserError, match="query 'q0' is of class 'a' in one evaluation and 'b' in another"):
        paired([[one], [table([1, 0], ["b", "a"])]])


def test_what_is_not_shown_of_other_classes_is_said(tmp_path, run_cli):
    generator = np.random.default_rng(4)
    groups = [f"c{c}" for c in np.repeat(np.arange(12), 50)]
    one = generator.random(600)
    for name, shift in (("one", 0), ("odd", generator.normal(0.02, 0.1, 12)), ("even", np.full(12, 0.05))):
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            table(one + np.repeat(np.broadcast_to(shift, 12), 50), groups).write(file)
    shown = run_cli("eval", "compare", tmp_path / "one.csv", tmp_path / "odd.csv")
    assert "odd.csv is better" in shown.stdout
    assert "Note: r@1: shown of other queries of these 12 classes, not of other classes (--unit class)" in shown.stderr
    assert (
        "Note" not in run_cli("eval", "compare", tmp_path / "one.csv", tmp_path / "odd.csv", "--unit", "class").stderr
    )
    shown = run_cli("eval", "compare", tmp_path / "one.csv", tmp_path / "even.csv")
    assert "even.csv is better" in shown.stdout and "Note" not in shown.stderr


def test_what_only_classes_show_is_no_loss(capsys):
    shown, other = (compare([table([0.0] * 8)], [table([value] * 8)], "r@1") for value in (1.0, 0.0))
    assert (shown.verdict(), other.verdict()) == ("better", "no difference shown")
    _note_other_classes([other], [shown])
    assert not capsys.readouterr().err
    _note_other_classes([shown], [other])
    assert "r@1: shown of other queries of these 8 classes" in capsys.readouterr().err


def test_few_classes_are_said_to_be_few(evaluations, run_cli):
    shown = run_cli("eval", "compare", evaluations / "a", evaluations / "b0", "--unit", "class")
    assert "the signs of 6 classes cannot give a p below 0.031, too much for 3 tests" in shown.stderr
