"""Indexes that change: added, replaced, removed rows on every type; merging; FAISS files in and out."""

import faiss
import numpy as np
import pytest
from test_index import FACTORIES, rows_for, store_of, unit

from retrieval.errors import UserError
from retrieval.index import change
from retrieval.index import search as searching
from retrieval.index.build import build
from retrieval.index.bundle import open_index
from retrieval.index.change import add, compact, fold, merge, remove, retune
from retrieval.index.exchange import export_faiss, import_faiss
from retrieval.index.filters import rows_of_labels
from retrieval.index.hnswlib_file import write_hnswlib
from retrieval.index.plan import Goal
from retrieval.index.search import hits, search
from retrieval.neighbors import exact_neighbors
from retrieval.store import Rows, delete


def test_a_type_that_does_not_grow_keeps_many_late_rows(store, later, tmp_path, monkeypatch):
    """Giving them to FAISS would fail after they were published."""
    build(store, tmp_path / "index", factory="NSG16,Flat")
    monkeypatch.setattr(change, "FOLDED_FROM", 100)
    monkeypatch.setattr(change, "FOLDED_SHARE", 0.1)
    index = add(tmp_path / "index", later, replace=True)
    assert index.rows.count == 1000 and best(index, later.embeddings()[:3]) == [["id-850"], ["id-851"], ["id-852"]]
    index.rows.close()
    with pytest.raises(UserError, match="takes no more rows; `retrieval index compact` builds it anew"):
        fold(tmp_path / "index")
    assert compact(tmp_path / "index").about["covers"] == 1000


@pytest.mark.parametrize("factory", ["NSG16", "NSG16,SQ8"])
def test_a_graph_that_is_left_with_too_few_rows_for_its_type(store, later, tmp_path, run_cli, factory):
    """FAISS refuses to build an NSG of 100 rows, and ends the process with some of 101."""
    built = build(store, tmp_path / "index", factory=factory)
    remove(built.folder, [f"id-{i}" for i in range(120, 900)])
    told = run_cli("index", "compact", built.folder).stdout
    assert "compacted, 120 × 24 in all" in told and "120 rows compared exactly, too few for a graph" in told
    index = open_index(built.folder)
    assert (index.about["covers"], index.rows.written) == (0, 120)
    assert best(index, store.embeddings()[[0, 119]]) == [["id-0"], ["id-119"]]
    assert "there was nothing to compact" in run_cli("index", "compact", built.folder).stdout
    add(built.folder, later)
    assert compact(built.folder).about["covers"] == 270
    with pytest.raises(UserError, match=f"'{factory}': needs 200 vectors at least, and .*later has 150; take Flat"):
        build(later, tmp_path / "few", factory=factory)


@pytest.mark.parametrize("metric", ["cosine", "inner_product", "euclidean"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_late_rows_of_few_queries_are_found_as_those_of_many(tmp_path, monkeypatch, metric, dtype):
    """Two ways to compare them, the same rows, scores and order of what is equally near; with a filter, and after a removal."""
    kind = {"metric": metric, "normalized": metric == "cosine", "dtype": dtype}
    build(store_of(tmp_path / "store", rows_for(900), **kind), tmp_path / "index", factory="HNSW16")
    twice = rows_for(80, seed=3, first=1000)
    twice.embeddings[40:] = twice.embeddings[:40]
    add(tmp_path / "index", store_of(tmp_path / "late", twice, **kind))
    index = remove(tmp_path / "index", ["id-3", "id-1001", "id-1079"])
    queries = np.concatenate([twice.embeddings[:20], unit(20, seed=5)])
    may = np.arange(index.rows.count) % 2 == 0
    monkeypatch.setattr(searching, "EXACT_UP_TO", 0)
    monkeypatch.setattr(searching, "BATCHED", 1e-3)  # so that comparing all never pays
    found = {}
    for few in (2**40, -1):
        monkeypatch.setattr(searching, "LATE_SCORED", few)
        found[few] = [search(index, queries, k, where=where) for k in (1, 10, 200) for where in (None, may)]
    for one, other in zip(*found.values(), strict=True):
        assert np.array_equal(one.rows, other.rows) and np.array_equal(one.scores, other.scores)
        assert one.how == other.how and one.how["compared"] in (78, 39)
    late = found[-1][2].rows >= index.covered
    assert late[:20].any(1).all() and not late.all()  # or nothing would be compared here


def best(index, queries, k=1):
    return [[hit.id for hit in found] for found in hits(index, search(index, queries, k))]


def same_as_exact(index, least):
    queries = unit(50, seed=5)
    truth = exact_neighbors(queries, index.rows.embeddings(), 10)
    got = search(index, queries, 10)
    recall = (truth.ids[:, :, None] == got.rows[:, None]).any(2).mean()
    assert recall >= least, recall
    assert (got.rows >= 0).mean() > 0.99


@pytest.mark.parametrize("factory", [None, *FACTORIES])
def test_rows_come_and_go_on_every_type(store, later, tmp_path, factory):
    folder = tmp_path / "index"
    build(store, folder, factory=factory)
    with pytest.raises(UserError, match=r"has 50 \(id-850, id-851, id-852\) of the new ids already"):
        add(folder, later)
    index = add(folder, later, replace=True)
    assert index.rows.count == 1000 and index.manifest["generation"] == 2
    new = later.embeddings()
    assert best(index, new[:60]) == [[f"id-{850 + i}"] for i in range(60)]
    gone = ["id-0", "id-450", "id-860", "id-999"]
    index = remove(folder, gone)
    assert index.rows.count == 996 and not set(gone) & set(sum(best(index, np.vstack([unit(900), new]), 3), []))
    same_as_exact(index, 0.8)
    index.rows.close()
    index = compact(folder)
    assert index.rows.count == index.faiss.ntotal == 996 == index.covered and index.rows.ordinals is None
    same_as_exact(index, 0.8)
    assert not set(gone) & set(sum(best(index, np.vstack([unit(900), new]), 3), []))
    found = best(index, new[[0, 20, 148]], 3)
    assert sum(name in three for name, three in zip(["id-850", "id-870", "id-998"], found, strict=True)) >= 2
    on_disk = {path.name for path in folder.iterdir()} - {".lock", "manifest.json"}
    assert on_disk == set(index.manifest["files"])


@pytest.mark.parametrize("factory", ["HNSW16", "IVF16,Flat", "IVF8,PQ12x4fs", "PQ12x4"])
def test_where_nothing_is_covered_all_is_compared(store, tmp_path, monkeypatch, factory):
    folder = tmp_path / "index"
    tuned = build(store, folder, factory=factory).about["search"]
    index = add(folder, store_of(tmp_path / "all", rows_for(900, seed=7)), replace=True)
    assert (index.covered, index.rows.count) == (0, 900)
    same_as_exact(index, 1)
    monkeypatch.setattr("retrieval.index.search.EXACT_UP_TO", 0)
    where = rows_of_labels(index, ["1", "2"])
    found = search(index, unit(20, seed=5), 7, where=where)
    assert found.how == {"way": "exact", "compared": 360} and where[found.rows].all()
    index.rows.close()
    index = retune(folder, Goal(0.9))
    assert index.about["search"] == tuned and index.about["measured"]["recall"] == 1
    index.rows.close()
    assert compact(folder).covered == 900


@pytest.mark.parametrize("factory", ["HNSW16", "PQ12x4"])
def test_a_filter_may_leave_late_rows_alone(store, later, tmp_path, monkeypatch, factory):
    build(store, tmp_path / "index", factory=factory)
    index = add(tmp_path / "index", later, replace=True)
    monkeypatch.setattr("retrieval.index.search.EXACT_UP_TO", 0)
    found = search(index, later.embeddings()[:5], 3, where=np.arange(1000) >= index.covered)
    assert found.rows[:, 0].tolist() == [850, 851, 852, 853, 854] and (found.rows >= 850).all()


def test_many_late_rows_are_given_to_faiss(store, tmp_path, monkeypatch):
    folder = tmp_path / "index"
    build(store, folder, factory="IVF16,Flat")
    more = store_of(tmp_path / "more", rows_for(200, seed=3, first=900))
    index = add(folder, more)
    assert (index.about["covers"], index.rows.count, index.covered) == (900, 1100, 900)
    remove(folder, ["id-5", "id-1000"])
    index = fold(folder)
    assert (index.about["covers"], index.covered, index.faiss.ntotal) == (1100, 1098, 1100)
    assert best(index, more.embeddings()[[0, 99, 199]]) == [["id-900"], ["id-999"], ["id-1099"]]
    assert "id-1000" not in best(index, more.embeddings()[[100]], 5)[0]
    monkeypatch.setattr(change, "FOLDED_FROM", 100)
    index = add(folder, store_of(tmp_path / "third", rows_for(150, seed=4, first=5000)))
    assert index.covered == index.rows.count == 1248
    same_as_exact(index, 0.8)


def test_the_same_addition_twice_adds_once_and_others_are_refused(store, later, tmp_path):
    folder = tmp_path / "index"
    build(store, folder, factory="HNSW16")
    first = add(folder, later, replace=True)
    assert add(folder, later, replace=True).manifest["generation"] == first.manifest["generation"]
    other = store_of(tmp_path / "other", rows_for(10, first=9000), encoder={"name": "x", "fingerprint": "g"})
    with pytest.raises(UserError, match="encoder of the store"):
        add(folder, other)
    flat = store_of(tmp_path / "flat", Rows(unit(4, dim=8), [f"n{i}" for i in range(4)]))
    with pytest.raises(UserError, match="dim of the store"):
        add(folder, flat)
    with pytest.raises(UserError, match="lacks 1"):
        remove(folder, ["id-1", "nobody"])
    assert open_index(folder).rows.count == 1000


def test_rows_of_another_dtype_are_stored_as_the_index_stores_them(store, tmp_path):
    build(store, tmp_path / "index", factory="IVF16,Flat")
    half = store_of(tmp_path / "half", rows_for(20, seed=9, first=2000), dtype="float16")
    index = add(tmp_path / "index", half)
    assert index.rows.dtype == "float32" and best(index, half.embeddings()[:2]) == [["id-2000"], ["id-2001"]]


def test_tuning_anew_is_a_new_generation(store, tmp_path):
    build(store, tmp_path / "index", factory="IVF64,Flat", goal=Goal(0.5))
    low = open_index(tmp_path / "index").about
    index = retune(tmp_path / "index", Goal(0.99), queries=unit(200, seed=6))
    assert index.about["search"]["nprobe"] > low["search"]["nprobe"] and index.manifest["generation"] == 2
    assert index.about["measured"]["recall"] > 0.95 > low["measured"]["recall"]


@pytest.mark.parametrize("factory", [None, "HNSW16", "IVF16,Flat", "OPQ8_16,IVF8,PQ8x4", "IVF8,PQ12x4fs"])
def test_merging(store, tmp_path, factory):
    one = build(store, tmp_path / "one", factory=factory)
    other_store = store_of(tmp_path / "other", rows_for(300, seed=2, first=900))
    other = build(other_store, tmp_path / "two", trained_by=one)
    assert other.about["factory"] == one.about["factory"]
    merged = merge([one, other], tmp_path / "merged")
    assert merged.rows.count == merged.faiss.ntotal == 1200
    assert best(merged, np.vstack([unit(900)[[0, 899]], other_store.embeddings()[[0, 299]]])) == [
        ["id-0"], ["id-899"], ["id-900"], ["id-1199"]
    ] or "PQ8x4" in str(factory)  # fmt: skip
    same_as_exact(merged, 0.75)
    remove(tmp_path / "two", ["id-900"])
    again = merge([open_index(tmp_path / "one"), open_index(tmp_path / "two")], tmp_path / "again")
    assert again.rows.count == again.faiss.ntotal == 1199
    with pytest.raises(UserError, match="'id-0' stands in more than one"):
        merge([one, one], tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_merged_lists_are_those_of_one_build(store, tmp_path):
    """Trained once, added in two places: what is found is what one build of all rows finds."""
    whole_store = store_of(tmp_path / "whole-store", rows_for(900))
    whole = build(whole_store, tmp_path / "whole", factory="IVF16,Flat")
    halves = [Rows(unit(900)[part], [f"id-{i}" for i in range(900)][part]) for part in (slice(0, 500), slice(500, 900))]
    made = [
        build(store_of(tmp_path / f"s{i}", rows), tmp_path / f"i{i}", trained_by=whole) for i, rows in enumerate(halves)
    ]
    merged = merge(made, tmp_path / "merged")
    for nprobe in (1, 3, 16):
        one, two = (search(index, unit(40, seed=5), 10, settings={"nprobe": nprobe}) for index in (whole, merged))
        np.testing.assert_array_equal(one.rows, two.rows)


@pytest.mark.parametrize(
    "key", ["Flat", "IDMap2,Flat", "IVF8,Flat", "IDMap2,HNSW16", "HNSW16", "IVF8,SQ8", "OPQ8_16,IVF8,PQ8x6"]
)
def test_faiss_files_come_in_with_their_ids(tmp_path, key):
    x = unit(700)
    index = faiss.index_factory(24, key, faiss.METRIC_INNER_PRODUCT)
    index.train(x)
    ids = np.random.default_rng(0).permutation(700) * 3 + 10
    own = key.startswith(("IDMap", "IVF"))
    index.add_with_ids(x, ids) if own else index.add(x)
    path = tmp_path / "plain.faiss"
    faiss.write_index(index, str(path))
    names = None if own else [f"n{i}" for i in range(700)]
    made = import_faiss(path, tmp_path / "index", ids=names, metric="cosine" if "Flat" in key else None)
    expected = [int(ids[i]) if own else f"n{i}" for i in (0, 5, 699)]
    found = best(made, x[[0, 5, 699]], 3)
    assert all(name in three for name, three in zip(expected, found, strict=True))
    assert made.manifest["metric"] == ("cosine" if "Flat" in key else "inner_product")
    with pytest.raises(UserError, match="gives|ids of its own" if own else "has 2 lines for the 700 vectors"):
        import_faiss(path, tmp_path / "x", ids=["a"] * 700 if own else ["a", "b"])
    with pytest.raises(UserError, match="--metric euclidean"):
        import_faiss(path, tmp_path / "x", metric="euclidean")


def test_faiss_files_go_out(tmp_path):
    x = unit(400)
    numbers = np.arange(400) * 7 + 1
    index = build(store_of(tmp_path / "numbers", Rows(x, numbers)), tmp_path / "index", factory="IVF8,Flat")
    export_faiss(index, tmp_path / "plain.faiss")
    plain = faiss.read_index(str(tmp_path / "plain.faiss"))
    assert plain.search(x[:9], 1)[1][:, 0].tolist() == numbers[:9].tolist()
    remove(tmp_path / "index", numbers[:3])
    with pytest.raises(UserError, match="index compact"):
        export_faiss(open_index(tmp_path / "index"), tmp_path / "late.faiss")
    back = import_faiss(tmp_path / "plain.faiss", tmp_path / "back")
    assert best(back, x[:3]) == [[1], [8], [15]]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_graphs_go_out_to_hnswlib(tmp_path, metric):
    hnswlib = pytest.importorskip("hnswlib")
    x, numbers = unit(3000), np.random.default_rng(0).permutation(3000) + 7
    index = build(store_of(tmp_path / "s", Rows(x, numbers), metric=metric), tmp_path / "index", factory="HNSW16")
    with open(tmp_path / "graph.hnswlib", "wb") as file:
        write_hnswlib(index, file)
    there = hnswlib.Index("l2" if metric == "euclidean" else "ip", 24)
    there.load_index(str(tmp_path / "graph.hnswlib"))
    there.set_ef(64)
    queries = unit(200, seed=5)
    found = there.knn_query(queries, 10)[0].astype(np.int64)
    ours = search(index, queries, 10, settings={"effort": 64})
    assert (found == numbers[ours.rows]).mean() > 0.99
    there.resize_index(3100)
    there.add_items(unit(50, seed=9), np.arange(10_000, 10_050))  # it is a whole index there: it grows
    assert there.knn_query(unit(50, seed=9), 1)[0][:, 0].tolist() == list(range(10_000, 10_050))
    with pytest.raises(UserError, match="is IVF8,Flat; hnswlib reads"):
        write_hnswlib(build(index.rows, tmp_path / "ivf", factory="IVF8,Flat"), None)


def test_what_does_not_go_with_a_faiss_file_is_refused(tmp_path):
    x, path = unit(300), tmp_path / "plain.faiss"

    def written(key, vectors):
        index = faiss.index_factory(24, key, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        faiss.write_index(index, str(path))

    written("Flat", x)
    with pytest.raises(UserError, match="--labels: has 299 lines for the 300 vectors of .*; give one a vector"):
        import_faiss(path, tmp_path / "index", labels=["a"] * 299)
    longer = x.copy()
    longer[7] *= 1.1
    for key in ("Flat", "IVF8,Flat", "HNSW16"):
        written(key, longer)
        with pytest.raises(UserError, match=r"vector 7 has length 1.1, which cosine needs to be 1; leave --metric out"):
            import_faiss(path, tmp_path / "index", metric="cosine")
    written("IVF8,SQ8", 3 * x)
    with pytest.raises(UserError, match="which cosine needs to be 1"):
        import_faiss(path, tmp_path / "index", metric="cosine")
    written("Flat", x[:0])
    with pytest.raises(UserError, match="holds no vectors"):
        import_faiss(path, tmp_path / "index")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("key", ["SQ8", "IVF8,PQ4x4", "IVF8,RaBitQ"])
def test_codes_of_unit_vectors_are_taken_for_cosines(tmp_path, key):
    index = faiss.index_factory(24, key, faiss.METRIC_INNER_PRODUCT)
    index.train(unit(300))
    index.add(unit(300))
    faiss.write_index(index, str(tmp_path / "coded.faiss"))
    assert import_faiss(tmp_path / "coded.faiss", tmp_path / "index", metric="cosine").metric == "cosine"


@pytest.mark.parametrize("factory", ["Flat", "PQ4x4,RFlat"])
def test_rounded_vectors_come_back_as_they_were_exported(tmp_path, factory):
    """Their lengths are no longer quite 1, and they are not made so: no codes gave them back."""
    store = store_of(tmp_path / "store", rows_for(900), dtype="float16")
    export_faiss(build(store, tmp_path / "index", factory=factory), tmp_path / "plain.faiss")
    back = import_faiss(tmp_path / "plain.faiss", tmp_path / "back", metric="cosine")
    assert np.array_equal(back.rows.embeddings(), store.embeddings())


def test_a_store_without_rows_adds_nothing(store, tmp_path):
    """What is new since yesterday may be nothing; its ids are strings all the same."""
    build(store, tmp_path / "index", factory="Flat").rows.close()
    for emptied in (rows_for(0), rows_for(2)):
        new = store_of(tmp_path / f"new-{len(emptied)}", emptied)
        if len(emptied):
            new = delete(new.folder, emptied.ids)
        assert new.ids_between(0, 0) == []
        assert add(tmp_path / "index", new).rows.count == 900


def test_a_mapped_index_that_faiss_cannot_copy_is_imported(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    held = faiss.index_factory(8, "IDMap2,L2norm,Flat")
    held.add_with_ids(vectors, np.arange(60) + 7)
    faiss.write_index(held, str(tmp_path / "plain.faiss"))
    index = import_faiss(tmp_path / "plain.faiss", tmp_path / "index")
    assert index.rows.ids_between(0, 60).tolist() == list(range(7, 67))
