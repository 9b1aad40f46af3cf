"""The Triton kernels against the plain way: in Triton's interpreter where there is no GPU, and compiled for one all the same."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

pytest.importorskip("triton")

from retrieval.errors import UserError  # noqa: E402
from retrieval.train.loss import (  # noqa: E402
    contrastive_loss,
    loss,
    named,
    tiles,  # noqa: E402
)
from retrieval.train.loss import fused as fused_module  # noqa: E402
from retrieval.train.loss.blocks import Setting, sum_blocks  # noqa: E402
from retrieval.train.loss.schedule import number  # noqa: E402
from retrieval.train.loss.tasks import Extra, Known, tasks  # noqa: E402
from retrieval.train.loss.tiles import sum_tiles, usable  # noqa: E402
from retrieval.train.loss.weights import Exp  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAIN = ["infonce", "hcl(beta=1.5)", "hcl(beta=1.5, detach=True)", "hcl(beta=0.7, tau_plus=0.05)", "decoupled"]
LABELLED = ["h-scl(beta=1.0)", "h-scl(beta=1.0, detach=True)", "sincere", "supcon", "supcon(weights=Exp(beta=1.0))"]
LABELLED += ["decoupled(label_mask=True, needs_labels=True)", "h-scl(beta=1.0, published_count=True)"]
SIDES = ["", "within_side=False", "directions='forward'", "directions='forward', within_side=False"]


@pytest.fixture(autouse=True)
def _larger_parts(monkeypatch):
    """The interpreter runs program after program, each in a time that hardly depends on its size. On a GPU one has an anchor or
    two and all the candidates here; in the interpreter 32 anchors, which do not divide, and candidates in several parts."""
    if DEVICE == "cpu":
        for name in ("ALONG", "WRITTEN"):
            monkeypatch.setattr(tiles, name, getattr(tiles, name) | {"BA": 32, "BC": 64})


def known(pairs=40, dim=20, views=2, seed=0):
    """Views of pairs that resemble each other, three extra rows, labels, identities."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(1, pairs, dim, generator=random) + 0.5 * torch.randn(views, pairs, dim, generator=random)
    extra = torch.randn(3, dim, generator=random)
    labels = torch.randint(0, 9, (pairs,), generator=random)
    items = torch.randint(0, 60, (views, pairs), generator=random)
    return [y.to(DEVICE) for y in (x, extra, labels, items)]


def some_tasks(name, t=0.2, with_extra=False, with_items=False, dtype=torch.float32, **sizes):
    x, extra, labels, items = known(**sizes)
    config = replace(named(name), temperature=t)
    raw = dtype != torch.float32
    x, extra = x.to(dtype), extra.to(dtype)
    here = Known(
        normalize(x.float(), dim=-1),
        labels if config.needs_labels else None,
        items if with_items else None,
        None,
        raw=x if raw else None,
    )
    more = Extra(normalize(extra.float(), dim=-1), raw=extra if raw else None) if with_extra else None
    beta = config.weights.fixed_beta(t) if isinstance(config.weights, Exp) else 0.0
    return tasks(here, here, 0, more, config), Setting(config, t, number(config.tau_plus), beta)


def in_double(task):
    return replace(task, anchors=task.anchors.double(), candidates=task.candidates.double())


def assert_same(task, setting, tolerance, symmetric=None):
    """Kernels against the plain way in float64: loss, floor rate, gradients in rows (both sides together) and in 1/t."""
    expected = sum_blocks(in_double(task), setting, None, True)
    found = sum_tiles(task, setting, True)
    assert abs(found.loss - expected.loss) <= tolerance * max(1.0, abs(expected.loss))
    assert abs(found.on_floor - expected.on_floor) < 1e-6
    if found.candidates is None:  # one matrix product for both sides
        pairs = [(found.anchors, expected.anchors + expected.candidates)]
    else:
        pairs = [(found.anchors, expected.anchors), (found.candidates, expected.candidates)]
    assert symmetric is None or symmetric == (found.candidates is None)
    for got, want in (*pairs, (found.sharpness, expected.sharpness)):
        scale = want.abs().max().clamp(min=1e-3)
        assert ((got - want).abs().max() / scale).item() <= tolerance


@pytest.mark.parametrize("with_extra", [False, True], ids=["items", "extra"])
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("name", PLAIN + LABELLED)
def test_kernels_are_the_plain_way(name, sides, with_extra):
    if sides:
        name = f"{name[:-1]}, {sides})" if name.endswith(")") else f"{name}({sides})"
    if "published_count" in name and "within_side=False" in name:
        with pytest.raises(UserError, match="counts both sides of a mean"):
            named(name)
        return
    found, setting = some_tasks(name, with_extra=with_extra, with_items=not with_extra)
    for task in found:
        assert_same(task, setting, 2e-5, symmetric=not sides and not with_extra)


@pytest.mark.parametrize("name", ["hcl(tau_plus=0.05)", "h-scl", "h-scl(detach=True)", "hcl(within_side=False)"])
def test_a_learned_temperature_has_no_part_in_weights_that_do_not_depend_on_it(name):
    found, setting = some_tasks(name)
    for task in found:
        assert_same(task, replace(setting, learned=True), 2e-5)
        other = [sum_tiles(task, replace(setting, learned=learned), True) for learned in (False, True)]
        assert torch.equal(other[0].anchors, other[1].anchors)
        assert torch.allclose(other[0].sharpness, other[1].sharpness, rtol=1e-3) == ("detach" in name)


def test_several_positives_of_a_learned_temperature_stay_with_the_plain_way(monkeypatch):
    """Their weights follow the temperature too, which the kernels do not tell apart."""
    monkeypatch.setattr(tiles, "find_spec", lambda name: True)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    found, setting = some_tasks("hcl(tau_plus=0.02)", views=4, pairs=20)
    assert [usable(found[0], replace(setting, learned=learned), None) for learned in (False, True)] == [True, False]


@pytest.mark.parametrize("beta", [0.0, 0.5, 100.0, 1e4])
@pytest.mark.parametrize("t", [2e-4, 0.02, 1.0])
@pytest.mark.parametrize("name", ["hcl", "h-scl"])
def test_kernels_at_every_temperature_and_hardness(name, t, beta):
    found, setting = some_tasks(f"{name}(beta={beta})", t=t)
    assert_same(found[0], setting, 1e-3)
    loss_found = sum_tiles(found[0], setting, False).loss
    expected = sum_blocks(in_double(found[0]), setting, None, False).loss
    assert abs(loss_found - expected) <= 1e-4 * max(1.0, abs(expected))


@pytest.mark.parametrize("pairs,dim", [(1, 5), (2, 3), (33, 70), (65, 64), (130, 33)])
@pytest.mark.parametrize("name", ["hcl(beta=1.0, tau_plus=0.02)", "h-scl(beta=1.0)", "supcon"])
def test_sizes_that_do_not_divide(name, pairs, dim):
    found, setting = some_tasks(name, pairs=pairs, dim=dim)
    assert_same(found[0], setting, 5e-5)


def test_several_positives_of_an_anchor():
    found, setting = some_tasks("hcl(beta=1.0, tau_plus=0.02)", views=4, pairs=20)
    assert_same(found[0], setting, 2e-5, symmetric=True)


@pytest.mark.parametrize("with_extra", [False, True], ids=["symmetric", "extra"])
@pytest.mark.parametrize("name", ["hcl(beta=1.0)", "h-scl(beta=1.0)", "supcon"])
def test_tiles_of_any_size_do_not_change_the_result(monkeypatch, name, with_extra):
    found, setting = some_tasks(name, with_extra=with_extra, pairs=80)
    expected = sum_tiles(found[0], setting, True)
    monkeypatch.setattr(tiles, "TILE_ROWS", 70)
    monkeypatch.setattr(tiles, "TILE_SCORES", 70 * 90)
    other = sum_tiles(found[0], setting, True)
    for got, want in zip(other, expected, strict=True):
        assert got is want is None or torch.allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["hcl(beta=1.0)", "h-scl(beta=1.0)"])
def test_half_precision_rows_are_not_rounded_again(name, dtype):
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("gpu: Triton's interpreter multiplies no bfloat16")
    found, setting = some_tasks(name, t=0.02, dtype=dtype, with_extra=True)
    exact = sum_blocks(in_double(found[0]), setting, None, True)
    got = sum_tiles(found[0], setting, True)
    assert abs(got.loss - exact.loss) <= 2e-5 * exact.loss
    rounded = replace(found[0], raw=(found[0].anchors.to(dtype), found[0].candidates.to(dtype)))
    assert abs(sum_tiles(rounded, setting, True).loss - exact.loss) > 2e-5 * exact.loss  # the negative control
    for mine, theirs in ((got.anchors, exact.anchors), (got.candidates, exact.candidates)):
        assert ((mine - theirs).abs().max() / theirs.abs().max()).item() < 1e-2  # bfloat16 gradients


@pytest.mark.parametrize("change", [{"beta": 1.001}, {"temperature": 0.2001}])
def test_another_setting_would_be_noticed(change):
    """The negative control of `assert_same`."""
    found, setting = some_tasks("hcl(beta=1.0)")
    got, want = sum_tiles(found[0], replace(setting, **change), True), sum_tiles(found[0], setting, True)
    assert ((got.anchors - want.anchors).abs().max() / want.anchors.abs().max()).item() > 5e-5


def test_the_whole_loss_through_the_kernels(monkeypatch):
    """Through autograd, with the embeddings' own gradient."""
    x, extra, labels, items = known()
    results = []
    for way in (True, False):
        monkeypatch.setattr(fused_module, "usable", lambda *task, way=way: way)
        given = [y.clone().requires_grad_() for y in (x[0], x[1], extra)]
        value = contrastive_loss(*given, labels=labels, items=items.flatten(), config=named("h-scl")).loss
        results.append([value.detach(), *torch.autograd.grad(3 * value, given)])
    for got, want in zip(*results, strict=True):
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(fused_module, "usable", lambda *task: True)
    module = loss("infonce", learn_temperature=True).to(DEVICE)
    module(x[0], x[1]).backward()
    assert module.log_temperature.grad.abs() > 0


def test_kernels_are_for_gpus_and_the_losses_they_know():
    found, setting = some_tasks("hcl(beta=1.0)")
    assert usable(found[0], setting, None) == (DEVICE == "cuda")
    for name in ("adnce", "positive-aware"):
        other, setting = some_tasks(name)
        assert not usable(other[0], setting, None)


def test_kernels_leave_own_negatives_to_the_plain_way(monkeypatch):
    """Only where there are such negatives: texts as anchors, which have none, stay with the kernels."""
    from retrieval.train.loss import tiles

    x, extra, _, _ = known()
    monkeypatch.setattr(tiles, "find_spec", lambda name: True)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    here = Known(normalize(x, dim=-1), None, None, None)
    more = Extra(normalize(extra, dim=-1), pair=torch.tensor([0, 0, 5], device=DEVICE))
    for name, answers in (("clip(own_negatives=True)", [False, True]), ("clip", [True, True])):
        found = tasks(here, here, 0, more, named(name))
        assert [usable(task, Setting(named(name), 0.07, 0.0, 0.0), None) for task in found] == answers


def test_kernels_compile_for_a_gpu_that_is_not_here():
    """For Hopper, down to its machine code; in a process of its own, out of the interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 4
