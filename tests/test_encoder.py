"""Training for real, small: encoders that open with plain sentence-transformers, and fingerprints that mean something."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from test_train_pairs import joined

from retrieval.data import Texts
from retrieval.encoder import Encoder, fingerprint, load_encoder
from retrieval.errors import UserError
from retrieval.eval.clusters import cluster_metrics
from retrieval.images import Images
from retrieval.pixels import pixels_of
from retrieval.samples import digits, docs_as_texts, library_docs
from retrieval.train.augment import LIGHT, PRESETS, SIMCLR, augment, crop_and_flip
from retrieval.train.batches import as_codes, balanced_batches
from retrieval.train.curve import record, warnings
from retrieval.train.head import Frozen, train_head
from retrieval.train.image import ImageConfig, train_image
from retrieval.train.loss import LossConfig, contrastive_loss
from retrieval.train.run import save_run
from retrieval.train.text import TextConfig, train_text
from retrieval.train.vision import input_side, network

TOPICS = {"money": "my card was charged a fee", "food": "the soup needs more salt", "sky": "the stars shine at night"}


def labelled(copies=4):
    rows = [(f"{text}, number {i}", label) for label, text in TOPICS.items() for i in range(copies)]
    return Texts({"text": [r[0] for r in rows]}, [r[1] for r in rows], None, "")


def small_copy(minilm):
    """A fresh copy of the encoder, since training is in place."""
    from retrieval.encoder import MINILM

    return load_encoder(MINILM, "cpu")


@pytest.mark.slow
def test_a_head_improves_and_opens_plainly(minilm, tmp_path):
    docs = library_docs()[:160]
    data = docs_as_texts(docs)
    encoder = small_copy(minilm)
    before = cluster_metrics(encoder.encode(data.texts), data.labels)
    config = TextConfig(head=True, steps=60)
    curve = train_text(encoder.model, data, config, LossConfig(), source="docs")
    after = cluster_metrics(encoder.encode(data.texts), data.labels)
    assert len(curve) == 60 and after["map@r"] > before["map@r"] + 0.05
    mark = save_run(tmp_path / "run", encoder, curve, {"seed": 0}, None)
    plain = SentenceTransformer(str(tmp_path / "run"), device="cpu")
    assert np.allclose(plain.encode(data.texts[:5]), encoder.encode(data.texts[:5]), atol=1e-6)
    again = load_encoder(str(tmp_path / "run"), "cpu")
    assert again.fingerprint == mark == encoder.fingerprint != minilm.fingerprint
    assert not list((tmp_path / "run").rglob("*.bin")) + list((tmp_path / "run").rglob("*.pkl"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["labels", "pairs", "negatives", "lines"])
def test_the_whole_encoder_trains_on_every_kind_of_data(minilm, kind):
    data = labelled()
    columns = {"anchor": data.texts[:6], "positive": data.texts[1:7]}
    if kind == "negatives":
        columns["negative"] = data.texts[6:12]
    data = {"labels": data, "lines": Texts({"text": data.texts}, None, None, "")}.get(kind) or Texts(
        columns, None, None, ""
    )
    encoder = small_copy(minilm)
    loss = LossConfig(label_mask=kind == "labels")
    curve = train_text(encoder.model, data, TextConfig(steps=2, batch_size=3), loss, source="x")
    assert len(curve) == 2 and all(np.isfinite(step["loss"]) for step in curve)
    assert encoder.fingerprint != minilm.fingerprint


def test_training_reproduces_bit_for_bit():
    vectors = torch.nn.functional.normalize(torch.randn(60, 16), dim=1)
    labels = as_codes([str(i % 5) for i in range(60)])
    heads = []
    for seed in (0, 0, 1):
        frozen = Frozen(vectors, np.arange(60)[None])
        made, _ = train_head(frozen, balanced_batches(labels, 8, seed), LossConfig(), labels=labels, steps=10, lr=1e-2)
        heads.append(made.weight.detach())
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_a_head_needs_two_different_views(minilm):
    lines = Texts({"text": ["a", "b"]}, None, None, "")
    with pytest.raises(UserError, match="neither labels nor pairs"):
        train_text(minilm.model, lines, TextConfig(head=True), LossConfig(label_mask=False), source="x.txt")


def test_a_fingerprint_is_of_the_function_not_of_the_name(minilm, tmp_path):
    minilm.model.save_pretrained(str(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    mark = load_encoder(str(tmp_path / "a"), "cpu").fingerprint
    assert mark == minilm.fingerprint == load_encoder(str(tmp_path / "b"), "cpu").fingerprint
    weights = load_file(tmp_path / "b" / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"][0] += 1e-3
    save_file(weights, tmp_path / "b" / "model.safetensors", metadata={"format": "pt"})
    assert load_encoder(str(tmp_path / "b"), "cpu").fingerprint != mark
    other = load_encoder(str(tmp_path / "a"), "cpu").model
    other.max_seq_length = 64
    assert fingerprint(other) != mark
    other.max_seq_length = minilm.model.max_seq_length
    assert fingerprint(other) == mark
    other.prompts["query"] = "find: "
    assert fingerprint(other) != mark


def test_what_is_no_encoder_is_refused(tmp_path):
    for name, word in [
        (str(tmp_path), "not an encoder"),
        ("./nowhere", "no such folder"),
        ("/no/where", "no such folder"),
    ]:
        with pytest.raises(UserError, match=word):
            load_encoder(name)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot load this encoder"):
        load_encoder(str(tmp_path))


def test_the_small_network_trains_and_opens_plainly(tmp_path):
    data = digits()
    train = Images(data.source[:600], data.labels[:600], "")
    encoder = Encoder(network("small", 8, "cpu", 0), "small")
    curve = train_image(
        encoder.model, train, ImageConfig(steps=12, batch_size=32, scratch=True), LossConfig(), source="x"
    )
    assert curve[-1]["loss"] < curve[0]["loss"]
    mark = save_run(tmp_path / "run", encoder, curve, {}, None)
    plain = SentenceTransformer(str(tmp_path / "run"), device="cpu")
    grey = Image.fromarray(data.source[700])
    vector = plain.encode([grey])[0]
    assert vector.shape == (128,) and np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert np.allclose(vector, encoder.encode([data[700]])[0], atol=1e-5)
    loaded = load_encoder(str(tmp_path / "run"), "cpu")
    assert loaded.fingerprint == mark
    shown = [data[row] for row in range(700, 764)]
    assert np.array_equal(encoder.encode(shown), loaded.encode(shown))  # so a run is judged as what it saves is


def test_training_sees_pictures_as_the_saved_encoder_will():
    """The batched path, without random changes, gives what the processor gives for the same picture."""
    model = network("small", 8, "cpu", 0).eval()
    pixels = pixels_of(model)
    data = digits()
    still = PRESETS["light"].__class__(scale=(1.0, 1.0), ratio=1.0, flip=0, jitter=0, grey=0, blur=0)
    ours = (augment(torch.from_numpy(data.source[:4])[:, None], pixels.size, still) - pixels.mean) / pixels.std
    theirs = model.preprocess([data[row] for row in range(4)])["pixel_values"]
    assert ours.shape == theirs.shape == (4, 3, 32, 32)
    assert (ours - theirs).abs().max() < 0.02  # the processor rounds to bytes between


def test_unlabelled_pictures_train_on_two_views():
    data = Images(digits().source[:64], None, "")
    model = network("small", 8, "cpu", 0)
    loss = LossConfig(label_mask=False, temperature=0.5)
    curve = train_image(model, data, ImageConfig(steps=3, batch_size=16, scratch=True), loss, source="x")
    assert len(curve) == 3


def test_augmentations_keep_shape_and_range():
    pictures = torch.randint(0, 256, (16, 3, 20, 24), dtype=torch.uint8)
    for how in (SIMCLR, LIGHT):
        out = augment(pictures, (32, 32), how)
        assert out.shape == (16, 3, 32, 32) and out.min() >= 0 and out.max() <= 1 + 1e-6
        assert not torch.equal(out, augment(pictures, (32, 32), how))
    mirror = LIGHT.__class__(scale=(1.0, 1.0), ratio=1.0, flip=1.0)
    x = torch.rand(2, 1, 6, 6)
    assert torch.allclose(crop_and_flip(x, (6, 6), mirror), x.flip(3), atol=1e-5)
    assert [input_side(side) for side in (8, 16, 28, 64, 500)] == [32, 64, 56, 128, 128]


def test_warnings_name_the_remedy():
    step = {
        "step": 1.0,
        "loss": 1.0,
        "beta": 0.1,
        "kappa": 1.0,
        "negatives": 99.0,
        "ess": 3.0,
        "floor": 0.5,
        "positive": 0,
        "negative": 0,
    }
    found = warnings([step] * 10)
    assert len(found) == 2 and "--tau-plus" in found[0] and "--kappa" in found[1]
    assert "lower --kappa (or --beta), or raise --ess or" in " ".join(found)
    assert not warnings([{**step, "ess": 100.0, "floor": 0.0}])
    assert "--batch-size" in warnings([{**step, "negatives": 5.0, "floor": 0.0}])[0]


def test_a_loss_that_is_no_number_stops_training():
    seen = contrastive_loss(torch.eye(4), torch.eye(4), config=LossConfig()).diagnostics
    curve = []
    record(curve, torch.tensor(1.0), seen)
    with pytest.raises(UserError, match="step 2: the loss is nan; lower --lr"):
        record(curve, torch.tensor(float("nan")), seen)
    assert len(curve) == 1


def test_the_fingerprint_of_joined_encoders_knows_the_tokenizer_and_the_pixels(tiny):
    one, other = joined(tiny), joined(tiny)
    assert fingerprint(one) == fingerprint(other)
    other[0].sub_modules["text"][0].max_seq_length = 7
    assert fingerprint(one) != fingerprint(other)
    other = joined(tiny)
    other[0].sub_modules["image"][0].processor.image_mean = [0.4] * 3
    assert fingerprint(one) != fingerprint(other)
