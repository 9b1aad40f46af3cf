"""Encoding by OpenVINO: the values of torch, and what another precision costs, which the store keeps."""

import numpy as np
import pytest

from retrieval.data import Texts
from retrieval.embed import embed
from retrieval.encode import Encoding
from retrieval.errors import UserError


def test_openvino_gives_the_same_values(minilm, docs):
    pytest.importorskip("openvino")
    want = Encoding(minilm.model).encode(docs)
    got = Encoding(minilm.model, backend="openvino").encode(docs)
    assert 0 < np.abs(got - want).max() < 1e-5


def test_openvino_in_bfloat16_is_near(minilm, docs):
    half = Encoding(minilm.model, backend="openvino", compute="bfloat16")
    if "BF16" not in openvino_types():
        with pytest.raises(UserError, match="this processor has no bfloat16"):
            half.encode(docs[:2])
        pytest.skip("bfloat16: this processor has none")
    assert 1e-5 < np.abs(half.encode(docs) - Encoding(minilm.model).encode(docs)).max() < 0.02


def openvino_types():
    return pytest.importorskip("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_openvino_takes_pictures(pictures):
    pytest.importorskip("openvino")
    from retrieval.images import read_images
    from retrieval.train.vision import network

    data, model = read_images(pictures).part(0, 30), network("small", 8, "cpu", 0).eval()
    got, want = (
        encoding.run(encoding.prepare_pictures(data))
        for encoding in (Encoding(model, backend="openvino", batch_size=7), Encoding(model, batch_size=7))
    )
    assert np.abs(got - want).max() < 1e-5


def test_what_another_precision_costs_is_kept(minilm, docs, tmp_path, run_cli):
    if "BF16" not in openvino_types():
        pytest.skip("bfloat16: this processor has none")
    data = Texts({"text": docs}, None, None, "")
    store = embed(minilm, data, tmp_path / "s", backend="openvino", compute="bfloat16")
    (cost,) = store.manifest["computed"]
    assert 0.999 < cost["cosine_min"] < cost["cosine_mean"] < 1 and 0.9 < cost["neighbours_kept"] <= 1
    assert cost["rows"] == 150 and cost["backend"] == "openvino"
    assert "computed by openvino in bfloat16: cosine" in run_cli("store", "info", tmp_path / "s").stdout
    plain = embed(minilm, data, tmp_path / "t").manifest["computed"]
    assert plain == [{"backend": "torch", "compute": "float32"}]
    more = Texts({"text": ["something else", "and another"]}, None, None, "")
    mixed = embed(minilm, more, tmp_path / "t", backend="openvino", add=True).manifest["computed"]
    assert mixed[:1] == plain and mixed[1]["backend"] == "openvino" and mixed[1]["rows"] == 2


def test_openvino_that_is_missing_or_asked_too_much_is_said(minilm, monkeypatch):
    with pytest.raises(UserError, match="OpenVINO runs float32 or bfloat16"):
        Encoding(minilm.model, backend="openvino", compute="float16").encode(["a"])
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(UserError, match="is not installed; pip install"):
        Encoding(minilm.model, backend="openvino").encode(["a"])
