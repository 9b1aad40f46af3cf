"""What a reader takes for one text or class is one: white space at the ends is not read, and classes that look the same are refused."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from some_pictures import as_bytes, noise, write

from retrieval.data import read_texts, scan_texts
from retrieval.data.documents import documents_of
from retrieval.errors import UserError
from retrieval.images import read_images
from retrieval.images.pairs import read_pairs

TEXT, LABEL = " a\tdog \n", "pet "


def rows(path, *values):
    return write(path, "".join(json.dumps(value) + "\n" for value in values))


def parquet(path, *values):
    pq.write_table(pa.Table.from_pylist(list(values)), path)
    return path


def csv(path, *values):
    lines = [",".join(values[0]), *(",".join(f'"{cell}"' for cell in row.values()) for row in values)]
    return write(path, "\n".join(lines))


@pytest.mark.parametrize(("made", "name"), [(rows, "a.jsonl"), (parquet, "a.parquet"), (csv, "a.csv")])
def test_white_space_at_the_ends_of_texts_and_labels(tmp_path, made, name):
    path = made(tmp_path / name, {"id": "x ", "text": TEXT, "label": LABEL}, {"id": "x", "text": "c", "label": "pet"})
    for data in (read_texts(path), scan_texts(path, 2).part(0, 2)):
        assert list(data.texts) == ["a\tdog", "c"] and list(data.labels) == ["pet", "pet"]
        assert list(data.ids) == ["x ", "x"]
    assert "1 classes" in scan_texts(path, 2).origin
    pairs = read_texts(made(tmp_path / name, {"anchor": "q\u00a0", "positive": TEXT, "negative": " "}))
    assert {key: list(column) for key, column in pairs.columns.items()} == {
        "anchor": ["q"], "positive": ["a\tdog"], "negative_1": [""]
    }  # fmt: skip


def test_a_positive_is_found_again_in_whatever_holds_the_corpus(tmp_path):
    nested = rows(tmp_path / "nested.jsonl", {"query": " q", "pos": [TEXT, {"title": " ", "text": TEXT}], "neg": []})
    plain = rows(tmp_path / "corpus.jsonl", {"_id": "1", "title": " ", "text": TEXT})
    lines = write(tmp_path / "a.txt", TEXT)
    llama = {"queries": {"1": " q"}, "corpus": {"2": TEXT}, "relevant_docs": {"1": ["2"]}}
    write(tmp_path / "llama.json", json.dumps(llama))
    rows(tmp_path / "queries.jsonl", {"query": "q", "positive_document_ids": ["1"]})
    found = [*read_texts(nested).columns["positive"], *read_texts(plain).texts, *read_texts(lines).texts]
    found += [*read_texts(tmp_path / "llama.json").columns["positive"], *documents_of(tmp_path)]
    (tmp_path / "qrels").mkdir()
    found += documents_of(tmp_path)
    assert found == ["a\tdog"] * 7


def test_captions_and_classes_of_pictures(tmp_path):
    for name, picture in zip("ab", noise(2), strict=True):
        write(tmp_path / f"{name}.png", as_bytes(picture))
    pairs = {"image": "a.png", "caption": [TEXT, "cat"], "negative": TEXT}
    found = read_pairs(rows(tmp_path / "pairs.jsonl", pairs)).columns
    assert found["positive"] == ["a\tdog", "cat"] and found["negative_1"] == ["a\tdog"] * 2
    labelled = rows(tmp_path / "c.jsonl", {"path": "a.png", "label": LABEL}, {"path": "b.png", "label": "pet"})
    assert read_images(labelled).labels == ["pet", "pet"]


@pytest.mark.parametrize("labels", [("caf\u00e9", "cafe\u0301"), ("two  words", "two words")])
def test_classes_of_texts_that_look_the_same(tmp_path, labels):
    path = rows(tmp_path / "a.jsonl", *({"text": "a", "label": label} for label in labels))
    for read in (read_texts, lambda path: scan_texts(path, 1)):
        with pytest.raises(UserError, match="a.jsonl: classes .* look the same; write both alike"):
            read(path)
