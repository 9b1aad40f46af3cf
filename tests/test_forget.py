"""Stored rows as queries: what they say of an index holds for queries from outside."""

from contextlib import ExitStack

import numpy as np
import pytest
from test_index import store_of

from retrieval.index import bundle
from retrieval.index.build import build
from retrieval.index.bundle import open_index
from retrieval.index.change import remove
from retrieval.index.forget import SHARE, forgotten, graph_of
from retrieval.index.plan import Goal
from retrieval.index.search import search
from retrieval.index.tune import one_more, probe, recalls, tune
from retrieval.neighbors import exact_neighbors
from retrieval.store import Rows

COUNT, DIM = 6000, 32


def drawn(count, seed):
    """Points around forty centres."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(40, DIM))
    return (centres[random.integers(0, 40, count)] + 0.8 * random.normal(size=(count, DIM))).astype(np.float32)


def made(folder, factory, metric="euclidean"):
    vectors = drawn(COUNT, 1)
    if metric == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store = store_of(folder / "store", Rows(vectors, np.arange(COUNT)), metric=metric, normalized=metric == "cosine")
    return build(store, folder / "index", factory=factory)


@pytest.mark.parametrize("factory", ["HNSW8", "HNSW8,SQ8", "NSG16"])
def test_what_a_graph_is_said_to_find_it_finds_for_new_queries(tmp_path, factory):
    index = made(tmp_path, factory)
    settings = {"effort": 14} | ({"rerank": 2} if "SQ" in factory else {})
    new = recalls(index, probe(index, drawn(2000, 2), 10), settings).mean()
    rows = np.random.default_rng(3).permutation(COUNT)
    held = recalls(index, probe(index, index.rows.take(rows[:600]), 10, rows[:600]), settings).mean()
    found = []
    for part in np.split(rows, 10)[:4]:  # each time others are forgotten
        with ExitStack() as stack:
            some, truth = forgotten(index, part, 10, stack)
            ids = search(index, index.rows.take(some), 10, settings=settings).rows
            assert not np.isin(ids, some).any() and len(some) <= COUNT // SHARE
            found.append((truth.ids[:, :, None] == ids[:, None, :]).any(2).mean())
    assert np.mean(found) == pytest.approx(new, abs=0.02)
    if factory != "NSG16":  # its search begins anew from one node, wherever the query is
        assert held > new + 0.03


@pytest.mark.parametrize("factory", ["HNSW8", "NSG16"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_graph_remembers_everything_afterwards(tmp_path, factory, metric):
    index = made(tmp_path, factory, metric)
    graph, rows = graph_of(index), np.random.default_rng(3).permutation(COUNT)[:900]
    before = graph.links.copy()
    with pytest.raises(KeyboardInterrupt), ExitStack() as stack:
        some, truth = forgotten(index, rows, 10, stack)
        assert not np.isin(graph.links, some).any() and (graph.links != before).any()
        for node in range(0, COUNT, 7):  # what FAISS relies on
            span = slice(graph.starts[node], graph.starts[node] + graph.width)
            links, old = graph.links[span].tolist(), before[span].tolist()  # FAISS's NSG has some links twice
            there = [link for link in links if link >= 0]
            assert links[: len(there)] == there
            assert len(there) - len(set(there)) <= len(old) - len(set(old)) or -1 in old
        kept = np.setdiff1d(np.arange(COUNT), some)
        wanted = exact_neighbors(index.rows.take(some), index.rows.take(kept), 10, metric=index.measure)
        assert (truth.ids == kept[wanted.ids]).all()
        raise KeyboardInterrupt
    assert (graph.links == before).all()


def test_rows_that_are_deleted_or_came_late(tmp_path):
    """FAISS's numbers are not those of the rows then."""
    remove(made(tmp_path, "HNSW8").folder, list(range(0, 3000, 2)))
    index = open_index(tmp_path / "index")
    with ExitStack() as stack:
        some, truth = forgotten(index, np.random.default_rng(3).permutation(index.rows.count), 5, stack)
        found = search(index, index.rows.take(some), 5, settings={"effort": 400}).rows
        assert (found == truth.ids).mean() > 0.99 and not np.isin(found, some).any()


def test_a_graph_that_is_mapped_from_its_file_is_left_alone(tmp_path, monkeypatch):
    made(tmp_path, "HNSW8")
    monkeypatch.setattr(bundle, "MAPPED_FROM", 0)
    index = open_index(tmp_path / "index")
    assert graph_of(index) is None
    told = tune([index], Goal(recall=0.8), None, 0)[0]
    assert told["measured"]["reached"] and told["measured"]["queries_from"] == "stored"


@pytest.mark.parametrize("rerank", [1, 2, 3, 8, 20, 32])
@pytest.mark.parametrize("k", [1, 3, 7, 10, 100])
def test_a_stored_query_has_one_candidate_more_for_itself(rerank, k):
    assert int((k + 1) * np.float32(one_more(rerank, k))) == rerank * k + 1
