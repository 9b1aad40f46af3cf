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
def test_identities_are_the_chains_of_the_batch_and_of_negatives_that_are_answers(given_):
    pairs, rows, negatives = given_
    batch = pairs[:, rows]
    found, told = identities(batch, negatives, Related(pairs))
    group = {text: {text} for text in batch.ravel().tolist()}
    for anchor, positive in batch.T.tolist():
        both = group[anchor] | group[positive]
        for text in both:
            group[text] = both
    number = {text: told[text] for text in group}
    assert (found == np.vectorize(number.get)(batch)).all()
    for one in group:
        assert {other for other in group if number[other] == number[one]} == group[one]
    repeated = any(len(set(side)) < len(side) for side in pairs.tolist())
    for negative in set(negatives.tolist()) - set(group):
        asked = {anchor for anchor, positive in pairs.T.tolist() if positive == negative and anchor in batch[0]}
        assert (told.get(negative) in {number[anchor] for anchor in asked}) == bool(asked and repeated)


def test_many_answers_each_leave_negatives():
    """Three of twenty tags: all pairs of the data, in chains, would make one of everything."""
    rng = np.random.default_rng(0)
    pairs = np.array([(row, 10_000 + tag) for row in range(500) for tag in rng.choice(20, 3, replace=False)]).T
    rows = np.array([np.flatnonzero(pairs[1] == 10_000 + tag)[0] for tag in range(20)])
    found, _ = identities(pairs[:, rows], np.empty(0, np.int64), Related(pairs))
    assert len(set(found[1].tolist())) >= 10


@pytest.mark.parametrize("head", [False, True])
def test_a_negative_that_answers_in_a_row_that_the_batch_lacks_is_none(head, tiny):
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
        loss = named("infonce(directions='forward', within_side=False)")
        return train_text(model, texts, config, loss, source="x", plans=[plan])[0]["negatives"]

    assert negatives([0, 2]) == 1.5  # bank: "line"; test: "salt", and its own "soup"
    assert negatives([0, 2], positive=["salt", "lamp", "line", "soup"]) == 2  # when nobody says that soup answers bank
