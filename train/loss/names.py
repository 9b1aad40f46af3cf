"""Losses by name: `named("adnce(mu=0.4, temperature=0.07)")`, and back to a name from a loss.

Paper and equation of each part stand beside the part; here is which parts a method is made of.
"""

import ast
from dataclasses import fields, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

from retrieval.errors import UserError

from .config import UNIFORM, FalseNegatives, LossConfig, Mix
from .schedule import Schedule
from .weights import Additive, Exp, Gaussian, Posterior, Uniform

FORWARD = partial(LossConfig, directions="forward", within_side=False)  # anchors against the other side alone
METHODS: dict[str, LossConfig] = {
    "hcl": LossConfig(),
    "debiased": LossConfig(weights=UNIFORM, tau_plus=0.1),
    "infonce": LossConfig(weights=UNIFORM),
    "h-scl": LossConfig(needs_labels=True),
    "sincere": LossConfig(weights=UNIFORM, needs_labels=True),
    "supcon": LossConfig(weights=UNIFORM, entry="shared", needs_labels=True),
    "decoupled": LossConfig(weights=UNIFORM, entry="decoupled"),
    "adnce": LossConfig(weights=Gaussian()),
    "bcl": LossConfig(weights=Posterior()),
    "sscl": LossConfig(mix=Mix()),
    "mochi": LossConfig(weights=UNIFORM, mix=Mix(with_anchor=16), memory=4096),
    "xbm": LossConfig(weights=UNIFORM, memory=4096),
    "mnrl": FORWARD(weights=UNIFORM, temperature=0.05),
    "clip": LossConfig(weights=UNIFORM, temperature=0.07, within_side=False),
    "gte": LossConfig(weights=UNIFORM, temperature=0.05, entry="joint"),
    "siglip": FORWARD(weights=UNIFORM, entry="sigmoid", bias=-10.0, learn_temperature=True),
    "hn-nce": LossConfig(temperature=0.07, within_side=False),
    "gist": FORWARD(weights=UNIFORM, temperature=0.05, false_negatives=FalseNegatives(guide=True)),
    "positive-aware": LossConfig(weights=UNIFORM, false_negatives=FalseNegatives(kind="relative", margin=0.05)),
    "qwen3-mask": LossConfig(weights=UNIFORM, false_negatives=FalseNegatives(margin=-0.1)),
    "llave": FORWARD(weights=Additive(), temperature=0.05),
    "embedding-gemma": FORWARD(weights=Additive(alpha=5.0, on="hard"), temperature=0.05),
    "simcse": FORWARD(weights=Additive(alpha=0.0, constant=0.0, on="hard"), temperature=0.05),
}
PLACES = ("weights", "false_negatives", "mix")
CLASSES: dict[str, Any] = {
    part.__name__: part for part in (Uniform, Exp, Gaussian, Posterior, Additive, FalseNegatives, Mix)
}
HARDNESS = {"kappa", "beta", "ess"}
SCHEDULES = ("linear", "cosine", "steps")


def named(text: str) -> LossConfig:
    """The loss of a name, or of a name with settings: "hcl", "hcl(kappa=4)", "hcl(kappa=steps(2, 0), detach=True)".

    Settings are fields of LossConfig or of its parts (weights, false_negatives, mix). Raises UserError for anything unknown.
    """
    if not isinstance(text, str):
        raise UserError(f"loss {text!r}: give a name, such as 'hcl'; ContrastiveLoss makes the loss of a config")
    name, _, rest = text.strip().partition("(")
    if name not in METHODS:
        near = get_close_matches(name, METHODS, 1)
        guess = f"did you mean {near[0]}? Known" if near else "known"
        raise UserError(f"--loss {text}: unknown; {guess} are {', '.join(METHODS)}")
    return with_settings(METHODS[name], _settings(text, rest) if rest else {}, f"--loss {text}")


def with_settings(config: LossConfig, settings: dict[str, Any], source: str) -> LossConfig:
    """`config` with settings changed, each in the part that has it; or a part exchanged as a whole."""
    config = replace(config, **{name: part for name, part in settings.items() if name in PLACES})
    changed: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        if key in PLACES:
            continue
        places = (place for place, part in _parts(config).items() if key in {f.name for f in fields(part)})
        place = next(places, None)
        if place is None:
            known = sorted({f.name for part in _parts(config).values() for f in fields(part)})
            hint = "; hcl has" if key in HARDNESS else ""
            raise UserError(f"{source}: has no setting {key}{hint}; it has {', '.join(known)}")
        changed.setdefault(place, {})[key] = value
    # Another way to say the hardness replaces the one that stood there.
    if isinstance(config.weights, Exp) and HARDNESS & changed.get("weights", {}).keys():
        changed["weights"] = dict.fromkeys(HARDNESS) | changed["weights"]
    own = changed.pop("", {})
    parts = {place: replace(getattr(config, place), **values) for place, values in changed.items()}
    return replace(config, **parts, **own)


def open_settings(text: str) -> set[str]:
    """The names of the settings, its own and those of its parts, that the loss of a name has and the name leaves open."""
    config, (_, _, rest) = named(text), text.strip().partition("(")
    said = set(_settings(text, rest)) if rest else set()
    found = {field.name for part in _parts(config).values() for field in fields(part)} - set(PLACES) - said
    found -= HARDNESS if HARDNESS & said else set()  # said in one way, it is said
    return found - {"tau_plus"} if config.needs_labels else found


def _parts(config: LossConfig) -> dict[str, Any]:
    """The parts by field, and the loss itself as "", last, since weights and loss may both have a τ⁺."""
    parts = {name: getattr(config, name) for name in PLACES}
    return {name: part for name, part in parts.items() if part is not None} | {"": config}


def _settings(text: str, rest: str) -> dict[str, Any]:
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        assert isinstance(call, ast.Call) and not call.args
        return _keywords(call)
    except UserError:  # which is a ValueError; a part says itself what is wrong with it
        raise
    except (SyntaxError, ValueError, AssertionError, TypeError):
        raise UserError(
            f"--loss {text}: cannot be read; write it like hcl(kappa=2, temperature=0.1) or hcl(kappa=linear(4, 0))"
        ) from None


def _value(node: ast.expr) -> Any:
    """A plain value, a schedule such as linear(2, 0), or a part such as Gaussian(mu=0.5). Nothing is evaluated."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id in SCHEDULES:
            start, end = (float(ast.literal_eval(argument)) for argument in node.args)
            return Schedule(node.func.id, start, end)  # type: ignore[arg-type]
        assert node.func.id in CLASSES and not node.args
        return CLASSES[node.func.id](**_keywords(node))
    return ast.literal_eval(node)


def _keywords(call: ast.Call) -> dict[str, Any]:
    """What a call gives by name; nothing twice."""
    given = {keyword.arg: _value(keyword.value) for keyword in call.keywords if keyword.arg is not None}
    assert len(given) == len(call.keywords)
    return given


def describe(config: LossConfig) -> str:
    """A name that `named` reads back into the same loss: the method that differs in the fewest settings, and those.

    A part of another kind counts as three settings; of equally near methods the first is taken.
    """
    different = {name: _differences(method, config) for name, method in METHODS.items()}
    nearest = min(different, key=lambda name: sum(3 if key in PLACES else 1 for key in different[name]))
    inside = ", ".join(f"{key}={_shown(value)}" for key, value in different[nearest].items())
    return f"{nearest}({inside})" if inside else nearest


def _differences(method: LossConfig, config: LossConfig) -> dict[str, Any]:
    """The settings that make `config` of `method`; a part of another kind as a whole."""
    mine, different = _parts(method), {}
    for place in PLACES:
        part = getattr(config, place)
        if type(part) is not type(getattr(method, place)):
            different[place] = part
        elif part is not None:
            different |= _changed(mine[place], part)
    return different | {key: value for key, value in _changed(method, config).items() if key not in PLACES}


def _changed(mine: Any, theirs: Any) -> dict[str, Any]:
    """Fields that differ; None says nothing, since another way to say the hardness clears it."""
    values = {field.name: getattr(theirs, field.name) for field in fields(theirs)}
    return {name: value for name, value in values.items() if value is not None and value != getattr(mine, name)}


def _shown(value: Any) -> str:
    if isinstance(value, Schedule):
        ends = (f"{x:g}" if float(f"{x:g}") == x else repr(x) for x in (value.start, value.end))
        return f"{value.shape}({', '.join(ends)})"
    if type(value).__name__ in CLASSES:
        inside = ", ".join(f"{key}={_shown(x)}" for key, x in _changed(type(value)(), value).items())
        return f"{type(value).__name__}({inside})"
    return repr(value)
