"""Every method of the family: against the plain way, in values and gradients; its limits; its peers; its name."""

import math

import pytest
import reference
import torch
from plain import LABELS, T, at_temperature, both, data, plain_loss
from torch.nn.functional import normalize

from retrieval.errors import UserError
from retrieval.train.loss import (
    METHODS,
    Exp,
    FalseNegatives,
    Gaussian,
    LossConfig,
    Mix,
    Schedule,
    Uniform,
    contrastive_loss,
    loss,
    named,
)
from retrieval.train.loss.schedule import at
from retrieval.train.loss.tasks import Extra

EXP = lambda beta: lambda s, own: torch.exp(beta * s / T)  # noqa: E731
ONE = lambda s, own: torch.ones_like(s)  # noqa: E731


def bcl(alpha, beta, tau):
    def weigh(s, own):
        return torch.tensor(reference.posterior(alpha, beta, tau)(s.tolist(), T, 0), dtype=s.dtype)

    return weigh


def additive(alpha, on):
    def weigh(s, own):
        chosen = {"in-batch": ~own, "hard": own, "all": torch.ones_like(own)}[on]
        return torch.where(chosen, torch.exp(alpha * s), torch.ones_like(s))

    return weigh


FORWARD = {"directions": "forward", "within": False}
# Name of the loss, and what makes the plain way the same.
CASES = {
    "infonce": {"weigh": ONE},
    "debiased": {"weigh": ONE, "tau_plus": 0.1},
    "hcl": {"weigh": EXP(2 * T), "through": True},
    "hcl(beta=1.5, tau_plus=0.05)": {"weigh": EXP(1.5), "through": True, "tau_plus": 0.05},
    "hcl(beta=1.5, detach=True)": {"weigh": EXP(1.5)},
    "hcl(beta=1.5, entry='decoupled')": {"weigh": EXP(1.5), "through": True, "entry": "decoupled"},
    "hcl(beta=0.7, directions='forward')": {"weigh": EXP(0.7), "through": True, "directions": "forward"},
    "h-scl(beta=1.0)": {"weigh": EXP(1.0), "through": True, **LABELS},
    "h-scl(beta=1.0, detach=True, published_count=True)": {"weigh": EXP(1.0), "published_count": True, **LABELS},
    "sincere": {"weigh": ONE, **LABELS},
    "supcon": {"weigh": ONE, "entry": "shared", **LABELS},
    "supcon(directions='forward', within_side=False)": {"weigh": ONE, "entry": "shared", **LABELS, **FORWARD},
    "decoupled": {"weigh": ONE, "entry": "decoupled"},
    "adnce(mu=0.2, sigma=0.4)": {"weigh": lambda s, own: torch.exp(-((s - 0.2) ** 2) / (2 * 0.4**2))},
    "bcl": {"weigh": bcl(0.9, 0.9, 0.1), "normalised": False},
    "bcl(alpha=0.7, beta=1.0, tau_plus=0.2)": {"weigh": bcl(0.7, 1.0, 0.2), "normalised": False},
    "mnrl": {"weigh": ONE, **FORWARD},
    "clip": {"weigh": ONE, "within": False},
    "hn-nce": {"weigh": EXP(2 * T), "through": True, "within": False},
    "llave": {"weigh": additive(9.0, "in-batch"), "normalised": False, **FORWARD},
    "llave(alpha=3.0, on='all')": {"weigh": additive(3.0, "all"), "normalised": False, **FORWARD},
    "embedding-gemma": {"weigh": additive(5.0, "hard"), "normalised": False, **FORWARD},
    "gte": {"weigh": ONE, "entry": "joint"},
    "hcl(beta=0.7, entry='joint')": {"weigh": EXP(0.7), "through": True, "entry": "joint"},
    "siglip": {"weigh": ONE, "entry": "sigmoid", "bias": -10.0, **FORWARD},
    "siglip(bias=-1.0)": {"weigh": ONE, "entry": "sigmoid", "bias": -1.0, **FORWARD},
    "h-scl(weights=Uniform(), entry='sigmoid', bias=-2.0)": {
        "weigh": ONE,
        "entry": "sigmoid",
        "bias": -2.0,
        **LABELS,
    },
    "clip(own_negatives=True)": {"weigh": ONE, "within": False, "own_negatives": True},
    "hcl(beta=1.5, tau_plus=0.05, own_negatives=True)": {
        "weigh": EXP(1.5),
        "through": True,
        "tau_plus": 0.05,
        "own_negatives": True,
    },
    "h-scl(beta=1.0, detach=True, own_negatives=True)": {"weigh": EXP(1.0), "own_negatives": True, **LABELS},
    "gte(own_negatives=True)": {"weigh": ONE, "entry": "joint", "own_negatives": True},
    "embedding-gemma(own_negatives=True)": {
        "weigh": additive(5.0, "hard"),
        "normalised": False,
        "own_negatives": True,
        **FORWARD,
    },
    "siglip(own_negatives=True)": {"weigh": ONE, "entry": "sigmoid", "bias": -10.0, "own_negatives": True, **FORWARD},
    "positive-aware": {"weigh": ONE, "rule": lambda s, own: s > own - 0.05 * abs(own)},
    "qwen3-mask": {"weigh": ONE, "rule": lambda s, own: s > own + 0.1},
}


@pytest.mark.parametrize("block_rows", [None, 1, 3])
@pytest.mark.parametrize("negatives", [0, 14])
@pytest.mark.parametrize("name", CASES)
def test_every_method_is_its_plain_self_however_rows_are_cut(name, negatives, block_rows):
    inputs = data(negatives=negatives)
    case = dict(CASES[name])
    labels = case.get("labels")
    config = at_temperature(named(name), T)
    ours = contrastive_loss(
        *inputs, labels=torch.tensor(labels) if labels else None, config=config, block_rows=block_rows
    ).loss
    expected = plain_loss(*inputs, t=T, **case)
    for got, want in zip(both(ours, inputs), both(expected, inputs), strict=True):
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-11), name


@pytest.mark.parametrize("name", CASES)
def test_every_method_differs_from_infonce(name):
    """The negative control of the test above."""
    inputs = data(negatives=14)
    labels = torch.tensor(LABELS["labels"]) if "labels" in CASES[name] else None
    ours = contrastive_loss(*inputs, labels=labels, config=at_temperature(named(name), T)).loss
    other = contrastive_loss(*inputs, config=at_temperature(named("infonce"), 1.01 * T)).loss
    assert abs(ours - other) > 1e-4


@pytest.mark.parametrize("tau_plus", [0.0, 0.1])
def test_several_positives(tau_plus):
    inputs = data(positives=3, negatives=4)
    config = named(f"hcl(beta=1.2, temperature={T}, tau_plus={tau_plus})")
    ours = contrastive_loss(*inputs, config=config, block_rows=5).loss
    expected = plain_loss(*inputs, t=T, weigh=EXP(1.2), through=True, tau_plus=tau_plus)
    for got, want in zip(both(ours, inputs), both(expected, inputs), strict=True):
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-11)


def test_identities_and_labels_together():
    inputs = data()
    items = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 11, 12, 1])
    labels = torch.tensor(LABELS["labels"])
    ours = contrastive_loss(*inputs, labels=labels, items=items, config=named(f"h-scl(beta=1.0, temperature={T})")).loss
    expected = plain_loss(*inputs, items=items, t=T, weigh=EXP(1.0), through=True, **LABELS)
    assert torch.allclose(ours, expected, rtol=1e-9)
    assert abs(ours - plain_loss(*inputs, t=T, weigh=EXP(1.0), through=True, **LABELS)) > 1e-5


@pytest.mark.parametrize(
    "name",
    ["hcl(beta=1.0)", "hcl(tau_plus=0.1, temperature=0.5)", "h-scl", "supcon", "decoupled", "gte", "siglip(bias=-2.0)"],
)
def test_gradcheck(name):
    labels = torch.tensor([0, 0, 1, 2]) if named(name).needs_labels else None
    assert torch.autograd.gradcheck(
        lambda *x: contrastive_loss(*x, labels=labels, config=named(name), diagnose=False).loss, data(pairs=4, dim=3)
    )


@pytest.mark.parametrize(
    "name",
    ["infonce", "hcl(beta=0.5, tau_plus=0.05)", "h-scl(beta=0.5)", "adnce(sigma=1e9)", "sscl(beta=0.5)"]
    # Where κ or an effective sample size is given, β follows the temperature.
    + ["hcl", "hcl(kappa=3.0, tau_plus=0.02)", "hcl(ess=6)", "hcl(kappa=3.0, detach=True)", "h-scl(kappa=4.0)", "sscl"]
    + ["sscl(detach=True)", "hn-nce", "hcl(entry='joint')", "hcl(entry='decoupled')"],
)
@pytest.mark.parametrize("positives", [1, 3])
def test_the_temperature_has_its_gradient(name, positives):
    if positives > 1 and named(name).needs_labels:
        pytest.skip("labels make their own positives")
    a, p = (x.detach() for x in data(positives=positives))
    labels = torch.tensor(LABELS["labels"]) if named(name).needs_labels else None
    t = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def value(t):
        torch.manual_seed(0)  # of synthetic negatives
        return contrastive_loss(
            a, p, labels=labels, config=named(name), temperature=t, diagnose=False, block_rows=5
        ).loss

    assert torch.autograd.gradcheck(value, (t,))


def test_limits_that_connect_methods():
    a, p = data()
    labels = torch.tensor(LABELS["labels"])

    def value(name, **known):
        return contrastive_loss(a, p, config=named(name), **known).loss

    assert torch.allclose(value("h-scl(kappa=0)", labels=labels), value("sincere", labels=labels), rtol=1e-12)
    alone = torch.arange(7)  # one positive each: SINCERE, SupCon and InfoNCE are one
    assert torch.allclose(value("supcon", labels=alone), value("infonce"), rtol=1e-12)
    assert torch.allclose(value("sincere", labels=alone), value("infonce"), rtol=1e-12)
    assert not torch.allclose(value("supcon", labels=labels), value("sincere", labels=labels), rtol=1e-3)
    assert torch.allclose(value("adnce(sigma=1e9)"), value("infonce"), rtol=1e-12)
    assert not torch.allclose(value("adnce"), value("infonce"), rtol=1e-3)
    assert torch.allclose(value("llave(alpha=0)"), value("mnrl"), rtol=1e-12)
    assert torch.allclose(value("simcse"), value("mnrl"), rtol=1e-12)
    assert torch.allclose(value("hn-nce(kappa=0)"), value("clip"), rtol=1e-12)
    assert not torch.allclose(value("hn-nce"), value("clip"), rtol=1e-3)
    assert torch.allclose(value("hcl(ess=12)"), value("infonce"), rtol=1e-12)  # all twelve negatives count
    assert torch.allclose(value("sscl(pairs=0)"), value("hcl"), rtol=1e-12)  # no synthetic negatives
    assert not torch.allclose(value("sscl(pairs=1, hardest=2)"), value("hcl"), rtol=1e-3)
    uniform = at_temperature(LossConfig(weights=Uniform(), mix=Mix(hardest=2, pairs=1)), 0.1)
    assert contrastive_loss(a, p, config=uniform).loss > value("infonce")  # one more negative
    gaussian = LossConfig(weights=Gaussian(mu=0.5, sigma=0.5))
    assert torch.equal(contrastive_loss(a, p, config=gaussian).loss, value("adnce(mu=0.5)"))


def test_synthetic_negatives_are_mixed_from_the_hardest():
    """With two hardest and all shares at one, a mix is the harder of two negatives again: HCL with that negative doubled."""
    from retrieval.train.loss.mix import Recipe, mixed_negatives

    a, p = (normalize(x.detach(), dim=1) for x in data())
    rows = torch.cat([a, p])
    z = (rows @ rows.T).fill_diagonal_(-torch.inf)
    z[torch.arange(14), torch.arange(14).roll(7)] = -torch.inf
    places = torch.zeros(14, 3, dtype=torch.int64)
    hardest = mixed_negatives(z, rows, rows, Recipe(2, 0, places, places + 1, torch.ones(14, 3)))
    assert torch.allclose(hardest.cosines, z.amax(1, keepdim=True).expand(14, 3))
    halves = mixed_negatives(z, rows, rows, Recipe(2, 1, places, places, torch.full((14, 3), 0.5)))
    assert (halves.cosines[:, 2] > halves.cosines[:, 0]).all()  # mixed with the anchor it is nearer to the anchor
    assert torch.allclose(halves.vectors.norm(dim=2), torch.ones(14, 3, dtype=torch.float64))


@pytest.mark.parametrize("name", ["sscl(beta=0.8)", "sscl(beta=0.8, detach=True)", "mochi(memory=0, with_anchor=3)"])
def test_synthetic_negatives_pass_through_the_estimator(name):
    """Against the plain way with the same synthetic negatives put in by hand."""
    from retrieval.train.loss.gather import agreed_seed
    from retrieval.train.loss.mix import Recipe, mixed_negatives

    config = at_temperature(named(name), T)
    inputs = data()
    torch.manual_seed(5)
    ours = contrastive_loss(*inputs, config=config, block_rows=4).loss
    torch.manual_seed(5)
    recipe = Recipe.draw(config.mix, 14, 14, agreed_seed(torch.device("cpu")), torch.device("cpu"))
    rows = torch.cat([normalize(x, dim=1) for x in inputs])
    cosines = rows @ rows.T
    partner = torch.arange(14).roll(7)
    negatives = ~(torch.eye(14) + torch.eye(14).roll(7, 1)).bool()
    vectors = mixed_negatives(
        cosines.detach().masked_fill(~negatives, -torch.inf), rows.detach(), rows.detach(), recipe
    ).vectors
    s = torch.cat([cosines[negatives].view(14, 12), torch.einsum("rd,rkd->rk", rows, vectors)], 1)
    beta = 0.8 if "sscl" in name else 0.0
    w = torch.exp(beta * (s.detach() if "detach" in name else s) / T)
    big_r = s.shape[1] * (w * (s / T).exp()).sum(1) / w.sum(1)
    positive = (cosines[torch.arange(14), partner] / T).exp()
    expected = ((big_r + positive) / positive).log().mean()
    for got, want in zip(both(ours, inputs), both(expected, inputs), strict=True):
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-11)


def test_mixing_does_not_depend_on_blocks():
    a, p = (x.detach() for x in data(pairs=9))
    found = []
    for rows in (None, 1, 4):
        torch.manual_seed(3)
        found.append(
            contrastive_loss(a, p, config=named("mochi(hardest=5, pairs=7, with_anchor=2)"), block_rows=rows).loss
        )
    assert torch.allclose(found[0], found[1]) and torch.allclose(found[0], found[2])
    torch.manual_seed(4)
    assert not torch.allclose(
        found[0], contrastive_loss(a, p, config=named("mochi(hardest=5, pairs=7, with_anchor=2)")).loss
    )


def test_memory_keeps_the_last_embeddings_and_their_labels():
    module = loss("xbm", memory=10, label_mask=False)
    batches = [[x.detach() for x in data(seed, pairs=4)] for seed in range(5)]
    values = [module(*batch) for batch in batches]
    assert len(module.memory) == 10
    assert torch.equal(values[0], contrastive_loss(*batches[0], config=named("infonce")).loss)
    past = torch.cat([batches[2][1][-2:], batches[3][1], batches[4][1]])
    module.memory.add = lambda *known: None
    assert torch.allclose(module(*batches[0]), contrastive_loss(*batches[0], past, config=named("infonce")).loss)
    labelled = loss("h-scl", memory=8)
    labels = torch.tensor([0, 1, 2, 3])
    labelled(*batches[0], labels=labels)
    second = labelled(*batches[1], labels=labels + 4)
    unlike = contrastive_loss(*batches[1], batches[0][1], labels=labels + 4, config=named("h-scl")).loss
    assert torch.allclose(second, unlike)
    third = loss("h-scl", memory=8)
    third(*batches[0], labels=labels)
    assert not torch.allclose(third(*batches[1], labels=labels), unlike)  # past items of the class are positives now


def test_memory_knows_an_item_whatever_it_is_linked_with():
    """A positive of two anchors, 9, whose pairs come in different batches: it has the identity of the first there, and of the
    second here."""
    module = loss("xbm", memory=8, label_mask=False)
    first, second = ([x.detach() for x in data(seed, pairs=2)] for seed in range(2))
    module(*first, items=torch.tensor([1, 2, 1, 2]), codes=torch.tensor([1, 2, 9, 8]))
    found = module(*second, items=torch.tensor([3, 4, 3, 4]), codes=torch.tensor([3, 4, 9, 6]))

    def expected(items):
        past = Extra(normalize(first[1], dim=1), items=torch.tensor(items))
        own = torch.tensor([3, 4, 3, 4])
        return contrastive_loss(*second, items=own, past=past, config=named("infonce(label_mask=False)")).loss

    assert torch.equal(found, expected([3, 8]))
    assert not torch.allclose(found, expected([1, 2]))


def test_schedules():
    linear, cosine, steps = (Schedule(shape, 2.0, 0.0) for shape in ("linear", "cosine", "steps"))
    assert [linear.at(x) for x in (0, 0.25, 1, 2)] == [2.0, 1.5, 0.0, 0.0]
    assert cosine.at(0) == 2 and cosine.at(0.5) == pytest.approx(1) and cosine.at(0.25) > linear.at(0.25)
    assert [steps.at(x / 9 + 1e-9) for x in range(9)] == pytest.approx([2 - 0.25 * x for x in range(9)])
    assert len({steps.at(e / 400) for e in range(400)}) == 9 == len({steps.at(e / 10) for e in range(10)})
    config = named("hcl(kappa=steps(2, 0), temperature=linear(0.5, 0.25))")
    assert at(config, 1.0) == named("hcl(kappa=0.0, temperature=0.25)")
    module = loss("hcl(beta=linear(2, 0))")
    a, p = (x.detach() for x in data())
    module.progress = 0.5
    assert torch.equal(module(a, p), contrastive_loss(a, p, config=named("hcl(beta=1.0)")).loss)
    with pytest.raises(UserError, match="at least 0"):
        named("hcl(kappa=linear(2, -1))")


def test_a_learned_bias_has_its_gradient():
    a, p = (x.detach() for x in data())
    bias = torch.tensor(-1.5, dtype=torch.float64, requires_grad=True)
    t = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda t, b: contrastive_loss(a, p, config=named("siglip"), temperature=t, bias=b, diagnose=False).loss,
        (t, bias),
    )
    module = loss("siglip")
    assert module.bias.item() == -10 and len(list(module.parameters())) == 2


def test_a_learned_temperature_moves():
    module = loss("infonce", learn_temperature=True)
    a, p = (x.detach() for x in data())
    module(a, p).backward()
    assert module.log_temperature.grad.abs() > 0 and module.log_temperature.item() == pytest.approx(math.log(0.1))


@pytest.mark.parametrize("name", METHODS)
def test_names_read_back(name):
    config = named(name)
    shown = config.name
    assert named(shown) == config
    changed = at_temperature(config, 0.321)
    assert named(changed.name) == changed and "0.321" in changed.name
    assert shown in repr(loss(name))


def test_compositions_have_names_too():
    composed = LossConfig(
        weights=Gaussian(mu=0.2), false_negatives=FalseNegatives(kind="relative", margin=0.05), mix=None, memory=7
    )
    assert named(composed.name) == composed and "memory=7" in composed.name
    hard = LossConfig(weights=Exp(ess=30.0, detach=True), mix=Mix(pairs=2), entry="decoupled")
    assert named(hard.name) == hard
    fine = named("hcl(kappa=linear(0.1234567, 4))")
    assert fine.name == "hcl(kappa=linear(0.1234567, 4))" and named(fine.name) == fine


@pytest.mark.parametrize(
    "text",
    ["hlc", "hcl(kappa=2", "hcl(2)", "hcl(kappa=__import__('os'))", "hcl(kappa=linear(1))", "", "hcl(kappa=4, kappa=1)",
     "hcl(mix=Mix(pairs=2, pairs=3))", "hcl(**{'kappa': 2})"],
)  # fmt: skip
def test_unreadable_names_are_one_line(text):
    with pytest.raises(UserError, match="--loss") as caught:
        named(text)
    assert "\n" not in str(caught.value) and "setting None" not in str(caught.value)


def test_what_a_loss_needs_is_asked_for():
    a, p = (x.detach() for x in data())
    with pytest.raises(UserError, match="needs labels"):
        contrastive_loss(a, p, config=named("supcon"))
    with pytest.raises(UserError, match="guide"):
        contrastive_loss(a, p, config=named("gist"))
    guide = torch.stack([a, p])
    with pytest.raises(UserError, match="embeddings of the negatives too"):
        contrastive_loss(a, p, p, guide=guide, config=named("gist"))
    assert (
        contrastive_loss(a, p, p, guide=guide, config=named("mnrl")).loss
        == contrastive_loss(a, p, p, config=named("mnrl")).loss
    )
    with pytest.raises(UserError, match="memory: embeddings of past batches have none of the guide"):
        named("gist(memory=8)")
    with pytest.raises(UserError, match="label mask"):
        contrastive_loss(a, p, labels=torch.arange(7), config=named("hcl(tau_plus=0.1)"))
