"""Indexes and stores where two features meet: types that take no settings, folders replaced while they are read, flags that
have nothing to do."""

import json
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_index import rows_for, store_of, unit

from retrieval.errors import UserError
from retrieval.formats import Imported, export, open_vectors
from retrieval.index import search as searching
from retrieval.index.build import build
from retrieval.index.bundle import open_index
from retrieval.index.change import merge
from retrieval.index.search import search, within
from retrieval.neighbors import exact_neighbors
from retrieval.store import Held, Kind, Rows, append, create, open_store, reader

BY_PRODUCT = ["RQ4x4", "IVF8,RQ4x4", "RQ4x4fs", "RaBitQfs", "PCA12,NSG8"]
BY_DISTANCE = ["LSH", "IVF8,PQ4+4"]


@pytest.mark.parametrize(
    ("factory", "metric"), [*((f, "cosine") for f in BY_PRODUCT), *((f, "euclidean") for f in BY_DISTANCE)]
)
def test_types_that_take_no_settings_search_and_filter(tmp_path, monkeypatch, factory, metric):
    monkeypatch.setattr(searching, "EXACT_UP_TO", 0)
    monkeypatch.setattr(searching, "BATCHED", 1e-3)  # so that comparing all never pays
    store = store_of(tmp_path / "store", rows_for(900), metric=metric, normalized=metric == "cosine")
    index = build(store, tmp_path / "index", factory=factory)
    x, may = store.embeddings(), np.arange(900) % 3 == 0
    found = search(index, x[:20], 5, where=may)
    assert may[found.rows].all()
    wanted = exact_neighbors(x[:20], x[may], 5, metric=metric if metric == "euclidean" else "inner_product")
    assert (
        np.mean([len({*a} & {*b}) / 5 for a, b in zip(found.rows, np.flatnonzero(may)[wanted.ids], strict=True)]) > 0.6
    )
    assert len(np.unique(search(index, x[:1], 900).rows)) == 900  # an NSG asked for more than it has would never return


@pytest.mark.parametrize(("factory", "metric"), [("IVF4,RQ4x4fs", "cosine"), ("HNSW8_2x2+PQ4", "euclidean")])
def test_types_that_no_search_can_steer_are_refused(tmp_path, factory, metric):
    store = store_of(tmp_path / "store", rows_for(900), metric=metric, normalized=metric == "cosine")
    with pytest.raises(UserError, match="take another"):
        build(store, tmp_path / "index", factory=factory)


@pytest.mark.parametrize("factory", ["NSG8,Flat", "IVF8,Flat,RFlat", "HNSW8", "IVF8,SQ8"])
def test_every_type_can_be_merged(tmp_path, factory):
    stores = [store_of(tmp_path / f"s{i}", rows_for(400, seed=i, first=400 * i)) for i in range(2)]
    first = build(stores[0], tmp_path / "i0", factory=factory)
    alike = {"factory": factory} if factory == "NSG8,Flat" else {"trained_by": first}
    whole = merge([first, build(stores[1], tmp_path / "i1", **alike)], tmp_path / "whole")
    x = np.concatenate([store.embeddings() for store in stores])
    assert whole.faiss.ntotal == 800 and np.array_equal(whole.rows.embeddings(), x)
    found = search(whole, x[::8], 10, settings={"nprobe": 8, "effort": 200, "rerank": 4}).rows
    assert np.mean(found[:, 0] == np.arange(0, 800, 8)) > 0.97


def test_an_index_replaced_while_it_is_open_gives_no_wrong_rows(tmp_path):
    old, new = (store_of(tmp_path / f"s{i}", rows_for(300, seed=i)) for i in range(2))
    build(old, tmp_path / "index", factory="HNSW8")
    held = open_index(tmp_path / "index")
    build(new, tmp_path / "index", factory="HNSW8", overwrite=True)
    with pytest.raises(UserError, match="was the store replaced meanwhile"):
        search(held, new.embeddings()[:1], 3)
    assert np.array_equal(open_index(tmp_path / "index").rows.embeddings(), new.embeddings())


def test_radius_1_finds_the_vector_itself(tmp_path):
    x = unit(400)
    index = build(store_of(tmp_path / "store", Rows(x, np.arange(400))), tmp_path / "index")
    assert (x.astype(np.float64) ** 2).sum(1).min() < 1
    found = within(index, x, 1.0)
    assert np.array_equal(found.rows[:, 0], np.arange(400))


def test_what_is_deleted_twice_is_counted_once(tmp_path, run_cli):
    store_of(tmp_path / "s", rows_for(20)).close()
    asked = ("store", "delete", tmp_path / "s", "--id", "id-3", "--json")
    assert [json.loads(run_cli(*asked).stdout)["deleted"] for _ in range(2)] == [1, 0]
    build(store_of(tmp_path / "t", rows_for(20)), tmp_path / "i")
    asked = ("index", "remove", tmp_path / "i", "--id", "id-3")
    assert [run_cli(*asked).stdout.count("1 row removed") for _ in range(2)] == [1, 0]


def test_no_numbers_are_left_after_the_largest(tmp_path):
    x, kind = unit(3), Kind(24)
    create(tmp_path / "s", Held(Rows(x, np.array([2**63 - 1, 1, 2]))), kind)
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(UserError, match="no numbers are left"):
        append(tmp_path / "s", Imported(open_vectors(tmp_path / "x.npy"), "cosine", False), kind)


def test_columns_named_as_ours_come_back_from_parquet(tmp_path):
    rows = rows_for(5)
    payload = {"id": list("abcde"), "Label": list("fghij"), "embedding": list("klmno"), "payload.x": list("pqrst")}
    store = store_of(tmp_path / "s", Rows(rows.embeddings, rows.ids, None, payload))
    export(store, tmp_path / "all.parquet")
    source = Imported(open_vectors(tmp_path / "all.parquet"), "cosine", False)
    back = create(tmp_path / "back", source, Kind(24)).load()
    assert back.ids == rows.ids and back.labels is None and back.payload == payload


def test_hnswlib_takes_no_ids_below_0(tmp_path, run_cli):
    build(store_of(tmp_path / "s", Rows(unit(50), np.arange(50) - 1)), tmp_path / "i", factory="HNSW8")
    asked = ("index", "export", tmp_path / "i", "--output", tmp_path / "i.hnswlib")
    assert "none below 0" in run_cli(*asked, code=2).output


def test_minus_1_is_no_result_and_no_id_at_once(tmp_path, run_cli):
    store_of(tmp_path / "s", Rows(unit(5), np.arange(5) - 1)).close()
    run_cli("index", "build", tmp_path / "s", "--output", tmp_path / "i")
    asked = ("search", tmp_path / "i", "--store", tmp_path / "s", "--output", tmp_path / "o.npy", "--overwrite")
    run_cli(*asked)  # every query has all five
    assert np.load(tmp_path / "o.npy").min() == -1


def test_small_stores_have_ann_benchmarks_files(tmp_path, run_cli):
    build(store_of(tmp_path / "s", rows_for(20)), tmp_path / "i")
    for what, folder in (("store", "s"), ("index", "i")):
        to = tmp_path / f"{what}.hdf5"
        run_cli(what, "export", tmp_path / folder, "--output", to, "--queries", tmp_path / "s")
        assert open_vectors(to).count == 20


def test_a_plan_needs_no_output_and_says_what_is_taken_over(tmp_path, run_cli):
    store = store_of(tmp_path / "s", rows_for(300))
    build(store, tmp_path / "i", factory="IVF4,Flat")
    asked = ("index", "build", tmp_path / "s")
    assert "--output: is missing" in run_cli(*asked, code=2).output
    assert "plan: Flat" in run_cli(*asked, "--plan").output
    taken = run_cli(*asked, "--plan", "--trained-by", tmp_path / "i", "--json")
    assert json.loads(taken.stdout)["plan"] == [{"factory": "IVF4,Flat"}]
    assert "--trained-by has chosen" in run_cli(*asked, "--plan", "--trained-by", tmp_path / "i", "--memory", "1GB", code=2).output  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "flag"),
    [
        (("search", "i", "--store", "s", "--encoder", "e"), "--encoder"),
        (("search", "i", "--store", "s", "--device", "cpu"), "--device"),
        (("index", "export", "i", "--output", "i.faiss", "--queries", "s"), "--queries"),
        (("store", "export", "s", "--output", "s.npy", "-k", "3"), "-k"),
        (("store", "export", "s", "--output", "s.npy", "--device", "cpu"), "--device"),
        (("embed", "--encoder", "e", "--data", "s", "--output", "o", "--compute", "float16"), "--compute"),
        (("embed", "--encoder", "e", "--data", "s", "--output", "s", "--append", "--shard-rows", "3"), "--shard-rows"),
    ],
)
def test_flags_that_have_nothing_to_do_are_refused(tmp_path, run_cli, monkeypatch, asked, flag):
    monkeypatch.chdir(tmp_path)
    build(store_of(tmp_path / "s", rows_for(20)), tmp_path / "i")
    told = run_cli(*asked, code=2).output
    assert f"{flag}: " in told and "leave it out" in told


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"raw": [b"x", b"y"]}, "holds bytes"),
        ({"a": ["x", "y"], "payload.a": ["z", "w"]}, "two columns are of one name"),
    ],
)
def test_columns_that_are_no_payload_are_refused(tmp_path, columns, told):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(unit(2).ravel()), 24)
    pq.write_table(pa.table({"embedding": vectors, **columns}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=told):
        create(tmp_path / "s", Imported(open_vectors(tmp_path / "x.parquet"), "cosine", False), Kind(24))


def test_a_store_replaced_while_it_is_opened_is_read_whole(tmp_path, monkeypatch):
    old, new = (store_of(tmp_path / name, rows_for(50, seed=seed)) for seed, name in enumerate(("s", "t")))
    wanted = new.embeddings()
    real, calls = reader.read_manifest, []

    def replaced_before(*args, **kwargs):
        if not calls:
            (tmp_path / "s").rename(tmp_path / "gone")
            (tmp_path / "t").rename(tmp_path / "s")
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(reader, "read_manifest", replaced_before)
    assert np.array_equal(open_store(tmp_path / "s").embeddings(), wanted)
    assert len(calls) == 2 and not np.array_equal(old.embeddings(), wanted)


def test_vectors_too_long_for_products(tmp_path, run_cli, monkeypatch):
    """FAISS would end the process, or find them in the order of their rows."""
    monkeypatch.chdir(tmp_path)
    np.save("long.npy", np.eye(4, 8, dtype=np.float32) * 1e19)
    words = ("store", "import", "long.npy", "--metric", "inner_product", "--output", "s")
    assert "4 of 4 vectors (ids 0, 1, 2) are longer than 1e+18" in run_cli(*words, code=2).output
    np.save("long.npy", np.eye(4, 8, dtype=np.float32) * 9e17)
    run_cli(*words)
    run_cli("index", "build", "s", "--output", "i")
    run_cli("search", "i", "--store", "s", "-k", 2, "--output", "found.jsonl")
    found = [json.loads(line) for line in Path("found.jsonl").read_text("utf-8").splitlines()]
    assert [each["hits"][0]["id"] for each in found] == [0, 1, 2, 3]
    assert found[0]["hits"][0]["score"] == pytest.approx(8.1e35)


def test_a_distance_of_zero_has_no_sign(tmp_path, run_cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", unit(40))
    run_cli("store", "import", "x.npy", "--metric", "euclidean", "--output", "s")
    run_cli("store", "import", "x.npy", "--append", "--output", "s")  # by the store's metric
    for factory in ("Flat", "SQ8"):
        run_cli("index", "build", "s", "--factory", factory, "--output", factory)
        run_cli("search", factory, "--store", "s", "-k", 2, "--output", f"{factory}.jsonl")
        assert '"score": 0.0' in (text := Path(f"{factory}.jsonl").read_text("utf-8")) and "-0.0" not in text


@pytest.mark.parametrize(
    ("factory", "decoded"),
    [("Flat", False), ("IVF4,Flat", False), ("HNSW8", False), ("PQ12x4,RFlat", False), ("PQ12x4", True), ("SQ8", True), ("PCA12,Flat", True)],
)  # fmt: skip
def test_codes_that_are_imported_are_told(tmp_path, run_cli, factory, decoded):
    index = faiss.index_factory(24, factory)
    index.train(unit(900))
    index.add(unit(900))
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    for words in (
        ("index", "import", tmp_path / "x.faiss", "--output", tmp_path / "i"),
        ("index", "info", tmp_path / "i"),
    ):
        assert ("not of the vectors that were coded" in run_cli(*words).stdout) == decoded


def test_bits_are_no_vectors(tmp_path, run_cli):
    index = faiss.IndexLSH(24, 64)
    index.add(unit(100))
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    assert "from which no vector comes back" in run_cli("index", "import", tmp_path / "x.faiss", "--output", tmp_path / "i", code=2).output  # fmt: skip


@pytest.mark.parametrize("factory", ["PQ4x4", "RQ2x4", "IVF4,RQ2x4"])
def test_few_rows_are_clustered_without_a_warning(tmp_path, factory, capfd):
    """Which FAISS prints by itself, a line for every part; and by the seed that is given."""
    store = store_of(tmp_path / "s", rows_for(100))
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        build(store, tmp_path / name, factory=factory, seed=seed)
    assert "WARNING" not in "".join(capfd.readouterr())
    one, again, other = ((tmp_path / name / "index.faiss").read_bytes() for name in ("one", "again", "other"))
    assert one == again and one != other
