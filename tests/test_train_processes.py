"""Training that is killed, and training in several processes: both come to the weights of one unbroken process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from apart import begin, killed, together
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from retrieval.artifact import RUN_KIND
from retrieval.locks import sole_writer

pytestmark = pytest.mark.slow
APART = Path(__file__).with_name("apart.py")


def fingerprint(folder):
    return json.loads((folder / "manifest.json").read_text())["encoder"]["fingerprint"]


@pytest.mark.parametrize(
    "options",
    [[], ["--loss", "infonce(memory=20, learn_temperature=True)"], ["--lora", "2"], ["--mini-batch-size", "3", "--accumulate", "2"],
     ["--batches", "hard"]],
    ids=["plain", "memory", "lora", "cached", "hard"],
)  # fmt: skip
@pytest.mark.parametrize("step,where", [(4, "step"), (3, "save")])
def test_a_killed_training_goes_on_to_the_same_weights(command, options, step, where, run_cli, tmp_path):
    command = [*map(str, command), *options]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_cli(*command, "--output", whole)
    done = begin(killed, step, where, *command, "--output", broken).end()
    assert done.returncode == -signal.SIGKILL and not broken.exists(), done.stderr
    again = run_cli(*command, "--output", broken)
    assert f"goes on from step {3 if where == 'step' else 2} of" in again.stderr
    assert fingerprint(broken) == fingerprint(whole)
    for name in ("curve.csv", "config.json"):
        assert (broken / "run" / name).read_bytes() == (whole / "run" / name).read_bytes()
    assert not (broken / "checkpoints").exists() and not list(tmp_path.glob(".*"))


def test_another_training_is_not_thrown_away_unasked(command, run_cli, tmp_path):
    output = tmp_path / "run"
    begin(killed, 4, "step", *command, "--output", output).end()
    error = run_cli(*command, "--output", output, "--seed", 5, code=2).stderr
    assert "an interrupted training of other data or settings" in error
    run_cli(*command, "--output", output, "--seed", 5, "--overwrite")


@pytest.mark.parametrize("kind", ["text", "image", "pairs"])
def test_the_first_process_alone_looks_who_writes(kind, run_cli, tmp_path, monkeypatch):
    """While one of several processes looks whether the old run is being written to, another is not told that it is."""
    output, data = tmp_path / "run", tmp_path / "data"
    for folder in (output, data):
        folder.mkdir()
    (output / "manifest.json").write_text(json.dumps({"kind": RUN_KIND}))
    words = ["train", kind, "--data", data, "--output", output, "--overwrite", "--patience", 2]
    words += ["--image-model", "small", "--text-model", "x"] if kind == "pairs" else ["--model", "x"]
    for rank, told in (("0", "another process is writing"), ("1", "--patience: there is nothing")):
        monkeypatch.setenv("RANK", rank)
        with sole_writer(output):
            assert told in run_cli(*words, code=2).stderr


def torchrun(*words):
    """torchrun itself, in whose processes nothing is imported yet; what it tells them, `together` tells them too."""
    found = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    found += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(APART), *words]
    return subprocess.run(found, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("options", [[], ["--mini-batch-size", "2"], ["--loss", "infonce(learn_temperature=True)"]])
def test_processes_train_as_one(command, options, run_cli, tiny, tmp_path):
    """Without dropout, whose draws differ, two processes come to the weights of one."""
    plain = tmp_path / "plain"
    model = SentenceTransformer(str(tiny), device="cpu")
    model[0].config.hidden_dropout_prob = model[0].config.attention_probs_dropout_prob = 0.0
    model.save_pretrained(str(plain))
    command = [*map(str, command), *options]
    command[command.index("--model") + 1] = str(plain)
    run_cli(*command, "--output", tmp_path / "one")
    words = [*command, "--output", str(tmp_path / "two"), "--json"]
    done = torchrun(*words) if not options else together(2, *words)[0]
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) == 1 and json.loads(done.stdout)["steps"] == 6
    one, two, start = (load_file(f / "model.safetensors") for f in (tmp_path / "one", tmp_path / "two", plain))
    for key, value in one.items():
        assert torch.allclose(value, two[key], atol=2e-5), key
    assert any((value - start[key]).abs().max() > 1e-3 for key, value in one.items())
