"""Indexes: what FAISS opens, what search finds, what is refused. How they change is in test_index_changes.py."""

import re
import subprocess
import sys

import faiss
import numpy as np
import pytest

from retrieval.errors import UserError
from retrieval.index import backend
from retrieval.index import build as building
from retrieval.index.build import build
from retrieval.index.bundle import open_index, require_same_encoder, write_faiss
from retrieval.index.filters import rows_of_ids, rows_of_labels
from retrieval.index.gpu import add_assigned
from retrieval.index.plan import Goal, candidates
from retrieval.index.search import hits, search, within
from retrieval.index.tune import interval, least, worth
from retrieval.neighbors import exact_neighbors
from retrieval.store import Held, Kind, Rows, create, delete

FACTORIES = ["HNSW16", "HNSW16,SQ8", "IVF16,Flat", "IVF16,SQfp16", "OPQ8_16,IVF8,PQ8x4", "IVF8,PQ12x4fs", "IVF8,RaBitQ",
             "SQ8", "PQ12x4", "PQ12x4fs", "NSG16,Flat", "PCA12,IVF8,Flat", "IVF8,PQ12x4fs,RFlat", "IVF16_HNSW8,Flat", "RaBitQ"]  # fmt: skip
ENCODER = {"name": "e", "fingerprint": "f"}


def unit(count, dim=24, seed=0):
    rng = np.random.default_rng(seed)
    middles = 2 * np.random.default_rng(99).normal(size=(30, dim))
    x = rng.normal(size=(count, dim)) + middles[np.arange(count) % 30]
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def rows_for(count, seed=0, first=0):
    names = range(first, first + count)
    return Rows(
        unit(count, seed=seed),
        [f"id-{i}" for i in names],
        [str(i % 5) for i in names],
        {"text": [f"t {i}" for i in names]},
    )


def store_of(folder, rows, **kind):
    return create(
        folder,
        Held(rows),
        Kind(rows.embeddings.shape[1], **({"modality": "text", "encoder": ENCODER, "shard_rows": 256} | kind)),
    )


@pytest.mark.parametrize("factory", [None, *FACTORIES])
def test_build_search_and_plain_faiss(store, tmp_path, factory):
    index = build(store, tmp_path / "index", factory=factory)
    x = store.embeddings()
    told = index.about["measured"]
    assert told["recall"] >= 0.9 and told["interval"][0] <= told["recall"] <= told["interval"][1]
    found = hits(index, search(index, x[:5], 3))
    assert sum(best[0].id == f"id-{i}" for i, best in enumerate(found)) >= (3 if "PQ8x4" in str(factory) else 5)
    assert [hit.payload for best in found for hit in best] == [
        {"text": f"t {hit.id[3:]}"} for best in found for hit in best
    ]
    assert all(hit.label == str(int(hit.id[3:]) % 5) for best in found for hit in best)
    plain = faiss.read_index(str(tmp_path / "index" / "index.faiss"))
    assert plain.ntotal == 900 and plain.metric_type == faiss.METRIC_INNER_PRODUCT
    queries = unit(60, seed=5)
    truth = exact_neighbors(queries, x, 10)
    got = search(index, queries, 10)
    assert (truth.ids[:, :, None] == got.rows[:, None]).any(2).mean() > (0.85 if factory else 0.999)
    # Whatever the type, scores are those of the vectors, and in order.
    kept = got.rows >= 0
    true = np.einsum("qd,qkd->qk", queries.astype(np.float64), x[got.rows].astype(np.float64))
    np.testing.assert_allclose(got.scores[kept], true[kept], atol=2e-6)
    assert (np.diff(np.where(kept, got.scores, -np.inf), axis=1)[kept[:, 1:]] <= 1e-6).all()


@pytest.mark.parametrize("factory", [None, *FACTORIES])
def test_filters_are_honoured_by_every_type(store, tmp_path, monkeypatch, factory):
    index = build(store, tmp_path / "index", factory=factory)
    queries, x = unit(40, seed=5), store.embeddings()
    for exact_up_to in (20_000, 0):  # compared exactly, and by FAISS
        monkeypatch.setattr("retrieval.index.search.EXACT_UP_TO", exact_up_to)
        monkeypatch.setattr("retrieval.index.search.BATCHED", 1e-3)  # or comparing all of so few rows would pay
        for where in (rows_of_labels(index, ["1", "4"]), rows_of_ids(index, [f"id-{i}" for i in range(0, 900, 9)])):
            got = search(index, queries, 10, where=where)
            kept = got.rows >= 0
            assert where[got.rows[kept]].all() and kept.mean() > 0.9
            rows = np.flatnonzero(where)
            truth = rows[exact_neighbors(queries, x[rows], 10).ids]
            recall = (truth[:, :, None] == got.rows[:, None]).any(2).mean()
            assert recall > (0.999 if exact_up_to else 0.6), (exact_up_to, where.sum())
    with pytest.raises(UserError, match="label 'nine'"):
        rows_of_labels(index, ["1", "nine"])
    with pytest.raises(UserError, match=r"lacks 1 \(x\)"):
        rows_of_ids(index, ["id-3", "x"])


@pytest.mark.parametrize("factory", [None, "IVF16,Flat"])
def test_all_within_a_radius_is_exact(store, tmp_path, factory):
    index = build(store, tmp_path / "index", factory=factory)
    queries = unit(20, seed=5)
    scores = queries.astype(np.float64) @ store.embeddings().astype(np.float64).T
    found = within(index, queries, 0.5)
    assert ((found.rows >= 0).sum(1) == (scores >= 0.5).sum(1)).all() and (scores >= 0.5).sum() > 20
    where = rows_of_labels(index, ["2"])
    found = within(index, queries, 0.5, where=where)
    assert ((found.rows >= 0).sum(1) == ((scores >= 0.5) & where).sum(1)).all()
    assert len(hits(index, within(index, queries, 2))[0]) == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_codes_are_scored_again_from_stored_vectors_of_any_dtype(tmp_path, dtype):
    store = store_of(tmp_path / "store", rows_for(900), dtype=dtype)
    index = build(store, tmp_path / "index", factory="IVF8,PQ12x4fs")
    queries, x = unit(30, seed=5), store.embeddings()
    got = search(index, queries, 10)
    true = np.einsum("qd,qkd->qk", queries.astype(np.float64), x[got.rows].astype(np.float64))
    np.testing.assert_allclose(got.scores, true, atol=1e-3 if dtype != "int8" else 2e-6)
    assert (index.engine is index.faiss) == (dtype == "int8")


@pytest.mark.parametrize("metric,normalized", [("euclidean", False), ("inner_product", False)])
@pytest.mark.parametrize("factory", [None, "IVF8,Flat", "HNSW16", "IVF8,PQ12x4fs"])
def test_other_metrics(tmp_path, metric, normalized, factory):
    rng = np.random.default_rng(0)
    x = (unit(700) * rng.uniform(1, 3, (700, 1))).astype(np.float32)
    store = store_of(tmp_path / "store", Rows(x, np.arange(700)), metric=metric, normalized=normalized)
    index = build(store, tmp_path / "index", factory=factory)
    queries = 2 * unit(50, seed=3)
    truth = exact_neighbors(queries, x, 10, metric=metric)
    got = search(index, queries, 10)
    assert (truth.ids[:, :, None] == got.rows[:, None]).any(2).mean() > 0.8
    same = truth.ids == got.rows
    np.testing.assert_allclose(got.scores[same], truth.scores[same], rtol=1e-4, atol=1e-4)


def test_a_seed_makes_the_same_file_and_another_one_another(store, tmp_path):
    names = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        names[name] = build(store, tmp_path / name, factory="IVF16,PQ12x4fs", seed=seed).manifest["files"][
            "index.faiss"
        ]
    assert names["a"] == names["b"] != names["c"]


def test_queries_of_another_kind_tune_and_measure(store, tmp_path):
    """Stored items look for items like themselves; real queries may lie elsewhere and need more lists."""
    far = -unit(400, seed=8)
    own = build(store, tmp_path / "own", factory="IVF64,Flat")
    real = build(store, tmp_path / "real", factory="IVF64,Flat", queries=far)
    assert real.about["measured"]["queries_from"] == "given" and own.about["measured"]["queries_from"] == "stored"
    assert real.about["search"]["nprobe"] > own.about["search"]["nprobe"]
    truth = exact_neighbors(far, store.embeddings(), 10).ids
    recall = [(truth[:, :, None] == search(one, far, 10).rows[:, None]).any(2).mean() for one in (own, real)]
    assert recall[1] >= 0.93 > recall[0]


def test_the_plan_keeps_to_the_memory_and_says_when_nothing_does():
    assert [one.factory for one in candidates(200_000, 384, None)] == ["Flat"]
    lists = [f"IVF4096,{code}" for code in ("PQ192x4fs", "PQ96x4fs", "Flat")]
    assert [one.factory for one in candidates(10**6, 384, None)] == ["HNSW16", *lists]
    assert [one.factory for one in candidates(10**6, 384, Goal(0.99))] == ["HNSW32", *lists]
    assert [one.factory for one in candidates(10**6, 384, Goal(single=True))] == ["HNSW16"]
    assert [one.factory for one in candidates(10**6, 384, Goal(0.99, single=True))] == ["HNSW16", "HNSW32"]
    assert [one.factory for one in candidates(10**6, 384, Goal(1.0))] == ["Flat"]
    small = candidates(10**6, 384, Goal(memory=60_000_000))
    assert len(small) == 1 and small[0].memory <= 60_000_000
    assert [one.memory for one in candidates(10**6, 384, Goal(memory=200_000_000))] < [200_000_000]
    with pytest.raises(UserError, match="--memory 1,000 bytes: 1,000,000 × 384 vectors need"):
        candidates(10**6, 384, Goal(memory=1000))
    assert candidates(10**7, 383, Goal())[0].factory == "IVF16384,SQ8"


def test_by_goal_the_fastest_is_kept(store, tmp_path, monkeypatch):
    big = store_of(tmp_path / "big", rows_for(1500))
    index = build(big, tmp_path / "index", goal=Goal(0.9))
    assert len(index.about["others"]) == 3 and index.about["measured"]["interval"][1] >= 0.9
    assert all(index.about["measured"]["raced"] <= other["measured"]["raced"] for other in index.about["others"])
    assert sorted(p.name for p in (tmp_path / "index").iterdir() if p.suffix in (".faiss", ".json")) == [
        "index.faiss",
        "manifest.json",
    ]


def test_if_none_reaches_the_recall_the_one_that_finds_most_is_kept():
    def about(reached, recall, raced):
        return {"measured": {"reached": reached, "recall": recall, "raced": raced}}

    fast, sure, reached, quick = about(False, 0.7, 1), about(False, 0.9, 3), about(True, 0.95, 4), about(True, 0.94, 2)
    assert max(fast, sure, key=worth) is sure
    assert max(fast, sure, reached, quick, key=worth) is quick


def test_rows_are_linked_and_deleted_ones_left_out(store, tmp_path):
    index = build(store, tmp_path / "index")
    for name in index.manifest["files"]:
        if name.startswith("part-"):
            assert (tmp_path / "index" / name).samefile(tmp_path / "store" / name)
    delete(store.folder, ["id-0", "id-300"])
    from retrieval.store import open_store

    again = build(open_store(store.folder), tmp_path / "again", factory="IVF8,Flat")
    assert again.rows.count == again.faiss.ntotal == 898
    assert hits(again, search(again, unit(900)[299:302], 1))[0][0].id == "id-299"
    assert "id-0" not in again.rows.ids_between(0, again.rows.count)


def test_without_hard_links_rows_are_copied(store, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    index = build(store, tmp_path / "index")
    assert not (tmp_path / "index" / "part-00000.h5").samefile(tmp_path / "store" / "part-00000.h5")
    assert index.rows.count == 900


def test_a_killed_build_goes_on(store, tmp_path, monkeypatch):
    """Killed after half of the rows: the other half is added to what was saved, and the result is the same."""
    monkeypatch.setattr(building, "BLOCK_ROWS", 128)
    whole = build(store, tmp_path / "whole", factory="IVF8,Flat")
    monkeypatch.setattr(building, "SAVED_EVERY", -1.0)
    added = []

    def advance(rows):
        added.append(rows)
        if sum(added) > 500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(store, tmp_path / "index", factory="IVF8,Flat", progress=advance)
    assert not (tmp_path / "index").exists()
    trained = []
    monkeypatch.setattr(building, "train", lambda *args: trained.append(args))
    index = build(store, tmp_path / "index", factory="IVF8,Flat", progress=added.append)
    assert not trained and index.manifest["files"]["index.faiss"] == whole.manifest["files"]["index.faiss"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("factory", ["HNSW8", "IVF64,Flat", "IVF8,PQ12x4fs", "NSG16,Flat", "PQ12x4"])
def test_another_k_than_it_was_tuned_for(store, tmp_path, factory):
    """Nobody gets fewer than they asked for, and the nearest of one is as sure as the nearest of ten."""
    index = build(store, tmp_path / "index", factory=factory, goal=Goal(0.9))
    queries, x = unit(60, seed=5), store.embeddings()
    for k in (1, 10, 100, 500, 900):
        truth = exact_neighbors(queries, x, k).ids
        found = search(index, queries, k).rows
        assert (found >= 0).all() and all(len(set(row)) == k for row in found.tolist())
        recall = np.mean([len(set(a) & set(b)) / k for a, b in zip(truth.tolist(), found.tolist(), strict=True)])
        assert recall > 0.8, (k, recall)


def test_more_results_than_items(store, tmp_path):
    index = build(store, tmp_path / "index")
    assert len(hits(index, search(index, unit(1), 5000))[0]) == 900
    assert search(index, unit(3)[:0], 5).rows.shape == (0, 5)
    with pytest.raises(UserError, match="24 dimensions"):
        search(index, unit(3, dim=12), 5)


@pytest.mark.parametrize(
    "factory,word",
    [("Nonsense", "cannot make it"), ("IVF5000,Flat", "cannot build it"), ("PQ7", "cannot"), ("IDMap2,Flat", "IDMap")],
)
def test_bad_factories_are_refused_and_leave_nothing(store, tmp_path, factory, word):
    with pytest.raises(UserError, match=word) as caught:
        build(store, tmp_path / "index", factory=factory)
    assert "\n" not in str(caught.value)
    left = [p for p in tmp_path.iterdir() if p.name != "store"]
    assert all(not [f for f in p.iterdir() if f.name != ".lock"] for p in left)


def test_what_cannot_be_indexed_is_refused(tmp_path):
    empty = store_of(tmp_path / "empty", Rows(np.empty((0, 4), np.float32), np.empty(0, np.int64)))
    with pytest.raises(UserError, match="no rows"):
        build(empty, tmp_path / "index")


def test_another_encoder_is_refused(store, tmp_path):
    index = build(store, tmp_path / "index")
    require_same_encoder(index.manifest, "f", "same")
    with pytest.raises(UserError, match="is not the encoder of this index"):
        require_same_encoder(index.manifest, "g" * 64, "other")


def test_damage_is_refused(store, tmp_path):
    build(store, tmp_path / "index", factory="IVF8,Flat")
    path = tmp_path / "index" / "index.faiss"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="does not match"):
        open_index(tmp_path / "index", check=True)
    path.write_bytes(content[:100])
    with pytest.raises(UserError, match="100 bytes"):
        open_index(tmp_path / "index")


def test_a_full_disk_is_noticed_where_faiss_itself_is_silent(small_disk):
    index = faiss.IndexFlatIP(24)
    index.add(unit(20_000))
    with pytest.raises(OSError, match="No space left"):
        write_faiss(index, small_disk / "index.faiss")
    assert list(small_disk.iterdir()) == []


@pytest.mark.skipif(getattr(faiss, "get_num_gpus", lambda: 0)() > 0, reason="there is a GPU here")
def test_where_there_is_no_gpu_it_is_said_and_never_done_otherwise(store, tmp_path, run_cli):
    build(store, tmp_path / "index", factory="IVF8,Flat")
    for words in (
        ["index", "build", store.folder, "--device", "cuda", "--output", tmp_path / "x"],
        ["search", tmp_path / "index", "--store", store.folder, "--index-device", "cuda:0,cuda:1"],
    ):
        assert re.search("has no GPU code|FAISS sees 0 GPUs", run_cli(*words, code=2).stderr)
    with pytest.raises(UserError, match="built on a GPU"):
        build(store, tmp_path / "x", factory="CAGRA32")


@pytest.mark.parametrize("factory", ["IVF16,Flat", "OPQ8_16,IVF8,PQ8x4", "IVF8,SQ8"])
def test_vectors_assigned_by_exact_search_are_where_faiss_puts_them(store, factory):
    """What a GPU does for an index of the CPU."""
    plain, assigned = (building.new_index(factory, store) for _ in range(2))
    building.train(plain, store, 0)
    building.train(assigned, store, 0)
    x = store.embeddings()
    plain.add(x)
    for start in range(0, 900, 300):
        add_assigned(assigned, x[start : start + 300], start, "cpu")
    assert assigned.ntotal == 900
    assert bytes(faiss.serialize_index(plain)) == bytes(faiss.serialize_index(assigned))


def test_least_searches_up_and_then_down():
    asked = []

    def recall(value):
        asked.append(value)
        return min(1.0, value / 100)

    assert least(recall, 0.77, 4096) == 77 and len(asked) < 16
    assert least(lambda value: 0.5, 0.9, 4096) == 64  # does not rise: not searched to the end
    assert least(lambda value: 1.0, 0.9, 4096) == 1 and least(recall, 0.77, 50) == 50


def test_the_interval_holds_the_mean_and_is_never_empty():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        shares = rng.binomial(10, 0.93, 300).astype(np.float32) / 10
        low, high = interval(shares, seed)
        covered += low <= 0.93 <= high
    assert 180 <= covered <= 199
    assert interval(np.ones(300, np.float32)) == (pytest.approx(0.99), 1.0)


@pytest.mark.parametrize(
    "found,word", [({}, "not installed"), ({"faiss-cpu": "1", "faiss-gpu": "1"}, "both installed")]
)
def test_no_faiss_or_two_is_one_clear_line(monkeypatch, found, word):
    monkeypatch.setattr(backend, "installed", lambda: found)
    backend.faiss.cache_clear()
    with pytest.raises(UserError, match=word):
        backend.faiss()
    backend.faiss.cache_clear()


def test_torch_comes_before_faiss_in_a_fresh_process():
    code = (
        "import sys; from retrieval.index.backend import faiss; faiss(); "
        "names = list(sys.modules); assert names.index('torch') < names.index('faiss')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat", "IVF8,SQ8", "IVF8,PQ8"])
def test_a_gpu_finds_what_the_cpu_finds(store, tmp_path, factory):
    index = build(store, tmp_path / "index", factory=factory, device="cuda")
    there = open_index(tmp_path / "index", device="cuda")
    queries = unit(100, seed=5)
    one, two = search(index, queries, 10), search(there, queries, 10)
    assert (one.rows == two.rows).mean() > 0.99
    where = rows_of_labels(index, ["1", "4"])
    found = search(there, queries, 10, where=where)
    assert where[found.rows[found.rows >= 0]].all()
