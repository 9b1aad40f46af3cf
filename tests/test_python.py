"""Mistakes that scripts make and commands cannot: of each, an error and not a wrong answer."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from PIL import Image

from retrieval.errors import UserError
from retrieval.index.build import build
from retrieval.index.filters import row_numbers
from retrieval.index.plan import Goal
from retrieval.index.search import search, within
from retrieval.store import STORED_AS, Held, Kind, Rows, create, delete

VECTORS = np.eye(6, 8, dtype=np.float32)
IDS = list("abcdef")


def test_vectors_of_other_dimensions_than_the_kind_says_are_refused(tmp_path):
    with pytest.raises(UserError, match="the store has 8 dimensions"):
        create(tmp_path / "store", Held(Rows(VECTORS[:, :6], IDS)), Kind(dim=8))


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
    with pytest.raises(UserError, match="6 vectors, 9 labels"):
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
