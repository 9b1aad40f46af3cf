"""Numbers as options take them: finite, in lists, with units."""

from typing import Any

import click

MOST = 1_000_000


class Number(click.ParamType[float]):
    """A finite number, above zero if `positive`, and at most a million, beyond which float32 soon overflows."""

    name = "number"

    def __init__(self, positive: bool = False) -> None:
        self.positive = positive

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is not a number.", param, ctx)
        if not abs(number) <= MOST or (self.positive and number <= 0):
            low = "above 0" if self.positive else f"from −{MOST:,}"
            self.fail(f"{value!r} must be a number {low} and at most {MOST:,}.", param, ctx)
        return number


class Numbers(click.ParamType[tuple[float, ...]]):
    """Different numbers from 0 on with commas between them, or in TOML a list; `whole` ones in ascending order."""

    name = "numbers"

    def __init__(self, whole: bool = False) -> None:
        self.kind = int if whole else float

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        given = value if isinstance(value, list | tuple) else str(value).split(",")
        try:
            numbers = tuple(self.kind(str(each)) for each in given)
        except (TypeError, ValueError):
            such = "256,128,64" if self.kind is int else "0,1,2,4"
            self.fail(f"{value!r} is not a list of numbers, such as {such}.", param, ctx)
        if not all(0 <= number <= MOST for number in numbers) or len(set(numbers)) < len(numbers):
            self.fail(f"{value!r} must be different numbers from 0 to {MOST:,}.", param, ctx)
        return tuple(sorted(numbers)) if self.kind is int else numbers


class Part(click.ParamType[tuple[int, int]]):
    """One of several parts: "3/8"."""

    name = "part"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        number, _, of = str(value).partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            self.fail(f"{value!r} is not understood; 3/8 is the third of eight parts.", param, ctx)
        return int(number), int(of)


class Amount(click.ParamType[float]):
    """A number with a unit, such as 2GB or 5ms; in bytes or seconds."""

    def __init__(self, name: str, units: dict[str, float]) -> None:
        self.name, self.units = name, units

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip().lower()
        for unit in sorted(self.units, key=len, reverse=True):
            if text.endswith(unit.lower()):
                try:
                    amount = float(text[: -len(unit)]) * self.units[unit]
                except ValueError:
                    break
                if 0 < amount < float("inf"):
                    return amount
        return self.fail(f"{value!r} is not understood; write a number and {', '.join(self.units)}.", param, ctx)


MEMORY = Amount("memory", {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12})
TIME = Amount("time", {"us": 1e-6, "ms": 1e-3, "s": 1.0})
