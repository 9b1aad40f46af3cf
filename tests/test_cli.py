"""The command line as people and scripts use it: whole paths on real data."""

import json
import re
import shutil

import click
import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer

from retrieval.cli import cli
from retrieval.data import read_texts
from retrieval.encoder import MINILM

METRICS = {"r@1", "r@10", "r-precision", "map@r", "knn@20", "nmi", "ami", "ari", "n", "classes", "singletons"}


def commands(group=cli, words=()):
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


def read_json(result):
    """The one JSON object on stdout."""
    assert len(result.stdout.strip().splitlines()) == 1
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    "words,command", list(commands()), ids=lambda value: str(value) if type(value) is str else None
)
def test_help_has_an_example_that_parses(run_cli, words, command):
    shown = run_cli(*words, "--help").output
    assert re.search(r"Examples?:", shown) and "--json" in shown and "--config" in shown
    example = next(line for line in shown.splitlines() if line.strip().startswith(f"retrieval {' '.join(words)}"))
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in example.split() if word.startswith("-")} <= known


def test_texts_from_training_to_search(text_path, texts, run_cli):
    folder, (trained, embedded, built) = text_path
    judged_by = trained["metrics"]["held-out"]["metrics"]
    assert trained["steps"] == 40 and set(judged_by) == {"r@1", "map@r", "knn@20"}
    assert judged_by["map@r"]["difference"] > 0.05 and judged_by["map@r"]["verdict"] == "better"
    assert set(trained["metrics"]["general"]["metrics"]) == set(judged_by)
    assert embedded["encoder"]["fingerprint"] == trained["fingerprint"] and embedded["skipped"] == 0
    assert (built["count"], built["dim"], built["factory"]) == (embedded["count"], 384, "Flat")
    assert built["measured"]["recall"] == 1.0
    text = read_texts(texts).texts[0]
    hits = read_json(
        run_cli("search", folder / "index", "--encoder", folder / "run", "--query", text, "-k", 3, "--json")
    )["results"][0]["hits"]
    assert len(hits) == 3 and hits[0]["text"] == text and hits[0]["score"] == pytest.approx(1, abs=1e-5)
    by_store = read_json(run_cli("search", folder / "index", "--store", folder / "store", "-k", 1, "--json"))["results"]
    assert len(by_store) == embedded["count"] and by_store[0]["hits"][0]["text"] == text
    judged = read_json(run_cli("eval", "clusters", folder / "store", "--json"))
    metrics = judged["metrics"]
    assert {*metrics, *judged["counts"]} >= METRICS
    assert metrics["map@r"] == pytest.approx(judged_by["map@r"]["after"], abs=1e-6)
    info = read_json(run_cli("index", "info", folder / "index", "--check", "--json"))
    assert info["encoder"]["fingerprint"] == trained["fingerprint"]
    plain = SentenceTransformer(str(folder / "run"), device="cpu")
    assert plain.encode([text]).shape == (1, 384)


def test_output_for_people(text_path, run_cli):
    folder, _ = text_path
    found = run_cli(
        "search", folder / "index", "--query", "sort a list", "--query", "a lock", "-k", 2
    ).stdout.splitlines()
    assert found[0] == "sort a list" and found[3] == "a lock" and found[1].startswith("  1  0.")
    assert "map@r" in run_cli("eval", "clusters", folder / "store").stdout
    assert "cosine" in run_cli("index", "info", folder / "index").stdout


def test_pictures_from_training_to_search(pictures, run_cli, tmp_path):
    run, store, index = tmp_path / "run", tmp_path / "store", tmp_path / "index"
    run_cli(
        "train", "image", "--data", pictures, "--model", "small", "--steps", 30, "--batch-size", 40, "--output", run
    )
    assert (
        read_json(run_cli("embed", "--encoder", run, "--data", pictures, "--output", store, "--json"))["count"] == 200
    )
    run_cli("index", "build", store, "--output", index)
    one = sorted((pictures / "3").iterdir())[0]
    result = read_json(run_cli("search", index, "--encoder", run, "--image", one, "-k", 5, "--json"))["results"][0]
    assert result["query"] == str(one) and result["hits"][0]["id"] == f"3/{one.name}"
    assert result["hits"][0]["path"] == str(one)
    raw = np.stack([np.asarray(Image.open(p), float).ravel() for p in sorted(pictures.rglob("*.png"))])
    assert read_json(run_cli("eval", "clusters", store, "--json"))["counts"]["n"] == len(raw)
    # The folder fine-tunes further: any vision encoder in sentence-transformers' format is a model to start from.
    run_cli(
        "train",
        "image",
        "--data",
        pictures,
        "--model",
        run,
        "--steps",
        2,
        "--batch-size",
        20,
        "--output",
        tmp_path / "2",
    )


def test_a_vision_model_of_transformers_trains(pictures, run_cli, tmp_path):
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    ViTModel(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    flags = ["--steps", 3, "--batch-size", 20, "--augment", "simclr", "--output", tmp_path / "run"]
    result = read_json(run_cli("train", "image", "--data", pictures, "--model", tmp_path / "vit", *flags, "--json"))
    assert result["steps"] == 3
    assert SentenceTransformer(str(tmp_path / "run"), device="cpu").encode(Image.new("RGB", (9, 9))).shape == (32,)


def test_unlabelled_pictures_and_skipped_ones(pictures, run_cli, tmp_path):
    loose = tmp_path / "loose"
    loose.mkdir()
    for path in sorted(pictures.rglob("*.png"))[:30]:
        (loose / path.name).write_bytes(path.read_bytes())
    (loose / "broken.png").write_bytes(b"not a picture")
    train = ["train", "image", "--data", loose, "--model", "small", "--steps", 2, "--batch-size", 8, "--output"]
    refused = run_cli(*train, tmp_path / "run", code=2)
    assert "broken.png: is not an image" in refused.output and not (tmp_path / "run").exists()
    run_cli(*train, tmp_path / "run", "--skip-bad")
    embedded = ["embed", "--encoder", tmp_path / "run", "--data", loose, "--output", tmp_path / "store"]
    assert "broken.png: is not an image" in run_cli(*embedded, code=2).output and not (tmp_path / "store").exists()
    result = run_cli(*embedded, "--skip-bad", "--json")
    assert read_json(result)["skipped"] == 1 and "broken.png" in result.stderr
    assert "has no labels" in run_cli("eval", "clusters", tmp_path / "store", code=2).output


def write(path, content):
    path.write_text(content)
    return path


def test_a_configuration_file_sets_options_and_flags_win(run_cli, tmp_path, texts, minilm):
    config = write(
        tmp_path / "a.toml",
        f'data = "{texts}"\nmodel = "{MINILM}"\nhead = true\nno-general = true\nsteps = 3\nbatch-size = 16\n',
    )
    words = ["train", "text", "--config", config, "--output"]
    assert read_json(run_cli(*words, tmp_path / "a", "--json"))["steps"] == 3
    assert read_json(run_cli(*words, tmp_path / "b", "--steps", 2, "--json"))["steps"] == 2
    write(config, "stpes = 3\n")
    assert "unknown key 'stpes'" in run_cli(*words, tmp_path / "c", code=2).stderr
    for key, said in (("stpes", "did you mean steps?\n"), ("Batch_Sise", "did you mean batch-size?\n"), ("xyz", "lists, without their dashes\n")):  # fmt: skip
        write(config, f"{key} = 3\n")
        error = run_cli(*words, tmp_path / "c", code=2).stderr
        assert f"a.toml: unknown key {key!r}; " in error and error.endswith(said)
    write(config, "steps = \n")
    assert "not TOML" in run_cli(*words, tmp_path / "c", code=2).stderr
    write(config, f'data = "{texts}"\nmodel = "{MINILM}"\nsteps = "many"\n')
    assert "'many'" in run_cli(*words, tmp_path / "c", code=2).stderr


def test_doctor_says_what_is_here(run_cli):
    found = read_json(run_cli("doctor", "--json"))
    assert found["problems"] == [] and "torch" in found["versions"] and found["devices"][0] == "cpu"
    assert "all is well" in run_cli("doctor").stdout


def test_what_is_no_number_is_null_in_json(capsys):
    from retrieval.cli.output import emit

    emit({"a": [float("nan"), 1.5], "b": (float("inf"),)}, True, [])
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": [None]}


def test_progress_in_a_log_is_lines(monkeypatch, capsys):
    from retrieval.cli import output

    monkeypatch.setattr(output, "SECONDS_A_LINE", -1)
    with output.progress("train", 10) as advance:
        advance(3, note="loss 1.0")
        advance(2)
    assert re.fullmatch(r"train 3/10  loss 1.0\ntrain 5/10, \S+/s, 0 s left\n", capsys.readouterr().err)
    with output.progress("train", 10, 4) as advance:
        advance()
        advance()
    assert re.fullmatch(r"train 5/10\ntrain 6/10, \S+/s, 0 s left\n", capsys.readouterr().err)


def test_an_index_finds_its_encoder_from_anywhere(text_path, run_cli, tmp_path, monkeypatch):
    folder, _ = text_path
    monkeypatch.chdir(tmp_path)
    assert run_cli("search", folder / "index", "--query", "sort", "-k", 1).stdout
    shutil.move(folder / "run", folder / "moved")
    error = run_cli("search", folder / "index", "--query", "sort", code=2).stderr
    shutil.move(folder / "moved", folder / "run")
    assert "--encoder: is needed, since" in error and len(error.splitlines()) == 1


def test_a_configuration_file_knows_every_option(text_path, texts, run_cli, tmp_path):
    folder, _ = text_path
    path = tmp_path / "search.toml"
    path.write_text('query = ["sort", "lock"]\nk = 2\njson = true\n')
    found = read_json(run_cli("search", folder / "index", "--config", path))["results"]
    assert [result["query"] for result in found] == ["sort", "lock"] and len(found[0]["hits"]) == 2
    path.write_text(f'encoder = "{folder / "run"}"\ndata = "{texts}"\noutput = "{tmp_path / "store"}"\n')
    run_cli("embed", "--config", path)
    path.write_text(
        f'data = "{texts}"\nmodel = "{MINILM}"\noutput = "{tmp_path / "run"}"\nno-label-mask = true\ntau-plus = 0.1\nhead = true\nno-general = true\nsteps = 2\n'
    )
    run_cli("train", "text", "--config", path)
    saved = json.loads((tmp_path / "run" / "run" / "config.json").read_text())
    assert saved["loss_settings"]["label_mask"] is False and saved["lr"] == 1e-3 and saved["batch_size"] == 111
    assert (saved["kappa"], saved["beta"]) == (2.0, pytest.approx(0.2))  # which nobody gave
    for value, wrong in (
        ('"many"', "'many' is not a valid integer"),
        ("1.5", "1.5 is no whole number"),
        ("true", "True is no whole number"),
    ):
        path.write_text(f"steps = {value}\n")
        assert f"{path}: steps: {wrong}" in run_cli("train", "text", "--config", path, code=2).stderr
    path.write_text(f'store = "{folder / "store"}"\nmemory = "2GB"\nlatency = "5ms"\nplan = true\n', "utf-8-sig")
    assert "Flat" in run_cli("index", "build", "--config", path, "--output", tmp_path / "i").stdout
    path.write_text('sources = "absent"\n')
    assert "absent: no such file" in run_cli("report", "--config", path, "--output", tmp_path / "r.html", code=2).stderr


def test_help_shows_every_option_once_under_its_title(run_cli):
    """Nothing is lost between the groups that options come in."""
    for words in (["train", "text"], ["train", "image"], ["train", "pairs"], ["sweep"], ["mine"], ["embed"]):
        shown = run_cli(*words, "--help").output
        command = cli
        for word in words:
            command = command.commands[word]
        for param in command.params:
            assert len(re.findall(rf"^  {re.escape(max(param.opts, key=len))}(?![\w-])", shown, re.MULTILINE)) == 1, (
                param.opts
            )
        assert shown.index("Options:") < shown.index("Data:" if words == ["embed"] else "Columns:")
