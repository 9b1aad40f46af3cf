"""What a loss is given by mistake: one line of what to give instead, never a wrong loss or another library's error."""

import numpy as np
import pytest
import torch

from retrieval.errors import UserError
from retrieval.train.loss import ContrastiveLoss, Schedule, contrastive_loss, loss, named

ANCHOR, POSITIVE, NEGATIVE = torch.randn(20, 16).split([8, 8, 4])
WHOLE = torch.zeros(8, dtype=torch.int64)


@pytest.mark.parametrize(
    "given,words",
    [
        ({"labels": [0] * 8}, "labels: is of type list; give a tensor"),
        ({"labels": np.zeros(8)}, "labels: is of type ndarray"),
        ({"labels": WHOLE[:7]}, r"labels \(7,\): give \(8,\) for 8 pairs"),
        ({"items": WHOLE}, r"items \(8,\): give \(16,\) for 8 pairs, 2 views"),
        ({"anchor": ANCHOR[0], "positive": POSITIVE[0]}, r"anchor \(16,\), positive \(16,\): give a positive for each"),
        ({"positive": POSITIVE[:7]}, r"positive \(7, 16\)"),
        ({"anchor": ANCHOR[:0], "positive": POSITIVE[:0]}, "an empty batch has no loss"),
        ({"anchor": ANCHOR.numpy()}, "anchor: is of type ndarray"),
        ({"anchor": ANCHOR.long()}, "anchor: embeddings are floating-point numbers, not torch.int64"),
        ({"negative": NEGATIVE[:, :15]}, r"negative \(4, 15\): give \(4, 16\)"),
        ({"negative": NEGATIVE[None]}, r"negative \(1, 4, 16\): give \(1, 16\)"),
        ({"negative": NEGATIVE, "negative_pairs": WHOLE[:3]}, r"negative_pairs \(3,\): give \(4,\) .* 4 negatives"),
        (
            {"negative": NEGATIVE, "items": torch.arange(16), "negative_items": WHOLE[:3]},
            r"negative_items \(3,\): give \(4,\)",
        ),
        ({"guide": torch.randn(8, 5)}, r"guide \(8, 5\): give \(2, 8, g\)"),
        ({"guide": torch.randn(3, 8, 5)}, r"guide \(3, 8, 5\): give \(2, 8, g\)"),
    ],
)
def test_shapes_that_do_not_go_together_are_refused(given, words):
    with pytest.raises(UserError, match=words) as caught:
        contrastive_loss(**({"anchor": ANCHOR, "positive": POSITIVE, "config": named("hcl")} | given))
    assert "\n" not in str(caught.value)


def test_several_positives_have_as_many_views():
    several = torch.stack([POSITIVE, -POSITIVE])
    assert loss("hcl")(ANCHOR, several, items=torch.arange(24)).isfinite()
    with pytest.raises(UserError, match=r"items \(16,\): give \(24,\) for 8 pairs, 3 views"):
        loss("hcl")(ANCHOR, several, items=torch.arange(16))


def test_a_name_is_no_config_and_a_schedule_no_number():
    with pytest.raises(UserError, match="config 'hcl': is no LossConfig"):
        ContrastiveLoss("hcl")
    with pytest.raises(UserError, match="config 'hcl': is no LossConfig"):
        contrastive_loss(ANCHOR, POSITIVE, config="hcl")
    changing = loss("hcl", kappa=Schedule("linear", 4, 0))
    with pytest.raises(UserError, match="changes over training; use `ContrastiveLoss`"):
        contrastive_loss(ANCHOR, POSITIVE, config=changing.config)
    assert torch.equal(
        changing(ANCHOR, POSITIVE), contrastive_loss(ANCHOR, POSITIVE, config=named("hcl(kappa=4)")).loss
    )


def test_what_is_remembered_is_in_the_state(tmp_path):
    module = loss("xbm", memory=20)
    for step in range(2):
        module(ANCHOR + step, POSITIVE)
    torch.save(module.state_dict(), tmp_path / "loss.pt")
    other, fresh = loss("xbm", memory=20), loss("xbm", memory=20)
    other.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
    value = module(ANCHOR, POSITIVE)
    assert torch.equal(other(ANCHOR, POSITIVE), value) and not torch.equal(fresh(ANCHOR, POSITIVE), value)
    assert not loss("hcl").state_dict()


@pytest.mark.parametrize("start,least", [(0.07, 0.01), (0.005, 0.005)])
def test_a_learned_temperature_does_not_sink_for_ever(start, least):
    module = loss("clip", learn_temperature=True, temperature=start)
    with torch.no_grad():
        module.log_temperature.fill_(-20.0)
    value = module(ANCHOR, POSITIVE)
    assert value.item() == pytest.approx(loss("clip", temperature=least)(ANCHOR, POSITIVE).item(), rel=1e-4)
    value.backward()
    assert module.log_temperature.grad.isfinite() and module.log_temperature.exp().item() == pytest.approx(least)


def test_what_is_judged_is_not_remembered():
    module = loss("xbm", memory=20)
    module(ANCHOR, POSITIVE)
    module.eval()
    assert torch.equal(module(-ANCHOR, POSITIVE), module(-ANCHOR, POSITIVE)) and len(module.memory) == 8
    module.train()(ANCHOR, POSITIVE)
    assert len(module.memory) == 16


def test_a_config_is_no_name():
    with pytest.raises(UserError, match="give a name, such as 'hcl'"):
        loss(named("hcl"))
