"""Indexes: what FAISS opens, what search finds, what is refused."""

import subprocess
import sys

import faiss
import numpy as np
import pytest

from retrieval.errors import UserError
from retrieval.index import backend
from retrieval.index.build import build, choose
from retrieval.index.bundle import open_index, require_same_encoder, write_faiss
from retrieval.index.search import search
from retrieval.neighbors import exact_neighbors
from retrieval.store import Held, Kind, Rows, create


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 24)).astype(np.float32) + np.repeat(2 * rng.normal(size=(30, 24)), 30, axis=0)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    rows = Rows(x, [f"id-{i}" for i in range(900)], [str(i // 30) for i in range(900)])
    return create(tmp_path / "store", Held(rows), Kind(24, modality="text", encoder={"name": "e", "fingerprint": "f"}))


@pytest.mark.parametrize("factory", [None, "IVF16,Flat", "HNSW16", "OPQ8_16,IVF8,PQ8x4", "SQ8", "IDMap2,Flat"])
def test_build_search_and_plain_faiss(store, tmp_path, factory):
    bundle = build(store, tmp_path / "index", factory=factory)
    x = store.load().embeddings
    found = search(bundle, x[:5], 3)
    assert [hits[0].id for hits in found] == [f"id-{i}" for i in range(5)] or "PQ" in str(factory)
    assert all(hit.label is not None and hit.payload == {} for hits in found for hit in hits)
    plain = faiss.read_index(str(tmp_path / "index" / "index.faiss"))
    assert plain.ntotal == 900 and plain.metric_type == faiss.METRIC_INNER_PRODUCT
    if factory in (None, "IVF16,Flat", "HNSW16"):
        assert bundle.manifest["recall@10"] >= 0.95
        truth = exact_neighbors(x[:50], x, 4).ids
        ids = np.array([[int(hit.id[3:]) for hit in hits] for hits in search(bundle, x[:50], 4)])
        assert (ids == truth).mean() > (0.999 if factory is None else 0.9)
    if factory == "IVF16,Flat":
        assert 1 <= bundle.manifest["search"]["nprobe"] <= 16
        assert faiss.extract_index_ivf(bundle.index).nprobe == bundle.manifest["search"]["nprobe"]


def test_the_choice_by_size():
    assert choose(200_000) == "Flat" and choose(10**6) == "IVF4096,Flat"


def test_more_results_than_items(store, tmp_path):
    bundle = build(store, tmp_path / "index")
    assert len(search(bundle, store.load().embeddings[:1], 5000)[0]) == 900


@pytest.mark.parametrize(
    "factory,word", [("Nonsense", "cannot make it"), ("IVF5000,Flat", "cannot build it"), ("PQ7", "cannot")]
)
def test_bad_factories_are_refused_and_leave_nothing(store, tmp_path, factory, word):
    with pytest.raises(UserError, match=word) as caught:
        build(store, tmp_path / "index", factory=factory)
    assert "\n" not in str(caught.value) and [p.name for p in tmp_path.iterdir()] == ["store"]


def test_another_encoder_is_refused(store, tmp_path):
    bundle = build(store, tmp_path / "index")
    require_same_encoder(bundle.manifest, "f", "same")
    with pytest.raises(UserError, match="is not the encoder of this index"):
        require_same_encoder(bundle.manifest, "g" * 64, "other")


def test_damage_is_refused(store, tmp_path):
    build(store, tmp_path / "index")
    path = tmp_path / "index" / "index.faiss"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="does not match"):
        open_index(tmp_path / "index", check=True)
    path.write_bytes(content[:100])
    with pytest.raises(UserError, match="100 bytes"):
        open_index(tmp_path / "index")


def test_a_full_disk_is_noticed_where_faiss_itself_is_silent(store):
    from pathlib import Path

    index = faiss.IndexFlatIP(24)
    index.add(store.load().embeddings)
    with pytest.raises(OSError, match="No space left"):
        write_faiss(index, Path("/dev/full"))


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
