"""The report: what it says is what was measured, it needs nothing else, and it works in a browser."""

import base64
import io
import json
import re
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from test_cli import read_json
from test_figures import blobs

from retrieval.errors import UserError
from retrieval.eval.clusters import evaluate_clusters
from retrieval.eval.compare import compare
from retrieval.eval.relevance import Run, evaluate_relevance, meanings
from retrieval.eval.report.figures import Figure
from retrieval.eval.report.items import Items, items_section
from retrieval.eval.report.page import Section, number, render, signed, write_figures
from retrieval.eval.report.pictures import colour
from retrieval.images import Images
from retrieval.samples import digits


@pytest.fixture
def sides(clusters):
    vectors, labels = clusters
    rng = np.random.default_rng(1)
    worse = vectors + 0.4 * rng.normal(size=vectors.shape).astype(np.float32)
    ids = [f"item {i}" for i in range(len(labels))]
    texts = [f"</script><b>{label}</b> & {i}" for i, label in enumerate(labels)]
    return [Items("before", worse, labels, ids, texts=texts), Items("after", vectors, labels, ids, texts=texts)]


def test_a_section_says_what_was_measured(sides):
    section = items_section("both", "", sides, way="pca")
    json.dumps(section.values)
    for side, told in zip(sides, section.values["sides"], strict=True):
        assert told["metrics"] == pytest.approx(evaluate_clusters(side.vectors, side.labels).means())
    runs = [[evaluate_clusters(side.vectors, side.labels, ids=side.ids).queries] for side in sides]
    found = {each["metric"]: each for each in section.values["differences"]}
    expected = compare(*runs, "map@r")
    assert found["map@r"]["difference"] == expected.difference and found["map@r"]["interval"] == expected.interval
    assert found["map@r"]["better"] and section.values["map"]["ids"] == sides[0].ids
    wrong = [hit for query in section.values["neighbours"] for f in query["found"] for hit in f["hits"]]
    for query in section.values["neighbours"]:
        for side in query["found"]:
            assert query["id"] not in [hit["id"] for hit in side["hits"]]
            assert all(hit["wrong"] == (hit["label"] != query["label"]) for hit in side["hits"])
    assert any(hit["wrong"] for hit in wrong)
    classes = [row["map@r"] for row in section.values["classes"]]
    assert classes == sorted(classes) and len(classes) == 6


def test_the_matrix_of_classes_is_what_a_loop_counts(sides):
    from retrieval.eval.report.items import _matrix

    side = sides[0]
    found = evaluate_clusters(side.vectors, side.labels)
    names = ["class-0", "class-3"]
    slow = np.zeros((2, 2))
    totals = np.zeros(2)
    for row, near, relevant in zip(found.rows, found.nearest.ids, found.relevant, strict=True):
        if side.labels[row] in names:
            own = names.index(side.labels[row])
            for other in near[: min(relevant, len(near))]:
                totals[own] += 1
                if side.labels[other] in names:
                    slow[own, names.index(side.labels[other])] += 1
    assert _matrix(found, names) == pytest.approx(slow / totals[:, None])


def test_progress_is_of_what_is_judged_and_of_what_comes_after(sides):
    """It counted items that a sample leaves out, and stood still, as if done, while k-means and the map were computed."""
    opened, told = [], []

    @contextmanager
    def stage(what, total):
        opened.append((what, total))
        yield lambda steps: told.append((what, steps))

    items_section("both", "", sides, way="pca", sample=50, stage=stage)
    of_a_side = [("judge", 50), ("k-means", 3)]
    assert opened == [*of_a_side, *of_a_side, ("map", 2)]
    done = {what: sum(steps for each, steps in told if each == what) for what in ("judge", "k-means", "map")}
    assert done == {"judge": 100, "k-means": 6, "map": 2}


def test_sides_must_be_of_the_same_items(sides):
    other = Items("other", sides[1].vectors, sides[1].labels, [f"x{i}" for i in range(120)])
    with pytest.raises(UserError, match="report them apart"):
        items_section("both", "", [sides[0], other], way="pca")


def test_items_without_labels_have_a_page(sides):
    plain = Items("plain", sides[0].vectors, None, sides[0].ids, texts=sides[0].texts)
    section = items_section("plain", "", [plain], way="pca")
    page = render("t", "", [section], "")
    assert (
        "There are no labels to judge by" in page and "sides" not in section.values and "with the nearest item" in page
    )


def test_texts_without_labels_are_told_by_themselves(sides):
    """Beside its text, an id is most often the number of a row."""
    bare = Items("bare", sides[0].vectors, None, sides[0].ids)
    pages = [
        render("t", "", [items_section("t", "", [side], way="pca")], "")
        for side in (bare, replace(bare, texts=["a"] * 120))
    ]
    assert ["<b><bdi>item " in page for page in pages] == [True, False]


def test_one_class_is_shown_and_not_judged(sides):
    same = Items("same", sides[0].vectors, ["a"] * 120, sides[0].ids)
    section = items_section("same", "", [same], way="pca")
    assert "only one class" in section.values["unjudged"] and "only one class" in render("t", "", [section], "")


def test_other_texts_are_other_items(sides):
    other = Items("other", sides[1].vectors, sides[1].labels, sides[1].ids, texts=["x"] * 120)
    assert not sides[0].same_items(other) and sides[0].same_items(sides[1])
    assert sides[0].same_items(Items("bare", sides[1].vectors, sides[1].labels, sides[1].ids))


def test_a_page_loads_nothing_and_runs_no_text(sides):
    page = render("<i>title</i>", "", [items_section("both <b>", "", sides, way="pca")], "foot")
    assert "default-src 'none'" in page and "<i>title" not in page and "both <b>" not in page
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert not re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", without_names)
    assert not re.findall(r"""(?:src|href)=["']?(?!data:|#)[^\s>"']+""", without_names)
    assert page.count("<script") == page.count("</script>") == 2  # the map's data and the page's own
    assert "</script><b>" not in page


def test_a_hundred_thousand_items_fit_in_five_megabytes():
    vectors, codes = blobs(100_000, dim=8, classes=50)
    rng = np.random.default_rng(0)
    words = np.array([f"{w:x}" for w in rng.integers(0, 2**40, 20_000)])  # as incompressible as texts can be
    texts = [" ".join(row) for row in words[rng.integers(0, 20_000, (100_000, 8))].tolist()]
    side = Items("many", vectors, [f"class {c}" for c in codes], [f"id-{i}" for i in range(100_000)], texts=texts)
    section = items_section("many", "", [side, side], way="pca", sample=200)
    page = render("t", "", [section], "").encode()
    assert section.shown["map"]["count"] == 100_000 and len(page) < 5_000_000
    assert section.shown["map"]["texts"] is not None


def test_pictures_are_shown(tmp_path):
    data = digits()
    images = Images(data.source[:60], data.labels[:60], "")
    vectors = data.source[:60].reshape(60, -1).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    section = items_section(
        "digits", "", [Items("pixels", vectors, images.labels, [str(i) for i in range(60)], pictures=images)]
    )
    page = render("t", "", [section], "")
    assert page.count('<img src="data:image/png') >= 40 and section.shown["map"]["sheet"]["points"] == list(range(60))
    sheet = base64.b64decode(section.shown["map"]["sheet"]["source"].split(",")[1])
    assert Image.open(io.BytesIO(sheet)).size == (8 * 32, 8 * 32)


def test_numbers_for_people():
    assert [number(x) for x in (0.0, 3, 12345.0, 0.12345, 0.00123, 147.31)] == [
        "0",
        "3",
        "12,345",
        "0.1235",
        "0.0012",
        "147.3",
    ]
    assert signed(-0.0012, 4) == "−0.0012" and signed(0.5) == "+0.500"


def test_figures_are_written(tmp_path, sides):
    section = items_section("both", "", sides, way="pca")
    names = write_figures(tmp_path, [section, Section("run", "r", {}, {"x": Figure("x", "alt", lambda axes: None)})])
    assert (
        sorted(names) == sorted(path.name for path in tmp_path.iterdir())
        and "02-r-x.png" in names
        and "01-both-map-0.svg" in names
    )


@pytest.mark.parametrize("classes,named", [(0, 0), (6, 6), (12, 12), (40, 10)])
def test_a_map_says_which_colour_is_which_class(classes, named):
    vectors, codes = blobs(400, dim=8, classes=max(classes, 2))
    labels = [f"_class ${c}" for c in codes] if classes else None
    section = items_section("x", "", [Items("x", vectors, labels, [str(i) for i in range(400)])], way="pca")
    drawn = section.figures["map0"].svg()
    assert drawn.count("_class $") == named and ("and 30 smaller classes" in drawn) == (classes == 40)
    colours = {name: colour(rank) for rank, name in enumerate(section.shown["map"]["names"][:named])}
    assert all(f">{name}</text>" in drawn and shade in drawn for name, shade in colours.items())


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_text_can_be_read_in_light_and_dark():
    """WCAG 2, 1.4.3: a contrast of at least 4.5 : 1."""
    page = render("t", "", [], "")
    themes = re.findall(r":root\{([^}]*)\}", page)
    assert len(themes) == 2
    for theme in themes:
        named = {
            k: (v if len(v) == 7 else "#" + "".join(2 * c for c in v[1:]))
            for k, v in re.findall(r"--(\w+):(#\w+)", theme)
        }
        for ink in ("ink", "soft", "good", "bad", "focus"):
            for ground in ("paper", "panel"):
                low, high = sorted((luminance(named[ink]), luminance(named[ground])))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


# The command


@pytest.fixture(scope="module")
def artifacts(text_path, texts, tmp_path_factory):
    """One of everything that a report can be of."""
    from click.testing import CliRunner

    from retrieval.cli import cli

    folder, _ = text_path
    made = tmp_path_factory.mktemp("report")
    index = folder / "index"
    (made / "qrels.txt").write_text("".join(f"{i} 0 {i + 1} 1\n" for i in range(10)))
    for words in (
        ["eval", "clusters", folder / "store", "--output", made / "clusters"],
        ["eval", "recall", index, "-k", 5, "--output", made / "recall"],
        ["eval", "relevance", "--qrels", made / "qrels.txt", "--queries", folder / "store", "--corpus", folder / "store", "--output", made / "relevance"],
        ["eval", "compare", f"a={made / 'clusters'}", f"b={made / 'clusters'}", "--output", made / "compared"],
        ["sweep", "--data", texts, "--model", folder / "run", "--steps", 2, "--kappa", "0,2", "--seeds", 1, "--device", "cpu", "--output", made / "sweep"],
    ):  # fmt: skip
        done = CliRunner().invoke(cli, [str(word) for word in words])
        assert done.exit_code == 0, done.output
    return folder, made


def test_a_report_of_everything(artifacts, run_cli, tmp_path):
    folder, made = artifacts
    sources = [
        folder / "store",
        folder / "run",
        folder / "index",
        *(made / n for n in ("clusters", "recall", "relevance", "compared", "sweep")),
    ]
    told = read_json(
        run_cli(
            "report", *sources, "--map", "pca", "--output", tmp_path / "r.html", "--figures", tmp_path / "f", "--json"
        )
    )
    kinds = [each["kind"] for each in told["sections"]]
    # Store and index: the same items.
    assert kinds == ["items", "run", "clusters", "recall", "relevance", "comparison", "sweep"]
    assert told["sections"][0]["names"] == [str(folder / "store"), str(folder / "index")]
    assert len(told["sections"][0]["sides"]) == 1 and told["sections"][0]["differences"] == []  # the same vectors, once
    assert told["sections"][0]["note"].startswith(f"{folder / 'index'}: Flat, recall@10 1")
    page = (tmp_path / "r.html").read_text("utf-8")
    assert re.search(r"Made by retrieval report on \d{4}-\d\d-\d\d\.", page) and "Examples, not a measure" in page
    (trained_on,) = told["sections"][1]["config"]["data"]
    assert f"<dt>data</dt><dd>{trained_on}</dd>" in page
    assert told["bytes"] == len(page.encode()) < 5_000_000
    assert {path.name for path in (tmp_path / "f").iterdir()} == set(told["figures"]) and len(told["figures"]) > 15
    judged = read_json(run_cli("eval", "clusters", folder / "store", "--json"))
    assert told["sections"][0]["sides"][0]["metrics"] == pytest.approx(judged["metrics"])
    assert f"{judged['metrics']['map@r']:.3f}" in page
    assert told["sections"][6]["recommended"]["command"] in page.replace("&#39;", "'").replace("&#34;", '"')


def test_runs_of_others_and_items_of_several_labels(artifacts, clusters, run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.run").write_text("0 Q0 1 1 0.5 x\n1 Q0 3 1 0.5 x\n")
    run_cli("eval", "relevance", "--qrels", artifacts[1] / "qrels.txt", "--run", "a.run", "--output", "ranked")
    np.save("v.npy", clusters[0])
    (tmp_path / "l.txt").write_text("\n".join(f"{label}|{i % 2}" for i, label in enumerate(clusters[1])))
    words = ["eval", "clusters", "v.npy", "--labels", "l.txt", "--metric", "cosine", "--separator", "|"]
    run_cli(*words, "--output", "several")
    run_cli("report", "ranked", "several", "--output", "r.html")
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "no class" not in page
    assert page.count("share of the first k that is of the same class") == 1
    # What its metrics mean.
    assert page.count("share of the first k that is relevant") == 1 and "Means over queries" in page
    measured = evaluate_relevance({"q": {"d": 1}}, Run({"q": {"d": 1.0}}, 0)).queries.values
    assert {name for name in measured if name.endswith("@1")} == set(meanings(measured))
    store = artifacts[0] / "store"
    assert (
        "nothing here is without labels"
        in run_cli("report", store, "--labels", "l.txt", "--output", "s.html", code=2).stderr
    )
    assert "is of texts" in run_cli("report", store, "--images", "l.txt", "--output", "s.html", code=2).stderr


def test_files_of_vectors_and_pictures(pictures, clusters, run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vectors, labels = clusters
    np.save("v.npy", vectors)
    (tmp_path / "l.txt").write_text("\n".join(labels))
    told = read_json(
        run_cli(
            "report", "v.npy", "--labels", "l.txt", "--metric", "cosine", "--map", "pca", "--output", "v.html", "--json"
        )
    )
    assert told["sections"][0]["sides"][0]["counts"]["classes"] == 6
    told = read_json(run_cli("report", "v.npy", "--metric", "cosine", "--map", "pca", "--output", "u.html", "--json"))
    assert "sides" not in told["sections"][0]
    run_cli(
        "train", "image", "--data", pictures, "--model", "small", "--steps", 1, "--device", "cpu", "--output", "run"
    )
    run_cli("embed", "--encoder", "run", "--data", pictures, "--device", "cpu", "--output", "store")
    run_cli("report", "store", "--map", "pca", "--output", "p.html")
    assert "data:image/png" in (tmp_path / "p.html").read_text()
    run_cli("report", "store", "--images", pictures, "--map", "pca", "--output", "p.html", "--overwrite")
    (tmp_path / "none").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "none" / "a.png")
    assert "has no picture" in run_cli("report", "store", "--images", "none", "--output", "q.html", code=2).output


@pytest.mark.parametrize(
    "words,message",
    [
        (["absent"], "no such file or folder"),
        (["v.npy"], "does not say how its vectors are compared"),
        (["v.npy", "--metric", "cosine", "--labels", "few.txt"], "has 2 labels"),
        (["here"], "not a retrieval store"),
        (["v.npy", "--metric", "cosine", "--output", "old.html"], "already exists"),
        (["nan.npy", "--metric", "cosine"], "not finite"),
        (["=v.npy"], "has no name before the sign"),
        (["v.npy", "v.npy"], "v.npy: is given twice"),
        (["v.npy", "--metric", "cosine", "--figures", "full"], "is not empty"),
    ],
)
def test_mistakes_are_one_line(clusters, run_cli, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    np.save("v.npy", clusters[0])
    broken = clusters[0].copy()
    broken[1] = np.nan
    np.save("nan.npy", broken)
    (tmp_path / "few.txt").write_text("a\nb")
    (tmp_path / "old.html").write_text("")
    (tmp_path / "here").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    extra = [] if "--output" in words else ["--output", "r.html"]
    assert message in run_cli("report", *words, *extra, code=2).output.strip().splitlines()[-1]


def test_a_comma_belongs_to_the_path(clusters, run_cli, tmp_path, monkeypatch):
    """Of several paths under one name, which `eval compare` has, a page would show only the last."""
    monkeypatch.chdir(tmp_path)
    np.save("a,b.npy", clusters[0])
    words = ["--metric", "cosine", "--map", "pca", "--overwrite", "--output", "r.html"]
    assert read_json(run_cli("report", "x=a,b.npy", *words, "--json"))["sections"][0]["names"] == ["x"]
    np.save("c.npy", clusters[0])
    assert "no such file" in run_cli("report", "x=c.npy,c.npy", *words, code=2).stderr


def test_a_change_among_three_says_of_which(sides):
    page = render(
        "t",
        "",
        [
            items_section(
                "x", "", [*sides, replace(sides[0], name="last", vectors=sides[0].vectors[:, ::-1].copy())], way="pca"
            )
        ],
        "",
    )
    assert "change, before to last" in page
