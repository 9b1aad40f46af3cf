"""What the benchmarks compare is one and the same thing: peers give the value of the loss they stand beside."""

import loss as benchmark
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import normalize

from retrieval.train.augment import _turn_hue
from retrieval.train.loss import ContrastiveLoss, named


@pytest.mark.parametrize(
    "peer,mine",
    [
        ("HCL, published formula", "HCL"),
        ("HCL with diagnostics", "HCL"),
        ("NTXent, pytorch-metric-learning", "InfoNCE"),
        ("SupCon, pytorch-metric-learning", "SupCon"),
        ("MNRL, sentence-transformers", "InfoNCE, one direction"),
        ("cached MNRL, sentence-transformers", "InfoNCE, one direction"),
    ],
)
def test_peers_compute_the_same(peer, mine):
    results = []
    for name in (peer, mine):
        inputs = benchmark.embeddings(24, 16, "cpu", torch.float32)
        benchmark.step(benchmark.CASES[name][1](24), *inputs)
        value = benchmark.CASES[name][1](24)(*inputs).detach()
        results.append((value, inputs[0].grad, inputs[1].grad))
    for got, want in zip(*results, strict=True):
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-6)
    assert results[0][1].abs().max() > 1e-3


def test_every_method_of_the_hardness_benchmark_has_its_trials():
    import hardness

    for method in hardness.METHODS:
        tried = hardness.settings(method, 4, 77)
        assert len(set(tried)) == 4 and {0.03 <= loss.temperature <= 0.5 for loss in tried} == {True}
        labelled = hardness.METHODS[method][0].startswith("classes known")
        assert all(loss.label_mask == labelled for loss in tried)


def test_the_papers_read_out_is_what_slow_loops_give():
    import paper_network

    torch.manual_seed(0)
    centres = torch.randn(5, 16)
    train_codes, test_codes = torch.arange(300) % 5, torch.arange(60) % 5
    train, test = (normalize(centres[c] + 2 * torch.randn(len(c), 16), dim=1) for c in (train_codes, test_codes))
    outputs = normalize(torch.randn(60, 8), dim=1)
    figures, histograms = paper_network.read_out(train, train_codes, test, test_codes, outputs)
    cosines, truth = (test @ train.T).double().numpy(), test_codes.numpy()
    for name, voters, temperature in (("knn@200/.1", 200, 0.1), ("knn@20", 20, 0.07), ("knn@200/.5", 200, 0.5)):
        elected = []
        for row in cosines:
            votes = np.zeros(5)
            for near in np.argsort(-row)[:voters]:
                votes[train_codes[near]] += np.exp(row[near] / temperature)
            elected.append(votes.argmax())
        assert figures[name] == pytest.approx((np.array(elected) == truth).mean())
    first, precision = [], []
    among = (test @ test.T).double().numpy()
    for query, row in enumerate(among):
        order = [near for near in np.argsort(-row) if near != query]
        relevant = truth[order[:11]] == truth[query]  # twelve of a class
        first.append(relevant[0])
        precision.append(sum(relevant[: i + 1].mean() for i in range(11) if relevant[i]) / 11)
    assert figures["r@1"] == pytest.approx(np.mean(first)) and figures["map@r"] == pytest.approx(np.mean(precision))
    pairs = [(i, j) for i in range(60) for j in range(i + 1, 60)]
    same = [float(outputs[i] @ outputs[j]) for i, j in pairs if truth[i] == truth[j]]
    assert histograms["outputs"]["same"] == np.histogram(same, 50, (-1, 1))[0].tolist()
    assert histograms["outputs"]["same mean"] == pytest.approx(np.mean(same), abs=1e-6)
    fitted = LogisticRegression(max_iter=1000).fit((train - train.mean(0)) / train.std(0), train_codes)
    assert figures["linear"] == pytest.approx(fitted.score((test - train.mean(0)) / train.std(0), truth), abs=0.02)


def test_nt_xent_with_true_labels_masked_leaves_out_the_anchors_class():
    import paper

    method = paper.METHODS["NT-Xent, true labels masked"]
    torch.manual_seed(0)
    views, codes = torch.randn(2, 12, 8), torch.arange(12) % 3
    found = ContrastiveLoss(named(method.loss))(*views, items=codes.repeat(2))
    rows, labels, total = normalize(views.flatten(0, 1), dim=1), codes.repeat(2), 0.0
    for anchor in range(24):
        shares = (rows[anchor] @ rows.T / 0.5).exp()
        positive = shares[(anchor + 12) % 24]
        total -= (positive / (positive + shares[labels != labels[anchor]].sum())).log() / 24
    assert found.item() == pytest.approx(float(total), rel=1e-5)
    assert ContrastiveLoss(named(method.loss))(*views).item() != pytest.approx(float(total), rel=1e-2)


def test_hue_turns_colours_about_the_grey_axis():
    """Rodrigues' formula as a matrix."""
    torch.manual_seed(0)
    pictures, turns = torch.rand(3, 3, 4, 4), torch.tensor([0.1, -0.07, 0.0])
    axis = torch.full((3,), 3**-0.5)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) * 3**-0.5
    for picture, turn, found in zip(pictures, turns, _turn_hue(pictures, turns), strict=True):
        angle = 2 * torch.pi * turn
        matrix = angle.cos() * torch.eye(3) + angle.sin() * cross + (1 - angle.cos()) * torch.outer(axis, axis)
        assert torch.allclose(found, torch.einsum("ij,jhw->ihw", matrix, picture), atol=1e-6)
