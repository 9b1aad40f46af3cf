"""Which rows stand together in a batch."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.errors import UserError
from retrieval.train.batches import (
    Drawing,
    as_codes,
    balanced_batches,
    by_size,
    check_labels,
    cut_by_tokens,
    disjoint_pairs,
    pairs_per_batch,
    plan,
    random_batches,
    shuffled,
)
from retrieval.train.loss import named
from retrieval.train.text import TextConfig

classes = st.lists(st.integers(2, 9), min_size=2, max_size=6)


@settings(max_examples=50, deadline=None)
@given(classes, st.integers(0, 3), st.data())
def test_balanced_batches_are_disjoint_pairs_of_one_class(sizes, seed, data):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    pairs = data.draw(st.integers(1, disjoint_pairs(labels)))
    for anchors, positives in islice(balanced_batches(labels, pairs, seed), 12):
        rows = np.concatenate([anchors, positives])
        assert len(rows) == 2 * pairs == len(np.unique(rows))
        assert (labels[anchors] == labels[positives]).all()


def test_balanced_batches_give_every_class_its_turn():
    labels = np.repeat(np.arange(10), 40)
    anchors, _ = next(balanced_batches(labels, 25, 0))
    counts = np.bincount(labels[anchors], minlength=10)
    assert counts.min() == 2 and counts.max() == 3  # P = 10 classes × K = 4 or 6 rows
    few, _ = next(balanced_batches(labels, 4, 0))
    assert len(set(labels[few])) == 4


def test_balanced_batches_use_each_row_before_any_again():
    labels = np.repeat(np.arange(3), 10)
    seen = np.concatenate([np.concatenate(b) for b in islice(balanced_batches(labels, 3, 1), 5)])
    assert sorted(seen) == list(range(30))


@pytest.mark.parametrize("pairs", [1, 4])
def test_a_class_with_an_odd_number_of_rows_leaves_none_out(pairs):
    batches = balanced_batches(np.zeros(9, np.int64), pairs, 0)
    for _ in range(3):
        seen = np.concatenate([np.concatenate(next(batches)) for _ in range(9)])
        assert (np.bincount(seen) == 2 * pairs).all()


@settings(max_examples=50, deadline=None)
@given(classes, st.integers(0, 3))
def test_random_batches_pair_different_rows_of_one_class(sizes, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    for anchors, positives in islice(random_batches(labels, 3, seed), 10):
        assert len(set(anchors)) == 3
        assert (anchors != positives).all() and (labels[anchors] == labels[positives]).all()


def test_random_batches_reach_every_partner_and_keep_class_frequencies():
    labels = np.array([0] * 4 + [1] * 12)
    batches = list(islice(random_batches(labels, 4, 0), 400))
    anchors, positives = (np.concatenate(side) for side in zip(*batches, strict=True))
    assert len(set(zip(anchors.tolist(), positives.tolist(), strict=True))) == 4 * 3 + 12 * 11
    assert (labels[anchors] == 0).mean() == pytest.approx(1 / 4)


def test_the_seed_decides():
    labels = np.repeat(np.arange(5), 8)
    for make in (balanced_batches, random_batches):
        once, again, other = (np.stack(list(islice(make(labels, 6, seed), 4))) for seed in (1, 1, 2))
        assert (once == again).all() and not (once == other).all()
    assert sorted(np.concatenate(list(islice(by_size(shuffled(12, 0), 4), 3)))) == list(range(12))


def test_labels_that_make_no_pairs_are_refused():
    with pytest.raises(UserError, match="'c' has one member"):
        check_labels(["a", "a", "c"], "x.csv", masked=True)
    with pytest.raises(UserError, match="only one class"):
        check_labels(["a", "a"], "x.csv", masked=True)
    check_labels(["a", "a"], "x.csv", masked=False)
    with pytest.raises(UserError, match="--batch-size 9"):
        pairs_per_batch(9, 8, "x.csv")
    assert pairs_per_batch(None, 8, "x.csv") == 8
    assert as_codes(["b", "a", "b"]).tolist() == [1, 0, 1]


def planned(count, labels=None, *, masked=False, batch_size=4, **more):
    return plan(count, labels, "x.csv", masked=masked, batch_size=batch_size, steps=3, epochs=1, seed=0, **more)


@pytest.mark.parametrize("labels", [None, [str(row % 4) for row in range(24)]], ids=["rows", "classes"])
def test_neighbours_are_found_before_training(labels):
    """A training that goes on from a checkpoint would find others."""
    asked = []

    def near():
        asked.append(1)
        size = 24 if labels is None else 4
        return np.stack([np.delete(np.random.default_rng(len(asked)).permutation(size), 0) for _ in range(size)])

    found = planned(24, labels, drawing=Drawing(how="hard"), near=near)
    assert len(asked) == 1
    once, again = ([pairs.anchors.tolist() for pairs in islice(found.batches(), 6)] for _ in range(2))
    assert once == again and len(asked) == 1
    planned(24, labels, near=near)
    planned(24, labels, drawing=Drawing(how="hard"))  # which only checks
    assert len(asked) == 1


@pytest.mark.parametrize("how", ["classes", "hard"])
def test_batches_by_class_reach_as_far_as_disjoint_pairs(how):
    labels, near = ["a"] * 3 + ["b"] * 3, lambda: np.array([[1], [0]])
    drawing = Drawing(how=how, per_class=2)
    with pytest.raises(UserError, match="--batch-size 4: x.csv has only 2 pairs"):
        planned(6, labels, drawing=drawing, near=near)
    found = planned(6, labels, drawing=drawing, near=near, batch_size=None)
    assert found.pairs == 2 and all(len(pairs.anchors) == 2 for pairs in islice(found.batches(), 9))
    assert planned(6, labels).pairs == 4  # at random a row may stand in two


def test_every_text_of_a_row_counts_as_the_longest_of_its_batch():
    random = np.random.default_rng(0)
    lengths = random.integers(1, 30, (4, 300))
    lengths[2:, ::2] = 0  # half of the rows have no negatives
    batches = cut_by_tokens(random.permutation(300), lengths, budget=400, size=100)
    padded = [int((lengths[:, rows] > 0).sum() * lengths[:, rows].max()) for rows in batches]
    assert max(padded) <= 400 and np.median(padded) > 350
    assert sorted(np.concatenate(batches).tolist()) == list(range(300))


def test_an_epoch_has_as_many_steps_by_size_and_by_tokens():
    labels, lengths = [str(row % 4) for row in range(24)], np.full((2, 24), 5)
    for how, rows in ((None, 1), (labels, 2)):
        by_size = planned(24, how)
        by_tokens = planned(24, how, drawing=Drawing(tokens=40), lengths=lambda: lengths)
        assert by_size.per_epoch == by_tokens.per_epoch == 24 / 4 / rows


@pytest.mark.parametrize("least", [2, 5])
def test_no_batch_of_any_window_is_too_small(least):
    random = np.random.default_rng(0)
    for count in range(2 * least, 200, 7):
        order, lengths = random.permutation(count), random.integers(1, 30, (1, count))
        batches = cut_by_tokens(order, lengths, budget=90, size=1, least=least)
        assert sorted(np.concatenate(batches).tolist()) == list(range(count))
        assert min(map(len, batches)) >= least


def test_every_process_has_a_pair(monkeypatch):
    config = TextConfig(batch_size=4, drawing=Drawing(tokens=10))
    lengths = np.full((1, 30), 5)
    monkeypatch.setattr("retrieval.train.settings.world", lambda: (0, 3))
    found = config.plan(30, None, "x", named("infonce"), identities=lambda: np.zeros(0), lengths=lambda: lengths)
    assert min(len(pairs.anchors) for pairs in islice(found.batches(), 20)) == 3
    monkeypatch.setattr("retrieval.train.settings.world", lambda: (0, 5))
    with pytest.raises(UserError, match="--batch-size 4: fewer pairs than the 5 processes"):
        config.plan(30, None, "x", named("infonce"), identities=lambda: np.zeros(0), lengths=lambda: lengths)
