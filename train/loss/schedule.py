"""Numbers that change over training."""

import math
from dataclasses import dataclass, fields, is_dataclass, replace
from types import NoneType
from typing import Any, Literal, TypeVar, get_args

from retrieval.errors import UserError

T = TypeVar("T")
PAPER_STEPS = 9


@dataclass(frozen=True)
class Schedule:
    """A number that goes from `start` to `end` as training goes from 0 to 1.

    "linear"; "cosine" (half a wave, slow at both ends); "steps" (HCL's annealing: nine equal stretches, evenly spaced
    values, `start` in the first and `end` in the last; the published code divides by epochs/9 and fails for many counts).
    """

    shape: Literal["linear", "cosine", "steps"]
    start: float
    end: float

    def __post_init__(self) -> None:
        refuse_other_kinds(self)

    def at(self, progress: float) -> float:
        """The value when this share of training is done; progress 0 … 1."""
        x = min(max(progress, 0.0), 1.0)
        if self.shape == "cosine":
            x = (1 - math.cos(math.pi * x)) / 2
        elif self.shape == "steps":
            x = min(int(x * PAPER_STEPS), PAPER_STEPS - 1) / (PAPER_STEPS - 1)
        return self.start + (self.end - self.start) * x


Number = float | Schedule


def number(value: Number | None) -> float:
    """A resolved number. Raises UserError for a schedule that `at` has not replaced."""
    if isinstance(value, Schedule):
        raise UserError(f"{value}: changes over training; use `ContrastiveLoss`, or `at(config, progress)`")
    assert isinstance(value, float | int), value
    return float(value)


def at(settings: T, progress: float) -> T:
    """The same settings (a dataclass) with every schedule replaced by its value, also in the parts."""
    changed: dict[str, Any] = {}
    for field in fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, field.name)
        if isinstance(value, Schedule):
            changed[field.name] = value.at(progress)
        elif is_dataclass(value):
            inner = at(value, progress)
            if inner is not value:
                changed[field.name] = inner
    return replace(settings, **changed) if changed else settings  # type: ignore[type-var]


def values(number: Number) -> tuple[float, ...]:
    """The number, or both ends of its schedule."""
    return (number.start, number.end) if isinstance(number, Schedule) else (number,)


def refuse_below(name: str, value: Number | None, least: float, *, strictly: bool = False) -> None:
    """Raises UserError if the number, or either end of its schedule, is below `least` or not finite."""
    if value is None:
        return
    for x in values(value):
        if not math.isfinite(x):
            raise UserError(f"{name} {x}: must be a finite number")
        if x < least or (strictly and x == least):
            raise UserError(f"{name} {x}: must be {'above' if strictly else 'at least'} {least:g}")


KINDS = {float: "a number", int: "a whole number", bool: "True or False", Schedule: "a schedule", NoneType: "None"}


def refuse_other_kinds(settings: Any) -> None:
    """Raises UserError for a field of a dataclass whose value its annotation, of types or of literals, does not allow."""
    for field in fields(settings):
        value, kinds = getattr(settings, field.name), get_args(field.type) or (field.type,)
        if not any(_is_of(value, kind) for kind in kinds):
            told = " or ".join(KINDS.get(kind, getattr(kind, "__name__", repr(kind))) for kind in kinds)
            raise UserError(f"{field.name} {value!r}: must be {told}")


def _is_of(value: Any, kind: Any) -> bool:
    """Whole numbers are numbers, truth values are none."""
    if not isinstance(kind, type):
        return bool(value == kind)
    return isinstance(value, float | int if kind is float else kind) and (kind is bool or not isinstance(value, bool))
