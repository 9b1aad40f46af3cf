"""Foreign files that are not what they seem, and what each format cannot hold."""

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign import back, plain

from retrieval.errors import UserError
from retrieval.formats import export
from retrieval.store import Held, Kind, Rows, create, open_store


def bad_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)


def twice_a_column(path):
    pq.write_table(
        pa.Table.from_arrays([pa.array([[1.0]]), pa.array([1]), pa.array([1])], names=["emb", "a", "a"]), path
    )


def bad_hdf5(path, vectors):
    with h5py.File(path, "w") as file:
        file.create_dataset("train", data=vectors, compression="gzip" if vectors.size > 99 else None)


def damage(path):
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[half : half + 99] = b"x" * 99
    path.write_bytes(content)


def damaged_hdf5(path):
    bad_hdf5(path, np.random.default_rng(0).normal(size=(999, 9)))
    damage(path)


def damaged_parquet(path):
    vectors = np.round(np.random.default_rng(0).normal(size=(999, 9)), 1)
    pq.write_table(pa.table({"emb": list(vectors)}), path, compression="gzip")
    damage(path)


def records(path):
    path.write_bytes(np.array([2, 0, 0, 3, 0, 0], "<i4").tobytes())


@pytest.mark.parametrize(
    "name,make,word",
    [
        ("x.npy", lambda p: p.write_bytes(b"nonsense"), "not an .npy file"),
        ("x.npy", lambda p: np.save(p, np.array([{}], dtype=object), allow_pickle=True), "not an .npy file"),
        ("x.npy", lambda p: np.save(p, np.zeros(3)), "shape .3,"),
        ("x.npy", lambda p: np.save(p, np.full((2, 3), 2**24 + 1)), "row 0 has integers that float32"),
        ("x.npy", lambda p: np.save(p, np.full((2, 3), 1e300)), "not finite"),
        ("x.fvecs", lambda p: p.write_bytes(b"\4\0\0\0abc"), "no whole number of rows of 4"),
        ("x.fvecs", lambda p: p.write_bytes(b""), "is empty"),
        ("x.fvecs", records, "row 1 says that it has 3 values, row 0 2"),
        ("x.fbin", lambda p: p.write_bytes(b"\2\0\0\0\3\0\0\0abc"), "not those of the 2 × 3"),
        ("x.parquet", lambda p: p.write_bytes(b"nonsense"), "not a Parquet file"),
        ("x.parquet", lambda p: bad_parquet(p, id=[1], text=["a"]), "none among id, text"),
        ("x.parquet", lambda p: bad_parquet(p, a=[[1.0]], b=[[1.0]]), "lists of numbers: a, b"),
        ("x.parquet", lambda p: bad_parquet(p, emb=[[1.0], [1.0, 2.0]]), "row 1 of 'emb' is not a vector of 1"),
        ("x.parquet", lambda p: bad_parquet(p, emb=[[1.0], None]), "row 1 of 'emb'"),
        ("x.parquet", lambda p: bad_parquet(p, emb=[[1.0], [None]]), "row 1 of 'emb'"),
        ("x.parquet", lambda p: bad_parquet(p, emb=[[1.0], [1.0]], id=["a", None]), "row 1 has no 'id'"),
        ("x.parquet", lambda p: bad_parquet(p, emb=[[2**24 + 1]]), "row 0 has integers that float32"),
        ("x.parquet", lambda p: bad_parquet(p, emb=[[1e300]]), "not finite"),
        ("x.parquet", lambda p: bad_parquet(p, emb=pa.array([], pa.list_(pa.float32()))), "has no rows, and"),
        ("x.parquet", twice_a_column, "two columns are called 'a'"),
        ("x.parquet", damaged_parquet, "cannot be read .*; fetch it again"),
        ("x.hdf5", lambda p: p.write_bytes(b"nonsense"), "not an HDF5 file"),
        ("x.hdf5", lambda p: bad_hdf5(p, np.full((2, 3), 2**24 + 1)), "row 0 has integers that float32"),
        ("x.hdf5", lambda p: bad_hdf5(p, np.full((2, 3), 1e300)), "not finite"),
        ("x.hdf5", lambda p: bad_hdf5(p, np.zeros((2, 0))), "no vectors in 'train'"),
        ("x.hdf5", damaged_hdf5, "cannot be read .*; fetch it again"),
        ("x.hdf5", lambda p: h5py.File(p, "w").close(), "no vectors in 'train' .found: nothing"),
        ("x.csv", lambda p: p.write_text("a"), "cannot tell the format"),
    ],
)
def test_what_is_not_what_its_ending_says_is_named(tmp_path, name, make, word):
    make(tmp_path / name)
    with pytest.raises(UserError, match=word) as caught:
        back(tmp_path / name, tmp_path / "s")
    assert "\n" not in str(caught.value) and not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "value,ending,word",
    [
        (0.5, ".ibin", "row 3 is not of whole numbers"),
        (300, ".u8bin", "fit uint8"),
        (1e6, ".f16bin", "overflows float16"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, value, ending, word):
    x = np.ones((6, 5), np.float32)
    x[3] = value
    store = create(tmp_path / "s", Held(Rows(x, np.arange(6))), plain)
    with pytest.raises(UserError, match=word):
        export(store, tmp_path / f"x{ending}")
    assert not list(tmp_path.glob("*x*"))


def test_ids_of_several_lines_want_parquet(tmp_path):
    x = np.ones((2, 5), np.float32)
    store = create(tmp_path / "s", Held(Rows(x, ["a", "b\nc"])), plain)
    with pytest.raises(UserError, match="no single line"):
        export(store, tmp_path / "x.npy", ids=tmp_path / "ids")
    assert not (tmp_path / "ids").exists() and not (tmp_path / "x.npy").exists()


@pytest.mark.parametrize("ending", [".npy", ".parquet"])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_rounded_unit_vectors_come_back_into_their_dtype(run_cli, tmp_path, dtype, ending):
    """Of few dimensions their lengths are off by up to .003, which float32 does not explain."""
    vectors = np.random.default_rng(0).normal(size=(500, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store = create(tmp_path / "s", Held(Rows(vectors.astype(np.float32), np.arange(500))), Kind(3, dtype))
    out = tmp_path / f"x{ending}"
    run_cli("store", "export", store.folder, "--output", out)
    words = ("store", "import", out, "--metric", "cosine", "--output", tmp_path / "again")
    assert "of length 1, which cosine needs" in run_cli(*words, code=2).stderr
    assert not (tmp_path / ".again.partial").exists()
    run_cli(*words, "--dtype", dtype)
    assert np.array_equal(open_store(tmp_path / "again").embeddings(), store.embeddings())
    np.save(tmp_path / "long.npy", 1.02 * vectors)
    words = ("store", "import", tmp_path / "long.npy", "--metric", "cosine", "--dtype", dtype)
    assert "500 of 500 rows are not of length 1" in run_cli(*words, "--output", tmp_path / "no", code=2).stderr


def test_the_distance_of_an_hdf5_file_may_be_bytes_or_none_of_ours(run_cli, tmp_path):
    for name, distance in (("bytes", np.bytes_("angular")), ("other", "hamming"), ("none", None)):
        with h5py.File(tmp_path / f"{name}.hdf5", "w") as file:
            file["train"] = np.eye(4)
            if distance is not None:
                file.attrs["distance"] = distance
    words = ("--output", tmp_path / "s")
    assert "cosine" in run_cli("store", "import", tmp_path / "bytes.hdf5", *words).stdout
    words = ("store", "import", tmp_path / "other.hdf5", "--output", tmp_path / "t")
    assert "says hamming, which no store compares by; give the --metric" in run_cli(*words, code=2).stderr
    assert "euclidean" in run_cli(*words, "--metric", "euclidean").stdout
    assert "does not say how" in run_cli("store", "import", tmp_path / "none.hdf5", *words[3:], code=2).stderr
