"""Foreign files: there and back by hypothesis, their conventions, and what each cannot hold."""

import json
import subprocess

import h5py
import numpy as np
import pytest
from foreign import back, plain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retrieval.errors import UserError, is_disk_full
from retrieval.formats import ARRAYS, Imported, export, open_vectors, read_lines
from retrieval.store import Held, Kind, Rows, append, create, delete, open_store

ANY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@st.composite
def stores(draw, folder, whole=False):
    """A store of any dtype, ids, columns, with some rows deleted; vectors of whole numbers if asked."""
    count, dim = draw(st.integers(0, 17)), draw(st.integers(1, 7))
    values = st.integers(1, 100).map(float) if whole else st.floats(-50, 50, width=16).filter(lambda v: abs(v) > 0.1)
    integer = draw(st.booleans())
    ids = np.arange(count) * 3 - 7 if integer else draw(st.lists(names, min_size=count, max_size=count, unique=True))
    column = st.lists(names, min_size=count, max_size=count)
    payload = draw(st.dictionaries(st.sampled_from(["text", "path", "título"]), column, max_size=2))
    rows = Rows(draw(arrays(np.float32, (count, dim), elements=values)), ids, draw(st.none() | column), payload)
    dtype = "float32" if whole else draw(st.sampled_from(["float32", "float16", "bfloat16", "int8"]))
    create(folder, Held(rows), Kind(dim, dtype, "inner_product", False, shard_rows=4))
    if count > 2:
        delete(folder, ids[1:2])
    return open_store(folder)


@pytest.mark.parametrize("ending", ARRAYS)
@ANY
@given(st.data())
def test_arrays_there_and_back(tmp_path_factory, ending, data):
    folder = tmp_path_factory.mktemp("any")
    store = data.draw(stores(folder / "s", whole=ending not in (".npy", ".fvecs", ".fbin")))
    if not store.count and ending.endswith("vecs"):
        export(store, folder / f"x{ending}")
        with pytest.raises(UserError, match="is empty"):
            open_vectors(folder / f"x{ending}")
        return
    export(store, folder / f"x{ending}")
    (folder / "ids").write_text("".join(f"{i}\n" for i in range(store.count)))
    ids = read_lines(folder / "ids")
    again = back(folder / f"x{ending}", folder / "t", own_ids=ids).load()
    assert (again.embeddings == store.embeddings()).all() and (not store.count or again.ids == ids)


@ANY
@given(st.data())
def test_parquet_there_and_back_is_the_same_store(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    store = data.draw(stores(folder / "s"))
    export(store, folder / "x.parquet")
    opened = open_vectors(folder / "x.parquet")
    kind = Kind(opened.dim, "float16" if store.dtype == "float16" else "float32", "inner_product", False, shard_rows=3)
    again, before = create(folder / "t", Imported(opened, "inner_product", False), kind).load(), store.load()
    assert (again.embeddings == before.embeddings).all() and (again.labels, again.payload) == (
        before.labels,
        before.payload,
    )
    assert list(again.ids) == list(before.ids) and type(again.ids) is type(before.ids)


def test_numpy_and_faiss_read_what_we_write(tmp_path):
    from faiss.contrib.vecs_io import fvecs_read

    x = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)
    store = create(tmp_path / "s", Held(Rows(x, np.arange(10))), plain)
    for ending in (".npy", ".fvecs", ".fbin"):
        export(store, tmp_path / f"x{ending}")
    assert (np.load(tmp_path / "x.npy") == x).all() and (fvecs_read(str(tmp_path / "x.fvecs")) == x).all()
    raw = (tmp_path / "x.fbin").read_bytes()
    assert (
        np.frombuffer(raw[:8], "<u4").tolist() == [10, 5] and (np.frombuffer(raw[8:], "<f4").reshape(10, 5) == x).all()
    )


@pytest.mark.parametrize("metric,distance", [("euclidean", "euclidean"), ("cosine", "angular")])
def test_ann_benchmarks_conventions(tmp_path, metric, distance):
    rng = np.random.default_rng(0)
    base, queries = (rng.normal(size=(n, 5)).astype(np.float32) for n in (60, 7))
    if metric == "cosine":
        base, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (base, queries))
    kind = Kind(5, metric=metric, normalized=metric == "cosine")
    stores = [create(tmp_path / n, Held(Rows(x, np.arange(len(x)))), kind) for n, x in (("b", base), ("q", queries))]
    export(stores[0], tmp_path / "x.hdf5", queries=stores[1], k=9)
    difference = np.linalg.norm(queries[:, None] - base[None], axis=2)
    want = difference if metric == "euclidean" else 1 - queries @ base.T
    with h5py.File(tmp_path / "x.hdf5") as file:
        assert dict(file.attrs) == {"type": "dense", "distance": distance, "dimension": 5, "point_type": "float"}
        assert (file["neighbors"][:] == np.argsort(want, axis=1)[:, :9]).all()
        assert np.allclose(file["distances"][:], np.sort(want, axis=1)[:, :9], atol=1e-6)
        assert not np.allclose(file["distances"][:], np.sort(difference**2, axis=1)[:, :9], atol=1e-3)
    for part, x in (("train", base), ("test", queries)):
        opened = open_vectors(tmp_path / "x.hdf5", part)
        assert opened.metric == metric
        again = create(tmp_path / f"again-{part}", Imported(opened, metric, False), kind)
        assert (again.embeddings() == x).all()


def test_each_part_of_a_file_is_a_store_of_its_own(tmp_path, run_cli):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["train"], file["test"] = np.ones((6, 5), np.float32), np.full((2, 5), 2, np.float32)
        file.attrs["distance"] = "euclidean"
    words = ["store", "import", tmp_path / "x.hdf5", "--output", tmp_path / "s"]
    for _ in range(2):
        assert "6 × 5" in run_cli(*words).stdout
    assert "already exists" in run_cli(*words, "--part", "test", code=2).stderr
    assert "8 × 5" in run_cli(*words, "--part", "test", "--append").stdout
    assert open_store(tmp_path / "s").embeddings()[:, 0].tolist() == [1] * 6 + [2] * 2


def test_cosine_wants_unit_vectors_or_makes_them(tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(UserError, match="row 0 has length .* --normalize"):
        create(tmp_path / "s", Imported(open_vectors(tmp_path / "x.npy"), "cosine", False), Kind(5))
    store = create(tmp_path / "s", Imported(open_vectors(tmp_path / "x.npy"), "cosine", True), Kind(5))
    assert np.allclose(store.embeddings(), x / np.linalg.norm(x, axis=1, keepdims=True), atol=1e-7)


def test_bad_rows_are_counted_in_the_whole_file_and_named_with_it(tmp_path, run_cli):
    """In the first shard or not, by row, and by id where they have ids; without a warning of NumPy's before the line."""
    path, rng = tmp_path / "x.npy", np.random.default_rng(0)
    (tmp_path / "ids").write_text("".join(f"doc-{i}\n" for i in range(9000)))
    (tmp_path / "labels").write_text("a\n\nb\n\n")
    words = ["store", "import", path, "--output", tmp_path / "s", "--metric"]
    for value, flags, said in (
        (np.nan, ["euclidean"], "4 of 9,000 rows are not finite (NaN or infinity): row 3, row 4, row 5, …; mend"),
        (np.inf, ["cosine", "--normalize"], "4 of 9,000 rows are not finite"),
        (0, ["cosine", "--normalize"], "4 of 9,000 rows are zero"),
        (0, ["cosine", "--normalize", "--ids", tmp_path / "ids"], "no direction: row 3 (id doc-3), row 4 (id doc-4)"),
        (3, ["cosine"], "4 of 9,000 rows are not of length 1, which cosine needs: row 3 has length 6, row 4 has"),
    ):
        x = rng.normal(size=(9000, 4)).astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        x[[3, 4, 5, 8999]] = value
        np.save(path, x)
        error = run_cli(*words, *flags, code=2).stderr
        assert f"{path}: " in error and said in error and "Warning" not in error
    error = run_cli(*words, "euclidean", "--labels", tmp_path / "labels", code=2).stderr
    assert f"{tmp_path / 'labels'}: line 2 is empty (2 of 4 lines are); give one a line" in error


@pytest.mark.parametrize("ending", [".npy", ".parquet", ".hdf5"])
def test_a_full_disk_while_exporting(tmp_path, small_disk, ending):
    x = np.random.default_rng(0).normal(size=(4000, 16)).astype(np.float32)
    kind = Kind(16, metric="euclidean", normalized=False)
    store = create(tmp_path / "s", Held(Rows(x, np.arange(4000))), kind)
    queries = create(tmp_path / "q", Held(Rows(x[:5], np.arange(5))), kind) if ending == ".hdf5" else None
    with pytest.raises(OSError) as caught:
        export(store, small_disk / f"x{ending}", queries=queries)
    assert is_disk_full(caught.value) and not list(small_disk.iterdir())


def test_the_commands(run_cli, tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "ids").write_text("".join(f"doc-{i}\n" for i in range(30)))
    words = [
        "store",
        "import",
        tmp_path / "x.npy",
        "--normalize",
        "--ids",
        tmp_path / "ids",
        "--output",
        tmp_path / "s",
    ]
    assert "give --metric" in run_cli(*words, code=2).stderr
    assert "30 × 5 vectors in float16, cosine" in run_cli(*words, "--metric", "cosine", "--dtype", "float16").stdout
    assert "generation 1" in run_cli("store", "info", tmp_path / "s", "--check").stdout
    assert "1 file intact" in run_cli("store", "verify", tmp_path / "s").stdout
    words = ["store", "delete", tmp_path / "s", "--id", "doc-3", "--id"]
    assert "lacks 1 (nosuch)" in run_cli(*words, "nosuch", code=2).stderr
    assert "2 deleted, 28 left" in run_cli(*words, "doc-4").stdout
    assert "2 deleted rows" in run_cli("store", "info", tmp_path / "s").stdout
    assert "28 rows in 1 shard," in run_cli("store", "compact", tmp_path / "s").stdout
    out = run_cli("store", "export", tmp_path / "s", "--output", tmp_path / "y.fbin", "--ids", tmp_path / "out-ids")
    assert "28 × 5" in out.stdout and read_lines(tmp_path / "out-ids")[3] == "doc-5"
    assert (
        "already exists" in run_cli("store", "export", tmp_path / "s", "--output", tmp_path / "y.fbin", code=2).stderr
    )
    assert (
        "needs --queries" in run_cli("store", "export", tmp_path / "s", "--output", tmp_path / "y.hdf5", code=2).stderr
    )
    words = ["store", "import", tmp_path / "y.fbin", "--metric", "cosine", "--normalize", "--dtype", "float16"]
    words += ["--ids", tmp_path / "out-ids", "--output", tmp_path / "s"]
    assert "has 28 (doc-0, doc-1, doc-2) of the new ids already" in run_cli(*words, "--append", code=2).stderr
    assert "28 × 5" in run_cli(*words, "--replace").stdout
    run_cli("index", "build", tmp_path / "s", "--output", tmp_path / "i")
    found = run_cli("search", tmp_path / "i", "--store", tmp_path / "s", "-k", "1", "--json").stdout
    assert '"id": "doc-0"' in found
    assert "does not know the encoder" in run_cli("search", tmp_path / "i", "--query", "x", code=2).stderr
    append(tmp_path / "s", Held(Rows(np.eye(5, dtype=np.float32), [f"e{i}" for i in range(5)])), Kind(5, "float16"))


def test_mistakes_with_stores_are_one_line(run_cli, tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "ids").write_text("a\n\nb\n")
    new = ["store", "import", tmp_path / "x.npy", "--metric", "euclidean", "--output", tmp_path / "s"]
    assert "line 2 is empty" in run_cli(*new, "--ids", tmp_path / "ids", code=2).stderr
    assert "leave out --append" in run_cli(*new, "--append", code=2).stderr
    run_cli(*new, "--dtype", "float16")
    np.save(tmp_path / "x.npy", x + 1)
    assert "60 × 5 vectors in float16" in run_cli(*new, "--append").stdout
    out = ["store", "export", tmp_path / "s", "--output"]
    assert "there is no folder" in run_cli(*out, tmp_path / "no" / "x.npy", code=2).stderr
    assert "is --output too" in run_cli(*out, tmp_path / "y.npy", "--ids", tmp_path / "y.npy", code=2).stderr
    run_cli("store", "delete", tmp_path / "s", "--id", "3")
    assert "holds vectors alone, not ids" in run_cli(*out, tmp_path / "y.npy").stderr
    for name in ("part-00000.h5", "part-00001.h5"):
        content = bytearray((tmp_path / "s" / name).read_bytes())
        content[-1] ^= 1
        (tmp_path / "s" / name).write_bytes(content)
    result = run_cli("store", "verify", tmp_path / "s", "--json", code=2)
    assert '"damaged": ["part-00000.h5", "part-00001.h5"]' in result.stdout and "2 of 3 files damaged" in result.stderr


def test_a_read_only_disk_is_one_line(run_cli, tmp_path, small_disk):
    np.save(small_disk / "x.npy", np.ones((3, 5), np.float32))
    new = ["store", "import", small_disk / "x.npy", "--metric", "euclidean", "--output"]
    run_cli(*new, small_disk / "s")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert "read-only file system" in run_cli(*new, small_disk / "t", code=2).stderr
    assert "read-only file system" in run_cli("store", "delete", small_disk / "s", "--id", "1", code=2).stderr
    assert "generation 1" in run_cli("store", "info", small_disk / "s").stdout


def test_a_full_disk_is_named_by_the_file(run_cli, tmp_path, small_disk):
    np.save(tmp_path / "x.npy", np.ones((9000, 50), np.float32))
    new = ["store", "import", tmp_path / "x.npy", "--metric", "euclidean", "--output", small_disk / "s"]
    error = run_cli(*new, code=2).stderr
    assert f"{small_disk}" in error and "the disk is full" in error


def test_vectors_of_any_length_are_compared_as_their_store_says(run_cli, tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    run_cli("store", "import", tmp_path / "x.npy", "--metric", "euclidean", "--output", tmp_path / "s")
    run_cli("index", "build", tmp_path / "s", "--output", tmp_path / "i")
    found = json.loads(run_cli("search", tmp_path / "i", "--store", tmp_path / "s", "-k", 2, "--json").stdout)[
        "results"
    ]
    nearest = np.sort(np.linalg.norm(x[:, None] - x[None], axis=2), axis=1)[:, :2]
    assert np.allclose([[hit["score"] for hit in one["hits"]] for one in found], nearest, atol=1e-5)


def test_ids_that_are_integers_come_from_npy(run_cli, tmp_path):
    np.save(tmp_path / "x.npy", np.eye(4, dtype=np.float32))
    np.save(tmp_path / "ids.npy", np.array([7, 8, 9, 2**40]))
    (tmp_path / "ids.txt").write_text("7\n8\n9\n10\n")
    words = ("store", "import", tmp_path / "x.npy", "--metric", "cosine", "--output")
    run_cli(*words, tmp_path / "numbered")
    run_cli(*words, tmp_path / "s", "--ids", tmp_path / "ids.npy")
    run_cli(*words, tmp_path / "strings", "--ids", tmp_path / "ids.txt")
    assert open_store(tmp_path / "s").load().ids.tolist() == [7, 8, 9, 2**40]
    run_cli("index", "build", tmp_path / "numbered", "--output", tmp_path / "i")
    told = run_cli("index", "add", tmp_path / "i", tmp_path / "strings", code=2).stderr
    assert "ids of the store: integer; of the new rows: string" in told and "--ids ids.npy" in told
    assert "4 rows added" in run_cli("index", "add", tmp_path / "i", tmp_path / "s").stdout
    for bad in (np.eye(4), np.array([0.5] * 4), np.array([2**63] * 4, np.uint64)):
        np.save(tmp_path / "bad.npy", bad)
        assert "is no list of integers" in run_cli(*words, tmp_path / "t", "--ids", tmp_path / "bad.npy", code=2).stderr


def test_ids_that_are_integers_go_to_npy_and_come_back(run_cli, tmp_path):
    np.save(tmp_path / "x.npy", np.eye(4, dtype=np.float32))
    np.save(tmp_path / "ids.npy", np.array([7, -8, 9, 2**40]))
    (tmp_path / "ids.txt").write_text("a\nb\nc\nd\n")
    words = ("store", "import", tmp_path / "x.npy", "--metric", "cosine", "--output")
    run_cli(*words, tmp_path / "s", "--ids", tmp_path / "ids.npy")
    run_cli(*words, tmp_path / "strings", "--ids", tmp_path / "ids.txt")
    run_cli("index", "build", tmp_path / "s", "--output", tmp_path / "i")
    for number, (kind, folder, ending) in enumerate([("store", "s", ".fbin"), ("index", "i", ".fbin"), ("index", "i", ".FAISS")]):  # fmt: skip
        ids = tmp_path / f"{number}.npy"
        told = run_cli(kind, "export", tmp_path / folder, "--output", tmp_path / f"{number}{ending}", "--ids", ids)
        assert np.load(ids).tolist() == [7, -8, 9, 2**40] and "Note" not in told.stderr
    out = ("export", tmp_path / "strings", "--output", tmp_path / "y.npy", "--ids", tmp_path / "y-ids.npy")
    assert (
        "y-ids.npy: .npy is for ids that are integers, and these are strings" in run_cli("store", *out, code=2).stderr
    )
    assert not list(tmp_path.glob("y*"))
    told = run_cli("index", "export", tmp_path / "i", "--output", tmp_path / "y.npy").stderr
    assert "Note: .npy holds vectors alone, not ids; .parquet has all" in told


def test_what_a_file_says_or_has_no_use_for_is_not_advised(run_cli, tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["train"], file.attrs["distance"] = 2 * np.eye(4), "angular"
    np.save(tmp_path / "x.npy", 2 * np.eye(4))
    words = ("--output", tmp_path / "s")
    assert run_cli("store", "import", tmp_path / "x.hdf5", *words, code=2).stderr.endswith("; add --normalize\n")
    words = ("store", "import", tmp_path / "x.npy", *words, "--metric", "cosine")
    assert "add --normalize, or say --metric" in run_cli(*words, code=2).stderr
    assert "--part: " in (said := run_cli(*words, "--part", "test", code=2).stderr) and "no file of ann-bench" in said


def test_an_id_may_hold_what_else_ends_lines(tmp_path):
    ids = ["a\u2028b", "c\x85d", "e\x1cf", "g\x0bh"]
    (tmp_path / "ids").write_text("".join(f"{i}\n" for i in ids), "utf-8")
    assert read_lines(tmp_path / "ids") == ids
    (tmp_path / "ids").write_bytes(b"a\r\nb\r\nc")
    assert read_lines(tmp_path / "ids") == ["a", "b", "c"]
