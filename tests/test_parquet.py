"""Tables of one's own: Parquet files whose columns an import tells apart, or is told."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.errors import UserError
from retrieval.formats import Imported, open_vectors
from retrieval.store import Kind, create, open_store


def written(path, **columns):
    pq.write_table(pa.table(columns), path)


def stored(path, folder):
    return create(
        folder, Imported(open_vectors(path), "inner_product", False), Kind(2, metric="inner_product", normalized=False)
    )


def test_a_table_of_ones_own(tmp_path):
    vectors = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    table = pa.table({"_id": ["a", "b", "c"], "Vector": vectors, "year": [1, None, 3], "title": ["x", "é", None]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    rows = stored(tmp_path / "t.parquet", tmp_path / "s").load()
    assert rows.ids == ["a", "b", "c"] and rows.embeddings.tolist() == vectors and rows.labels is None
    assert rows.payload == {"year": ["1", "", "3"], "title": ["x", "é", ""]}


def test_large_lists_are_vectors_too_if_all_are_of_one_length(tmp_path):
    large = pa.large_list(pa.float32())
    even = pa.array([[1, 2], [3, 4], [5, 6]], large)
    written(tmp_path / "t.parquet", embedding=even)
    assert stored(tmp_path / "t.parquet", tmp_path / "s").embeddings().tolist() == even.to_pylist()
    written(tmp_path / "t.parquet", embedding=pa.array([[1, 2], [3], [4, 5, 6]], large))
    with pytest.raises(UserError, match="row 1 of 'embedding' is not a vector of 2 numbers"):
        open_vectors(tmp_path / "t.parquet").rows(0, 3)


def test_integers_that_no_id_can_be_are_refused(tmp_path):
    vectors = [[1.0], [2.0]]
    written(tmp_path / "t.parquet", id=pa.array([3, 2**63 - 1], pa.uint64()), embedding=vectors)
    assert open_vectors(tmp_path / "t.parquet").ids(0, 2).tolist() == [3, 2**63 - 1]
    written(tmp_path / "t.parquet", id=pa.array([3, 2**63], pa.uint64()), embedding=vectors)
    with pytest.raises(UserError, match="row 1 has 'id' 9223372036854775808, above 2⁶³ − 1; make it a string"):
        open_vectors(tmp_path / "t.parquet").ids(0, 2)


def test_rows_of_a_table_in_any_order(tmp_path):
    x = np.arange(60, dtype=np.float32).reshape(20, 3) + 1
    pq.write_table(pa.table({"embedding": list(x), "id": list(range(20))}), tmp_path / "t.parquet", row_group_size=6)
    opened = open_vectors(tmp_path / "t.parquet")
    for start, stop in ((0, 4), (4, 9), (15, 20), (2, 3), (0, 20), (20, 20)):
        assert (opened.rows(start, stop).embeddings == x[start:stop]).all()


def named_table(path):
    columns = {
        "title_vector": [[1.0, 2], [3, 4]],
        "text_vector": [[5.0, 6], [7, 8]],
        "key": ["a", "b"],
        "kind": ["x", "y"],
    }
    written(path, **columns, year=[1, 2], picture=[b"\xff", b"\xfe"])


def test_columns_of_a_table_by_name(tmp_path):
    named_table(tmp_path / "t.parquet")
    opened = open_vectors(tmp_path / "t.parquet", vectors="text_vector", id="key", label="kind", payload=("year",))
    rows = opened.rows(0, 2)
    assert rows.embeddings.tolist() == [[5, 6], [7, 8]] and opened.ids(0, 2) == rows.ids == ["a", "b"]
    assert rows.labels == ["x", "y"] and rows.payload == {"year": ["1", "2"]}
    none = open_vectors(tmp_path / "t.parquet", vectors="text_vector", payload=())
    assert none.columns == () and none.rows(0, 2).payload == {} and none.ids(0, 2) is None
    other = open_vectors(tmp_path / "t.parquet", vectors="title_vector", payload=())
    assert len({Imported(each, "inner_product", False).fingerprint for each in (opened, none, other)}) == 3


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({}, "cannot tell the column of vectors .*title_vector, text_vector.*; name it by --vectors"),
        ({"vectors": "key"}, "cannot tell the column of vectors .*title_vector, text_vector.*; name it by --vectors"),
        ({"vectors": "vec"}, r"--vectors vec: .* has no such column \(found: title_vector, "),
        (
            {"vectors": "text_vector", "id": "title_vector"},
            "--id title_vector: .*choose among key, kind, year, picture",
        ),
        ({"vectors": "text_vector", "payload": ("years",)}, "--payload years: .*no such column"),
    ],
)
def test_columns_that_cannot_be_meant(tmp_path, asked, why):
    named_table(tmp_path / "t.parquet")
    with pytest.raises(UserError, match=why):
        open_vectors(tmp_path / "t.parquet", **asked)


def test_columns_are_of_tables_alone(tmp_path):
    np.save(tmp_path / "x.npy", np.eye(2))
    with pytest.raises(UserError, match="x.npy: has no named columns; leave --id out"):
        open_vectors(tmp_path / "x.npy", id="key")


def test_import_of_chosen_columns(tmp_path, run_cli):
    named_table(tmp_path / "t.parquet")
    words = [
        "store",
        "import",
        tmp_path / "t.parquet",
        "--metric",
        "euclidean",
        "--vectors",
        "text_vector",
        "--id",
        "key",
    ]
    run_cli(*words, "--payload", "kind", "--payload", "year", "--output", tmp_path / "s")
    assert open_store(tmp_path / "s").load().payload == {"kind": ["x", "y"], "year": ["1", "2"]}
    run_cli(*words, "--payload", "", "--output", tmp_path / "none")
    assert open_store(tmp_path / "none").load().payload == {}
    (tmp_path / "ids").write_text("a\nb\n")
    told = run_cli(*words, "--ids", tmp_path / "ids", "--output", tmp_path / "two", code=2)
    assert "--id key names them in" in told.stderr and "give one of the two" in told.stderr
