"""HCL and its limits: against slow transcriptions, in every precision, and against the wrong formulas found in the wild."""

import math

import pytest
import reference
import torch
from torch.nn.functional import cross_entropy, normalize

from retrieval.errors import UserError
from retrieval.train.loss import ContrastiveLoss, Exp, LossConfig, Schedule, contrastive_loss, named, with_settings
from retrieval.train.loss.rows import debias
from retrieval.train.loss.weights import effective_sample_size, solve_beta


def pairs(count=8, dim=6, dtype=torch.float64, seed=0):
    """Pairs of unit vectors that resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    anchor = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    positive = anchor + 0.7 * torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return normalize(anchor, dim=1).to(dtype), normalize(positive, dim=1).to(dtype)


def loss_of(anchor, positive, labels=None, name="hcl", **settings):
    labels = torch.tensor(labels) if labels is not None else None
    config = with_settings(named(name), settings, name)
    return contrastive_loss(anchor, positive, labels=labels, config=config).loss


@pytest.mark.parametrize("t", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("tau_plus", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("count", [2, 5, 9])
def test_hcl_equals_the_published_formula(t, beta, tau_plus, count):
    a, p = pairs(count)
    expected = reference.hcl(a.tolist(), p.tolist(), beta, tau_plus, t)
    got = loss_of(a, p, temperature=t, beta=beta, tau_plus=tau_plus).item()
    assert got == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("t,beta", [(0.1, 0.0), (0.1, 0.2), (0.5, 1.0), (1.0, 4.0)])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2], [0, 1, 2, 3, 4], [0, 0, 0, 0, 1]])
def test_h_scl_equals_its_loop(t, beta, labels):
    a, p = pairs(5)
    expected = reference.h_scl(a.tolist(), p.tolist(), labels, beta, t)
    assert loss_of(a, p, labels, "h-scl", temperature=t, beta=beta).item() == pytest.approx(expected, rel=1e-12)


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
    a, p = pairs(9)
    rows = torch.cat([a, p])
    z = rows @ rows.T / 0.5
    partner = z[torch.arange(18), torch.arange(18).roll(9)]
    z.fill_diagonal_(-torch.inf)[torch.arange(18), torch.arange(18).roll(9)] = -torch.inf
    expected = torch.nn.functional.softplus(z.amax(1) + math.log(16) - partner).mean()
    assert torch.allclose(loss_of(a, p, temperature=0.5, beta=1e7), expected, rtol=1e-5)
    assert not torch.allclose(loss_of(a, p, temperature=0.5, beta=1.0), expected, rtol=1e-2)


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


def test_detached_weights_change_the_gradient_only():
    a, p = pairs(8)
    gradients = []
    for detach in (False, True):
        x = a.clone().requires_grad_()
        loss = loss_of(x, p, beta=2.0, temperature=0.5, detach=detach)
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
        results.append((loss.detach().double(), x.grad.double()))
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
    unshifted, exact = (
        math.log(12) + torch.logsumexp((1 + 1e4) * x, 1) - torch.logsumexp(1e4 * x, 1) for x in (z, z.double())
    )
    assert (unshifted - exact).abs().max() > 0.1


def test_a_batch_of_one_pair_has_nothing_to_learn():
    a, p = (x.requires_grad_() for x in pairs(1))
    loss, diagnostics = contrastive_loss(a, p, config=named("hcl"))
    loss.backward()
    assert loss == 0 and (a.grad == 0).all() and diagnostics.ess == 0


@pytest.mark.parametrize("name", ["h-scl", "sincere", "sscl", "mochi", "sscl(detach=True)"])
def test_one_label_alone_has_no_negatives(name):
    a, p = (x.requires_grad_() for x in pairs(5))
    loss, _ = contrastive_loss(a, p, labels=torch.zeros(5, dtype=torch.long), config=named(name))
    loss.backward()
    assert loss == 0 and (a.grad == 0).all()


def test_same_items_are_not_negatives():
    a, p = pairs(6)
    a[3], p[3] = a[0], p[0]
    items = torch.tensor([0, 1, 2, 0, 4, 5, 6, 7, 8, 6, 10, 11])
    config = named("hcl(beta=1)")
    with_identity = contrastive_loss(a, p, items=items, config=config).loss
    assert with_identity < contrastive_loss(a, p, config=config).loss
    rows = torch.cat([a, p]).tolist()
    expected = reference.family(
        rows,
        rows,
        0.1,
        weigh=reference.exponential(1.0),
        positives=lambda i: [(i + 6) % 12],
        negatives=lambda i: [j for j in range(12) if j not in (i, (i + 6) % 12) and items[j] != items[i]],
    )
    assert with_identity.item() == pytest.approx(expected)


def test_explicit_negatives_are_candidates_of_every_anchor():
    a, p = pairs(3)
    extra = pairs(4, seed=1)[0]
    rows, candidates = torch.cat([a, p]).tolist(), torch.cat([a, p, extra]).tolist()
    expected = reference.family(
        rows,
        candidates,
        0.5,
        weigh=reference.exponential(1.0),
        positives=lambda i: [(i + 3) % 6],
        negatives=lambda i: [j for j in range(10) if j not in (i, (i + 3) % 6)],
    )
    got = contrastive_loss(a, p, extra, config=named("hcl(beta=1, temperature=0.5)")).loss
    assert got.item() == pytest.approx(expected)


def test_the_floor_is_reported_and_stops_the_negatives_gradient():
    log_r = torch.full((3,), math.log(4) - 1, dtype=torch.float64, requires_grad=True)
    positive = torch.full((3,), 9.0, dtype=torch.float64)
    log_ng, floor = debias(log_r, torch.full((3,), 4), positive, 0.1, -10.0)
    log_ng.sum().backward()
    assert floor.all() and torch.allclose(log_ng, torch.tensor(math.log(4) - 10, dtype=torch.float64))
    assert (log_r.grad == 0).all()
    a, p = pairs(8)
    seen = contrastive_loss(a, p, config=named("hcl(tau_plus=0.3, temperature=0.05)")).diagnostics
    assert 0.3 < seen.floor <= 1


def test_effective_sample_size_and_its_target():
    z = torch.randn(40, 64, dtype=torch.float64)
    assert torch.allclose(effective_sample_size(0 * z), torch.tensor(64.0, dtype=torch.float64))
    for target in (2.0, 10.0, 50.0):
        beta = solve_beta(z, target)
        assert effective_sample_size(beta * z).median().item() == pytest.approx(target, rel=1e-3)
    assert solve_beta(z, 64.0) == 0.0
    a, p = pairs(40, 16)
    seen = contrastive_loss(a, p, config=named("hcl(ess=20)")).diagnostics
    assert seen.ess == pytest.approx(20, rel=1e-2) and seen.kappa == pytest.approx(seen.beta / 0.1)


def test_kappa_is_beta_over_t():
    a, p = pairs(6)
    assert torch.equal(loss_of(a, p, kappa=4.0, temperature=0.05), loss_of(a, p, beta=0.2, temperature=0.05))


@pytest.mark.parametrize(
    ("name", "settings", "wanted"),
    [
        ("hcl", {}, {"kappa": 2.0, "beta": 0.2}),
        ("hcl", {"kappa": 4.0, "temperature": 0.05}, {"kappa": 4.0, "beta": 0.2}),
        ("hcl", {"beta": 1.0, "temperature": 0.5}, {"beta": 1.0, "kappa": 2.0}),
        ("hcl", {"ess": 8.0}, {}),
        ("hcl", {"kappa": Schedule("linear", 0.0, 2.0)}, {}),
        ("hcl", {"temperature": Schedule("linear", 0.1, 0.2)}, {"kappa": 2.0}),
        ("hcl", {"beta": 1.0, "learn_temperature": True}, {"beta": 1.0}),
        ("infonce", {}, {}),
    ],
)
def test_hardness_is_told_where_it_stays_the_same(name, settings, wanted):
    assert with_settings(named(name), settings, name).hardness == pytest.approx(wanted)


def test_diagnostics_are_what_they_say():
    a, p = pairs(5)
    labels = torch.tensor([0, 0, 1, 1, 1])
    config = named("hcl(beta=1, label_mask=False)")
    seen = contrastive_loss(a, p, labels=labels, config=config).diagnostics
    assert seen.negatives == 8
    assert seen.positive == pytest.approx((a * p).sum(1).mean().item())
    rows = torch.cat([a, p])
    cosines = rows @ rows.T
    assert seen.negative == pytest.approx((cosines.sum() - 10 - 2 * (a * p).sum()).item() / 80)
    classes, other = labels.repeat(2), ~(torch.eye(10) + torch.eye(10).roll(5, 1)).bool()
    same = classes[:, None] == classes
    assert seen.false_negatives == pytest.approx((same & other).sum().item() / 80)
    negatives = cosines[other]
    assert seen.negative_q50 == pytest.approx(negatives.quantile(0.5).item())
    assert seen.negative_q99 == pytest.approx(negatives.quantile(0.99).item())
    z = (cosines / 0.1).masked_fill(~other, -torch.inf)
    pulled = (2 * torch.softmax(2 * z, 1) < torch.softmax(z, 1)) & other
    assert seen.attracted == pytest.approx(pulled.sum().item() / 80)
    detached = contrastive_loss(a, p, config=named("hcl(beta=1, detach=True)")).diagnostics
    assert detached.attracted == 0 and detached.false_negatives == 0


def test_autocast_does_not_reach_the_loss():
    a, p = pairs(6, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss_of(a, p, beta=1.0)
    assert inside.dtype == torch.float32 and torch.equal(inside, loss_of(a, p, beta=1.0))


def test_the_module_is_the_function():
    a, p = pairs(4)
    module = ContrastiveLoss(LossConfig(weights=Exp(beta=1.0)))
    labels = torch.tensor([0, 0, 1, 1])
    assert torch.equal(module(a, p, labels=labels), contrastive_loss(a, p, labels=labels, config=module.config).loss)
    assert module.diagnostics.beta == 1.0 and "h-scl" not in repr(module) and "hcl(beta=1.0)" in repr(module)


@pytest.mark.parametrize(
    "name,settings,word",
    [
        ("hcl", {"temperature": 0.0}, "--temperature"),
        ("hcl", {"temperature": math.nan}, "--temperature"),
        ("hcl", {"tau_plus": 1.0}, "--tau-plus"),
        ("hcl", {"beta": 1.0, "kappa": 1.0}, "--beta and --kappa"),
        ("infonce", {"kappa": 1.0}, "no setting kappa"),
        ("h-scl", {"tau_plus": 0.1}, "--tau-plus"),
        ("bcl", {"alpha": 0.2}, "alpha"),
        ("hcl", {"beta": -1.0}, "--beta"),
        ("hcl", {"ess": 0.5}, "--ess"),
        ("hcl", {"nonsense": 0.5}, "no setting nonsense"),
        ("hcl", {"entry": "decouple"}, "entry 'decouple': must be 'coupled' or 'decoupled'"),
        ("hcl", {"directions": "both"}, "directions 'both': must be 'symmetric' or 'forward'"),
        ("hcl", {"kappa": "2"}, "kappa '2': must be a number or a schedule or None"),
        ("hcl", {"kappa": True}, "kappa True: must be a number"),
        ("hcl", {"temperature": None}, "temperature None: must be a number or a schedule"),
        ("hcl", {"detach": 1}, "detach 1: must be True or False"),
        ("hcl", {"mix": True}, "mix True: must be Mix or None"),
        ("xbm", {"memory": 8.5}, "memory 8.5: must be a whole number"),
        ("bcl", {"tau_plus": 1.5}, "tau_plus 1.5: must be at least 0 and below 1"),
        ("bcl", {"tau_plus": Schedule("linear", 0.1, 1.0)}, "must be at least 0 and below 1"),
        ("qwen3-mask", {"kind": "abs"}, "kind 'abs': must be 'absolute' or 'relative'"),
        ("llave", {"on": "explicit"}, "on 'explicit': must be 'in-batch'"),
    ],
)
def test_bad_settings_are_refused(name, settings, word):
    with pytest.raises(UserError, match=word):
        with_settings(named(name), settings, f"--loss {name}")


def test_a_part_says_itself_what_is_wrong_with_it():
    with pytest.raises(UserError, match="Mix: needs at least 2 hardest"):
        named("hcl(mix=Mix(hardest=1))")
    with pytest.raises(UserError, match="shape 'lineal'"):
        Schedule("lineal", 0, 1)
    assert named("hcl(kappa=2, temperature=1)") == named("hcl(kappa=2.0, temperature=1.0)")
