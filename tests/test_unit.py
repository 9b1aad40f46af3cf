"""Rows of unit length: torch's `normalize` in values and gradients, of which nothing is kept but the rows themselves."""

import pytest
import torch
from torch.nn.functional import normalize

from retrieval.train.loss import contrastive_loss, named
from retrieval.train.loss import unit as module
from retrieval.train.loss.unit import LEAST, unit

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def rows(dtype, shape=(2, 9, 5)):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(3).to(dtype)
    x[0, 2] = 0
    x[0, 4] = LEAST / 8  # shorter than what is divided by; zero in float16
    return x.requires_grad_()


@pytest.mark.parametrize("part", [1, 4, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_and_gradients_are_those_of_torch(dtype, part, monkeypatch):
    monkeypatch.setattr(module, "PART", part)
    x = rows(dtype)
    found, expected = unit(x), normalize(x if dtype == torch.float64 else x.float(), dim=-1)
    assert found.dtype == expected.dtype and torch.allclose(found, expected, rtol=1e-6, atol=0)
    upstream = torch.randn(found.shape, dtype=found.dtype)
    some = [torch.autograd.grad(each, x, upstream.clone())[0] for each in (found, expected)]
    step = torch.finfo(dtype).eps
    assert some[0].dtype == dtype and torch.allclose(*some, rtol=4 * step, atol=4 * step, equal_nan=True)
    straight = (upstream / x.norm(dim=-1, keepdim=True).clamp_min(LEAST)).to(dtype)
    assert not torch.allclose(straight, some[1], rtol=4 * step, atol=4 * step)  # the row's own direction counts


def test_the_gradient_is_the_slope():
    x = torch.randn(3, 4, 5, dtype=torch.float64).transpose(0, 1).requires_grad_()  # not contiguous
    assert torch.autograd.gradcheck(unit, x)


@pytest.mark.parametrize("name", ["infonce", "hcl", "h-scl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loss_keeps_for_backward_the_embeddings_and_one_gradient(name, dtype):
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    anchor, positive = (torch.randn(300, 512, dtype=dtype).requires_grad_() for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = contrastive_loss(anchor, positive, labels=torch.arange(300) // 3, config=named(name)).loss
    assert sum(kept.values()) < 1.1 * (2 * 300 * 512) * (anchor.element_size() + 4)
    loss.backward()
    assert anchor.grad.abs().sum() > 0
