"""Training data in every form that people have them: rows with lists, collections, tables; large ones from disk; and what is told of them."""

import csv
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retrieval.cli.held import read_held
from retrieval.data import (
    Asked,
    Texts,
    leaked,
    linked,
    pairs_by_score,
    read_texts,
    scan_texts,
    summarise,
    text_codes,
    told_summary,
)
from retrieval.data.rows import row_writer
from retrieval.data.texts import Collected, Mapped
from retrieval.errors import UserError

ROWS = [("q1", ["a", "b"], ["n1", "n2", "n3"]), ("q2", ["c"], [])]
WANTED = {
    "anchor": ["q1", "q1", "q2"],
    "positive": ["a", "b", "c"],
    "negative_1": ["n1", "n1", ""],
    "negative_2": ["n2", "n2", ""],
    "negative_3": ["n3", "n3", ""],
}


def plain(data):
    return {name: list(column) for name, column in data.columns.items()}


def write_json(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def passages(texts):
    return [{"docid": text, "title": "", "text": text} for text in texts]


NESTED = {
    "FlagEmbedding": lambda q, p, n: {"query": q, "pos": p, "neg": n, "pos_scores": [1.0] * len(p), "prompt": "x"},
    "Tevatron": lambda q, p, n: {
        "query_id": q, "query": q, "positive_passages": passages(p), "negative_passages": passages(n)
    },
    "DPR": lambda q, p, n: {
        "question": q, "answers": [], "positive_ctxs": passages(p), "hard_negative_ctxs": passages(n), "negative_ctxs": []
    },
}  # fmt: skip


@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet", "folder"])
def test_rows_with_several_positives_and_negatives(tmp_path, name, ending):
    rows = [NESTED[name](*row) for row in ROWS]
    path = tmp_path / f"train{ending}"
    if ending == ".jsonl":
        write_json(path, rows)
    elif ending == ".json":
        path.write_text(json.dumps(rows))
    elif ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(path)
    data = read_texts(path)
    assert plain(data) == WANTED and data.is_pairs and data.labels is None
    assert "3 pairs of 2 queries, up to 3 negatives" in data.origin
    fewer = read_texts(path, Asked(negatives=1))
    assert (
        list(fewer.columns) == ["anchor", "positive", "negative_1"] and "(3 in the data; --negatives)" in fewer.origin
    )


def beir(folder, split="train", qrels=None):
    folder.mkdir()
    write_json(folder / "corpus.jsonl", [{"_id": d, "title": f"T{d}", "text": d} for d in "abcn"])
    write_json(folder / "queries.jsonl", [{"_id": q, "text": q} for q in ("q1", "q2")])
    (folder / "qrels").mkdir()
    lines = qrels or [("q1", "a", 1), ("q1", "b", 2), ("q1", "n", 0), ("q2", "c", 1)]
    (folder / "qrels" / f"{split}.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join("\t".join(map(str, line)) + "\n" for line in lines)
    )
    return folder


def test_a_beir_folder_trains_on_its_judgments(tmp_path):
    data = read_texts(beir(tmp_path / "beir"))
    assert plain(data) == {
        "anchor": ["q1", "q1", "q2"], "positive": ["Ta a", "Tb b", "Tc c"], "negative_1": ["Tn n", "Tn n", ""]
    }  # fmt: skip
    with pytest.raises(UserError, match=r"test.tsv: no such file; choose another split \(found: train\)"):
        read_texts(tmp_path / "beir", split="test")
    held = read_held(beir(tmp_path / "other", "test"))
    assert held.metric == "ndcg@10" and held.count == 2 and [len(part.items) for part in held.parts] == [4, 2]
    vectors = np.eye(6, 4, dtype=np.float32)
    vectors[4:] = np.eye(4, dtype=np.float32)[[1, 2]]  # q1 is nearest to b, q2 to c
    assert held.measure(vectors).means()["mrr@10"] == 1


def test_other_collections(tmp_path):
    flag = tmp_path / "flag"
    write_json(flag / "corpus.jsonl", [{"id": d, "text": d} for d in "abc"])
    write_json(flag / "train_queries.jsonl", [{"id": q, "text": q} for q in ("q1", "q2")])
    write_json(flag / "train_qrels.jsonl", [{"qid": q, "docid": d, "relevance": 1} for q, d in (("q1", "a"), ("q1", "b"), ("q2", "c"))])  # fmt: skip
    llama = tmp_path / "set.json"
    llama.write_text(json.dumps({"queries": {"1": "q1", "2": "q2"}, "corpus": {d: d for d in "abc"}, "relevant_docs": {"1": ["a", "b"], "2": ["c"]}, "mode": "text"}))  # fmt: skip
    tevatron = tmp_path / "tevatron"
    write_json(tevatron / "corpus.jsonl", [{"docid": d, "document_text": d} for d in "abcn"])
    write_json(tevatron / "queries.jsonl", [{"query_id": "1", "query_text": "q1", "positive_document_ids": ["a", "b"], "negative_document_ids": ["n"]}, {"query_id": "2", "query_text": "q2", "positive_document_ids": ["c"], "negative_document_ids": []}])  # fmt: skip
    for path in (flag, llama, tevatron):
        found = plain(read_texts(path))
        assert (found["anchor"], found["positive"]) == (WANTED["anchor"], WANTED["positive"]), path
    assert plain(read_texts(tevatron))["negative_1"] == ["n", "n", ""]


def test_tables_and_data_sets_with_classes_and_splits(tmp_path):
    rows = {"text": ["a", "b", "c"], "label": ["x", "y", "x"]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    classes = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
    one = datasets.Dataset.from_dict({"text": rows["text"], "label": [0, 1, 0]}, features=classes)
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one, "test": one.select([0])}).save_to_disk(tmp_path / "several")
    for path in ("t.parquet", "one", "several"):
        data = read_texts(tmp_path / path)
        assert (list(data.texts), list(data.labels)) == (rows["text"], rows["label"])
    assert len(read_texts(tmp_path / "several", split="test")) == 1
    with pytest.raises(UserError, match=r"has no split 'dev'; choose another split \(found: train, test\)"):
        read_texts(tmp_path / "several", split="dev")
    assert len(scan_texts(tmp_path / "t.parquet", 2)) == 3
    one.to_parquet(tmp_path / "classes.parquet")
    assert list(read_texts(tmp_path / "classes.parquet").labels) == rows["label"]


def test_a_folder_of_parquet_is_one_set(tmp_path):
    """As the hub has them: by split, in a folder `data` or not; files of other names are all of it, but not beside splits."""
    for folder in ("plain", "hub/data", "mixed"):
        (tmp_path / folder).mkdir(parents=True)
    pieces = [("train-00000-of-00002", "ab"), ("train-00001-of-00002", "c"), ("test-00000-of-00001", "d")]
    for name, texts in pieces:
        pq.write_table(pa.table({"text": list(texts)}), tmp_path / "hub" / "data" / f"{name}.parquet")
        pq.write_table(pa.table({"text": list(texts)}), tmp_path / "mixed" / f"{name}.parquet")
        pq.write_table(pa.table({"text": list(texts)}), tmp_path / "plain" / f"part-{texts}.parquet")
    pq.write_table(pa.table({"text": ["e"]}), tmp_path / "mixed" / "more.parquet")
    assert list(read_texts(tmp_path / "hub").texts) == ["a", "b", "c"]
    assert list(scan_texts(tmp_path / "hub", 2, "test").texts) == ["d"]
    assert "split train (also there: test)" in read_texts(tmp_path / "hub").origin
    assert list(read_texts(tmp_path / "plain").texts) == ["a", "b", "c", "d"]
    with pytest.raises(UserError, match=r"more.parquet: beside test, train, this is perhaps a split"):
        read_texts(tmp_path / "mixed")
    with pytest.raises(UserError, match=r"no split 'dev'; choose another split \(found: test, train\)"):
        read_texts(tmp_path / "hub", split="dev")


def test_columns_by_name(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("frage,antwort,falsch,note\nq,a,n,5\n")
    with pytest.raises(UserError, match="no column text, or anchor and positive .found: frage, antwort"):
        read_texts(path)
    data = read_texts(path, Asked(anchor="frage", positive="antwort", negative=("falsch",), score="note"))
    assert plain(data) == {"anchor": ["q"], "positive": ["a"], "negative_1": ["n"]} and data.scores.tolist() == [5]
    assert plain(read_texts(path, Asked(text="falsch", label="note"))) == {"text": ["n"]}


def test_scored_pairs(tmp_path):
    path = tmp_path / "sts.tsv"
    path.write_text("sentence1\tsentence2\tscore\na\tb\t4.5\nc\td\t1\na\te\t3\n")
    data = read_texts(path)
    assert data.scores.tolist() == [4.5, 1, 3]
    with pytest.raises(UserError, match="scored from 1 to 4.5; say from where on they are positives, by --min-score"):
        pairs_by_score(data, None, "x")
    with pytest.raises(UserError, match="the highest is 4.5"):
        pairs_by_score(data, 5, "x")
    assert plain(pairs_by_score(data, 3, "x")) == {"anchor": ["a", "a"], "positive": ["b", "e"]}
    path.write_text("sentence1\tsentence2\tlabel\na\tb\t1\na\td\t0\nc\te\t1\n")
    assert plain(pairs_by_score(read_texts(path), None, "x")) == {
        "anchor": ["a", "c"], "positive": ["b", "e"], "negative_1": ["d", ""]
    }  # fmt: skip
    assert plain(pairs_by_score(read_texts(path), None, "x", 0)) == {"anchor": ["a", "c"], "positive": ["b", "e"]}
    held = read_held(path)
    assert held.metric == "spearman" and held.count == 3
    path.write_text(
        "sentence1\tsentence2\tlabel\n" + "a\tb\t1\n" * 2 + "a\tc\t0\na\tb\t0\na\td\t0\n" * 3 + "c\te\t1\nc\te\t0\n"
    )
    data = pairs_by_score(read_texts(path), None, "x")
    assert plain(data) == {
        "anchor": ["a", "a", "c"], "positive": ["b", "b", "e"], "negative_1": ["c", "c", ""], "negative_2": ["d", "d", ""]
    }  # fmt: skip
    assert data.origin.endswith("3 of them positives, 2 hard negatives of the same anchors, 8 left out")


def test_entailed_pairs_are_positives_and_contradicting_ones_hard_negatives(tmp_path):
    path = tmp_path / "nli.jsonl"
    lines = [
        ("p", "yes", "entailment"),
        ("p", "no", "contradiction"),
        ("q", "perhaps", "neutral"),
        ("q", "so", "entailment"),
    ]
    lines += [("p", "unclear", "-")]
    names = ("premise", "hypothesis", "gold_label")
    path.write_text("".join(json.dumps(dict(zip(names, line, strict=True))) + "\n" for line in lines))
    data = pairs_by_score(read_texts(path), None, "x")
    assert plain(data) == {"anchor": ["p", "q"], "positive": ["yes", "so"], "negative_1": ["no", ""]}
    assert "2 of them positives, 1 hard negatives of the same anchors, 2 left out" in data.origin
    with pytest.raises(UserError, match="neutral pairs have no score"):
        read_held(path)
    path.write_text('{"premise": "p", "hypothesis": "h", "label": 0}\n')
    with pytest.raises(UserError, match="write entailment, contradiction and neutral"):
        read_texts(path)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.text(st.characters(codec="utf-8"), max_size=9)] * 2), min_size=1, max_size=300))
def test_mapped_columns_are_lists(rows):
    told = Collected(["a", "b"], in_memory=0)
    for a, b in rows * 60:
        told.add({"a": a, "b": b})
    found = told.finish()
    assert isinstance(found["a"], Mapped) == (len(rows) * 60 >= 8192 and any(a or b for a, b in rows))
    wanted = [a for a, _ in rows] * 60
    assert list(found["a"]) == wanted and len(found["a"]) == len(wanted) and found["a"][-1] == wanted[-1]
    data = Texts(found, None, None, "")
    assert list(data.texts[3:7]) == wanted[3:7] and list(data.take([2, 0, 0]).texts) == [wanted[i] for i in (2, 0, 0)]
    assert data.fingerprint == Texts({"a": wanted}, None, None, "").fingerprint


def test_ten_thousand_rows_on_disk_train_like_rows_in_memory(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("anchor", "positive"), *((f"q{i}", f"a{i % 900}") for i in range(10_000))])
    whole = read_texts(path)
    monkeypatch.setattr("retrieval.data.read.Collected", lambda names: Collected(names, in_memory=10))
    mapped = read_texts(path)
    assert isinstance(mapped.columns["anchor"], Mapped) and plain(mapped) == plain(whole)
    assert (text_codes(mapped.texts) == text_codes(whole.texts)).all()


BAD = {
    "quote": ("a.csv", "text,label\n" + "a,b\n" * 90_000 + '"c,d\n', "the row that begins at line 90002"),
    "bytes": ("a.jsonl", b'{"query": "a", "pos": ["b"]}\n\xff\n', "line 2 is not UTF-8"),
    "no positives": ("a.jsonl", '{"query": "a", "pos": ["b"]}\n{"query": "a", "pos": []}\n', "line 2 has no 'pos'"),
    "score": ("a.csv", "sentence1,sentence2,score\na,b,1\nc,d,high\n", "line 3: score 'high' is no number"),
    "parquet": ("a.parquet", b"PAR1 cut short", "is not whole Parquet"),
    "json": ("a.json", '{"queries": 1}', "is neither a list of queries"),
    "relation": (
        "a.json",
        '{"queries": {"1": "q"}, "corpus": {}, "relevant_docs": {"1": ["x"]}}',
        "names document 'x'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_one_line(tmp_path, name):
    file, content, words = BAD[name]
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_texts(path)
    assert words in str(caught.value) and file in str(caught.value) and "\n" not in str(caught.value)


def test_names_that_no_hub_gives_and_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", offline)
    from pathlib import Path

    with pytest.raises(
        UserError, match="someone/some-data: no such file here, and the hub of datasets does not answer"
    ):
        read_texts(Path("someone/some-data"))
    with pytest.raises(UserError, match="is a folder; give a .csv"):
        read_texts(tmp_path)
    (tmp_path / "corpus.jsonl").write_text("")
    with pytest.raises(UserError, match="neither qrels nor queries.jsonl"):
        read_texts(tmp_path)


def test_what_is_told_before_training(minilm):
    from retrieval.tokens import lengths

    data = Texts({"text": ["a b", "a b", "c " * 300]}, ["x", "x", "y"], None, "")
    told = summarise(data, lambda texts: lengths(minilm.model, texts), 128)
    assert (told["rows"], told["repeated_rows"], told["classes"]["least"], told["tokens"]["longest"]) == (3, 1, 1, 302)
    lines = "\n".join(told_summary(told))
    assert (
        "33.3% of the texts are longer than the encoder reads, 128 tokens" in lines and "2 classes of 1 to 2" in lines
    )
    assert "\n1 row repeats another; " in lines
    assert leaked(data, ["a b", "new"]) == 1
    pairs = Texts({"anchor": ["a"], "positive": ["a"]}, None, None, "")
    assert "1 pairs have the same text twice" in told_summary(summarise(pairs, lambda t: np.ones(len(t)), None))


def test_linked_pairs():
    groups = linked(np.array([1, 1, 5, 7]), np.array([2, 3, 3, 8]))
    assert groups.tolist() == [1, 1, 1, 7]


LISTS = {
    "MTEB": ({"query": ["q1", "q2"], "positive": [["a", "b"], ["c"]], "negative": [["n1", "n2", "n3"], []]}, Asked()),
    "one positive": (
        {"anchor": ["q1", "q1", "q2"], "positive": ["a", "b", "c"], "Negatives": [["n1", "n2", "n3"]] * 2 + [[]]},
        Asked(),
    ),
    "of two kinds": (
        {"question": ["q1", "q2"], "answer": [["a", "b"], ["c"]], "negative_1": [["n1", "n2"], []], "negative_2": ["n3", ""]},
        Asked(),
    ),
    "named": (
        {"x": ["q1", "q2"], "y": [["a", "b"], ["c"]], "z": [["n1", "n2", "n3"], None]},
        Asked("x", "y", ("z",)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_pairs_whose_cells_are_lists(tmp_path, name, kind):
    columns, asked = LISTS[name]
    path, data = tmp_path / f"a.{kind}", datasets.Dataset.from_dict(columns)
    {"jsonl": data.to_json, "parquet": data.to_parquet, "saved": data.save_to_disk}[kind](path)
    for found in (read_texts(path, asked), scan_texts(path, 2, asked=asked)):
        assert plain(found) == WANTED
    assert "pairs of 3 queries" in found.origin or "pairs of 2 queries, up to 3 negatives" in found.origin
    few = read_texts(path, Asked(asked.anchor, asked.positive, asked.negative, negatives=2))
    assert list(few.columns)[2:] == ["negative_1", "negative_2"]


def test_a_text_that_looks_like_a_list_is_a_text(tmp_path):
    path = write_json(tmp_path / "a.jsonl", [{"anchor": "sort", "positive": '["b"]', "negative": ["[1, 2]"]}])
    assert plain(read_texts(path)) == {"anchor": ["sort"], "positive": ['["b"]'], "negative_1": ["[1, 2]"]}


@pytest.mark.parametrize(
    "rows,said",
    [
        ([{"text": ["a", "b"]}], "line 1: its column 'text' holds a list"),
        ([{"text": {"de": "a"}}], "line 1: its column 'text' holds an object"),
        ([{"text": "a", "label": "x"}, {"text": "a", "label": ["x", "y"]}], "line 2: its column 'label' holds a list"),
        ([{"query": ["a"], "positive": ["b"]}], "line 1: its column 'query' holds a list"),
        ([{"query": "a", "positive": "b"}, {"query": "a", "positive": ["b"]}], "line 2: its column 'positive' holds"),
        ([{"query": "a", "document": ["b", "c"], "labels": [0, 1]}], "perhaps not all are positives"),
        ([{"query": "a", "positive": [["b"]]}], "line 1: its column 'positive' holds a list"),
    ],
)
def test_several_texts_where_one_is_read(tmp_path, rows, said):
    path = write_json(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match=said):
        read_texts(path)


awkward = st.text(
    st.one_of(st.sampled_from("\r\n\t\",';\\ua \x85\u2028\x00["), st.characters(exclude_categories=["Cs"])), max_size=8
)
texts = awkward.map(str.strip)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(texts.filter(bool), texts.filter(bool), texts), min_size=1, max_size=4))
@example([("a\rb", "c", "d")])
@example([("a\nb", "c\td", "e")])
def test_rows_are_read_back_as_they_were_written(tmp_path_factory, rows):
    names = ["anchor", "positive", "negative_1"]
    for ending in ("jsonl", "csv", "tsv"):
        path = tmp_path_factory.mktemp("rows") / f"a.{ending}"
        with open(path, "w", encoding="utf-8", newline="") as file:
            try:
                write = row_writer(path, file, names)
                for row in rows:
                    write(row)
            except UserError as error:
                assert ending == "tsv" and "write .jsonl" in str(error)
                assert any("\n" in "".join(row) and "\t" in "".join(row) for row in rows)
                continue
        assert list(zip(*plain(read_texts(path)).values(), strict=True)) == rows


def test_an_encoder_without_a_limit_has_none_in_the_run():
    """Static embeddings say infinity, which no reader of JSON but Python's takes."""
    told = summarise(Texts({"text": ["a"]}), lambda texts: np.array([1]), float("inf"))
    assert told["tokens"]["limit"] is None and json.dumps(told, allow_nan=False) and told_summary(told)
