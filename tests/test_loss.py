"""The loss against slow transcriptions, its limits, its numerics, and the wrong formulas found in the wild."""

import math

import pytest
import reference
import torch
from torch.nn.functional import cross_entropy, normalize

from retrieval.errors import UserError
from retrieval.train.loss import (
    ContrastiveLoss,
    LossConfig,
    contrastive_loss,
    debias,
    effective_sample_size,
    log_hard_negatives,
    solve_beta,
)


def pairs(count=8, dim=6, dtype=torch.float64, seed=0):
    """Pairs of unit vectors that resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    anchor = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    positive = anchor + 0.7 * torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return normalize(anchor, dim=1).to(dtype), normalize(positive, dim=1).to(dtype)


def loss_of(anchor, positive, labels=None, **config):
    config.setdefault("label_mask", labels is not None)
    labels = torch.tensor(labels) if labels is not None else None
    return contrastive_loss(anchor, positive, labels=labels, config=LossConfig(**config)).loss


@pytest.mark.parametrize("t", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("tau_plus", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("count", [2, 5, 9])
def test_hcl_equals_the_published_formula(t, beta, tau_plus, count):
    a, p = pairs(count)
    expected = reference.hcl(a.tolist(), p.tolist(), beta, tau_plus, t)
    assert loss_of(a, p, temperature=t, beta=beta, tau_plus=tau_plus).item() == pytest.approx(
        expected, rel=1e-12, abs=1e-12
    )


@pytest.mark.parametrize("t,beta", [(0.1, 0.0), (0.1, 0.2), (0.5, 1.0), (1.0, 4.0)])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2], [0, 1, 2, 3, 4], [0, 0, 0, 0, 1]])
def test_h_scl_equals_its_loop(t, beta, labels):
    a, p = pairs(5)
    expected = reference.h_scl(a.tolist(), p.tolist(), labels, beta, t)
    assert loss_of(a, p, labels, temperature=t, beta=beta).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("wild", reference.WILD, ids=lambda f: f.__name__)
def test_wrong_formulas_differ(wild):
    a, p = pairs(6)
    ours = loss_of(a, p, temperature=0.5, beta=1.5, tau_plus=0.05).item()
    assert abs(wild(a.tolist(), p.tolist(), 1.5, 0.05, 0.5) - ours) > 0.01


def test_without_hardness_it_is_cross_entropy():
    a, p = pairs(7)
    rows = torch.cat([a, p])
    logits = (rows @ rows.T / 0.3).fill_diagonal_(-torch.inf)
    target = torch.arange(14).roll(7)
    assert torch.allclose(loss_of(a, p, name="infonce", temperature=0.3), cross_entropy(logits, target), rtol=1e-12)
    assert not torch.allclose(loss_of(a, p, beta=0.1, temperature=0.3), cross_entropy(logits, target), rtol=1e-3)


def test_without_beta_it_is_the_debiased_loss():
    a, p = pairs(7)
    debiased = loss_of(a, p, name="debiased", tau_plus=0.1, temperature=0.5)
    assert torch.equal(loss_of(a, p, beta=0.0, tau_plus=0.1, temperature=0.5), debiased)
    assert debiased < loss_of(a, p, name="infonce", temperature=0.5)


def test_infinite_beta_keeps_the_hardest_negative():
    z = torch.randn(5, 9, dtype=torch.float64)
    negatives = torch.rand(5, 9) < 0.7
    hardest = z.masked_fill(~negatives, -torch.inf).amax(1) + negatives.sum(1).log()
    assert torch.allclose(log_hard_negatives(z, negatives, 1e7), hardest, atol=1e-5)
    assert not torch.allclose(log_hard_negatives(z, negatives, 1.0), hardest, atol=1e-2)


def test_identical_embeddings_have_a_closed_form():
    a = normalize(torch.ones(6, 4, dtype=torch.float64), dim=1)
    for beta in (0.0, 1.0, 100.0):
        assert loss_of(a, a, beta=beta).item() == pytest.approx(math.log(11))


def test_the_loss_never_falls_as_beta_grows():
    a, p = pairs(10)
    losses = [loss_of(a, p, temperature=0.2, beta=b, tau_plus=0.02).item() for b in (0, 0.1, 0.3, 1, 3, 10, 100, 1e4)]
    assert losses == sorted(losses) and losses[-1] > losses[0] + 0.1


def test_sides_may_be_swapped():
    a, p = pairs(6)
    assert torch.allclose(loss_of(a, p, tau_plus=0.1), loss_of(p, a, tau_plus=0.1))


@pytest.mark.parametrize(
    "config", [{"beta": 0.0}, {"beta": 1.0, "tau_plus": 0.1}, {"beta": 2.0, "detach_weights": False}]
)
@pytest.mark.parametrize("labels", [None, [0, 0, 1, 2]])
def test_gradcheck(config, labels):
    if labels is not None:
        config = {**config, "tau_plus": 0.0}
    a, p = (x.requires_grad_() for x in pairs(4, 3))
    assert torch.autograd.gradcheck(lambda a, p: loss_of(a, p, labels, temperature=0.5, **config), (a, p))


def test_detached_weights_change_the_gradient_only():
    a, p = pairs(8)
    gradients = []
    for detach in (False, True):
        x = a.clone().requires_grad_()
        loss = loss_of(x, p, beta=2.0, temperature=0.5, detach_weights=detach)
        loss.backward()
        gradients.append((loss.item(), x.grad))
    assert gradients[0][0] == gradients[1][0]
    assert not torch.allclose(gradients[0][1], gradients[1][1], rtol=1e-2)


@pytest.mark.parametrize("tau_plus", [0.0, 0.05])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0, 10.0, 1e2, 1e4])
@pytest.mark.parametrize("t", [2e-4, 1e-3, 0.01, 0.05, 0.1, 0.5, 1.0])
def test_finite_and_exact_at_every_temperature_and_hardness(t, beta, dtype, tau_plus):
    a, p = pairs(12, 8, dtype)
    results = []
    for x, y in ((a, p), (a.double(), p.double())):
        x = x.clone().requires_grad_()
        loss = loss_of(x, y, temperature=t, beta=beta, tau_plus=tau_plus)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(x.grad).all()
        results.append((loss.double(), x.grad.double()))
    (value, gradient), (exact_value, exact_gradient) = results
    assert abs(value - exact_value) <= 1e-4 * max(1.0, abs(exact_value))
    # Half-precision leaves receive a rounded gradient: their own spacing, not ours, bounds what can be compared.
    rounding = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 0}[dtype]
    scale = max(1.0, exact_gradient.abs().max().item())
    assert (gradient - exact_gradient).abs().max().item() <= (1e-4 + rounding) * scale


def test_the_unshifted_form_would_be_wrong():
    """The negative control of the test above: float32 without taking the maximum out before β multiplies."""
    a, p = pairs(12, 8, torch.float32)
    z = a @ p.T / 2e-4
    everything = torch.ones_like(z, dtype=torch.bool)
    unshifted = math.log(12) + torch.logsumexp((1 + 1e4) * z, 1) - torch.logsumexp(1e4 * z, 1)
    exact = log_hard_negatives(z.double(), everything, 1e4)
    assert (log_hard_negatives(z, everything, 1e4) - exact).abs().max() < 1e-3
    assert (unshifted - exact).abs().max() > 0.1


def test_a_batch_of_one_pair_has_nothing_to_learn():
    a, p = (x.requires_grad_() for x in pairs(1))
    loss, diagnostics = contrastive_loss(a, p, config=LossConfig(beta=1.0, label_mask=False))
    loss.backward()
    assert loss == 0 and (a.grad == 0).all() and diagnostics.ess == 0


def test_one_label_alone_has_no_negatives():
    a, p = (x.requires_grad_() for x in pairs(5))
    loss, _ = contrastive_loss(a, p, labels=torch.zeros(5, dtype=torch.long), config=LossConfig(beta=1.0))
    loss.backward()
    assert loss == 0 and (a.grad == 0).all()


def test_same_items_are_not_negatives():
    a, p = pairs(6)
    a[3], p[3] = a[0], p[0]
    items = torch.tensor([0, 1, 2, 0, 4, 5, 6, 7, 8, 6, 10, 11])
    config = LossConfig(beta=1.0, label_mask=False)
    with_identity = contrastive_loss(a, p, items=items, config=config).loss
    assert with_identity < contrastive_loss(a, p, config=config).loss
    # Four of twelve anchors have one negative less.
    z = torch.cat([a, p]) @ torch.cat([a, p]).T / 0.1
    negatives = ~(torch.eye(12, dtype=torch.bool) | torch.eye(12, dtype=torch.bool).roll(6, 1))
    negatives &= items[:, None] != items
    partner = z[torch.arange(12), torch.arange(12).roll(6)]
    expected = torch.nn.functional.softplus(log_hard_negatives(z, negatives, 1.0) - partner).mean()
    assert torch.allclose(with_identity, expected)


def test_explicit_negatives_are_candidates_of_every_anchor():
    a, p = pairs(3)
    extra = pairs(4, seed=1)[0]
    z = torch.cat([a, p]) @ torch.cat([a, p, extra]).T / 0.5
    mask = ~(torch.eye(6, 10, dtype=torch.bool) | torch.eye(6, dtype=torch.bool).roll(3, 1).new_zeros(6, 10))
    mask[torch.arange(6), torch.arange(6).roll(3)] = False
    partner = z[torch.arange(6), torch.arange(6).roll(3)]
    expected = torch.nn.functional.softplus(log_hard_negatives(z, mask, 1.0) - partner).mean()
    got = contrastive_loss(a, p, extra, config=LossConfig(beta=1.0, temperature=0.5, label_mask=False)).loss
    assert torch.allclose(got, expected)


def test_the_floor_is_reported_and_stops_the_negatives_gradient():
    z = torch.full((3, 4), -1.0, dtype=torch.float64, requires_grad=True)
    log_r = log_hard_negatives(z, torch.ones(3, 4, dtype=torch.bool), 0.0)
    log_ng, floor = debias(log_r, torch.full((3,), 4), torch.full((3,), 9.0, dtype=torch.float64), 0.1, 0.1)
    log_ng.sum().backward()
    assert floor.all() and torch.allclose(log_ng, torch.tensor(math.log(4) - 10, dtype=torch.float64))
    assert (z.grad == 0).all()


def test_effective_sample_size_and_its_target():
    z = torch.randn(40, 64, dtype=torch.float64)
    everything = torch.ones_like(z, dtype=torch.bool)
    assert torch.allclose(effective_sample_size(z, everything, 0.0), torch.tensor(64.0, dtype=torch.float64))
    for target in (2.0, 10.0, 50.0):
        beta = solve_beta(z, everything, target)
        assert effective_sample_size(z, everything, beta).median().item() == pytest.approx(target, rel=1e-3)
    assert solve_beta(z, everything, 64.0) == 0.0
    a, p = pairs(40, 16)
    diagnostics = contrastive_loss(a, p, config=LossConfig(ess=20, label_mask=False)).diagnostics
    assert diagnostics.ess == pytest.approx(20, rel=1e-2) and diagnostics.kappa == pytest.approx(diagnostics.beta / 0.1)


def test_kappa_is_beta_over_t():
    a, p = pairs(6)
    assert torch.equal(loss_of(a, p, kappa=4.0, temperature=0.05), loss_of(a, p, beta=0.2, temperature=0.05))


def test_diagnostics_are_cosines():
    a, p = pairs(5)
    seen = contrastive_loss(a, p, config=LossConfig(beta=1.0, label_mask=False)).diagnostics
    assert seen.positive == pytest.approx((a * p).sum(1).mean().item())
    rows = torch.cat([a, p])
    assert seen.negative == pytest.approx(((rows @ rows.T).sum() - 10 - 2 * (a * p).sum()).item() / 80)


def test_autocast_does_not_reach_the_loss():
    a, p = pairs(6, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss_of(a, p, beta=1.0)
    assert inside.dtype == torch.float32 and torch.equal(inside, loss_of(a, p, beta=1.0))


def test_the_module_is_the_function():
    a, p = pairs(4)
    module = ContrastiveLoss(LossConfig(beta=1.0))
    labels = torch.tensor([0, 0, 1, 1])
    assert torch.equal(module(a, p, labels=labels), contrastive_loss(a, p, labels=labels, config=module.config).loss)
    assert module.diagnostics.beta == 1.0


@pytest.mark.parametrize(
    "config,word",
    [
        ({"temperature": 0.0}, "--temperature"),
        ({"temperature": math.nan}, "--temperature"),
        ({"tau_plus": 1.0}, "--tau-plus"),
        ({"beta": 1.0, "kappa": 1.0}, "--beta and --kappa"),
        ({"name": "infonce", "kappa": 1.0}, "--kappa"),
        ({"name": "infonce", "tau_plus": 0.1}, "--tau-plus"),
        ({"name": "debiased"}, "--tau-plus"),
        ({"beta": -1.0}, "--beta"),
        ({"ess": 0.5}, "--ess"),
    ],
)
def test_bad_settings_are_refused(config, word):
    with pytest.raises(UserError, match=word):
        LossConfig(**config)
