"""timm's models, which transformers wraps: encoded as timm itself encodes them, and trained. Skipped where timm is not installed."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer

from retrieval.encoder import load_encoder
from retrieval.images import read_images
from retrieval.pixels import pixels_of
from retrieval.train.image import ImageConfig, train_image
from retrieval.train.loss import named

timm = pytest.importorskip("timm", reason="the package timm is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as timm writes it for the hub, and the network."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model("resnet10t").eval()
    path = tmp_path_factory.mktemp("timm")
    told = {
        "architecture": "resnet10t",
        "num_classes": 1000,
        "num_features": model.num_features,
        "pretrained_cfg": model.pretrained_cfg,
    }
    (path / "config.json").write_text(json.dumps(told))
    save_file(model.state_dict(), path / "model.safetensors", {"format": "pt"})
    model.reset_classifier(0)
    return str(path), model


def test_its_vectors_are_those_of_timm(folder):
    from timm.data import create_transform, resolve_data_config

    path, model = folder
    encoder = load_encoder(path, "cpu")
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)) for size in ((300, 400, 3), (200, 90, 3))]
    transform = create_transform(**resolve_data_config({}, model=model))
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(torch.stack([transform(each) for each in pictures])))
    assert np.allclose(encoder.encode(pictures), expected, atol=1e-5)
    assert not np.allclose(encoder.encode(pictures[::-1]), expected, atol=1e-3)


def test_its_processor_says_what_it_does(folder):
    found = pixels_of(load_encoder(folder[0], "cpu").model)
    assert found.size == (176, 176) and found.shorter == 201 and found.keeps_proportions
    assert np.allclose(found.mean.flatten(), (0.485, 0.456, 0.406), atol=1e-3)
    assert np.allclose(found.std.flatten(), (0.229, 0.224, 0.225), atol=1e-3)


def test_it_is_trained_and_opens_plainly(folder, pictures, tmp_path):
    encoder = load_encoder(folder[0], "cpu")
    before = encoder.fingerprint
    train_image(encoder.model, read_images(pictures), ImageConfig(steps=2, batch_size=8), named("hcl"), source="x")
    encoder.model.save_pretrained(str(tmp_path / "m"), create_model_card=False)
    again, plain = load_encoder(str(tmp_path / "m"), "cpu"), SentenceTransformer(str(tmp_path / "m"), device="cpu")
    assert before != again.fingerprint
    shown = [Image.open(path).convert("RGB") for path in sorted(pictures.rglob("*.png"))[:3]]
    assert np.allclose(again.encode(shown), plain.encode(shown, normalize_embeddings=True), atol=1e-5)
