"""Sections → one HTML file that needs no other, their values as JSON, their figures as files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from retrieval.artifact import write_atomically

from ..compare import told_p
from .figures import Figure


@dataclass(frozen=True)
class Section:
    """A part of the page. template: the file that shows it; values: everything it says, plain data; figures: by the name that
    the template asks for; shown: what only the page needs, such as packed maps and pictures."""

    template: str
    title: str
    values: dict[str, Any]
    figures: dict[str, Figure] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)


def render(title: str, lead: str, sections: Sequence[Section], foot: str) -> str:
    """The whole page. Its policy forbids the browser to load anything, so it can be trusted with other people's texts."""
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"svg": _inline, "number": number, "signed": signed, "interval": interval, "p": told_p}
    folder = files(__package__) / "templates"
    style, script = (Markup((folder / name).read_text("utf-8")) for name in ("page.css", "page.js"))
    parts = [
        Markup(environment.get_template(f"{s.template}.html").render(section=s, at=i)) for i, s in enumerate(sections)
    ]
    page = environment.get_template("page.html")
    return page.render(
        title=title, lead=lead, foot=foot, style=style, script=script, parts=parts, titles=[s.title for s in sections]
    )


def _inline(figure: Figure) -> Markup:
    return Markup(figure.svg(themed=True))


def number(value: float) -> str:
    """Four digits that matter, without an exponent where it can be helped."""
    size = abs(value)
    if value == int(value) and size < 1e9:
        return f"{int(value):,}"
    return f"{value:,.1f}" if size >= 100 else f"{value:.4f}" if size >= 0.01 else f"{value:.2g}"


def interval(ends: Sequence[float], digits: int = 3) -> str:
    """From the lower end to the upper."""
    low, high = (f"{end:.{digits}f}".replace("-", "−") for end in ends)
    return f"{low} to {high}" if ends[0] < 0 else f"{low}–{high}"


def signed(value: float, digits: int = 3) -> str:
    """With its sign, for differences."""
    return f"{value:+.{digits}f}".replace("-", "−")


def write_figures(folder: Path, sections: Sequence[Section]) -> list[str]:
    """Every figure as SVG and PNG under `folder`; returns the names of the files."""
    names = []
    for at, section in enumerate(sections, 1):
        for figure in section.figures.values():
            title = re.sub(r"\W+", "-", section.title).strip("-")[:40]
            name = "-".join(part for part in (f"{at:02d}", title, figure.name) if part)
            write_atomically(folder / f"{name}.svg", figure.svg().encode())
            write_atomically(folder / f"{name}.png", figure.png())
            names += [f"{name}.svg", f"{name}.png"]
    return names
