"""Filters whose rows lie far from the query, where an index looks last."""

import faiss
import numpy as np
import pytest
from test_index import store_of

from retrieval.index import search as searching
from retrieval.index.build import build
from retrieval.index.change import remove
from retrieval.index.kinds import parameters
from retrieval.index.search import search
from retrieval.neighbors import exact_neighbors
from retrieval.store import Rows

CLASSES, OF_EACH = 8, 300


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Eight tight classes of unit vectors, and queries of the same classes."""
    rng = np.random.default_rng(0)
    middles = rng.standard_normal((CLASSES, 1, 24))
    x, queries = (
        (middles + 0.35 * rng.standard_normal((CLASSES, count, 24))).reshape(-1, 24) for count in (OF_EACH, 10)
    )
    x, queries = ((v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in (x, queries))
    labels = [str(i // OF_EACH) for i in range(len(x))]
    return store_of(tmp_path_factory.mktemp("classes") / "store", Rows(x, np.arange(len(x)), labels=labels)), queries


def recall(found, x, queries, where):
    rows = np.flatnonzero(where)
    truth = rows[exact_neighbors(queries, x[rows], found.shape[1]).ids]
    return (truth[:, :, None] == found[:, None]).any(2).mean()


@pytest.mark.parametrize("factory", ["HNSW8", "IVF32,Flat", "IVF32,PQ12x4fs", "PQ12x4", "NSG8,Flat"])
def test_rows_far_from_the_query_are_found_as_near_ones_are(classes, tmp_path, monkeypatch, factory):
    """By FAISS alone where comparing all never pays, by comparing all for those queries that look in vain otherwise."""
    store, queries = classes
    index, x = build(store, tmp_path / "index", factory=factory), store.embeddings()
    where = np.arange(len(x)) < 3 * OF_EACH
    monkeypatch.setattr(searching, "EXACT_UP_TO", 0)
    outside = queries[30:]
    for batched in (1e-3, 64):
        monkeypatch.setattr(searching, "BATCHED", batched)
        for some in (queries[:30], outside, outside[:1]):
            found = search(index, some, 10, where=where)
            assert where[found.rows].all() and recall(found.rows, x, some, where) >= 0.9
            assert found.how["allowed"] == 900 and 0 <= found.how["exact_queries"] <= len(some)
        assert (np.diff(found.scores, axis=1) <= 1e-6).all()
    assert found.how["exact_queries"] == 1  # the last, far from all that may be found


@pytest.mark.parametrize("factory", ["HNSW8", "IVF32,Flat"])
def test_where_faiss_passes_over_rows_by_itself_they_are_lost(classes, tmp_path, factory):
    """Why it is not told to: with as many times the effort as rows are forbidden most of what may be found is missed."""
    store, queries = classes
    index, x = build(store, tmp_path / "index", factory=factory), store.embeddings()
    where = np.arange(len(x)) < 3 * OF_EACH
    asked = parameters(index.faiss, {name: -(-value * len(x) // 900) for name, value in index.about["search"].items()})
    asked.sel = selector = faiss.IDSelectorBitmap(np.packbits(where, bitorder="little"))
    some, pointer = np.ascontiguousarray(queries[30:]), faiss.swig_ptr
    scores, found = np.empty((len(some), 10), np.float32), np.empty((len(some), 10), np.int64)
    # Not `search`: a peer's import gives that other parameters.
    index.faiss.search_c(len(some), pointer(some), 10, pointer(scores), pointer(found), asked)
    assert selector is not None and recall(found, x, some, where) < 0.8


@pytest.mark.parametrize("factory", ["HNSW8", "IVF32,Flat"])
def test_a_class_that_was_removed_hides_no_other(classes, tmp_path, factory):
    store, queries = classes
    build(store, tmp_path / "index", factory=factory)
    index = remove(tmp_path / "index", list(range(7 * OF_EACH, 8 * OF_EACH)))
    assert index.rows.ordinals is not None
    x, everything = store.embeddings()[: 7 * OF_EACH], np.ones(7 * OF_EACH, bool)
    found = search(index, queries[70:], 10)
    assert recall(found.rows, x, queries[70:], everything) >= 0.9
