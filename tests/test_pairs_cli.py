"""`train pairs` and `eval pairs`, as people run them, and what reports make of them."""

import csv
import json

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from some_pictures import DIGIT_WORDS

from retrieval.encoder import load_encoder
from retrieval.eval.report.artifacts import pairs_section
from retrieval.eval.report.page import render
from retrieval.eval.values import read_per_query
from retrieval.samples import digits

COMMAND = ["train", "pairs", "--steps", 4, "--batch-size", 8, "--device", "cpu"]


def test_the_command_joins_trains_and_is_judged(tiny, captioned, run_cli, tmp_path):
    words = [*COMMAND, "--data", captioned, "--image-model", "small", "--text-model", tiny, "--hard-captions", 1]
    told = run_cli(*words, "--eval-data", captioned, "--output", tmp_path / "run")
    assert "of the captions have a word that can be changed" in told.stderr and "captions" in told.output
    config = json.loads((tmp_path / "run" / "run" / "config.json").read_text())
    assert config["loss"].startswith("hn-nce") and not config["loss_settings"]["own_negatives"] and config["hard"] == 1
    plain = SentenceTransformer(str(tmp_path / "run"), device="cpu")
    assert plain.encode(["one"]).shape == plain.encode([digits()[0]]).shape == (1, 32)
    words = [
        "eval",
        "pairs",
        "--encoder",
        tmp_path / "run",
        "--data",
        captioned,
        "--hard-captions",
        2,
        "--device",
        "cpu",
    ]
    found = json.loads(run_cli(*words, "--output", tmp_path / "judged", "--json").stdout)
    assert set(found["metrics"]) == {f"{way}_{what}" for way in ("i2t", "t2i") for what in ("r@1", "r@5", "r@10", "mrr")} | {"captions"}  # fmt: skip
    assert found["resampled"] == "pictures" and found["counts"]["pairs"] == 42
    assert found["counts"]["different_documents"] == 40
    assert found["counts"]["different_queries"] == len(set(captions_of(captioned)))
    assert "picture → caption, r@1" in run_cli(*words).stdout
    compared = json.loads(
        run_cli("eval", "compare", f"a={tmp_path / 'judged'}", f"b={tmp_path / 'judged'}", "--json").stdout
    )
    assert all(each["difference"] == 0 for each in compared["comparisons"])
    run_cli("eval", "compare", f"a={tmp_path / 'judged'}", f"b={tmp_path / 'judged'}", "--output", tmp_path / "both")
    sources = [tmp_path / name for name in ("run", "judged", "both")]
    run_cli("report", *sources, "--output", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "t2i_mrr" in page and "i2t_r@10" in page and "captions" in page
    assert page.count("caption → picture: the nearest is right") == 3  # in each of the sections
    assert "different pictures 40, different captions" in page and "querys" not in page
    worst = page[page.index("The pairs that did least well") :]
    assert any(caption in worst for caption in captions_of(captioned)) and "data:image/png" in worst
    older = pairs_section("older", found, read_per_query(tmp_path / "judged" / "queries.csv"), {})  # without pairs.csv
    assert "different pictures 40" in render("", "", [older], "")


def captions_of(captioned):
    return [line["caption"] for line in csv.DictReader(captioned.read_text("utf-8").splitlines())]


def test_clip_is_trained_as_it_is(clip, captioned, run_cli, tmp_path):
    run_cli(*COMMAND, "--data", captioned, "--model", clip, "--freeze", "image", "--output", tmp_path / "run")
    model = SentenceTransformer(str(tmp_path / "run"), device="cpu")
    before = SentenceTransformer(str(clip), device="cpu")
    assert np.allclose(model.encode([digits()[0]]), before.encode([digits()[0]]), atol=1e-6)
    assert not np.allclose(model.encode(["one"]), before.encode(["one"]), atol=1e-4)


def test_what_becomes_of_the_other_kind_is_said(clip, tmp_path, run_cli, tiny):
    """Where an encoder of both is trained on one: the other stays, or goes through a head that has not seen it."""
    table = tmp_path / "t.csv"
    table.write_text("text,label\n" + "".join(f"red apple {i},a\nblue sky {i},b\n" for i in range(12)))
    for row in range(8):
        (tmp_path / "p" / f"{row % 2}").mkdir(parents=True, exist_ok=True)
        digits()[row].save(tmp_path / "p" / f"{row % 2}" / f"{row}.png")
    short = ["--steps", 2, "--lr", 1e-3, "--batch-size", 4, "--device", "cpu", "--output"]
    of_texts = ["train", "text", "--data", table, "--no-general", "--model"]
    of_pictures = ["train", "image", "--data", tmp_path / "p", "--model"]
    old = load_encoder(str(clip), "cpu")
    for number, (words, told, pictures_stay, texts_stay) in enumerate((
        ([*of_texts, clip], "takes pictures too: pictures are not trained, and texts move away", True, False),
        ([*of_texts, clip, "--head"], "the head learns from texts alone, and changes pictures too", False, False),
        ([*of_pictures, clip], "takes texts too: texts are not trained, and pictures move away", False, True),
    )):  # fmt: skip
        error = run_cli(*words, *short, tmp_path / f"{number}").stderr
        assert f"Note: {clip} " in error and f"{told}" in error and "`retrieval train pairs` trains both" in error
        new = load_encoder(str(tmp_path / f"{number}"), "cpu")
        assert np.allclose(old.encode([digits()[0]]), new.encode([digits()[0]]), atol=1e-6) == pictures_stay
        assert np.allclose(old.encode(["one"]), new.encode(["one"]), atol=1e-6) == texts_stay
    assert "takes pictures" not in run_cli(*of_texts, tiny, *short, tmp_path / "plain").stderr


def test_pairs_of_pictures_are_judged_both_ways(captioned, run_cli, tmp_path):
    path = tmp_path / "styles.csv"
    rows = [[str(captioned.parent / f"{row}.png"), str(captioned.parent / f"{row + 1}.png")] for row in range(20)]
    path.write_text("image1,image2\n" + "".join(f"{a},{b}\n" for a, b in rows))
    run_cli(*COMMAND, "--data", path, "--model", "small", "--eval-data", path, "--output", tmp_path / "run")
    words = ["eval", "pairs", "--encoder", tmp_path / "run", "--data", path, "--device", "cpu"]
    found = json.loads(run_cli(*words, "--json").stdout)
    assert {name.rpartition("_")[0] for name in found["metrics"]} == {"i2i", "i2i_back"}
    assert found["counts"] == {"pairs": 20, "different_documents": 20, "different_queries": 20}


def test_what_is_judged_by_need_not_have_the_columns_of_the_training_pairs(tiny, captioned, run_cli, tmp_path):
    named = captioned.parent / "named.csv"
    named.write_text(captioned.read_text("utf-8").replace("image,caption", "foto,worte"))
    words = [*COMMAND, "--data", named, "--anchor", "foto", "--positive", "worte", "--image-model", "small"]
    run_cli(*words, "--text-model", tiny, "--eval-data", captioned, "--output", tmp_path / "run")


def test_what_is_judged_must_be_of_the_same_kinds(captioned, run_cli, tmp_path):
    path = tmp_path / "styles.csv"
    path.write_text(
        "image1,image2\n"
        + "".join(f"{captioned.parent}/{row}.png,{captioned.parent}/{row + 1}.png\n" for row in range(9))
    )
    words = [*COMMAND, "--data", captioned, "--model", "small", "--eval-data", path, "--output", tmp_path / "run"]
    assert "has pairs of pictures and pictures, --data of pictures and captions" in run_cli(*words, code=2).stderr


@pytest.mark.parametrize(
    "options,words",
    [
        ([], "--model, or --image-model and --text-model: give one"),
        (["--image-model", "small"], "--model, or --image-model and --text-model: give one"),
        (["--model", "small", "--dim", 8], "--dim: is for --image-model"),
        (["--model", "small", "--kind", "colour"], "--kind: says what --hard-captions change"),
        (
            ["--model", "small", "--freeze", "text", "--text-lr", 1e-3],
            "--text-lr: --freeze text leaves that side as it is",
        ),
        (["--model", "small"], "of texts, which the encoder does not take"),
        (["--model", "small", "--head"], "--head: is for texts and for labelled images"),
        (["--model", "small", "--anchor", "nope", "--positive", "caption"], "--anchor nope:"),
        (["--model", "small", "--loss", "supcon"], "works by labels"),
    ],
)
def test_mistakes_are_one_line(options, words, captioned, run_cli, tmp_path):
    error = run_cli(*COMMAND, "--data", captioned, *options, "--output", tmp_path / "run", code=2).stderr
    assert words in error and len(error.strip().splitlines()) <= 3


def test_wrong_captions_are_also_told_by_those_who_have_one(clip, captioned, run_cli):
    """What has no wrong caption counts as a guess, which says nothing of the encoder."""
    some, all_ = captioned.parent / "some.csv", captioned.parent / "all.csv"
    rows = [f"{row}.png,a {word},{'' if row > 2 else 'not a digit'}" for row, word in enumerate(DIGIT_WORDS)]
    some.write_text("image,caption,negative\n" + "\n".join(rows))
    all_.write_text("image,caption,negative\n" + "\n".join(rows[:3]))
    words = ["eval", "pairs", "--encoder", clip, "--device", "cpu", "--json", "--data"]
    mixed, alone = (json.loads(run_cli(*words, path).stdout) for path in (some, all_))
    assert mixed["share_with_wrong_captions"] == 0.3 and "captions_alone" not in alone
    assert mixed["captions_alone"] == pytest.approx(alone["metrics"]["captions"])
    assert mixed["metrics"]["captions"] == pytest.approx(0.35 + 0.3 * alone["metrics"]["captions"])
