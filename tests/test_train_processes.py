"""Training that is killed, and training in several processes: both come to the weights of one unbroken process."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

pytestmark = pytest.mark.slow


def fingerprint(folder):
    return json.loads((folder / "manifest.json").read_text())["encoder"]["fingerprint"]


KILLED = """
import os, signal, sys
from retrieval.train import whole
whole.CHECKPOINT_SECONDS = 0 if sys.argv[2] == "each" else 1e9
step, where, saves = int(sys.argv[1]), sys.argv[3], []
real, write = whole.Timed.on_step_end, whole.write_atomically
def on_step_end(self, args, state, control, **rest):
    real(self, args, state, control, **rest)
    if state.global_step == step and where == "step":
        os.kill(os.getpid(), signal.SIGKILL)
def writing(*words):
    if len(saves) + 1 == step and where == "save":
        os.kill(os.getpid(), signal.SIGKILL)
    saves.append(write(*words))
whole.Timed.on_step_end, whole.write_atomically = on_step_end, writing
from retrieval.cli import main
sys.argv = ["retrieval", *sys.argv[4:]]
main()
"""


@pytest.mark.parametrize(
    "options",
    [[], ["--loss", "infonce(memory=20, learn_temperature=True)"], ["--lora", "2"], ["--mini-batch-size", "3", "--accumulate", "2"]],
    ids=["plain", "memory", "lora", "cached"],
)  # fmt: skip
@pytest.mark.parametrize("step,where", [(4, "step"), (3, "save")])
def test_a_killed_training_goes_on_to_the_same_weights(command, options, step, where, run_cli, tmp_path):
    command = [*map(str, command), *options]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_cli(*command, "--output", whole)
    words = [sys.executable, "-c", KILLED, str(step), "each", where, *command, "--output", str(broken)]
    killed = subprocess.run(words, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL and not broken.exists(), killed.stderr
    again = run_cli(*command, "--output", broken)
    assert f"goes on from step {3 if where == 'step' else 2} of" in again.stderr
    assert fingerprint(broken) == fingerprint(whole)
    for name in ("curve.csv", "config.json"):
        assert (broken / "run" / name).read_bytes() == (whole / "run" / name).read_bytes()
    assert not (broken / "checkpoints").exists() and not list(tmp_path.glob(".*"))


def test_another_training_is_not_thrown_away_unasked(command, run_cli, tmp_path):
    output = tmp_path / "run"
    words = [sys.executable, "-c", KILLED, "4", "each", "step", *map(str, command), "--output", str(output)]
    subprocess.run(words, capture_output=True)
    error = run_cli(*command, "--output", output, "--seed", 5, code=2).stderr
    assert "an interrupted training of other data or settings" in error
    run_cli(*command, "--output", output, "--seed", 5, "--overwrite")


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
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "0",
        "--rdzv-backend",
    ]
    words += ["c10d", "--rdzv-endpoint", "localhost:0", "-m", "retrieval", *command, "--output", str(tmp_path / "two"), "--json"]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) == 1 and json.loads(done.stdout)["steps"] == 6
    one, two, start = (load_file(f / "model.safetensors") for f in (tmp_path / "one", tmp_path / "two", plain))
    for key, value in one.items():
        assert torch.allclose(value, two[key], atol=2e-5), key
    assert any((value - start[key]).abs().max() > 1e-3 for key, value in one.items())
