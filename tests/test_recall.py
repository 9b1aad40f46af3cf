"""What approximation costs: measures against loops, and the command on real indexes."""

import itertools
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from test_cli import read_json
from test_index import store_of, unit

from retrieval.eval.recall import fidelity, found_without, ladder, timed
from retrieval.eval.values import read_per_query
from retrieval.index.build import build
from retrieval.index.plan import Goal
from retrieval.index.search import search
from retrieval.neighbors import Neighbors, exact_neighbors
from retrieval.store import Rows


@pytest.fixture
def searched(clusters):
    """Exact neighbours of some queries, and approximate ones: swapped, missing, wrong."""
    vectors, _ = clusters
    truth = exact_neighbors(vectors[:20], vectors, 8, self_rows=np.arange(20))
    generator = np.random.default_rng(0)
    ids = truth.ids.copy()
    for row in ids:
        generator.shuffle(row[:5])
        row[generator.choice(8, 2, replace=False)] = generator.choice(
            np.setdiff1d(np.arange(120), row), 2, replace=False
        )
    ids[3, 4:] = -1
    scores = np.einsum("qkd,qd->qk", vectors[ids], vectors[:20])
    return Neighbors(scores.astype(np.float32), ids), truth


def test_measures_equal_loops(searched):
    found, truth = searched
    got = fidelity(found, truth, "cosine")
    for row in range(20):
        one, other = found.ids[row].tolist(), truth.ids[row].tolist()
        assert got["recall"][row] == len({*one} & {*other}) / 8
        near = [s >= truth.scores[row, -1] - 1e-3 for s, i in zip(found.scores[row], one, strict=True) if i >= 0]
        assert got["recall-by-distance"][row] == sum(near) / 8
        shared = [len({*one[:d]} & {*other[:d]}) for d in range(1, 9)]
        expected = shared[-1] / 8 * 0.9**8 + 0.1 / 0.9 * sum(x / d * 0.9**d for d, x in enumerate(shared, 1))
        assert got["rbo"][row] == pytest.approx(expected)
    perfect = fidelity(truth, truth, "cosine")
    assert all((each == pytest.approx(1)) for each in perfect.values())


def test_distances_are_near_when_they_are_small(clusters):
    vectors, _ = clusters
    truth = exact_neighbors(vectors[:5], vectors, 4, metric="euclidean")
    farther = Neighbors(truth.scores + np.float32([0, 0, 0, 0.1]), truth.ids)
    assert fidelity(farther, truth, "euclidean")["recall-by-distance"].tolist() == [0.75] * 5


def test_equally_near_items_count_by_distance_only():
    truth = Neighbors(np.float32([[1, 0.5]]), np.array([[0, 1]]))
    found = Neighbors(np.float32([[1, 0.5]]), np.array([[0, 2]]))
    got = fidelity(found, truth, "cosine")
    assert (got["recall"][0], got["recall-by-distance"][0]) == (0.5, 1)


def test_the_query_itself_is_left_out_wherever_it_is_found(clusters):
    vectors, _ = clusters
    rows = np.array([5, 9])

    def find(queries, k):
        found = exact_neighbors(queries, vectors, k)
        return Neighbors(found.scores[:, ::-1], found.ids[:, ::-1])  # itself comes last

    got = found_without(find, vectors[rows], 3, rows)
    assert got.ids.shape == (2, 3) and not (got.ids == rows[:, None]).any()
    speed = timed(find, vectors[rows], 3)
    assert speed.batch_qps > 0 and speed.latency_ms[0] <= speed.latency_ms[1] <= speed.latency_ms[2]


def test_the_ladder_ends_where_all_is_found_or_no_more_is():
    assert ladder(1000, lambda v: min(1, v / 16), [3]) == [1, 2, 3, 4, 8, 16]
    assert ladder(24, lambda v: 0.5) == [1, 2, 4, 8, 16, 24]
    assert ladder(10_000, lambda v: 0.9 if v > 4 else 0.1) == [1, 2, 4, 8, 16, 32, 64]


def test_on_the_command_line(text_path, run_cli, tmp_path):
    folder, _ = text_path
    run_cli("index", "build", folder / "store", "--factory", "HNSW8", "--recall", 0.9, "--output", tmp_path / "graph")
    out = tmp_path / "judged"
    told = read_json(run_cli("eval", "recall", tmp_path / "graph", "-k", 5, "--output", out, "--json"))
    recalls = [point["metrics"]["recall"] for point in told["points"]]
    assert recalls == sorted(recalls) and recalls[-1] > 0.99 and sum(point["tuned"] for point in told["points"]) == 1
    assert told["points"][-1]["task"]["r@1"]["difference"] == pytest.approx(0, abs=0.01)
    assert set(told["points"][0]["task"]) == {"r@1", "map@5/min"}
    table = read_per_query(out / f"queries-effort{told['points'][0]['settings']['effort']}.csv")
    assert table.means()["recall"] == pytest.approx(recalls[0])
    efforts = [point["settings"]["effort"] for point in told["points"]]
    task = [out / f"queries-task-effort{effort}.csv" for effort in (efforts[0], efforts[-1])]
    difference = read_per_query(task[1]).means()["r@1"] - read_per_query(task[0]).means()["r@1"]
    compared = read_json(run_cli("eval", "compare", *task, "--value", "r@1", "--json"))["comparisons"][0]
    assert compared["difference"] == pytest.approx(difference)
    lines = run_cli("eval", "recall", tmp_path / "graph", "-k", 5).stdout.splitlines()
    assert lines[0].startswith("HNSW8 over") and any(" * " in line for line in lines)
    flat = read_json(run_cli("eval", "recall", folder / "index", "--queries", folder / "store", "--json"))
    assert [point["metrics"]["recall"] for point in flat["points"]] == [1]


@pytest.fixture
def unlabelled(tmp_path):
    store = store_of(tmp_path / "store", Rows(unit(900), [f"id-{i}" for i in range(900)]))
    return build(store, tmp_path / "index", factory="IVF64,Flat", goal=Goal(0.9))


def test_an_index_without_labels_has_no_task(unlabelled, run_cli):
    told = read_json(run_cli("eval", "recall", unlabelled.folder, "-k", 5, "--json"))
    assert told["points"][-1]["metrics"]["recall"] > 0.99 and not any("task" in point for point in told["points"])


@pytest.mark.parametrize("k", [5, 50])
def test_what_is_marked_as_tuned_is_what_a_search_for_as_many_does(unlabelled, run_cli, k):
    told = read_json(run_cli("eval", "recall", unlabelled.folder, "-k", k, "--json"))
    done = search(unlabelled, unit(3), k).how["settings"]
    assert [point["settings"] for point in told["points"] if point["tuned"]] == [done]
    assert k == 5 or done != unlabelled.about["search"]


def test_judgments_say_what_it_costs(text_path, run_cli, tmp_path):
    folder, _ = text_path
    ids = [
        r["query"]
        for r in read_json(run_cli("search", folder / "index", "--store", folder / "store", "-k", 1, "--json"))[
            "results"
        ]
    ]
    (tmp_path / "qrels").write_text("".join(f"{i}\t{i}\t1\n" for i in ids[:30]))
    words = ["--queries", folder / "store", "--qrels", tmp_path / "qrels", "-k", 3, "--json"]
    task = read_json(run_cli("eval", "recall", folder / "index", *words))["points"][0]["task"]
    assert set(task) == {"ndcg@3", "recall@3"} and task["recall@3"]["exact"] == task["recall@3"]["found"] == 1
    assert (
        "give --queries too"
        in run_cli("eval", "recall", folder / "index", "--qrels", tmp_path / "qrels", code=2).stderr
    )
    assert "ask for fewer" in run_cli("eval", "recall", folder / "index", "-k", 10**6, code=2).stderr


def test_named_settings_are_measured_and_the_tuned_one(unlabelled, run_cli):
    tuned = search(unlabelled, unit(3), 5).how["settings"]["nprobe"]
    told = read_json(run_cli("eval", "recall", unlabelled.folder, "-k", 5, "--settings", "60,3", "--json"))
    assert [point["settings"]["nprobe"] for point in told["points"]] == sorted({3, 60, tuned})
    assert [point["settings"]["nprobe"] for point in told["points"] if point["tuned"]] == [tuned]


@pytest.mark.parametrize(
    "given,message",
    [
        ("1,65", "--settings 65: nprobe of IVF64,Flat is from 1 to 64"),
        ("0,1", "--settings 0: nprobe of IVF64,Flat is from 1 to 64"),
        ("1,x", "is not a list of numbers"),
    ],
)
def test_settings_that_the_type_does_not_take_are_refused(unlabelled, run_cli, given, message):
    done = run_cli("eval", "recall", unlabelled.folder, "--settings", given, code=2)
    assert message in done.stderr.splitlines()[-1]


def test_settings_of_exact_search_are_refused(tmp_path, run_cli):
    build(
        store_of(tmp_path / "store", Rows(unit(50), [f"id-{i}" for i in range(50)])), tmp_path / "index", factory="Flat"
    )
    done = run_cli("eval", "recall", tmp_path / "index", "--settings", 4, code=2)
    assert "--settings: Flat has no search parameter" in done.stderr.splitlines()[-1]


def test_progress_counts_what_settings_take(unlabelled, run_cli, monkeypatch):
    """The last settings take longest: counted as one each, they made the time that is left far too short."""
    clock = (second for turn in itertools.count(1) for second in (0, turn))  # the n-th search takes n seconds
    monkeypatch.setattr("retrieval.cli.recall.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    seen = []

    @contextmanager
    def progress(what, total):
        yield lambda steps, note: seen.append((steps, total))

    monkeypatch.setattr("retrieval.cli.recall.progress", progress)
    told = read_json(run_cli("eval", "recall", unlabelled.folder, "-k", 5, "--settings", "1,8,64", "--json"))
    count = len(told["points"])
    assert [steps for steps, _ in seen] == [1 + round(2000 * n / count / (count + 1)) for n in range(1, count + 1)]
    assert seen[0][1] == sum(steps for steps, _ in seen)
