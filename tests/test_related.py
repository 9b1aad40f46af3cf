"""What the data pair is no negative in a batch, whichever rows the batch has."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.data import Texts
from retrieval.encoder import load_encoder
from retrieval.train.batches import Pairs, Plan
from retrieval.train.loss import named
from retrieval.train.related import Related, identities
from retrieval.train.text import TextConfig, train_text


@st.composite
def data(draw):
    """Codes of pairs, as positives 100 more than as anchors, but for a text that is both; a batch's rows; explicit negatives."""
    count = draw(st.integers(1, 30))
    sides = [draw(st.lists(st.integers(0, most), min_size=count, max_size=count)) for most in (8, 12)]
    pairs = np.array(sides) + [[0], [100]]
    pairs[pairs == 103] = 3
    rows = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6))
    return pairs, np.array(rows), np.array(draw(st.lists(st.integers(98, 115), max_size=5)), np.int64)


@given(data())
def test_among_is_what_a_loop_finds(given_):
    pairs, rows, negatives = given_
    texts = np.concatenate([pairs[1, rows], negatives])
    want = sorted((a, p) for a, p in pairs.T.tolist() if a in pairs[0, rows] and p in texts)
    assert sorted(map(tuple, Related(pairs).among(pairs[0, rows], texts).T.tolist())) == (
        want if any(len(set(side)) < len(side) for side in pairs.tolist()) else []
    )


@given(data())
def test_identities_are_the_chains_of_a_loop(given_):
    pairs, rows, negatives = given_
    found, told = identities(pairs[:, rows], negatives, Related(pairs))
    texts = {*pairs[:, rows].ravel().tolist(), *negatives.tolist()}
    group = {text: {text} for text in texts}
    for anchor, positive in pairs.T.tolist():
        if anchor in pairs[0, rows] and positive in texts:
            both = group[anchor] | group[positive]
            for text in both:
                group[text] = both
    number = {text: told.get(text, text) for text in texts}
    assert (found == np.vectorize(number.get)(pairs[:, rows])).all()
    for one in texts:
        assert {other for other in texts if number[other] == number[one]} == group[one]


@pytest.mark.parametrize("head", [False, True])
def test_an_answer_in_a_row_that_the_batch_lacks_is_no_negative(head, tiny):
    """Neither as an explicit negative of another row, nor as another row's positive."""
    columns = {
        "anchor": ["bank", "bank", "test", "loan"],
        "positive": ["salt", "soup", "line", "soup"],
        "negative_1": ["", "", "soup", ""],
    }

    def negatives(rows, **changed):
        batches = [Pairs(np.array(rows), np.array(rows))]
        plan = Plan(lambda: iter(batches), len(rows), 1, None)
        config = TextConfig(steps=1, batch_size=2, head=head)
        texts = Texts(columns | changed, None, None, "")
        model = load_encoder(str(tiny), "cpu").model
        curve = train_text(
            model, texts, config, named("infonce(directions='forward', within_side=False)"), source="x", plans=[plan]
        )
        return curve[0]["negatives"]

    assert negatives([0, 2]) == 1.5  # bank: "line"; test: "salt", and its own "soup"
    assert negatives([0, 2], positive=["salt", "lamp", "line", "soup"]) == 2  # when nobody says that soup answers bank
    assert negatives([0, 3]) == 0  # loan's soup is bank's too, so they hang together
    assert negatives([0, 3], positive=["salt", "lamp", "line", "soup"]) == 1
