"""`retrieval eval clusters` as people use it: stores and files, labels of every kind, mistakes in one line."""

import json

import numpy as np
import pytest
from test_cli import read_json

from retrieval.artifact import read_manifest
from retrieval.cli.evaluated import KIND
from retrieval.eval.clusters import evaluate_clusters
from retrieval.eval.values import read_per_query
from retrieval.store import Held, Kind, Rows, create, delete


@pytest.fixture
def files(clusters, tmp_path, monkeypatch):
    """vectors.npy and labels.txt of the clusters, and some broken ones."""
    monkeypatch.chdir(tmp_path)
    vectors, labels = clusters
    np.save("vectors.npy", vectors)
    for name, rows in (("one.npy", slice(60, None)), ("other.npy", slice(60))):
        np.save(name, vectors[rows])
    (tmp_path / "one.txt").write_text("\n".join(labels[60:]))
    (tmp_path / "other.txt").write_text("\n".join(labels[:60]))
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    (tmp_path / "fewer.txt").write_text("\n".join(labels[1:]))
    (tmp_path / "same.txt").write_text("\n".join(["a"] * 120))
    (tmp_path / "paths.txt").write_text("\n".join(f"{'ab'[i % 2]}/{label}" for i, label in enumerate(labels)))
    (tmp_path / "sets.txt").write_text(
        "\n".join(f"{label}|{'even' if i % 2 else 'odd'}" for i, label in enumerate(labels))
    )
    np.save("codes.npy", np.unique(labels, return_inverse=True)[1])
    np.save("floats.npy", np.ones(120))
    broken = vectors.copy()
    broken[3] = np.nan
    np.save("nan.npy", broken)
    np.save("flat.npy", np.tile(vectors[:1], (120, 1)))
    return tmp_path


WORDS = ("eval", "clusters", "vectors.npy", "--metric", "cosine", "--labels")


def test_a_file_of_vectors_and_what_is_written(files, clusters, run_cli):
    told = read_json(run_cli(*WORDS, "labels.txt", "--output", "judged", "--json"))
    found = evaluate_clusters(*clusters)
    assert told["metrics"] == pytest.approx(found.means())
    low, high = told["intervals"]["map@r"]
    assert low < told["metrics"]["map@r"] < high
    assert [each["class"] for each in told["per_class"]] == [f"class-{c}" for c in range(6)]
    by_class = [each["map@r"] for each in told["per_class"]]
    assert told["macro"]["map@r"] == pytest.approx(np.mean(by_class)) == pytest.approx(told["metrics"]["map@r"])
    assert len(told["nearest_classes"]) == 2 and len(told["spectrum"]) == 16
    manifest = json.loads((files / "judged" / "manifest.json").read_text())
    assert manifest["kind"] == KIND and manifest["evaluation"]["metrics"] == told["metrics"]
    assert read_per_query(files / "judged" / "queries.csv").means()["map@r"] == told["metrics"]["map@r"]
    assert "already exists" in run_cli(*WORDS, "labels.txt", "--output", "judged", code=2).stderr
    again = read_json(run_cli(*WORDS, "codes.npy", "--output", "judged", "--overwrite", "--json"))
    assert again["metrics"] == told["metrics"]


def test_for_people(files, run_cli):
    shown = run_cli(*WORDS, "labels.txt").stdout
    assert (
        "95 % interval" in shown
        and "classes that cluster least" in shown
        and "120 queries among 120 items of 6" in shown
    )
    assert (
        "queries have two nearest neighbours equally near"
        in run_cli("eval", "clusters", "flat.npy", "--metric", "cosine", "--labels", "labels.txt", "--runs", 0).stdout
    )


def test_one_of_a_kind_is_told_in_the_singular(tmp_path, run_cli):
    """c is as near to a as to b; d is alone in its class."""
    found = np.array([[-1, 0], [1, 0], [0, 0.5], [0, 9]], np.float32)
    np.save(tmp_path / "v.npy", found)
    (tmp_path / "l.txt").write_text("x\nx\nx\ny")
    words = (
        "eval",
        "clusters",
        tmp_path / "v.npy",
        "--metric",
        "euclidean",
        "--labels",
        tmp_path / "l.txt",
        "--runs",
        0,
    )
    shown = run_cli(*words).stdout
    assert "\n1 item shares its class with no other and is no query\n" in shown
    assert "\n1 query has two nearest neighbours equally near;" in shown


def test_labels_of_other_kinds(files, run_cli):
    levels = read_json(run_cli(*WORDS, "paths.txt", "--hierarchy", "/", "--json"))["levels"]
    assert [(level["level"], level["classes"]) for level in levels] == [(1, 2), (2, 12)]
    several = read_json(run_cli(*WORDS, "sets.txt", "--separator", "|", "--json"))
    assert "ami" not in several["metrics"] and several["metrics"]["r@1"] > 0.5 and "per_class" not in several
    assert "level 2, 12 classes" in run_cli(*WORDS, "paths.txt", "--hierarchy", "/").stdout


def test_a_reference_a_sample_and_a_probe(files, run_cli):
    words = ["eval", "clusters", "one.npy", "--labels", "one.txt", "--metric", "cosine"]
    apart = run_cli(*words, "--reference", "other.npy", "--reference-labels", "other.txt", code=2)
    assert "shares its class" in apart.stderr  # the first three classes, and the last three
    whole = ["--reference", "vectors.npy", "--reference-labels", "labels.txt", "--json"]
    assert read_json(run_cli(*words, *whole))["metrics"]["r@1"] == 1
    some = read_json(run_cli(*WORDS, "labels.txt", "--sample", 40, "-k", 3, "--probe", "--json"))
    assert some["counts"]["queries"] == 40 and {"r@3", "linear-probe", "nc3", "nc4"} <= set(some["metrics"])


@pytest.mark.parametrize("peer,metric", [("pml", "precision_at_1"), ("oml", "cmc/1"), ("dino", "20-NN top1")])
def test_other_tools_figures(files, run_cli, peer, metric):
    assert metric in read_json(run_cli(*WORDS, "labels.txt", "--like", peer, "--json"))["metrics"]
    assert metric in run_cli(*WORDS, "labels.txt", "--like", peer).stdout


def test_a_comparison_is_kept_and_a_damaged_evaluation_is_said(files, run_cli):
    for name in ("a", "b"):
        run_cli(*WORDS, "labels.txt", "--output", name)
    told = read_json(run_cli("eval", "compare", "a", "b", "--output", "compared", "--json"))
    kept = read_manifest(files / "compared", KIND)
    assert kept["of"] == "compare" and kept["evaluation"] == told and not kept["files"]
    assert "is a comparison" in run_cli("eval", "compare", "a", "compared", code=2).stderr
    assert "already exists" in run_cli("eval", "compare", "a", "b", "--output", "compared", code=2).stderr
    manifest = files / "a" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("map@r", "map@s"))
    assert "a/manifest.json: damaged or edited by hand" in run_cli("eval", "compare", "a", "b", code=2).stderr


def test_few_queries_are_said(files, run_cli):
    assert "20 queries are few" in run_cli(*WORDS, "labels.txt", "--sample", 20).stdout
    assert "queries are few" not in run_cli(*WORDS, "labels.txt").stdout


@pytest.mark.parametrize(
    "words,message",
    [
        (["vectors.npy", "--labels", "labels.txt"], "add --metric"),
        (["vectors.npy", "--metric", "cosine"], "has no labels; add --labels"),
        ([*WORDS[2:], "fewer.txt"], "fewer.txt: has 119 labels, vectors.npy 120 vectors"),
        ([*WORDS[2:], "same.txt"], "only one class ('a')"),
        ([*WORDS[2:], "floats.npy"], "floats.npy: holds float64"),
        ([*WORDS[2:], "labels.txt", "-k", "120"], "there are only 119 other items"),
        ([*WORDS[2:], "labels.txt", "--separator", "|", "--hierarchy", "/"], "give one of --separator and --hierarchy"),
        ([*WORDS[2:], "labels.txt", "--reference-labels", "labels.txt"], "--reference, which is not given"),
        ([*WORDS[2:], "sets.txt", "--like", "pml", "--separator", "|"], "--separator: --like pml judges one set of items"),
        ([*WORDS[2:], "labels.txt", "--like", "pml", "--output", "x"], "--output: --like pml judges"),
        ([*WORDS[2:], "sets.txt", "--probe", "--separator", "|"], "--probe: needs one label"),
        ([*WORDS[2:], "labels.txt", "--separator", "|"], "--separator '|': no label has it, such as 'class-0'"),
        ([*WORDS[2:], "labels.txt", "--reference", "one.npy"], "one.npy: has no labels; add --reference-labels FILE"),
        ([*WORDS[2:], "labels.txt", "--like", "mteb", "--metric", "euclidean"], "say --metric cosine"),
        (["nan.npy", *WORDS[3:], "labels.txt"], "nan.npy: 1 of 120 vectors are not finite, the first in row 3"),
        (["labels.txt", *WORDS[3:], "labels.txt"], "cannot tell the format by its ending"),
    ],
)  # fmt: skip
def test_mistakes(files, run_cli, words, message):
    shown = run_cli("eval", "clusters", *words, code=2).stderr
    assert message in shown and len(shown.strip().splitlines()) == 1


def test_a_store_without_rows_is_refused(tmp_path, run_cli):
    rows = Rows(np.eye(3, dtype=np.float32), ["a", "b", "c"], ["x", "x", "y"])
    for name in ("empty", "queries"):
        create(tmp_path / name, Held(rows), Kind(3))
    run_cli("index", "build", tmp_path / "empty", "--output", tmp_path / "index")
    delete(tmp_path / "empty", ["a", "b", "c"])
    run_cli("index", "remove", tmp_path / "index", "--id", "a", "--id", "b", "--id", "c")
    (tmp_path / "qrels").write_text("a 0 a 1\n")
    judged = ["eval", "relevance", "--qrels", tmp_path / "qrels", "--queries", tmp_path / "queries", "--corpus"]
    for words in (["eval", "clusters"], judged):
        for name in ("empty", "index"):
            assert f"{name}: has no rows" in run_cli(*words, tmp_path / name, code=2).stderr


def test_equal_ids_of_other_items_are_said(files, clusters, run_cli):
    """Names such as cat/1.jpg and row numbers are alike in sets that have nothing in common."""
    vectors, labels = clusters
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"{label}/{row}.jpg" for row, label in enumerate(labels)]
    for folder, content in (("train", b"a"), ("test", b"b"), ("moved", b"a")):
        for name in names[:60]:
            (files / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (files / folder / name).write_bytes(content + name.encode())
        payload = {"path": [f"{folder}/{name}" for name in names]}
        create(folder + "-store", Held(Rows(unit, names, labels, payload)), Kind(unit.shape[1]))
    for name, word in (("one", "text"), ("other", "word")):
        create(name + "-texts", Held(Rows(unit, names, labels, {"text": [word] * 120})), Kind(unit.shape[1]))
    said = run_cli("eval", "compare", "train-store", "test-store").stderr
    assert (
        "Warning: class-0/0.jpg is 'train/class-0/0.jpg' in train-store and 'test/class-0/0.jpg' in test-store" in said
    )
    assert "Warning" not in run_cli("eval", "compare", "train-store", "moved-store").stderr
    said = run_cli("eval", "compare", "a=one-texts", "b=other-texts", "--json").stderr
    assert "is 'text' in one-texts and 'word' in other-texts: other items of the same ids" in said
    assert "Warning" not in run_cli("eval", "compare", "train-store", "one-texts").stderr
