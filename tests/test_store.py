"""Artifacts and the embedding store: round trips, damage, interruption, full disks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retrieval.artifact import MANIFEST, creating, member, read_manifest, staging_folder, verify
from retrieval.data import Texts
from retrieval.embed import embed
from retrieval.errors import UserError, is_disk_full
from retrieval.store import KIND, Rows, finished_shards, open_store, read_shard, shard_name, write_shard

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


class FakeEncoder:
    """Encodes a text as a direction drawn from its hash; counts what it encoded."""

    name, dim, fingerprint = "fake", 8, "f" * 64

    def __init__(self, fail_after=None):
        self.encoded = 0
        self.fail_after = fail_after

    def encode(self, items, batch_size=64):
        if self.fail_after is not None and self.encoded >= self.fail_after:
            raise RuntimeError("killed")
        self.encoded += len(items)
        rows = [np.random.default_rng(sum(text.encode())).normal(size=8) for text in items]
        vectors = np.array(rows, dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def texts(count):
    return Texts({"text": [f"text {i}" for i in range(count)]}, [str(i % 3) for i in range(count)], None, "")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.integers(1, 12), st.integers(1, 9))
def test_a_shard_comes_back_as_it_was(tmp_path, data, count, dim):
    values = st.floats(-100, 100, width=32).filter(lambda v: abs(v) > 1e-3)
    vectors = data.draw(arrays(np.float32, (count, dim), elements=values))
    column = st.lists(names, min_size=count, max_size=count)
    rows = Rows(vectors, data.draw(column), data.draw(st.none() | column), data.draw(st.none() | column))
    write_shard(tmp_path, 0, rows)
    back = read_shard(tmp_path / shard_name(0))
    assert (back.embeddings == vectors).all()
    assert (back.ids, back.labels, back.text) == (rows.ids, rows.labels, rows.text)


@pytest.mark.parametrize("value,word", [(np.nan, "not finite"), (np.inf, "not finite"), (0.0, "zero")])
def test_bad_vectors_are_named(tmp_path, value, word):
    vectors = np.ones((4, 3), np.float32)
    vectors[2] = value
    with pytest.raises(UserError, match=f"{word}.*ids c"):
        write_shard(tmp_path, 0, Rows(vectors, ["a", "b", "c", "d"]))
    assert finished_shards(tmp_path) == 0


def test_a_store_keeps_order_and_columns(tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval.embed.SHARD_ROWS", 10)
    encoder, data = FakeEncoder(), texts(37)
    store = embed(encoder, data, tmp_path / "store")
    rows = open_store(tmp_path / "store", check=True).load()
    assert (store.count, store.dim, store.manifest["shards"]) == (37, 8, 4)
    assert rows.text == data.texts and rows.labels == data.labels and rows.ids == [str(i) for i in range(37)]
    assert (rows.embeddings == FakeEncoder().encode(data.texts)).all()


def test_an_interrupted_embedding_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval.embed.SHARD_ROWS", 10)
    data, broken = texts(35), FakeEncoder(fail_after=20)
    with pytest.raises(RuntimeError):
        embed(broken, data, tmp_path / "store")
    assert not (tmp_path / "store").exists() and finished_shards(staging_folder(tmp_path / "store")) == 2
    again = FakeEncoder()
    embed(again, data, tmp_path / "store")
    assert again.encoded == 15
    embed(FakeEncoder(), data, tmp_path / "unbroken")
    for number in range(4):
        one, other = (read_shard(tmp_path / n / shard_name(number)) for n in ("store", "unbroken"))
        assert (one.embeddings == other.embeddings).all() and one.ids == other.ids
    assert not staging_folder(tmp_path / "store").exists()


def test_other_data_do_not_resume(tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval.embed.SHARD_ROWS", 10)
    with pytest.raises(RuntimeError):
        embed(FakeEncoder(fail_after=20), texts(35), tmp_path / "store")
    other = FakeEncoder()
    embed(other, texts(36), tmp_path / "store")
    assert other.encoded == 36


@pytest.mark.slow
def test_sigkill_loses_no_finished_shard(tmp_path):
    """A process that writes shard after shard is killed at ten instants; every shard under its name is whole."""
    script = (
        "import sys, numpy as np; from pathlib import Path; from retrieval.store import *\n"
        "folder = Path(sys.argv[1]); print('ready', flush=True)\n"
        "for n in range(10**6): write_shard(folder, n, Rows(np.full((2000, 64), n + 1, np.float32), [str(i) for i in range(2000)]))"
    )
    for trial in range(10):
        folder = tmp_path / str(trial)
        folder.mkdir()
        with subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(0.05 + 0.017 * trial)
            process.send_signal(signal.SIGKILL)
        whole = finished_shards(folder)
        assert whole > 0
        for number in range(whole):
            assert (read_shard(folder / shard_name(number)).embeddings == number + 1).all()


def test_a_full_disk_leaves_nothing_under_the_final_name(small_disk):
    data = texts(20_000)
    with pytest.raises(Exception) as caught:
        embed(FakeEncoder(), data, small_disk / "store")
    assert is_disk_full(caught.value) and not (small_disk / "store").exists()


def test_a_full_disk_is_one_line_on_the_command_line(small_disk, tmp_path, run_cli, monkeypatch):
    store = embed(FakeEncoder(), texts(20_000), tmp_path / "store")
    assert store.count == 20_000
    result = run_cli("index", "build", tmp_path / "store", "--output", small_disk / "index", code=2)
    assert "disk is full" in result.output and not list(small_disk.iterdir())


def damaged(tmp_path, change):
    embed(FakeEncoder(), texts(5), tmp_path / "store")
    change(tmp_path / "store")
    with pytest.raises(UserError) as caught:
        store = open_store(tmp_path / "store", check=True)
        store.load()
    return str(caught.value)


def edit(folder, **fields):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **fields}))


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "change,word",
    [
        (lambda f: (f / MANIFEST).unlink(), "not a retrieval store"),
        (lambda f: (f / MANIFEST).write_text("{"), "damaged"),
        (lambda f: (f / MANIFEST).write_text("[]"), "damaged"),
        (lambda f: edit(f, count=6), "damaged"),
        (lambda f: (f / shard_name(0)).unlink(), "missing"),
        (lambda f: os.truncate(f / shard_name(0), 100), "100 bytes"),
        (lambda f: flip(f / shard_name(0), 3000), "does not match"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path, change, word):
    message = damaged(tmp_path, change)
    assert word in message and "store" in message and "\n" not in message


def test_every_single_byte_of_a_store_is_guarded(tmp_path):
    embed(FakeEncoder(), texts(3), tmp_path / "store")
    for path in (tmp_path / "store").iterdir():
        for offset in np.random.default_rng(0).integers(0, path.stat().st_size, 25).tolist():
            flip(path, offset)
            with pytest.raises(UserError):
                open_store(tmp_path / "store", check=True)
            flip(path, offset)
    open_store(tmp_path / "store", check=True)


def test_a_manifest_cannot_point_outside(tmp_path):
    for name in ("../secret", "/etc/passwd", "a/../../b"):
        with pytest.raises(UserError, match="outside"):
            member(tmp_path, name)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="outside"):
        member(tmp_path / "in", "link")


def test_nothing_is_overwritten_unasked(tmp_path):
    embed(FakeEncoder(), texts(3), tmp_path / "store")
    with pytest.raises(UserError, match="already exists"):
        embed(FakeEncoder(), texts(4), tmp_path / "store")
    assert embed(FakeEncoder(), texts(4), tmp_path / "store", overwrite=True).count == 4
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="did not write"):
        embed(FakeEncoder(), texts(4), mine, overwrite=True)
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_an_error_while_creating_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), creating(tmp_path / "x", "index") as (folder, _):
        (folder / "half").write_text("half")
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


def test_a_newer_format_or_another_kind_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval.artifact.FORMAT_VERSION", 99)
    with creating(tmp_path / "x", KIND) as (folder, _):
        (folder / "a").write_text("a")
    monkeypatch.undo()
    with pytest.raises(UserError, match="newer"):
        read_manifest(tmp_path / "x", KIND)
    with creating(tmp_path / "y", "index"):
        pass
    with pytest.raises(UserError, match="is of kind index, not store"):
        read_manifest(tmp_path / "y", KIND)
    shutil.rmtree(tmp_path / "x")


def test_verify_hashes_everything(tmp_path):
    with creating(tmp_path / "x", KIND) as (folder, _):
        (folder / "a").write_text("a")
    manifest = read_manifest(tmp_path / "x", KIND)
    verify(tmp_path / "x", manifest)
    (tmp_path / "x" / "a").write_text("b")
    with pytest.raises(UserError, match="does not match"):
        verify(tmp_path / "x", manifest)
    assert SimpleNamespace(**manifest).kind == KIND
