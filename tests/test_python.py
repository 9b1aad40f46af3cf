"""Mistakes that scripts make and commands cannot: of each, an error and not a wrong answer."""

import numpy as np
import pytest

from retrieval.errors import UserError
from retrieval.index.build import build
from retrieval.index.filters import row_numbers
from retrieval.index.search import search, within
from retrieval.store import Held, Kind, Rows, create, delete

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
