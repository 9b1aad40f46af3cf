"""What encoders are judged by in training: only a pair's own other side is right, ties are wrong first, and what repeats is one."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.cli.held import before_and_after, by_pairs, by_shown
from retrieval.data import Texts
from retrieval.errors import UserError
from retrieval.eval.compare import compare, paired
from retrieval.eval.pairs import pair_ranks, right_over_wrong
from retrieval.eval.sweep import hold_out_groups
from retrieval.images import Images, Pairs


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_the_answer_of_another_question_is_not_right_however_they_hang_together():
    anchors, positives = ["q1", "q2", "q2", "q3", "q3", "q9"], ["yes", "yes", "blue", "blue", "seven", "stone"]
    held = by_pairs(Texts({"anchor": anchors, "positive": positives}, None, None, ""))
    documents, queries = (list(part.items.texts) for part in held.parts)
    at = {text: np.eye(8, dtype=np.float32)[row] for row, text in enumerate(["yes", "blue", "seven", "stone"])}
    first = {"q1": "seven", "q2": "blue", "q3": "yes", "q9": "stone"}  # what each question finds first
    vectors = np.stack([at[text] for text in documents] + [at[first[text]] for text in queries])
    found = held.measure(vectors).values
    assert dict(zip(queries, found["r@1"], strict=True)) == {"q1": 0, "q2": 1, "q3": 0, "q9": 1}
    assert found["mrr"].tolist() == [{"q1": 1 / 4, "q2": 1, "q3": 1 / 3, "q9": 1}[query] for query in queries]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ranks_are_those_of_a_sorted_list(data):
    """With vectors of few values, so that many are equally near."""
    q, m, d = (data.draw(st.integers(1, 6)) for _ in range(3))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    queries, documents = (rng.integers(-1, 2, (n, d)).astype(np.float32) for n in (q, m))
    asked = np.concatenate([np.arange(q), rng.integers(0, q, 3)])
    relevant = rng.integers(0, m, len(asked))
    found = pair_ranks(queries, documents, asked, relevant)
    for row in range(q):
        own = set(relevant[asked == row].tolist())
        scores = documents @ queries[row]
        best = max(scores[list(own)])
        ahead = [at for at in range(m) if at not in own and scores[at] >= best]
        assert found[row] == 1 + len(ahead)


def test_an_encoder_that_says_the_same_of_all_finds_nothing():
    same = np.ones((9, 4), np.float32) / 2
    rows = np.arange(9)
    assert pair_ranks(same, same, rows, rows).tolist() == [9] * 9
    assert right_over_wrong(same, same, same[:2], np.array([3, 3]))[3] == 0.5
    assert np.isnan(right_over_wrong(same, same, same[:2], np.array([3, 3]))[4])


def test_right_captions_win_by_their_share():
    pictures = np.array([[1, 0], [0, 1]], np.float32)
    right = np.array([[1, 0], [1, 0]], np.float32)
    wrong = np.array([[0, 1], [0.6, 0.8], [0, 1]], np.float32)
    assert right_over_wrong(pictures, right, wrong, np.array([0, 0, 1])).tolist() == [1.0, 0.0]


def test_ranks_are_those_of_a_loop_over_pairs():
    rng = np.random.default_rng(0)
    anchors, positives = (rng.integers(0, size, 120) for size in (40, 25))
    data = Texts({"anchor": [f"a{i}" for i in anchors], "positive": [f"p{i}" for i in positives]}, None, None, "")
    held = by_pairs(data)
    documents, queries = (list(part.items.texts) for part in held.parts)
    vectors = unit(rng.normal(size=(held.size, 6)))
    scores = vectors[len(documents) :].astype(np.float64) @ vectors[: len(documents)].T.astype(np.float64)
    own = set(zip(*data.columns.values(), strict=True))
    for query, line, mrr in zip(queries, scores, held.measure(vectors).values["mrr"], strict=True):
        order = [documents[at] for at in np.argsort(-line)]
        assert mrr == 1 / next(rank for rank, text in enumerate(order, 1) if (query, text) in own)


@pytest.mark.parametrize("count", [500, 1001])
def test_equal_documents_have_equal_scores(count):
    """A matrix product gives them different last bits."""
    queries = unit(np.random.default_rng(count).normal(size=(count, 384)))
    rows = np.arange(count)
    assert (pair_ranks(queries, np.concatenate([queries, queries]), rows, rows) == 2).all()
    assert (pair_ranks(queries, queries, rows, rows) == 1).all()
    same = np.repeat(queries[:1], count, axis=0)
    assert (pair_ranks(same, same, rows, rows) == count).all()


def test_what_training_changed_is_told_over_pictures_where_they_repeat():
    """Forty pictures with five captions each are forty, not two hundred."""
    count, captions = 40, 5
    pictures = Images([Path(f"p{row}.png") for row in range(count) for _ in range(captions)], None, "x")
    held = by_shown(Pairs({"anchor": pictures, "positive": [f"c{row}" for row in range(count * captions)]}, "x"))
    places = np.random.default_rng(0).normal(size=(count, 32))

    def vectors(noise, seed):
        shown = places + noise * np.random.default_rng(seed).normal(size=(count, 32))
        told = np.repeat(places, captions, 0) + np.random.default_rng(7).normal(size=(count * captions, 32))
        return unit(np.concatenate([shown, told]))

    before, after = held.measure(vectors(1.4, 1)), held.measure(vectors(1.1, 2))
    told = before_and_after(held, before, after, 0)["metrics"]["i2t_r@1"]
    sides, _ = paired([[before], [after]])
    whole = compare(*sides, "i2t_r@1", unit="class")
    each = compare(*sides, "i2t_r@1")
    assert told["interval"] == list(whole.interval) and told["verdict"] == "no difference shown"
    assert told["intervals"][0] == list(before.intervals_by_group()["i2t_r@1"])
    assert each.verdict() == "better" and each.interval[0] > 0  # as if each caption were a picture of its own


def test_groups_are_held_out_whole():
    groups = np.random.default_rng(0).integers(0, 30, 100)
    train, held = hold_out_groups(groups, 0)
    assert not set(groups[train]) & set(groups[held]) and 20 - np.bincount(groups).max() < len(held) <= 20
    assert len(set(groups[held])) in (5, 6, 7) and sorted([*train, *held]) == list(range(100))
    one_chain = np.minimum(np.arange(200), 40)  # 160 pairs hang together: never to be held out, however the lot falls
    assert all(len(hold_out_groups(one_chain, seed)[1]) == 40 for seed in range(10))
    # The first that does not fit is not the last.
    mixed = np.concatenate([np.repeat(np.arange(4), 20), np.arange(4, 24)])
    assert all(len(hold_out_groups(mixed, seed)[1]) == 20 for seed in range(20))
    assert len(hold_out_groups(np.arange(50), 0)[1]) == 10
    for few in (np.arange(9), np.zeros(20, int)):
        with pytest.raises(UserError, match="too few"):
            hold_out_groups(few, 0)
