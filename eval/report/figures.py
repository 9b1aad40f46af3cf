"""Plots. On the page they take its colours, light or dark; as files they are drawn on white."""

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from retrieval.data import shortened

# Ten colours that differ in hue and lightness, and stand out on white and on black.
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#767f8b")
NAMED = 12  # classes that a map's legend names, all of them
INK, LINE, GREY = "#1d232b", "#d9dee4", "#767f8b"
THEMED = {INK: "var(--ink)", LINE: "var(--line)"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # "$" in a label is a dollar
    "svg.hashsalt": "retrieval",
    "font.size": 9,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)})",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
}
NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
Values = Sequence[float]


@dataclass(frozen=True)
class Figure:
    """A plot: `name` for its files, `alt` says in words what it shows."""

    name: str
    alt: str
    draw: Callable[[Axes], None]
    size: tuple[float, float] = (5.0, 2.8)

    def _drawn(self) -> Canvas:
        canvas = Canvas(figsize=self.size, layout="constrained")
        self.draw(canvas.subplots())
        return canvas

    def svg(self, themed: bool = False) -> str:
        """SVG text; `themed` for the page: its colours by their CSS names, no background, no size of its own."""
        buffer = io.StringIO()
        with rc_context(STYLE):
            _save(self._drawn(), buffer, format="svg", transparent=themed, metadata={"Date": None, "Creator": None})
        text = buffer.getvalue()
        if not themed:
            return text
        text = text[text.index("<svg") :]
        for colour, variable in THEMED.items():
            text = text.replace(colour, variable)
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r' id="[a-zA-Z0-9]+_\d+"', "", text)  # those of groups, which two plots would share
        text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would hold for the whole page
        return re.sub(
            r'<svg [^>]*?(viewBox="[^"]+")[^>]*>', rf'<svg {NAMESPACES} \1 aria-hidden="true">', text, count=1
        )

    def png(self) -> bytes:
        buffer = io.BytesIO()
        with rc_context(STYLE):
            canvas = self._drawn()
            FigureCanvasAgg(canvas)
            _save(canvas, buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
        return buffer.getvalue()


def _save(canvas: Canvas, file: Any, **how: Any) -> None:
    """Scripts that matplotlib's one font lacks are boxes in a PNG; SVG and page have them as text. No warning for each letter of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        warnings.filterwarnings("ignore", "Matplotlib currently does not support")
        canvas.savefig(file, **how)


def histogram(name: str, shares: Mapping[str, NDArray[np.float64]], edges: NDArray[np.float64], alt: str) -> Figure:
    """Shares (b,) of pairs by cosine, for each kind of pair; edges (b + 1,)."""

    def draw(axes: Axes) -> None:
        for (kind, share), colour in zip(shares.items(), (COLOURS[0], GREY), strict=False):
            axes.stairs(share, edges, fill=True, alpha=0.45, color=colour)
            axes.stairs(share, edges, color=colour, label=kind)
        axes.set(xlabel="cosine", ylabel="share of pairs", xlim=(edges[0], edges[-1]))
        axes.legend()

    return Figure(name, alt, draw)


def spectrum(name: str, of: Mapping[str, Values]) -> Figure:
    """Singular values, largest first, as shares of the largest."""

    def draw(axes: Axes) -> None:
        for label, values in of.items():
            largest = max(max(values), 1e-12)
            axes.plot(range(1, len(values) + 1), [max(value / largest, 1e-6) for value in values], label=label)
        axes.set(xlabel="rank", ylabel="singular value / largest", yscale="log")
        _plain(axes.yaxis)
        if len(of) > 1:
            axes.legend()

    return Figure(name, "Singular values of the embeddings, largest first", draw)


def heat(name: str, classes: Sequence[str], shares: NDArray[np.float64]) -> Figure:
    """Of the neighbours of each class (rows), the share of each class (columns)."""

    def draw(axes: Axes) -> None:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=max(float(shares.max()), 1e-9))
        short = [shortened(text, 21) for text in classes]
        axes.set_xticks(range(len(short)), short, rotation=60, ha="right", fontsize=7)
        axes.set_yticks(range(len(short)), short, fontsize=7)
        axes.grid(False)
        for row, column in np.argwhere(shares >= 0.005).tolist():
            light = shares[row, column] < 0.6 * shares.max()
            axes.text(column, row, f"{100 * shares[row, column]:.0f}", ha="center", va="center", fontsize=6,
                      color="#0b0f14" if light else "#ffffff")  # fmt: skip
        axes.set(xlabel="neighbours of class, percent", ylabel="queries of class")

    side = 1.6 + 0.3 * len(classes)
    return Figure(name, "Which classes the neighbours of each class belong to", draw, (side + 0.8, side))


def recall_speed(name: str, points: Sequence[Mapping[str, Any]]) -> Figure:
    """Recall against queries a second, of the points of an `eval recall`."""

    def draw(axes: Axes) -> None:
        for speed, label in (("all_threads", "all threads"), ("one_thread", "one thread")):
            found = sorted((p["metrics"]["recall"], p["speed"][speed]["batch_qps"], p["tuned"]) for p in points)
            (line,) = axes.plot([f[0] for f in found], [f[1] for f in found], marker="o", ms=3.5, label=label)
            tuned = [f for f in found if f[2]]
            axes.plot([f[0] for f in tuned], [f[1] for f in tuned], "*", ms=11, color=line.get_color())
        axes.set(xlabel="recall", ylabel="queries a second", yscale="log")
        _plain(axes.yaxis, ",.0f")
        axes.set_xlim(right=1.005)
        axes.legend(title="★ as tuned")

    return Figure(name, "Recall against queries a second", draw)


def hardness(name: str, points: Sequence[Mapping[str, Any]], metric: str) -> Figure:
    """Quality against hardness, or temperature where hardness was not tried, with 95 % intervals; the best starred."""
    settings = [point["setting"] for point in points]
    across = next((axis for axis in ("kappa", "beta", "temperature", "tau_plus") if len({s.get(axis) for s in settings}) > 1), "kappa")  # fmt: skip
    titles = {"kappa": "hardness κ", "beta": "hardness β", "temperature": "temperature t", "tau_plus": "debiasing τ⁺"}

    def draw(axes: Axes) -> None:
        lines: dict[str, list[Mapping[str, Any]]] = {}
        for point in points:
            if across in point["setting"]:
                others = (
                    f"{titles[key].split()[-1]} = {value:g}" for key, value in point["setting"].items() if key != across
                )
                lines.setdefault(", ".join([point["method"], *others]), []).append(point)
        stars: dict[int, float] = {}
        many = len(lines) > len(COLOURS)  # an adaptive search: every point has settings of its own
        for number, (label, each) in enumerate(sorted(lines.items())):
            each = sorted(each, key=lambda point: point["setting"][across])
            aside = 0.0 if many else (number + 0.5) / len(lines) - 0.5  # so that intervals do not hide each other
            x = [_beside(across, p["setting"][across], aside) for p in each]
            stars |= {id(p): at for p, at in zip(each, x, strict=True)}
            y = [p["mean"] for p in each]
            away = list(zip(*(_arms(p["mean"], p["interval"]) for p in each), strict=True))
            axes.errorbar(x, y, away, fmt="o" if many else "o-", ms=3.5, capsize=2, lw=1.2,
                          color=COLOURS[0 if many else number], label=None if many else label)  # fmt: skip
        without: dict[str, Mapping[str, Any]] = {}  # losses that have no hardness: the best setting of each
        for point in (point for point in points if across not in point["setting"]):
            without.setdefault(point["method"], point)
        for point, dashes in zip(without.values(), (":", "--", "-.", "-") * len(without), strict=False):
            axes.axhline(point["mean"], ls=dashes, color=GREY, lw=1, label=point["label"])
        best = points[0]
        if across in best["setting"]:
            axes.plot([stars[id(best)]], [best["mean"]], "*", ms=13, color=INK, zorder=9)
        if across == "temperature":
            axes.set_xscale("log")
            _plain(axes.xaxis)
        elif across != "tau_plus":
            axes.set_xscale("symlog", linthresh=0.5)
            _plain(axes.xaxis)
            axes.xaxis.set_minor_formatter(NullFormatter())
            ticks = sorted({s[across] for s in settings if across in s})
            if len(ticks) <= 12:
                axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set(xlabel=titles[across], ylabel=f"{metric}, 95 % intervals")
        if without or not many:
            axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))

    return Figure(name, f"{metric} against {titles[across]}, with intervals", draw, (6.4, 3.6))


def _plain(axis: Axis, form: str = "g") -> None:
    """The numbers of a logarithmic axis as they are: matplotlib's powers of ten are formulas, which are not parsed here. The more
    decades there are, the fewer of their numbers are told, lest one stands on another."""

    def told(value: float, _: int) -> str:
        low, high = sorted(axis.get_view_interval())
        decades = math.log10(high / low) if low > 0 else 1
        digits = "01" if decades > 3 else "0125" if decades > 0.7 else "0123456789"
        return f"{value:{form}}" if f"{value:e}"[0] in digits else ""

    for which in (axis.set_major_formatter, axis.set_minor_formatter):
        which(FuncFormatter(told))


def _beside(axis: str, value: float, aside: float) -> float:
    """A value moved by at most a twentieth of it, `aside` from −½ to ½; hardness 0 by as little as can be seen."""
    if axis in ("kappa", "beta") and value == 0:
        return 0.04 * aside
    return value * (1 + 0.1 * aside)


def _arms(value: float, interval: Sequence[float]) -> tuple[float, float]:
    """How far an interval reaches below and above a value, which rounding may have put beside it."""
    return max(0.0, value - interval[0]), max(0.0, interval[1] - value)


def forest(name: str, rows: Sequence[tuple[str, float, tuple[float, float]]], first: str = "") -> Figure:
    """Differences to the first with their intervals, a line each, against none."""
    to = f" to {shortened(first, 40)}" if first else ""

    def draw(axes: Axes) -> None:
        for at, (_, value, (low, high)) in enumerate(rows):
            colour = GREY if low <= 0 <= high else COLOURS[4] if value > 0 else COLOURS[2]
            axes.errorbar(
                [value], [at], xerr=[[arm] for arm in _arms(value, (low, high))], fmt="o", capsize=3, color=colour
            )
        axes.axvline(0, color=INK, lw=1)
        axes.set_yticks(range(len(rows)), [shortened(label, 40) for label, *_ in rows])
        axes.set(xlabel=f"difference{to}, 95 % interval", ylim=(len(rows) - 0.5, -0.5))

    return Figure(name, "Differences with their intervals", draw, (6.0, 0.9 + 0.35 * len(rows)))


def lines(name: str, alt: str, of: Mapping[str, Values], xlabel: str, ylabel: str) -> Figure:
    """Curves over steps."""

    def draw(axes: Axes) -> None:
        for label, values in of.items():
            axes.plot(range(1, len(values) + 1), values, label=label, lw=1)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if len(of) > 1:
            axes.legend()

    return Figure(name, alt, draw)


def scatter(
    name: str, points: NDArray[np.float64], colours: Sequence[str], alt: str, classes: Mapping[str, str]
) -> Figure:
    """A map (n, 2), a colour a point; classes: the colour of each, the largest first. Of many the first ones are named."""
    named = list(classes)[: len(COLOURS) if len(classes) > NAMED else NAMED]
    rest = len(classes) - len(named)

    def draw(axes: Axes) -> None:
        size = max(0.3, 12 / (1 + len(points) / 500))
        axes.scatter(points[:, 0], points[:, 1], s=size, c=list(colours), linewidths=0, rasterized=True)
        axes.set_axis_off()
        dots = [axes.scatter([], [], s=20, c=classes[each]) for each in named] + axes.plot([], [], " ") * bool(rest)
        told = [shortened(each, 29) for each in named]
        told += [f"and {rest:,} smaller classes, whose\ncolours are hard to tell apart"] * bool(rest)
        if classes:
            axes.legend(dots, told, loc="upper left", bbox_to_anchor=(1, 1), fontsize=7)

    return Figure(name, alt, draw, (7.0 if classes else 5.0, 5.0))
