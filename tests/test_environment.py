"""Hostile surroundings: signals that Python drops, limits of the system, output that cannot be written, folders that are gone."""

import errno
import os
import resource
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from retrieval import cpus
from retrieval.cli.processes import join
from retrieval.errors import UserError, is_disk_full, is_file_too_large
from retrieval.eval.report.figures import forest
from retrieval.store import Held, Kind, Rows, create, open_store

RUN = [sys.executable, "-c", "from retrieval.cli import main; main()"]


@pytest.fixture
def store(tmp_path):
    vectors = np.eye(60, 64, dtype=np.float32)
    rows = Rows(vectors, [f"id-{row}" for row in range(60)], ["猫", "犬"] * 30, {"text": ["これ"] * 60})
    create(tmp_path / "store", Held(rows), Kind(64)).close()
    return tmp_path / "store"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("lost", [True, False])
def test_a_signal_that_falls_into_a_destructor_is_not_lost(store, name, lost):
    """Python prints what a destructor raises, and goes on: a server that was told to stop would serve for ever."""
    code = f"""
import os, signal, time
import retrieval.store.reader as reader
from retrieval.cli import main
class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        time.sleep(.01)
before = reader.read_manifest
def read(*given, **named):
    if {lost}:
        Last()
    else:
        os.kill(os.getpid(), signal.{name})
    for _ in range(100):
        time.sleep(.01)  # the rest of its work
    return before(*given, **named)
reader.read_manifest = read
main()
"""
    done = subprocess.run([sys.executable, "-c", code, "store", "info", store], capture_output=True, text=True)
    assert done.returncode == 130 and not done.stdout, done
    assert done.stderr.startswith("Error: interrupted; ") and "Traceback" not in done.stderr + done.stdout
    assert "Exception ignored" not in done.stderr


def test_of_several_processes_one_says_that_they_are_interrupted(store, run_cli, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("retrieval.artifact.damaged", interrupted)
    for rank, told in (("0", "Error: interrupted; "), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        said = run_cli("store", "verify", store, code=130).stderr
        assert said.startswith(told) and bool(said) == bool(told)


def test_more_processes_than_gpus_are_told_by_the_first(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="torchrun: 2 processes and 1 GPU; start one a GPU"):
        join("cuda")


def test_a_hangup_is_ignored_where_nohup_asks(store):
    ignoring = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    command = [*RUN, "store", "verify", store]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=ignoring) as process:
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 0 and "intact" in process.stdout.read()


def test_too_large_a_file_is_one_line(store, tmp_path):
    """The signal of it is ignored by Python itself."""
    command = [*RUN, "store", "export", store, "--output", "x.npy"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # noqa: E731
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, preexec_fn=limit)
    assert done.returncode == 2 and done.stderr == "Error: x.npy: file too large; raise the limit (ulimit -f), or choose a file system for larger files\n"  # fmt: skip


def test_what_libraries_say_of_a_full_disk_and_too_large_a_file_is_understood(small_disk, tmp_path):
    """Those that write checkpoints."""
    weights = {"w": torch.ones(100_000)}
    for save in (torch.save, save_file):
        with pytest.raises(Exception) as full:
            save(weights, small_disk / "w")
        (small_disk / "w").unlink(missing_ok=True)
        assert is_disk_full(full.value) and not is_file_too_large(full.value), save
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(Exception) as large:
            save_file(weights, tmp_path / "w")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert is_file_too_large(large.value) and not is_disk_full(large.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((1,), np.dtype("f8")),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: you tried …"),
        RuntimeError("std::bad_alloc"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError(errno.EMFILE, "Too many open files", "part-00000.h5"),
    ],
)
def test_memory_and_files_that_are_used_up_are_one_line(store, run_cli, monkeypatch, error):
    def used_up(*given, **named):
        raise error

    monkeypatch.setattr("retrieval.store.reader.read_manifest", used_up)
    told = run_cli("store", "info", store, code=2).stderr
    assert told.count("\n") == 1
    assert (
        "raise the limit of open files (ulimit -n)" if isinstance(error, OSError) else "not enough memory; free some"
    ) in told


def test_output_that_cannot_be_written_does_not_hide_what_was_done(store):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*RUN, "store", "delete", store, "--id", "id-3"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == "Error: stdout: cannot be written (No space left on device); what was asked for is done\n"
    assert open_store(store).count == 59


def test_a_folder_that_is_gone(store, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"import os; os.rmdir({str(gone)!r}); from retrieval.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "store", "info", store], cwd=gone, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, "Error: the folder that you are in is gone; go to another\n")


@pytest.mark.parametrize("asked", [".", "..", "../here/."])
def test_the_folder_that_one_is_in_is_not_replaced(store, tmp_path, run_cli, monkeypatch, asked):
    here = tmp_path / "outer" / "here"
    here.mkdir(parents=True)
    np.save(tmp_path / "x.npy", np.eye(3, dtype=np.float32))
    monkeypatch.chdir(here)
    words = ["store", "import", tmp_path / "x.npy", "--metric", "cosine", "--output"]
    found = run_cli(*words, asked, code=2).stderr
    assert "is the folder that you are in" in found or "holds files" in found or "already exists" in found
    assert here.is_dir() and not list(here.iterdir())
    run_cli(*words, "sub/../../elsewhere")  # by way of a folder that is not there
    assert open_store(tmp_path / "outer" / "elsewhere").count == 3


def test_what_is_not_utf8_is_one_line(store, tmp_path, run_cli):
    from retrieval.index.build import build

    build(open_store(store), tmp_path / "index", factory="Flat")
    found = run_cli("search", tmp_path / "index", "--query", "caf\udce9", code=2).stderr
    assert "has bytes that are not UTF-8" in found
    odd = tmp_path / "bad\udcff"
    os.rename(store, odd)
    run_cli("report", odd, "--map", "pca", "--output", tmp_path / "page.html")


def test_scripts_that_the_font_lacks_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = forest("x", [("猫と犬", 0.1, (0.0, 0.2))])
        assert figure.png() and "猫と犬" in figure.svg()


def test_shares_of_cores_and_memory_by_either_version_of_control_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(cpus, "GROUPS", tmp_path)
    cores, memory = cpus.usable_cpus(), cpus.usable_memory()
    assert cores == len(os.sched_getaffinity(0)) and memory > 2**28
    for quota, least in ((-1, cores), (100_000, 1), (50_000, 1)):
        (tmp_path / "cpu").mkdir(exist_ok=True)
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
        assert cpus.usable_cpus() == least
    (tmp_path / "cpu" / "cpu.cfs_quota_us").unlink()
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert cpus.usable_cpus() == cores and cpus.usable_memory() == memory
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2**27}\n")
    assert cpus.usable_cpus() == 1 and cpus.usable_memory() == 2**27
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{2**26}\n")
    assert cpus.usable_memory() == 2**26
