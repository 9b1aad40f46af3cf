"""Mistakes that scripts make and commands cannot: of each, an error and not a wrong answer."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from PIL import Image

from retrieval.data import Texts
from retrieval.errors import UserError
from retrieval.eval.clusters import Settings as ClusterSettings
from retrieval.eval.clusters import evaluate_clusters
from retrieval.eval.compare import compare, paired
from retrieval.eval.values import PerQuery
from retrieval.index.build import build
from retrieval.index.change import add
from retrieval.index.filters import row_numbers, rows_of_labels
from retrieval.index.plan import Goal
from retrieval.index.search import search, within
from retrieval.neighbors import Base, exact_neighbors, exact_within
from retrieval.store import STORED_AS, Held, Kind, Rows, create, delete
from retrieval.train.loss import loss, named
from retrieval.train.text import TextConfig, train_text

VECTORS = np.eye(6, 8, dtype=np.float32)
IDS = list("abcdef")


def test_vectors_of_other_dimensions_than_the_kind_says_are_refused(tmp_path):
    with pytest.raises(UserError, match="the store has 8 dimensions"):
        create(tmp_path / "store", Held(Rows(VECTORS[:, :6], IDS)), Kind(dim=8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_vectors_may_be_tensors_with_a_gradient(tmp_path, dtype):
    given = torch.from_numpy(VECTORS).to(dtype).requires_grad_()
    store = create(tmp_path / "store", Rows(given, IDS), Kind(dim=8))
    np.testing.assert_array_equal(store.embeddings(), VECTORS)
    index = build(store, tmp_path / "index")
    assert search(index, given[2:3], 1).rows.tolist() == [[2]]
    assert len(within(index, given[2:3], 0.5).rows[0]) == 1
    assert exact_neighbors(given, given, 1).ids[:, 0].tolist() == [*range(6)]
    assert exact_within(given, Base(given, "cosine"), 0.5).rows.tolist() == [*range(6)]
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    assert evaluate_clusters(given, labels).means() == evaluate_clusters(VECTORS, labels.tolist()).means()


def test_a_folder_is_no_open_index():
    for ask in (lambda: search("index", VECTORS, 1), lambda: within("index", VECTORS, 0.5)):
        with pytest.raises(UserError, match="index: is a str; give what `open_index` opened"):
            ask()


def test_a_string_is_no_list_of_ids_and_an_array_of_strings_is(tmp_path):
    create(tmp_path / "store", Held(Rows(VECTORS, IDS)), Kind(dim=8))
    with pytest.raises(UserError, match="not one string"):
        delete(tmp_path / "store", "ab")
    assert delete(tmp_path / "store", np.array(["a", "b"])).load().ids == list("cdef")


def test_row_numbers_are_no_mask(tmp_path):
    index = build(create(tmp_path / "store", Held(Rows(VECTORS, IDS)), Kind(dim=8)), tmp_path / "index")
    assert row_numbers(index, np.array(["b"])).tolist() == [1]
    for where in (np.array([4, 5]), np.ones(5, bool)):
        with pytest.raises(UserError, match="6 booleans"):
            search(index, VECTORS[:1], 2, where=where)
        with pytest.raises(UserError, match="6 booleans"):
            within(index, VECTORS[:1], 0.5, where=where)


def test_columns_may_be_arrays_and_have_one_value_a_row(tmp_path):
    rows = create(
        tmp_path / "store", Held(Rows(VECTORS, np.array(IDS), np.array(IDS), {"text": np.array(IDS)})), Kind(dim=8)
    ).load()
    assert rows.ids == rows.labels == rows.payload["text"] == IDS
    assert create(tmp_path / "numbered", Held(Rows(VECTORS, range(6))), Kind(dim=8)).load().ids.tolist() == [*range(6)]
    with pytest.raises(UserError, match="6 rows, 9 labels"):
        Held(Rows(VECTORS, IDS, ["x"] * 9))
    with pytest.raises(UserError, match="labels: None is no string"):
        Held(Rows(VECTORS, IDS, ["x", None] * 3))


def test_a_store_that_is_said_to_be_normalized_is():
    """Or an index would take products of other lengths for cosines."""
    for dtype in STORED_AS:
        unit = Kind(dim=8, dtype=dtype)
        with (
            TemporaryDirectory() as folder,
            pytest.raises(UserError, match=r"1 of 6 vectors \(ids c\) are not of length 1"),
        ):
            create(
                Path(folder) / "store", Held(Rows(VECTORS * np.where(np.arange(6) == 2, 1.05, 1)[:, None], IDS)), unit
            )
        with TemporaryDirectory() as folder:
            rounded = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
            create(
                Path(folder) / "store", Held(Rows(rounded / np.linalg.norm(rounded, axis=1, keepdims=True), IDS)), unit
            )
            create(Path(folder) / "longer", Held(Rows(2 * VECTORS, IDS)), replace(unit, normalized=False))


def test_queries_by_cosine_have_length_1(tmp_path):
    index = build(create(tmp_path / "store", Held(Rows(VECTORS, IDS)), Kind(dim=8)), tmp_path / "index")
    assert search(index, VECTORS[:2].tolist(), 1).rows.tolist() == [[0], [1]]
    for wrong, words in (
        (2 * VECTORS[:3], "query 0 has length 2"),
        (VECTORS[0], "give \\(q, 8\\)"),
        (VECTORS[:1] * np.nan, "length nan"),
    ):
        for ask in (lambda wrong: search(index, wrong, 2), lambda wrong: within(index, wrong, 0.5)):
            with pytest.raises(UserError, match=words):
                ask(wrong)
    kind = Kind(dim=8, metric="inner_product", normalized=False)
    products = build(create(tmp_path / "products", Held(Rows(VECTORS, IDS)), kind), tmp_path / "by-product")
    assert search(products, 2 * VECTORS[:1], 1).scores.tolist() == [[2]]


@pytest.mark.parametrize(
    "make,words",
    [
        (lambda: Kind(dim=8, metric="l2"), "metric 'l2': unknown; known are cosine"),
        (lambda: Kind(dim=8, dtype="fp16"), "dtype 'fp16': unknown; known are float32"),
        (lambda: Kind(dim=0), "dim 0"),
        (lambda: Goal(recall=95), "recall 95: must be above 0 and at most 1"),
        (lambda: Goal(latency=-1.0), "latency -1.0"),
        (lambda: Goal(k=0), "k 0"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_said(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_settings_of_a_search_are_known(tmp_path):
    graph = build(
        create(tmp_path / "store", Held(Rows(VECTORS, IDS)), Kind(dim=8)), tmp_path / "graph", factory="HNSW4"
    )
    assert search(graph, VECTORS[:1], 1, settings={"effort": 8}).rows.tolist() == [[0]]
    with pytest.raises(UserError, match="settings: efSearch is none of nprobe, effort, rerank"):
        search(graph, VECTORS[:1], 1, settings={"efSearch": 8})


def test_one_text_is_no_list_of_texts(minilm):
    for wrong in ("hello", Image.new("RGB", (8, 8))):
        with pytest.raises(UserError, match="give a list"):
            minilm.encode(wrong)
    with pytest.raises(UserError, match="role 'qury': unknown; known are query, document"):
        minilm.encode(["hello"], role="qury")


class Column:
    """A column of pandas, which is asked by name where one asks it by number."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, row):
        return self.values[-1 - row]

    def tolist(self):
        return list(self.values)


def test_columns_of_pandas_go_by_position(tmp_path):
    texts = Texts({"positive": Column(["p", "q"]), "anchor": Column(["a", "b"])}, ids=np.array(["1", "2"]))
    assert texts.take([1]).columns == texts.part(1, 2).columns == {"anchor": ["b"], "positive": ["q"]}
    assert texts.texts == ["a", "b"] and texts.ids == ["1", "2"]
    stored = create(
        tmp_path / "store", Rows(VECTORS[:2].tolist(), [np.int64(7), 9], Column(["x", "y"])), Kind(dim=np.int64(8))
    )
    assert stored.load().labels == ["x", "y"] and stored.load().ids.tolist() == [7, 9]
    assert repr(stored).endswith("store': 2 × 8 float32, cosine)")


@pytest.mark.parametrize(
    "columns,rest,words",
    [
        ({"text": ["a", "b"]}, {"labels": ["x"]}, "2 rows, 1 labels"),
        ({"text": ["a", "b"]}, {"ids": ["x"] * 3}, "2 rows, 3 ids"),
        ({"text": ["a", "b"]}, {"scores": np.ones(3)}, "2 rows, 3 scores"),
        ({"anchor": ["a", "b"], "positive": ["a"]}, {}, "2 rows, 1 positive"),
        ({"text": ["a", None]}, {}, "text: None is no string"),
        ({"text": ["a", "b"]}, {"labels": [1, 2]}, "labels: 1 is no string"),
        ({"text": "ab"}, {}, "text: is of type str; give a list"),
        ({"text": {"a", "b"}}, {}, "text: is of type set; give a list"),
    ],
)
def test_texts_have_strings_in_columns_of_one_length(columns, rest, words):
    with pytest.raises(UserError, match=words):
        Texts(columns, **rest)


@pytest.mark.parametrize(
    "change,words",
    [
        ({"model": "the encoder"}, "model: is of type Encoder; give a SentenceTransformer"),
        ({"loss_config": "hcl"}, "config 'hcl': is no LossConfig"),
        ({"loss_config": loss("hcl")}, "is no LossConfig"),
        ({"data": Texts({"text": []})}, "mine: has no rows"),
        ({"data": Texts({"anchor": ["a", "b"]})}, "mine: has anchors and no positives"),
        ({"data": Texts({"query": ["a"], "positive": ["b"]})}, "mine: has columns query, positive; call one text"),
    ],
)
def test_what_cannot_be_trained_on_is_said_before(change, words, minilm):
    given = {
        "model": minilm.model,
        "data": Texts({"anchor": ["a", "b"], "positive": ["c", "d"]}),
        "loss_config": named("hcl"),
    }
    given |= {"model": minilm} if "model" in change else change
    with pytest.raises(UserError, match=words):
        train_text(given["model"], given["data"], TextConfig(head=True, steps=1), given["loss_config"], source="mine")


def test_settings_of_training_are_numbers_that_can_be():
    for settings, words in (({"steps": 0}, "steps 0"), ({"lr": 0.0}, "lr 0"), ({"epochs": -1.0}, "epochs -1")):
        with pytest.raises(UserError, match=words):
            TextConfig(**settings)


def test_items_without_a_class_are_none_of_a_class():
    labels = ["a", "a", "b", "b", None, None]
    for missing in (None, float("nan")):
        with pytest.raises(UserError, match=f"labels: {missing} in row 4 is no class"):
            evaluate_clusters(VECTORS, [*labels[:4], missing, missing])
    numbered = evaluate_clusters(VECTORS.tolist(), Column([0, 0, 1, 1, 2, 2]), ClusterSettings(seeds=0))
    assert numbered.queries.groups == ["0", "0", "1", "1", "2", "2"]


def test_what_is_compared_is_paired():
    one, other = (PerQuery(ids, None, {"m": np.arange(3.0)}) for ids in (["a", "b", "c"], ["c", "b", "a"]))
    with pytest.raises(UserError, match="`paired` puts them so"):
        compare([one], [other], "m")
    assert compare(*paired([[one], [other]])[0], "m").difference == 0


def test_folders_stand_for_what_is_in_them(tmp_path, minilm):
    create(tmp_path / "store", Rows(VECTORS[:3], IDS[:3], ["x", "y", "y"]), Kind(dim=8))
    create(tmp_path / "more", Rows(VECTORS[3:], IDS[3:], ["x", "y", "y"]), Kind(dim=8))
    build(str(tmp_path / "store"), tmp_path / "index")
    index = add(str(tmp_path / "index"), tmp_path / "more")
    assert index.rows.count == 6 and rows_of_labels(index, {"x"}).sum() == 2
    with pytest.raises(UserError, match="labels 'x': give a list"):
        rows_of_labels(index, "x")
    with pytest.raises(UserError, match="k -1"):
        search(index, VECTORS, -1)
    with pytest.raises(UserError, match="items: None is no text, as others are"):
        minilm.encode(["a", None])
    with pytest.raises(UserError, match="items: number 1 is of type NoneType, neither a text nor a picture"):
        minilm.encode([np.zeros((8, 8, 3), np.uint8), None])
    assert np.array_equal(minilm.encode(Column(["a", "b"])), minilm.encode(["a", "b"]))
