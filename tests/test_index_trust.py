"""What indexes once got wrong: the last rows deleted, rows that repeat, factories that FAISS does not survive, builds that were resumed."""

import faiss
import numpy as np
import pytest
from test_index import rows_for, store_of, unit

from retrieval.errors import UserError
from retrieval.index import build as building
from retrieval.index import plan
from retrieval.index.build import build
from retrieval.index.bundle import open_index
from retrieval.index.change import add, compact, remove, retune
from retrieval.index.exchange import export_faiss, import_faiss
from retrieval.index.hnswlib_file import write_hnswlib
from retrieval.index.kinds import layers
from retrieval.index.plan import Goal, candidates
from retrieval.index.search import hits, search, within
from retrieval.index.tune import interval
from retrieval.neighbors import exact_neighbors
from retrieval.store import Rows


@pytest.mark.parametrize("factory", ["HNSW16", "IVF8,Flat", "SQ8", "NSG16"])
def test_the_last_rows_deleted_are_not_found(tmp_path, factory):
    """Those that are left are numbered 0, 1, … as if nothing had been deleted."""
    build(store_of(tmp_path / "store", rows_for(900)), tmp_path / "i", factory=factory)
    index = remove(tmp_path / "i", [f"id-{i}" for i in range(700, 900)])
    queries = unit(200, seed=1)
    truth = exact_neighbors(queries, index.rows.embeddings(), 10)
    found = search(
        index, queries, 10, settings={**index.about["search"], **({"effort": 400} if "HNSW" in factory else {})}
    )
    assert (found.rows >= 0).all() and (found.rows < 700).all() and len(hits(index, found)) == 200
    if factory != "NSG16":
        assert (truth.ids[:, :, None] == found.rows[:, None]).any(2).mean() > 0.9
    with pytest.raises(UserError, match="has late or deleted rows"):
        export_faiss(index, tmp_path / "x.faiss")
    if factory == "HNSW16":
        with pytest.raises(UserError, match="has late or removed rows"):
            write_hnswlib(index, tmp_path / "x.hnswlib")
    told = retune(tmp_path / "i", Goal(0.9))
    assert told.about["measured"]["recall"] > 0.85
    assert compact(tmp_path / "i").faiss.ntotal == 700


@pytest.mark.parametrize("factory", ["HNSW16", "IVF8,Flat", "SQ8"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_of_vectors_that_repeat_any_will_do(tmp_path, factory, metric):
    repeated = np.repeat(unit(60, seed=2), 20, axis=0)
    rows = Rows(repeated, np.arange(len(repeated)))
    store = store_of(tmp_path / "s", rows, metric=metric, normalized=metric == "cosine")
    told = build(store, tmp_path / "i", factory=factory).about["measured"]
    assert told["recall"] > 0.99 and told["reached"]


@pytest.mark.parametrize(("factory", "times"), [("NSG16", 9), ("NSG16,SQ8", 20), ("PCA12,NSG32", 17)])
def test_an_nsg_of_vectors_that_repeat_is_refused(tmp_path, run_cli, factory, times):
    """FAISS never returned where all stood 15 times for 16 links, and now and then where one of 1,300 stood 300 times."""
    links = 32 if "32" in factory else 16
    vectors = np.vstack([unit(300, seed=1), np.repeat(unit(1, seed=2), times, 0)])
    store = store_of(tmp_path / "s", Rows(vectors, np.arange(len(vectors))))
    with pytest.raises(
        UserError, match=f"none may stand more than {links // 2} times.* stands {times} times; take HNSW"
    ):
        build(store, tmp_path / "refused", factory=factory)
    whole = store_of(tmp_path / "w", Rows(vectors[: 300 + links // 2], np.arange(300 + links // 2)))
    build(whole, tmp_path / "i", factory=factory)
    late = Rows(vectors[300 + links // 2 - 1 :], np.arange(1000, 1001 + len(vectors) - 300 - links // 2))
    add(tmp_path / "i", store_of(tmp_path / "late", late))
    told = run_cli("index", "compact", tmp_path / "i").stdout
    assert "compared exactly, too often the same for a graph of this type" in told
    index = open_index(tmp_path / "i")
    assert index.about["covers"] == 0 and hits(index, search(index, vectors[:1], 1))[0][0].id == 0


@pytest.mark.parametrize(
    "factory", ["HNSW0", "HNSW1", "NSG0", "NSG4", "NSG7,SQ8", "IVF0,Flat", "PCA0,Flat", "OPQ0,PQ4", "IVF4,PQ0", "", " "]
)
def test_factories_that_faiss_does_not_survive(tmp_path, factory):
    store = store_of(tmp_path / "s", rows_for(100))
    with pytest.raises(UserError, match="--factory.*(FAISS would not survive|is empty)"):
        build(store, tmp_path / "i", factory=factory)
    assert not list(tmp_path.glob(".i*"))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_memory_that_is_planned_is_what_faiss_takes(tmp_path, metric):
    """With centres, rotation, codebooks and the table that FAISS keeps of euclidean codes, which are most of it where vectors are few."""
    store = store_of(tmp_path / "s", Rows(unit(1000, dim=16), np.arange(1000)), metric=metric)
    for one in [*candidates(1000, 16, Goal()), *plan._smaller(1000, 16, metric)]:
        index = building.new_index(one.factory, store)
        building.train(index, store, 0)
        index.add(store.embeddings())
        last = list(layers(index))[-1]
        table = 4 * last.precomputed_table.size() if isinstance(last, faiss.IndexIVFPQ) else 0
        taken = faiss.serialize_index(index).nbytes + table
        assert taken - 1000 < one.memory < 1.3 * taken, one


def test_a_plan_refuses_what_the_build_would(tmp_path, run_cli):
    store_of(tmp_path / "s", rows_for(100)).close()
    told = run_cli("index", "build", tmp_path / "s", "--factory", "NOPE", "--plan", code=2)
    assert "FAISS cannot make it" in told.stderr


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("IVF64,Flat", "(Number of training points (20) should be at least as large as number of clusters (64))"),
        ("PQ7", "(The dimension of the vector (d) should be a multiple of the number of subquantizers (M))"),
        ("LSH", "(needs metric == METRIC_L2)"),
        ("NOPE", "(could not parse index string NOPE)"),
    ],
)
def test_what_faiss_refuses_is_said_without_its_conditions(tmp_path, run_cli, factory, says):
    store_of(tmp_path / "s", rows_for(20)).close()
    told = run_cli("index", "build", tmp_path / "s", "--factory", factory, "--output", tmp_path / "i", code=2).stderr
    assert says in told and "failed" not in told and "static_cast" not in told


def test_the_largest_seed(tmp_path):
    assert (
        build(store_of(tmp_path / "s", rows_for(300)), tmp_path / "i", factory="IVF4,PQ4", seed=2**32 - 1).rows.count
        == 300
    )


def test_a_build_that_fails_leaves_nothing(tmp_path):
    store = store_of(tmp_path / "s", rows_for(20))
    with pytest.raises(UserError, match="FAISS cannot build it"):
        build(store, tmp_path / "i", factory="IVF64,Flat")
    assert not list(tmp_path.glob(".i*"))


def test_a_graph_that_was_resumed_is_that_of_an_unbroken_build(tmp_path, monkeypatch):
    store, before = store_of(tmp_path / "s", rows_for(900)), faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    monkeypatch.setattr(building, "BLOCK_ROWS", 256)
    monkeypatch.setattr(building, "SAVED_EVERY", 0.0)
    try:
        whole = build(store, tmp_path / "whole", factory="HNSW8").manifest["files"]["index.faiss"]["sha256"]
        grown, calls = building.add_rows, []

        def dies(index, store, begun, path, progress, device="cpu"):
            def told(rows):
                calls.append(rows)
                if sum(calls) > 600:
                    raise KeyboardInterrupt

            grown(index, store, begun, path, told, device)

        monkeypatch.setattr(building, "add_rows", dies)
        with pytest.raises(KeyboardInterrupt):
            build(store, tmp_path / "broken", factory="HNSW8")
        monkeypatch.setattr(building, "add_rows", grown)
        again = build(store, tmp_path / "broken", factory="HNSW8").manifest["files"]["index.faiss"]["sha256"]
    finally:
        faiss.omp_set_num_threads(before)
    assert again == whole


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_radius_1_finds_the_vector_itself_in_any_dtype(tmp_path, dtype):
    index = build(store_of(tmp_path / "s", rows_for(900), dtype=dtype), tmp_path / "i")
    found = within(index, index.rows.embeddings(), 1.0)
    assert (found.rows == np.arange(900)[:, None]).any(1).all()


def test_codes_imported_as_cosine_become_unit_vectors(tmp_path):
    index = faiss.index_factory(24, "IVF4,PQ2x4", faiss.METRIC_INNER_PRODUCT)
    vectors = unit(300, seed=3)
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    made = import_faiss(tmp_path / "x.faiss", tmp_path / "i", metric="cosine")
    assert np.allclose(np.linalg.norm(made.rows.embeddings(), axis=1), 1, atol=1e-5)


def test_an_interval_where_all_are_alike():
    for share, low, high in ((0, 0, 0.03), (1, 0.97, 1), (0.5, 0.47, 0.53)):
        assert interval(np.full(100, share, np.float32)) == pytest.approx((low, high))


def test_what_is_not_ours_stays(tmp_path):
    build(store_of(tmp_path / "s", rows_for(50)), tmp_path / "i")
    (tmp_path / "i" / "NOTES.txt").write_text("mine")
    remove(tmp_path / "i", ["id-3"])
    compact(tmp_path / "i")
    assert (tmp_path / "i" / "NOTES.txt").read_text() == "mine" and len(
        list((tmp_path / "i").glob("index*.faiss"))
    ) == 1
    assert open_index(tmp_path / "i").rows.count == 49
