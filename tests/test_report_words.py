"""What a report says in words, and that it is so."""

import re

import numpy as np

from retrieval.eval.report.artifacts import run_section
from retrieval.eval.report.items import Items, items_section
from retrieval.eval.report.page import interval, render


def test_a_metric_is_explained_without_the_line_before_it():
    metrics = {
        name: {"before": 0.1, "after": 0.2, "difference": 0.1, "interval": (0.0, 0.2), "verdict": "better"}
        for name in ("r@1", "map@r")
    }
    section = run_section("run", {}, {"general": {"queries": 3, "metrics": metrics}}, [{"loss": 1.0}])
    page = render("t", "", [section], "")
    assert "the same," not in page and "what the encoder forgot" in page


def test_what_is_not_judged_by_labels_is_not_told_so(clusters):
    vectors, _ = clusters
    few = [Items("x", vectors[:4], ["only"] * 4, list("abcd"))]
    section = items_section("x", "", few)
    page = render("t", "", [section], "")
    assert "How near the nearest item is" in page and "of two classes" not in page and "with the nearest item" in page
    assert section.values["map"]["way"] == "pca" and "(PCA)" in page and "t-SNE" not in page


def test_the_matrix_shows_who_is_mixed_up_with_whom():
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(20), 10)  # ten pairs of classes that lie together
    vectors = rng.normal(size=(10, 16))[codes // 2] + 0.3 * rng.normal(size=(200, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    section = items_section(
        "x", "", [Items("x", vectors, [f"c{c}_" for c in codes], [str(i) for i in range(200)])], way="pca"
    )
    drawn = section.figures["confusion"].svg()
    shown = {f"c{c}_" for c in range(20) if f">c{c}_</text>" in drawn}
    partners = [(each["query"], each["neighbor"]) for each in section.values["sides"][0]["confusion"]]
    assert len(shown) == 14
    assert all(any({name} < {*pair} <= shown for pair in partners) for name in shown)


def test_intervals_have_the_digits_of_their_means():
    assert interval((0.99988, 1.0), 4) == "0.9999–1.0000"
    assert interval((-0.065, -0.058)) == "−0.065 to −0.058" and interval((0.1, 0.2)) == "0.100–0.200"


def test_a_comparison_says_on_the_page_what_it_said_in_the_terminal(tmp_path, run_cli):
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(3), 40)
    vectors = rng.normal(size=(3, 8))[codes] + rng.normal(size=(120, 8))
    for name, x in (("a", vectors), ("b", vectors + 2 * rng.normal(size=(120, 8)))):
        np.save(tmp_path / f"{name}.npy", (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32))
    (tmp_path / "labels.txt").write_text("\n".join(f"c{c}" for c in codes))
    sides = [f"{name}={tmp_path / name}.npy" for name in "ab"]
    done = run_cli(
        "eval", "compare", *sides, "--labels", tmp_path / "labels.txt", "--metric", "cosine", "--output", tmp_path / "c"
    )
    (note,) = re.findall("Note: (.* not of other classes .*)", done.stderr)
    run_cli("report", tmp_path / "c", "--output", tmp_path / "r.html")
    assert note in (tmp_path / "r.html").read_text("utf-8")
