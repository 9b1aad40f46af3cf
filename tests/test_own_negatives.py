"""Explicit negatives of their own pair alone (`own_negatives`): values, gradients, limits, and who is whose."""

from dataclasses import replace

import pytest
import reference
import torch
from plain import T, at_temperature, both, data
from torch.nn.functional import normalize

from retrieval.errors import UserError
from retrieval.train.loss import contrastive_loss, named

NAMES = ["clip", "hcl(beta=1.5)", "hn-nce(beta=1.0)", "mnrl", "gte", "decoupled", "siglip(bias=-2.0)"]


def own(name):
    return replace(named(name), temperature=T, own_negatives=True)


def value(inputs, config, **known):
    return contrastive_loss(*inputs, config=config, **known).loss


def unit(x):
    return normalize(x, dim=1).tolist()


@pytest.mark.parametrize("told", [False, True], ids=["in order", "told"])
def test_an_image_meets_every_caption_and_its_own_altered_ones(told):
    """CLIP by the slow loop: images against B captions and their own altered ones, captions against images alone."""
    inputs = data(pairs=4, negatives=8)
    pairs = [2, 2, 0, 1, 2, 3, 3, 3] if told else [k % 4 for k in range(8)]
    images, captions, altered = map(unit, inputs)
    beta = 0.8
    shared = {"t": T, "weigh": reference.exponential(beta), "positives": lambda i: [i]}
    to_captions = reference.family(
        images,
        captions + altered,
        negatives=lambda i: [j for j in range(4) if j != i] + [4 + k for k in range(8) if pairs[k] == i],
        **shared,
    )
    to_images = reference.family(captions, images, negatives=lambda i: [j for j in range(4) if j != i], **shared)
    known = {"negative_pairs": torch.tensor(pairs)} if told else {}
    config = own(f"hn-nce(beta={beta})")
    assert value(inputs, config, **known).item() == pytest.approx((to_captions + to_images) / 2, rel=1e-12)
    of_everyone = at_temperature(named(f"hn-nce(beta={beta})"), T)  # the negative control
    assert abs(value(inputs, of_everyone, **known).item() - (to_captions + to_images) / 2) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_negatives_of_other_pairs_change_nothing_for_those_of_one(name):
    a, p, n = data(pairs=3, negatives=6)
    assert (torch.autograd.grad(value([a, p, n], own(name)), n)[0].norm(dim=1) > 0).all()
    before = torch.autograd.grad(value([a, p, n], own(name)), n)[0][[0, 3]]
    other = n.detach().clone()
    other[[1, 2, 4, 5]] = data(seed=9, pairs=3, negatives=6)[2][[1, 2, 4, 5]].detach()
    other.requires_grad_()
    after = torch.autograd.grad(value([a, p, other], own(name)), other)[0][[0, 3]]
    assert torch.allclose(before, after, rtol=1e-9)
    shared = at_temperature(named(name), T)
    before = torch.autograd.grad(value([a, p, n], shared), n)[0][[0, 3]]
    after = torch.autograd.grad(value([a, p, other], shared), other)[0][[0, 3]]
    same = "siglip" in name  # its negatives are not averaged, so that none feels another
    assert torch.allclose(before, after, rtol=1e-9) == same


@pytest.mark.parametrize("name", NAMES)
def test_one_pair_alone_and_no_negatives_are_the_shared_loss(name):
    shared = at_temperature(named(name), T)
    for inputs in (data(pairs=1, negatives=5), data(pairs=6)):
        for got, want in zip(both(value(inputs, own(name)), inputs), both(value(inputs, shared), inputs), strict=True):
            assert torch.equal(got, want)
    inputs = data(pairs=6, negatives=6)  # the negative control
    assert abs(value(inputs, own(name)) - value(inputs, shared)) > 1e-5


def test_a_pair_without_negatives_of_its_own_has_those_of_the_batch():
    inputs = data(pairs=3, negatives=2)
    known = {"negative_pairs": torch.tensor([1, 1])}
    seen = contrastive_loss(*inputs, **known, config=own("clip"))
    # N of images: 2, 4 and 2; the diagnostics are of the images.
    assert seen.diagnostics.negatives == pytest.approx(8 / 3)
    a, p, n = inputs
    clip = at_temperature(named("clip"), T)
    forward = at_temperature(named("mnrl"), T)
    with_all = [value([a, p, n], forward), value([a, p], forward), value([a, p], clip)]
    assert with_all[1] < value([a, p, n], own("mnrl"), **known) < with_all[0]


@pytest.mark.parametrize("name", ["clip", "hcl(beta=1.0)", "siglip(bias=-2.0)"])
def test_gradcheck(name):
    assert torch.autograd.gradcheck(
        lambda *x: contrastive_loss(*x, config=own(name), diagnose=False).loss, data(pairs=3, dim=3, negatives=6)
    )


def test_whose_negatives_they_are_must_be_known():
    a, p, n = data(pairs=4, negatives=6)
    with pytest.raises(UserError, match="6 negatives of 4 pairs") as caught:
        value([a, p, n], own("clip"))
    assert "\n" not in str(caught.value)
    assert value([a, p, n], named("clip")).isfinite()
    assert value([a, p, n], own("clip"), negative_pairs=torch.zeros(6, dtype=torch.int64)).isfinite()
    with pytest.raises(UserError, match="own_negatives"):
        named("h-scl(own_negatives=True, published_count=True)")


def test_a_published_count_is_of_both_sides():
    for name in ("hn-nce(published_count=True)", "infonce(entry='sigmoid', published_count=True)"):
        with pytest.raises(UserError, match="published_count: N = 2B − 2"):
            named(name)


def test_names_read_back():
    for name in NAMES:
        assert named(own(name).name) == own(name) and "own_negatives=True" in own(name).name
