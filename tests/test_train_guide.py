"""An encoder that judges, while another is trained, which texts are too like a positive to be its negatives (GISTEmbed)."""

import json

import numpy as np
import pytest
import torch
from tiny_training import LOSS, PAIRS, SETTINGS, WORDS, weights

from retrieval.data import Texts
from retrieval.encode import Encoding
from retrieval.encoder import load_encoder
from retrieval.errors import UserError
from retrieval.train.batches import Pairs
from retrieval.train.collate import Collator, Shares
from retrieval.train.loss import contrastive_loss, named
from retrieval.train.text import TextConfig, _frozen, _sources, plan_batches, train_text

pytestmark = pytest.mark.slow
ROWS = Texts(PAIRS.columns | {"negative_1": ["soup", ""] * 24}, None, None, "")
LABELLED = Texts({"text": PAIRS.columns["anchor"]}, [a for a in WORDS for _ in range(4)], None, "")


@pytest.fixture
def encoder(tiny):
    return load_encoder(str(tiny), "cpu")


def trained(encoder, loss, guide=None, data=ROWS, **settings):
    curve = train_text(encoder.model, data, TextConfig(**SETTINGS, **settings), named(loss), source="x", guide=guide)
    return [step["loss"] for step in curve], weights(encoder)


def test_each_text_of_a_batch_is_told_under_the_guide(encoder, minilm):
    config = TextConfig(**SETTINGS)
    guide = _frozen(minilm.model, ROWS, lambda texts: None)
    sources = _sources(encoder.model, [ROWS], [plan_batches(ROWS, config, LOSS, "x")], None, config, [guide])
    share = next(iter(Shares(sources, 1)))
    batch = Collator(encoder.model, sources)(share)["batch"]
    rows = share.pairs.anchors
    texts = [[ROWS.columns[name][row] for row in rows] for name in ("anchor", "positive", "negative_1")]
    for found, wanted in zip([*batch["guide"], batch["guide_negative"]], texts, strict=True):
        vectors = Encoding(minilm.model, role="document").encode([text for text in wanted if text])
        np.testing.assert_allclose(found.numpy(), vectors, atol=1e-5)
    assert len(batch["guide_negative"]) == len(batch["negative_pairs"])


@pytest.mark.parametrize("data", [ROWS, LABELLED], ids=["rows", "labelled"])
@pytest.mark.parametrize("settings", [{}, {"head": True}, {"mini_batch_size": 3}], ids=["whole", "head", "cached"])
def test_a_guide_that_leaves_nothing_out_changes_nothing(tiny, minilm, settings, data):
    def of(loss, guide=None):
        return trained(load_encoder(str(tiny), "cpu"), loss, guide, data, **settings)

    plain, kept = of("mnrl"), of("gist(margin=-3)", minilm.model)
    assert kept[0] == pytest.approx(plain[0], rel=1e-5)
    guided = of("gist(margin=0.3)", minilm.model)
    assert guided[0][0] < plain[0][0] * 0.98  # it is the fewer negatives that make the first step's loss smaller
    assert any(not torch.equal(a, b) for a, b in zip(guided[1].values(), plain[1].values(), strict=True))


def test_the_first_step_is_the_loss_of_the_frozen_vectors(encoder, minilm):
    config, loss = TextConfig(**SETTINGS, head=True), named("gist")
    plan = plan_batches(PAIRS, config, loss, "x")
    pairs: Pairs = next(plan.batches())
    own, guide = (_frozen(model, PAIRS, lambda texts: None).of_pairs(pairs) for model in (encoder.model, minilm.model))
    found, _ = trained(encoder, "gist", minilm.model, PAIRS, head=True)
    wanted = contrastive_loss(own[0], own[1], guide=guide, config=loss).loss
    assert found[0] == pytest.approx(float(wanted), rel=1e-5)
    assert found[0] != pytest.approx(float(contrastive_loss(*own, guide=own, config=loss).loss), rel=1e-3)


def test_a_guide_and_a_loss_that_asks_it_go_together(encoder, minilm):
    with pytest.raises(UserError, match="--loss gist: judges by another encoder; give --guide"):
        trained(encoder, "gist")
    with pytest.raises(UserError, match="--guide: --loss hcl does not judge by one"):
        trained(encoder, "hcl", minilm.model)


def test_the_command_trains_with_a_guide(command, run_cli, tiny, tmp_path):
    run_cli(*command, "--loss", "gist", "--guide", "all-MiniLM-L6-v2", "--output", tmp_path / "run")
    config = json.loads((tmp_path / "run/run/config.json").read_text("utf-8"))
    assert config["guide"] == "all-MiniLM-L6-v2" and config["loss"] == "gist(label_mask=False)"
    told = run_cli(*command, "--guide", tiny, "--output", tmp_path / "other", code=2).stderr
    assert "--guide: --loss hcl does not judge by one; leave it out, or use --loss gist" in told
