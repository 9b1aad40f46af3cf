"""What the benchmarks compare is one and the same thing: peers give the value of the loss they stand beside."""

import loss as benchmark
import pytest
import torch


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
