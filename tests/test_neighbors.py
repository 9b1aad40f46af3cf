"""Exact search against sorting everything in float64: every metric, precision, block size, tie."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from retrieval.errors import UserError
from retrieval.metrics import METRICS
from retrieval.neighbors import Base, exact_neighbors, exact_within, neighbor_tiles
from retrieval.neighbors import base as bases
from retrieval.neighbors.exact import Search
from retrieval.neighbors.select import Best, first_keys, from_keys, in_order, keys_of
from retrieval.store import Held, Kind, Rows, create, open_store


def sorted_neighbors(queries, base, k, metric="inner_product", self_rows=None):
    """The definition: all scores in float64, rounded, the largest first, equal ones by row."""
    q, x = queries.astype(np.float64), base.astype(np.float64)
    if metric == "euclidean":
        scores = -np.stack([np.linalg.norm(x - one, axis=1) for one in q])
    else:
        scores = q @ x.T
        if metric == "cosine":
            scores = scores / np.maximum(np.outer(np.linalg.norm(q, axis=1), np.linalg.norm(x, axis=1)), 1e-300)
    scores = scores.astype(np.float32)
    if self_rows is not None:
        scores[np.arange(len(q)), self_rows] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(scores, order, 1)
    return (-found if metric == "euclidean" else found), order


def vectors(count, dim, seed=0, kind="clusters"):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, dim)).astype(np.float32)
    if kind == "clusters":
        x += 2 * rng.standard_normal((8, dim)).astype(np.float32)[rng.integers(0, 8, count)]
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    if kind == "copies":  # every vector many times, and some of length zero
        x = x[rng.integers(0, max(1, count // 20), count)]
        x[rng.integers(0, count, count // 10)] = 0
    if kind == "offset":  # far from the origin: distances are small differences of large numbers
        x += 1000
    return x


@pytest.fixture(params=["as they are", "tiny"])
def blocks(request, monkeypatch):
    if request.param == "tiny":
        monkeypatch.setitem(bases.TILE, "cpu", 300)
        monkeypatch.setitem(bases.BLOCK_ROWS, "cpu", 70)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["clusters", "copies", "offset"])
@pytest.mark.parametrize("precisions", [None, ("float64",), ("float32", "float64"), ("bfloat16", "float32", "float64")])
def test_equals_sorting_everything(metric, kind, precisions):
    base, queries = vectors(700, 24, kind=kind), vectors(41, 24, seed=1, kind=kind)
    queries[:5] = base[[3, 30, 300, 600, 699]]
    for k in (1, 10, 100, 700):
        found = exact_neighbors(queries, base, k, metric=metric, precisions=precisions)
        scores, rows = sorted_neighbors(queries, base, k, metric)
        np.testing.assert_allclose(found.scores, scores, rtol=2e-7, atol=1e-9)
        np.testing.assert_array_equal(found.ids, rows)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("metric", METRICS)
def test_a_query_is_left_out_by_row_and_not_by_score(metric):
    base = vectors(300, 8, kind="copies")
    rows = np.arange(0, 300, 7)
    copies = exact_neighbors(
        np.array([[1, 0]] * 2, np.float32), np.array([[1, 0]] * 2, np.float32), 1, self_rows=np.arange(2)
    )
    assert copies.ids.tolist() == [[1], [0]]
    for k in (1, 9, 299):
        found = exact_neighbors(base[rows], base, k, metric=metric, self_rows=rows)
        assert not (found.ids == rows[:, None]).any()
        np.testing.assert_array_equal(found.ids, sorted_neighbors(base[rows], base, k, metric, rows)[1])


def test_a_lower_precision_knows_when_it_cannot_decide():
    """Negative control: bfloat16 alone gets neighbours wrong, and all of those are among what it calls unsettled."""
    base, queries = vectors(5000, 16, kind="noise"), vectors(200, 16, seed=1, kind="noise")
    base = 1 + base / 50  # all so alike that eight bits cannot tell them apart
    search = Search(torch.from_numpy(queries), Base(base, "inner_product"), 10, None)
    settled = search._settle(torch.arange(200), "bfloat16").numpy()
    right = (search.rows.numpy() == sorted_neighbors(queries, base, 10)[1]).all(1)
    assert not right.all()
    assert right[settled].all()
    again = search._settle(torch.arange(200), "float32").numpy()
    assert again.mean() > 0.9


def test_the_error_bound_holds_and_is_not_idle():
    for metric in METRICS:
        base, queries = vectors(2000, 48, kind="offset"), vectors(30, 48, seed=1)
        ready = Base(base, metric)
        q = torch.from_numpy(queries)
        exact = next(iter(ready.blocks(30, 48, "float64")))[1].scores(q)
        for precision, idle in (("float32", 1e-4), ("bfloat16", 1e-3)):
            block = next(iter(ready.blocks(30, 48, precision)))[1]
            found = block.scores(q).double()
            bound = block.error(q, q.double().norm(dim=1))[:, None] + block.grain * found.abs()
            share = ((found - exact).abs() / bound).max()
            assert idle < share < 1, (metric, precision)


def test_queries_and_base_from_stores(tmp_path):
    base, queries = vectors(500, 12), vectors(50, 12, seed=1)
    for name, x in (("base", base), ("queries", queries)):
        held = Rows(x, np.arange(len(x)))
        create(tmp_path / name, Held(held), Kind(12, shard_rows=64))
    stores = open_store(tmp_path / "queries"), open_store(tmp_path / "base")
    found = exact_neighbors(*stores, 7)
    np.testing.assert_array_equal(found.ids, sorted_neighbors(queries, base, 7)[1])


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["clusters", "copies", "offset"])
def test_a_base_kept_in_half_precision_gives_the_same(monkeypatch, metric, kind):
    """What a GPU does with a base that it holds."""
    monkeypatch.setattr(Base, "_keeps_half", lambda self: True)
    monkeypatch.setattr(bases, "READ", 12 * 150)
    base, queries = vectors(1000, 12, kind=kind), vectors(40, 12, seed=1, kind=kind)
    ready = Base(base, metric)
    for count in (40, 1):
        found = exact_neighbors(queries[:count], ready, 3, precisions=("bfloat16", "float32", "float64"))
        scores, rows = sorted_neighbors(queries[:count], base, 3, metric)
        np.testing.assert_array_equal(found.ids, rows)


def test_a_kept_base_gives_the_same(monkeypatch):
    monkeypatch.setattr(bases, "WIDE_ROWS", 128)
    base, queries = vectors(500, 12), vectors(90, 12, seed=1)
    for metric in METRICS:
        kept = Base(base, metric, keep=True)
        for count in (1, 64, 65, 1):
            fresh = exact_neighbors(queries[:count], base, 5, metric=metric)
            again = exact_neighbors(queries[:count], kept, 5)
            np.testing.assert_array_equal(again.ids, fresh.ids)
            np.testing.assert_array_equal(again.scores, fresh.scores)


def test_one_query_and_many_agree_to_the_bit():
    base, queries = vectors(3000, 64), vectors(70, 64, seed=1)
    together = exact_neighbors(queries, base, 20)
    for row in range(0, 70, 9):
        alone = exact_neighbors(queries[row : row + 1], base, 20)
        np.testing.assert_array_equal(alone.scores[0], together.scores[row])
        np.testing.assert_array_equal(alone.ids[0], together.ids[row])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["clusters", "copies", "offset"])
def test_few_queries_are_answered_at_once(metric, kind):
    """The definition again, whatever comes before: exact neighbours, or nothing where a table of scores does not pay."""
    base, queries = vectors(2000, 24, kind=kind), vectors(6, 24, seed=1, kind=kind)
    queries[:2], queries[2] = base[[3, 1999]], 1e4 * queries[2]  # far away, where distances hardly differ
    for count, k in ((1, 1), (1, 10), (1, 800), (6, 10), (6, 100)):
        for start in range(0, 6, count):
            some = queries[start : start + count]
            found = Search(torch.from_numpy(some), Base(base, metric, keep=True), k, None).at_once()
            if found is None:
                assert kind != "clusters" or start <= 2 < start + count
                continue
            scores, rows = sorted_neighbors(some, base, k, metric)
            np.testing.assert_array_equal(found.ids, rows)
            np.testing.assert_allclose(found.scores, scores, rtol=2e-7, atol=1e-9)


def test_few_queries_need_no_scores_in_float64_of_all_rows(monkeypatch):
    """Not even for a k that is a large part of the base, for which the whole base would be converted for each query."""
    monkeypatch.setattr(Search, "_decide", lambda *_: pytest.fail("all rows were scored in float64"))
    base, queries = vectors(5000, 24), vectors(20, 24, seed=1)
    for count, k in ((1, 10), (1, 1000), (20, 100)):
        found = exact_neighbors(queries[:count], base, k)
        np.testing.assert_array_equal(found.ids, sorted_neighbors(queries[:count], base, k)[1])


def test_tiles_follow_each_other(monkeypatch):
    monkeypatch.setattr("retrieval.neighbors.exact.HELD", 100)
    base, queries = vectors(400, 6), vectors(37, 6, seed=1)
    tiles = list(neighbor_tiles(queries, base, 3))
    assert len(tiles) > 3
    np.testing.assert_array_equal(np.concatenate([t.ids for t in tiles]), sorted_neighbors(queries, base, 3)[1])
    assert exact_neighbors(queries[:0], base, 3).ids.shape == (0, 3)


@pytest.mark.parametrize("where", ["queries", "base"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("k", [3, 90])
def test_what_is_not_finite_is_refused(where, value, k):
    data = SimpleNamespace(base=vectors(300, 6), queries=vectors(7, 6, seed=1))
    getattr(data, where)[5, 2] = value
    with pytest.raises(UserError, match="NaN, infinite or huge"):
        exact_neighbors(data.queries, data.base, k)


ROWS = np.eye(6, 4, dtype=np.float32)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: exact_neighbors(ROWS, ROWS, 0), "^k 0: give a whole number of at least 1, and at most the 6 rows$"),
        (lambda: exact_neighbors(ROWS, ROWS, 7), "^k 7: .* at most the 6 rows$"),
        (lambda: exact_neighbors(ROWS, ROWS, 2.0), "^k 2.0: give a whole number"),
        (lambda: exact_neighbors(ROWS, ROWS, 6, self_rows=np.arange(6)), "at most the 5 rows besides the query itself"),
        (lambda: exact_neighbors(ROWS, ROWS, 2, self_rows=np.arange(5)), "^self_rows: give an array .6,., the row"),
        (lambda: exact_neighbors(ROWS, ROWS, 2, self_rows=list(range(6))), "^self_rows: give an array"),
        (lambda: exact_neighbors(ROWS, ROWS, 2, metric="dot"), "^metric 'dot': give one of .*cosine"),
        (lambda: exact_neighbors(ROWS.tolist(), ROWS, 2), "^the queries: is a list; give an array"),
        (lambda: exact_neighbors(ROWS, ROWS.tolist(), 2), "^the base: is a list; give an array"),
        (lambda: exact_neighbors(ROWS[0], ROWS, 2), r"^the queries: has the shape \(4,\); give vectors as \(rows, dim"),
        (lambda: exact_neighbors(ROWS[:, :3], ROWS, 2), "^the queries: have 3 dimensions, the base 4; both must be"),
        (lambda: exact_within(ROWS[:, :3], Base(torch.tensor(ROWS), "cosine"), 0.5), "have 3 dimensions, the base 4"),
        (lambda: exact_within(ROWS.tolist(), Base(ROWS, "cosine"), 0.5), "^the queries: is a list"),
        (lambda: exact_within(ROWS, ROWS, 0.5), "^the base: make it one by Base"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(ask, said):
    with pytest.raises(UserError, match=said) as caught:
        ask()
    assert "\n" not in str(caught.value)


def test_rising_scores_are_no_trouble():
    """Each block better than all before: everything passes the floor."""
    base = np.linspace(0, 1, 20_000, dtype=np.float32)[:, None]
    found = exact_neighbors(np.ones((3, 1), np.float32), base, 40)
    np.testing.assert_array_equal(found.ids[1], np.arange(19_999, 19_959, -1))


@pytest.mark.parametrize("count", [1, 31, 32, 33, 1000])
def test_best_keeps_the_largest_and_a_floor_under_which_it_dropped_nothing(count):
    scores = torch.randn(6, 3 * count, generator=torch.Generator().manual_seed(0))
    k = min(5, count)
    best = Best(6, k, torch.device("cpu"))
    for part in range(3):
        best.add(scores[:, part * count : (part + 1) * count], part * count)
    best.finish()
    assert best.values.sort(descending=True).values.equal(scores.topk(k).values)
    assert scores.gather(1, best.rows).equal(best.values)
    assert best.floor.equal(best.values.amin(1))


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("order", ["random", "rising", "sorted by class"])
@pytest.mark.parametrize("count, k", [(1, 1), (100, 7), (700, 7), (700, 90)])
def test_a_kernel_keeps_the_largest_too(monkeypatch, order, count, k):
    """In Triton's interpreter where there is no GPU. Scores unlike those seen before overflow what is held, and are read again."""
    collect = pytest.importorskip("retrieval.neighbors.collect")
    monkeypatch.setattr(collect, "ROOM", 50)
    monkeypatch.setattr(collect, "READ", 64)
    scores = torch.randn(5, 3 * count, generator=torch.Generator().manual_seed(0))
    if order == "rising":
        scores = scores.sort().values
    if order == "sorted by class":
        scores[:, count : count + count // 2] += 10
    best = collect.Collected(5, k, DEVICE)
    for part in range(3):
        best.add(scores[:, part * count : (part + 1) * count].to(DEVICE), part * count)
    best.finish()
    values, rows = best.values.cpu(), best.rows.cpu()
    assert values.sort(descending=True).values.equal(scores.topk(k).values)
    assert scores.gather(1, rows).equal(values)
    assert best.floor.cpu().equal(values.amin(1))


def test_keys_order_by_score_then_row():
    rng = np.random.default_rng(0)
    scores = rng.choice(np.array([-np.inf, -3e38, -1.5, -0.0, 0.0, 1e-45, 2.5, np.inf], np.float32), (5, 200))
    rows = rng.permuted(np.tile(np.arange(200) + 2**32 - 201, (5, 1)), axis=1)
    keys = in_order(first_keys(keys_of(torch.from_numpy(scores), torch.from_numpy(rows)), 150))
    order = np.lexsort((rows, -scores), axis=1)[:, :150]
    found = from_keys(keys)
    np.testing.assert_array_equal(found[0].numpy(), np.take_along_axis(scores, order, 1))
    np.testing.assert_array_equal(found[1].numpy(), np.take_along_axis(rows, order, 1))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["clusters", "copies", "offset"])
def test_all_within_a_radius(metric, kind):
    base, queries = vectors(400, 12, kind=kind), vectors(23, 12, seed=1, kind=kind)
    queries[:3] = base[[0, 200, 399]]
    scores, rows = sorted_neighbors(queries, base, 400, metric)
    for radius in (*scores[0, [0, 5, 80]].tolist(), float(scores.mean()), -3e38 if metric != "euclidean" else 0.0):
        found = exact_within(queries, Base(base, metric), radius)
        inside = scores <= np.float32(radius) if metric == "euclidean" else scores >= np.float32(radius)
        assert np.diff(found.starts).tolist() == inside.sum(1).tolist()
        np.testing.assert_array_equal(found.rows, rows[inside])
        np.testing.assert_allclose(found.scores, scores[inside], rtol=2e-7, atol=1e-9)
    assert len(exact_within(queries[:0], Base(base, metric), 0.5).rows) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("metric", METRICS)
def test_a_gpu_gives_the_same_neighbours(metric):
    base, queries = vectors(50_000, 96), vectors(300, 96, seed=1)
    for k in (10, 3000):
        here = exact_neighbors(queries, base, k, metric=metric)
        there = exact_neighbors(queries, base, k, metric=metric, device="cuda")
        np.testing.assert_array_equal(there.ids, here.ids)
        np.testing.assert_array_equal(there.scores, here.scores)
