"""Values by query, and intervals of their means."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.errors import UserError
from retrieval.eval.values import PerQuery, read_per_query
from retrieval.intervals import bootstrap


def test_the_interval_of_a_normal_mean_is_the_textbooks():
    values = np.random.default_rng(0).normal(0.5, 0.1, (2000, 1))
    low, high = bootstrap(values, resamples=4000)[0]
    half = 1.96 * values.std() / np.sqrt(2000)
    assert [low, high] == pytest.approx([values.mean() - half, values.mean() + half], abs=3e-4)


def test_intervals_hold_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(1)
    held = 0
    for trial in range(300):
        low, high = bootstrap((generator.random((80, 1)) < 0.7).astype(float), seed=trial, resamples=400)[0]
        held += low <= 0.7 <= high
    assert 0.90 < held / 300 < 0.985


def test_by_group_intervals_know_that_queries_of_a_class_fail_together():
    generator = np.random.default_rng(2)
    groups = np.repeat(np.arange(40), 25)
    values = (0.5 + 0.2 * generator.standard_normal(40)[groups] + 0.01 * generator.standard_normal(1000))[:, None]
    alone, together = bootstrap(values)[0], bootstrap(values, groups=groups)[0]
    expected = 2 * 1.96 * np.array([values[groups == g].mean() for g in range(40)]).std() / np.sqrt(40)
    assert together[1] - together[0] == pytest.approx(expected, rel=0.15)
    assert alone[1] - alone[0] < 0.3 * expected
    assert (bootstrap(values, groups=np.arange(1000)) == bootstrap(values)).all()  # groups of one are queries


def test_all_right_is_not_certain():
    assert bootstrap(np.ones((100, 1)))[0].tolist() == [0.97, 1.0]
    assert bootstrap(np.zeros((100, 1)))[0].tolist() == [0.0, 0.03]
    assert bootstrap(np.full((100, 1), 0.5))[0].tolist() == [0.5, 0.5]


def test_what_may_be_below_zero_has_no_rule_of_three():
    none = np.zeros(100)
    table = PerQuery(list(map(str, range(100))), None, {"r@1": none, "silhouette": none, "spearman": none})
    assert table.intervals() == {"r@1": (0, 0.03), "silhouette": (0, 0), "spearman": (0, 0)}


def test_chunks_change_nothing(monkeypatch):
    values = np.random.default_rng(3).random((50, 3))
    whole = bootstrap(values)
    monkeypatch.setattr("retrieval.intervals.DRAWN", 50 * 1000)
    assert (bootstrap(values) == whole).all()


names = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=8)
numbers = st.floats(0, 1)


@settings(max_examples=60)
@given(st.lists(st.tuples(names, names, numbers, numbers), min_size=1, max_size=6), st.booleans())
def test_a_table_reads_back(tmp_path_factory, rows, grouped):
    ids, groups, first, second = map(list, zip(*rows, strict=True))
    table = PerQuery(ids, groups if grouped else None, {"r@1": np.array(first), "map@r": np.array(second)})
    path = tmp_path_factory.mktemp("table") / "queries.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        table.write(file)
    back = read_per_query(path)
    assert (back.ids, back.groups) == (table.ids, table.groups)
    assert {name: each.tolist() for name, each in back.values.items()} == {"r@1": first, "map@r": second}


@pytest.mark.parametrize(
    "content,message",
    [
        ("", "no table of values"),
        ("query\nq1\n", "no table of values"),
        ("id,r@1\nq1,1\n", "no table of values"),
        ("query,r@1\n", "no table of values"),
        ("query,r@1\nq1\n", "line 2 has 1 columns"),
        ("query,r@1\nq1,good\n", "every metric needs a number"),
    ],
)
def test_other_tables_are_refused(tmp_path, content, message):
    path = tmp_path / "queries.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_per_query(path)


def test_means_and_groups():
    table = PerQuery(list("wxyz"), ["b", "a", "b", "b"], {"r@1": np.array([1.0, 0.0, 0.0, 1.0])})
    assert table.means() == {"r@1": 0.5} and table.group_sizes() == [1, 3]
    assert table.group_means()["r@1"].tolist() == pytest.approx([0, 2 / 3])
    stream = io.StringIO()
    table.write(stream)
    assert stream.getvalue().splitlines()[:2] == ["query,group,r@1", "w,b,1.0"]
