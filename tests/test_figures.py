"""Maps keep neighbourhoods, plots have their points, and what a page carries unpacks."""

import base64
import gzip
import io
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

from retrieval.errors import UserError
from retrieval.eval.report.figures import COLOURS, forest, hardness, heat, histogram, lines, spectrum
from retrieval.eval.report.layout import on_a_plane
from retrieval.eval.report.pictures import STEPS, colour, pack_map


def blobs(count, dim=16, classes=8, seed=0, spread=0.7):
    """Unit vectors (count, dim) in classes that overlap, and their codes."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, classes, count)
    x = rng.normal(size=(classes, dim))[codes] + spread * rng.normal(size=(count, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), codes


def test_pca_is_scikit_learns():
    vectors, _ = blobs(200)
    found, other = on_a_plane(vectors, "pca"), PCA(2).fit_transform(vectors)
    other = (other - other.min(0)) / (other.max(0) - other.min(0))
    for axis in range(2):
        assert (
            min(np.abs(found[:, axis] - other[:, axis]).max(), np.abs(1 - found[:, axis] - other[:, axis]).max()) < 1e-4
        )


@pytest.mark.parametrize("way", ["tsne", "umap"])
def test_maps_keep_neighbourhoods(way, monkeypatch):
    """Also of items that are placed among landmarks; a map of shuffled items does not."""
    pytest.importorskip("umap" if way == "umap" else "sklearn")
    from retrieval.eval.report import layout

    monkeypatch.setattr(layout, "LANDMARKS", 300)
    vectors, codes = blobs(600)
    points = on_a_plane(vectors, way)
    assert points.shape == (600, 2) and points.min() >= 0 and points.max() <= 1
    assert trustworthiness(vectors, points, metric="cosine") > 0.85
    assert trustworthiness(vectors, points[np.random.default_rng(0).permutation(600)], metric="cosine") < 0.6
    centres = np.stack([np.median(points[codes == code], axis=0) for code in range(8)])
    nearest = ((points[:, None] - centres) ** 2).sum(2).argmin(1)
    assert (nearest == codes).mean() > 0.95


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_few_items_have_a_map_too(count):
    vectors, _ = blobs(count)
    assert np.isfinite(on_a_plane(vectors)).all()


def test_one_dimension_has_a_map_too():
    assert np.isfinite(on_a_plane(blobs(50, dim=1)[0])).all()


def test_umap_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(UserError, match=r"\[umap\]"):
        on_a_plane(blobs(50)[0], "umap")


@pytest.mark.parametrize("told", ["a text of some length, number {}", "x" * 400 + "{}"])
def test_a_packed_map_unpacks(told):
    vectors, codes = blobs(50)
    xy = on_a_plane(vectors, "pca")
    packed = pack_map(
        [xy, 1 - xy], codes, [f"c{i}" for i in range(8)], [told.format(i) for i in range(50)], None, np.arange(50)
    )
    for side, points in zip(packed["points"], (xy, 1 - xy), strict=True):
        found = np.frombuffer(gzip.decompress(base64.b64decode(side)), "<u2").reshape(-1, 2)
        assert np.abs(found / STEPS - points).max() <= 0.5 / STEPS
    assert np.array_equal(np.frombuffer(gzip.decompress(base64.b64decode(packed["classes"])), "<u4"), codes)
    texts = gzip.decompress(base64.b64decode(packed["texts"])).decode().split("\n")
    assert texts == [told.format(i)[:140] for i in range(50)]


def test_classes_have_colours_of_their_own():
    assert len({colour(rank) for rank in range(60)}) == 60 and colour(0) == COLOURS[0]


# Figures

POINTS = [
    {"label": f"hcl {k}", "method": "hcl", "setting": {"kappa": k, "temperature": t}, "mean": 0.5 + k / 100, "interval": (0.4, 0.6)}
    for k in (0.0, 2.0, 8.0) for t in (0.1, 0.2)
]  # fmt: skip
POINTS.append(
    {"label": "infonce", "method": "infonce", "setting": {"temperature": 0.1}, "mean": 0.45, "interval": (0.4, 0.5)}
)
FIGURES = [
    histogram("histogram", {"of one class": np.ones(4) / 4, "of two": np.ones(4) / 4}, np.linspace(-1, 1, 5), "alt"),
    spectrum("spectrum", {"a": [3.0, 2.0, 0.0], "b": [1.0, 0.5, 0.1]}),
    heat("heat", ["a", "a class with a very long name indeed"], np.array([[0.9, 0.1], [0.0, 1.0]])),
    hardness("hardness", POINTS, "map@r"),
    hardness("temperature", [p | {"setting": {"temperature": p["setting"]["temperature"]}} for p in POINTS], "map@r"),
    spectrum("flat", {"a": [1.0, 0.7, 0.4]}),
    hardness("adaptive", [POINTS[0] | {"setting": {"kappa": k / 2}} for k in range(20)], "map@r"),
    forest("forest", [("b, map@r", 0.1, (0.05, 0.15)), ("c, map@r", -0.01, (-0.05, 0.02))]),
    lines("lines", "alt", {"loss": [3.0, 2.0]}, "step", "loss"),
]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_figures_are_svg_and_png(figure):
    assert ET.fromstring(figure.svg()).tag.endswith("svg")
    inline = figure.svg(themed=True)
    assert ET.fromstring(inline).attrib["aria-hidden"] == "true" and "var(--ink)" in inline
    assert not re.search(r' id="[a-z]+\d*_\d+"', inline)
    assert "$" not in inline  # of formulas, which are not parsed
    assert Image.open(io.BytesIO(figure.png())).size[0] > 300
    assert figure.svg() == figure.svg() and figure.alt


def test_the_hardness_curve_has_its_points():
    axes = Canvas().subplots()
    hardness("h", POINTS, "map@r").draw(axes)
    curves = [container.lines[0] for container in axes.containers]
    assert len(curves) == 2 and all(len(curve.get_xdata()) == 3 for curve in curves)
    assert sorted(y for curve in curves for y in curve.get_ydata()) == sorted(p["mean"] for p in POINTS[:-1])
    flat = [line for line in axes.lines if list(line.get_ydata()) == [0.45, 0.45]]
    assert len(flat) == 1 and flat[0].get_label() == "infonce"
    assert axes.get_xlabel() == "hardness κ" and "map@r" in axes.get_ylabel()


@pytest.mark.parametrize(
    "axis,values", [("temperature", (0.05, 0.1)), ("kappa", (0.0, 1.0, 2.0)), ("tau_plus", (0.0, 0.1))]
)
def test_points_that_stand_beside_each_other_stay_near_their_place(axis, values):
    points = [
        {"label": m, "method": m, "setting": {axis: v}, "mean": 0.5, "interval": (0.4, 0.6)}
        for m in "abcde"
        for v in values
    ]
    axes = Canvas().subplots()
    hardness("h", points, "map@r").draw(axes)
    for container in axes.containers:
        for x, value in zip(container.lines[0].get_xdata(), values, strict=True):
            assert abs(x - value) <= max(0.05 * value, 0.02)
    star = next(line for line in axes.lines if line.get_marker() == "*")
    assert star.get_xdata()[0] == axes.containers[0].lines[0].get_xdata()[0]


@pytest.mark.parametrize("values", [[1.0, 0.1, 1e-3, 1e-6], [1.0, 0.7, 0.35], [1.0, 0.5, 0.01]])
def test_numbers_of_a_logarithmic_axis_neither_overlap_nor_are_missing(values):
    canvas = Canvas(figsize=(5.0, 2.8), layout="constrained")
    axes = canvas.subplots()
    spectrum("s", {"a": values}).draw(axes)
    canvas.draw_without_rendering()
    ticks = [*axes.yaxis.get_major_ticks(), *axes.yaxis.get_minor_ticks()]
    told = {tick.label1.get_text(): tick.label1.get_window_extent() for tick in ticks if tick.label1.get_text()}
    low, high = axes.get_ylim()
    boxes = sorted((box.y0, box.y1) for name, box in told.items() if low <= float(name) <= high)
    assert len(boxes) >= 3
    assert all(upper >= lower for (_, lower), (upper, _) in pairwise(boxes))


def test_the_star_of_a_sweep_has_the_colour_of_no_curve():
    axes = Canvas().subplots()
    points = [POINTS[0] | {"setting": {"kappa": k, "temperature": t}} for k in (0.0, 2.0) for t in (0.1, 0.2, 0.3)]
    hardness("h", points, "map@r").draw(axes)
    star = next(line for line in axes.lines if line.get_marker() == "*")
    assert star.get_color() not in [container.lines[0].get_color() for container in axes.containers]


def test_names_of_classes_and_systems_are_on_one_line():
    drawn = heat("heat", ["two\n\tlines", "b"], np.eye(2)).svg()
    assert ">two lines</text>" in drawn
    drawn = forest("forest", [("n" * 200 + ", r@1", 0.1, (0.05, 0.15))], "a").svg()
    assert "n" * 41 not in drawn and "difference to a, 95 % interval" in drawn
