"""Files as people have them that are easily read wrongly: none loses a row, a column or a split without a word."""

import csv
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from retrieval.data import read_texts, scan_texts
from retrieval.data.columns import Asked
from retrieval.errors import UserError


def lines(path, *rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize("read", [read_texts, lambda path: scan_texts(path, 1)], ids=["read", "scanned"])
def test_a_column_that_only_later_rows_have(tmp_path, read):
    with pytest.raises(UserError, match="line 2 has 'label', which the first row lacks"):
        read(lines(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b", "label": "x"}))
    with pytest.raises(UserError, match="line 3 has 'negative_2'"):
        pair = {"anchor": "a", "positive": "b", "negative_1": "c"}
        read(lines(tmp_path / "b.jsonl", pair, pair, pair | {"negative_2": "d"}))
    assert len(read(lines(tmp_path / "c.jsonl", {"text": "a"}, {"text": "b", "note": "x"}))) == 2
    nested = read_texts(lines(tmp_path / "d.jsonl", {"query": "a", "pos": ["b"]}, {"query": "c", "pos": ["d"], "neg": ["e"]}))  # fmt: skip
    assert list(nested.columns["negative_1"]) == ["", "e"]


def test_blocks_from_the_middle_know_the_first_rows_columns(tmp_path):
    rows = [{"text": str(at), "label": "x"} for at in range(5)]
    assert len(scan_texts(lines(tmp_path / "a.jsonl", *rows), 2).part(2, 4)) == 2


def test_nan_is_nothing(tmp_path):
    """As json.dumps writes what pandas has for an empty cell."""
    first = {"anchor": "a", "positive": "b", "negative": "c"}
    data = read_texts(lines(tmp_path / "a.jsonl", first, first | {"negative": float("nan")}))
    assert list(data.columns["negative_1"]) == ["c", ""]
    with pytest.raises(UserError, match="line 2 has no 'label'"):
        read_texts(lines(tmp_path / "b.jsonl", {"text": "a", "label": "x"}, {"text": "b", "label": float("nan")}))


@pytest.mark.parametrize("kept", ["saved", "parquet"])
def test_inference_data_whose_judges_disagreed(tmp_path, kept):
    names = ["entailment", "neutral", "contradiction"]
    features = {name: datasets.Value("string") for name in ("premise", "hypothesis")}
    features["label"] = datasets.ClassLabel(names=names)
    rows = {"premise": ["a", "a", "b"], "hypothesis": ["c", "d", "e"], "label": [0, 2, -1]}
    data = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    path = tmp_path / ("set" if kept == "saved" else "set.parquet")
    data.save_to_disk(path) if kept == "saved" else data.to_parquet(path)
    scores = read_texts(path).scores.tolist()
    assert scores[:2] == [1.0, 0.0] and scores[2] != scores[2]


@pytest.mark.parametrize("kept", ["saved", "parquet"])
def test_pictures_are_not_read_as_texts(tmp_path, kept):
    rows = {"words": ["a"], "shown": [Image.new("RGB", (8, 8))]}
    features = datasets.Features({"words": datasets.Value("string"), "shown": datasets.Image()})
    data = datasets.Dataset.from_dict(rows, features=features)
    path = tmp_path / ("set" if kept == "saved" else "set.parquet")
    data.save_to_disk(path) if kept == "saved" else data.to_parquet(path)
    with pytest.raises(UserError, match="line 1: its column 'shown' holds pictures or other bytes, and no text"):
        read_texts(path, Asked(text="shown"))


def test_a_dropped_column_of_classes_is_not_missed(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
    datasets.Dataset.from_dict({"text": ["a"], "label": [1]}, features=features).to_parquet(tmp_path / "a.parquet")
    pq.write_table(pq.read_table(tmp_path / "a.parquet").drop_columns(["label"]), tmp_path / "b.parquet")
    assert list(read_texts(tmp_path / "b.parquet").texts) == ["a"]


@pytest.mark.parametrize(
    "names,split,wanted",
    [
        (["train", "val", "test"], "val", "val"),
        (["train-00000-of-00001", "validation_matched-00000-of-00001"], "validation_matched", "validation_matched-0"),
        (["train_1", "train_2"], "train", "train_1train_2"),
        (["one", "two"], "train", "onetwo"),
    ],
)
def test_splits_by_the_names_of_files(tmp_path, names, split, wanted):
    for name in names:
        pq.write_table(pa.table({"text": [name]}), tmp_path / f"{name}.parquet")
    assert "".join(read_texts(tmp_path, split=split).texts).startswith(wanted)


def test_long_cells_and_quotes(tmp_path):
    long = "x" * 200_000
    (tmp_path / "a.csv").write_text(f"text,label\n{long},x\n")
    assert len(read_texts(tmp_path / "a.csv").texts[0]) == 200_000
    lines(tmp_path / "a.tsv", "text\tlabel\n", '"I am going,\t1\n', 'and will be back."\t0\n')
    with pytest.raises(UserError, match="a quote that begins at line 2 ends at line 3"):
        read_texts(tmp_path / "a.tsv")
    with open(tmp_path / "b.tsv", "w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([["text", "label"], ["two\nlines", "x"], ["a\ttab", "y"]])
    assert list(read_texts(tmp_path / "b.tsv").texts) == ["two\nlines", "a\ttab"]


def test_lists_as_pandas_writes_them(tmp_path):
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [["query", "pos", "neg"], ["a", "['it''s', \"b\"]", "[]"], ["c", "[1] a footnote", ""]]
        )
    data = read_texts(tmp_path / "a.csv")
    assert list(data.columns["positive"]) == ["its", "b", "[1] a footnote"]


def test_what_no_file_can_hold_and_what_is_packed(tmp_path):
    with pytest.raises(UserError, match="line 2 has half a character"):
        read_texts(lines(tmp_path / "a.jsonl", {"text": "\U0001f600"}, '{"text": "cut \\ud83d"}\n'))
    with pytest.raises(UserError, match="is compressed; unpack it first"):
        read_texts(lines(tmp_path / "a.jsonl.gz", ""))


def test_documents_of_beir_are_title_and_text(tmp_path):
    rows = [{"_id": "1", "title": "A", "text": "b"}, {"_id": "2", "title": "only", "text": ""}]
    path = lines(tmp_path / "corpus.jsonl", *rows)
    for data in (read_texts(path), scan_texts(path, 2).part(0, 2)):
        assert list(data.texts) == ["A b", "only"] and list(data.ids) == ["1", "2"]
    assert list(read_texts(lines(tmp_path / "b.jsonl", rows[0]), Asked(text="text")).texts) == ["b"]
    with pytest.raises(UserError, match="line 1 has no 'text'"):
        read_texts(lines(tmp_path / "c.jsonl", {"_id": "1", "title": "", "text": ""}))
    with pytest.raises(UserError, match="id '1' stands more than once"):
        from retrieval.formats.trec import read_beir

        (tmp_path / "qrels").mkdir()
        (tmp_path / "qrels" / "test.tsv").write_text("q\t1\t1\n")
        lines(tmp_path / "queries.jsonl", {"_id": "q", "text": "q"})
        lines(path, rows[0], rows[0])
        read_beir(tmp_path)


def test_columns_named_of_a_collection_are_refused(tmp_path):
    (tmp_path / "qrels").mkdir()
    lines(tmp_path / "corpus.jsonl", {"_id": "1", "title": "", "text": "b"})
    lines(tmp_path / "queries.jsonl", {"_id": "q", "text": "a"})
    (tmp_path / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\nq\t1\t1\n", "utf-8")
    assert list(read_texts(tmp_path).columns["anchor"]) == ["a"]
    with pytest.raises(UserError, match="--text title: .* has no columns"):
        read_texts(tmp_path, Asked(text="title"))
    assert len(read_texts(tmp_path, Asked(text="title", optional=True))) == 1
