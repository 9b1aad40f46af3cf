"""What a GPU must do as a CPU does: every stage that takes a device, on small data."""

import json

import numpy as np
import pytest
import torch
from tiny_training import LOSS, PAIRS, SETTINGS, weights

from retrieval.encode import Encoding
from retrieval.encoder import load_encoder
from retrieval.metrics import METRICS
from retrieval.neighbors import Base, exact_within
from retrieval.train.loss import METHODS, ContrastiveLoss, named
from retrieval.train.text import TextConfig, train_text

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
TEXTS = [text * (1 + row % 7) for row, text in enumerate([*PAIRS.columns["anchor"], *PAIRS.columns["positive"]])]


def trained(tiny, **settings):
    encoder = load_encoder(str(tiny), "cuda")
    curve = train_text(encoder.model, PAIRS, TextConfig(**{**SETTINGS, **settings}), LOSS, source="x")
    return weights(encoder), [point["loss"] for point in curve]


@pytest.mark.parametrize("compute, apart", [("float32", 1e-5), ("float16", 5e-3), ("bfloat16", 3e-2)])
def test_texts_are_encoded_as_on_the_cpu(minilm, compute, apart):
    here = Encoding(minilm.model).encode(TEXTS)
    there = Encoding(load_encoder("all-MiniLM-L6-v2", "cuda").model, compute=compute).encode(TEXTS)
    assert np.abs(here - there).max() < apart
    assert np.linalg.norm(there, axis=1) == pytest.approx(1, abs=1e-5)


def test_a_batch_too_large_for_the_memory_is_halved(tiny):
    texts = [f"{row} " + "word " * 200 for row in range(600)]
    encoding = Encoding(load_encoder(str(tiny), "cuda").model)
    expected = encoding.encode(texts)
    torch.cuda.empty_cache()
    before = encoding.tokens
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 24e6) / torch.cuda.mem_get_info()[1])
    try:
        found = encoding.encode(texts)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert encoding.tokens < before
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_every_loss_is_that_of_the_cpu(name):
    masks = named(name).false_negatives
    if masks and masks.guide:
        pytest.skip("a guide comes with its own embeddings")
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 48, 24, generator=random)
    labels = torch.randint(0, 9, (48,), generator=random) if named(name).needs_labels else None
    found = []
    for device in ("cpu", "cuda"):
        loss = ContrastiveLoss(named(name)).to(device)
        anchor, positive = (x.to(device).requires_grad_() for x in rows)
        torch.manual_seed(0)
        value = loss(anchor, positive, labels=None if labels is None else labels.to(device))
        value.backward()
        found.append((value.item(), anchor.grad.cpu(), positive.grad.cpu()))
    here, there = found
    if named(name).mix is None:  # mixing draws its own random numbers on each device
        assert there[0] == pytest.approx(here[0], rel=1e-5)
        for one, other in zip(here[1:], there[1:], strict=True):
            assert (one - other).abs().max() < 1e-4 * one.abs().max()
    else:
        assert there[0] == pytest.approx(here[0], rel=0.2)


@pytest.mark.parametrize(
    "how", [{}, {"compute": "bfloat16"}, {"compute": "float16"}, {"mini_batch_size": 5}, {"lora": 2}]
)
def test_training_learns_and_its_seed_decides(tiny, how):
    (one, losses), (other, _) = (trained(tiny, steps=12, **how) for _ in range(2))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert np.isfinite(losses).all() and np.mean(losses[-3:]) < np.mean(losses[:3])


def test_a_head_and_a_network_from_scratch_learn_there(run_cli, texts, pictures, tmp_path):
    for words in (
        ["train", "text", "--data", texts, "--model", "all-MiniLM-L6-v2", "--head", "--steps", "60", "--eval-data", texts],
        ["train", "image", "--data", pictures, "--model", "small", "--steps", "60", "--eval-data", pictures],
    ):  # fmt: skip
        done = run_cli(*words, "--device", "cuda", "--output", tmp_path / words[1], "--json")
        found = json.loads(done.stdout)["metrics"]["held-out"]["metrics"]["map@r"]
        assert found["after"] > found["before"]


def test_the_path_of_commands_gives_the_same_neighbours(run_cli, text_path, texts, tmp_path):
    folder, _ = text_path
    values = {}
    for device in ("cpu", "cuda"):
        store, judged = tmp_path / f"store-{device}", tmp_path / f"judged-{device}"
        run_cli("embed", "--encoder", folder / "run", "--data", texts, "--device", device, "--output", store)
        run_cli("eval", "clusters", store, "--device", device, "--output", judged)
        values[device] = json.loads(run_cli("eval", "clusters", store, "--device", device, "--json").stdout)
    for name, value in values["cpu"]["metrics"].items():
        apart = 0.05 if name in ("ami", "ari", "nmi", "v-measure") else 2e-3  # k-means starts differ
        assert values["cuda"]["metrics"][name] == pytest.approx(value, abs=apart), name


@pytest.mark.parametrize("metric", METRICS)
def test_all_within_a_radius(metric):
    rows = np.random.default_rng(0).standard_normal((3000, 48)).astype(np.float32)
    radius = 9.0 if metric == "euclidean" else 0.3
    here, there = (exact_within(rows[:50], Base(rows, metric, device), radius) for device in ("cpu", "cuda"))
    for one, other in zip(vars(here).values(), vars(there).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_mining_finds_the_same_negatives(run_cli, pairs_file, tmp_path):
    found = []
    for device in ("cpu", "cuda"):
        output = tmp_path / f"{device}.jsonl"
        run_cli("mine", "--data", pairs_file, "--model", "all-MiniLM-L6-v2", "--device", device, "--output", output)
        found.append(output.read_text("utf-8").splitlines())
    same = np.mean([one == other for one, other in zip(*found, strict=True)])
    assert same > 0.9
