"""What an interrupted call leaves behind: never less than it had finished, and nothing that looks unfinished and is not."""

import json

import numpy as np
import pytest

from retrieval import artifact
from retrieval.artifact import staging_folder
from retrieval.embed import forget_if_empty, left_behind
from retrieval.errors import UserError
from retrieval.index.build import build
from retrieval.locks import sole_writer
from retrieval.store import Held, Kind, Rows, append, create, delete, open_store
from retrieval.store.journal import JOURNAL, Shards, rows_left

KIND = Kind(4, shard_rows=8)


def rows(count, start=0):
    vectors = np.random.default_rng(start).normal(size=(count, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Rows(vectors.astype(np.float32), [f"id-{i}" for i in range(start, start + count)])


class Finished(Held):
    """Rows that were all written already."""

    def rows(self, start, stop, ids):
        raise AssertionError("a shard is written again")


@pytest.mark.parametrize("step", ["seal", "_replace_folder"])
def test_all_shards_outlive_a_failure_at_the_last_step(tmp_path, monkeypatch, step):
    def full(*_):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(artifact, step, full)
        with pytest.raises(OSError, match="the disk is full"):
            create(tmp_path / "s", Held(rows(20)), KIND)
    forget_if_empty(tmp_path / "s")
    assert left_behind(tmp_path / "s") == 20 and not (tmp_path / "s").exists()
    create(tmp_path / "s", Finished(rows(20)), KIND)
    assert sorted(path.name for path in (tmp_path / "s").iterdir() if path.name != ".lock") == [
        "manifest.json",
        *(f"part-0000{i}.h5" for i in range(3)),
    ]


def test_overwriting_what_another_process_changes_keeps_the_shards(tmp_path):
    create(tmp_path / "s", Held(rows(5)), KIND)

    class Begun(Held):
        """Another process begins to change the old store meanwhile."""

        def rows(self, start, stop, ids):
            if start == 16:
                other.__enter__()
            return super().rows(start, stop, ids)

    other = sole_writer(tmp_path / "s")
    with pytest.raises(UserError, match="another process is writing to it"):
        create(tmp_path / "s", Begun(rows(20)), KIND, overwrite=True)
    other.__exit__(None, None, None)
    forget_if_empty(tmp_path / "s")
    assert left_behind(tmp_path / "s") == 20
    assert create(tmp_path / "s", Finished(rows(20)), KIND, overwrite=True).count == 20


def test_the_folder_of_a_call_that_is_just_beginning_stays(tmp_path):
    staging = staging_folder(tmp_path / "s")
    forget_if_empty(tmp_path / "s")
    staging.mkdir()
    with sole_writer(staging):
        forget_if_empty(tmp_path / "s")
        assert staging.is_dir()
    forget_if_empty(tmp_path / "s")
    assert not staging.exists()


def test_a_journal_that_a_kill_left_in_a_finished_store_is_no_unfinished_work(tmp_path, run_cli):
    folder = tmp_path / "s"
    store = create(folder, Held(rows(20)), KIND)

    def killed():
        journal = Shards(folder, store.manifest["plan"], 0)
        journal.add(0, {"rows": 8} | store.manifest["files"]["part-00000.h5"])
        assert (folder / JOURNAL).exists()

    killed()
    assert rows_left(folder) == 8 and left_behind(folder) == 0
    assert json.loads(run_cli("store", "info", folder, "--check", "--json").stdout)["pending"] == 0
    assert "3 files intact" in run_cli("store", "verify", folder).stdout
    assert build(open_store(folder, check=True), tmp_path / "index").rows.count == 20
    create(folder, Finished(rows(20)), KIND)
    assert not (folder / JOURNAL).exists()
    killed()
    assert append(folder, Held(rows(5, 20)), KIND).count == 25 and not (folder / JOURNAL).exists()


class Broken(Held):
    """Rows of which the first shard alone is written."""

    def rows(self, start, stop, ids):
        if start:
            raise ZeroDivisionError
        return super().rows(start, stop, ids)


def test_what_is_not_finished_is_told_from_what_is_not_there(tmp_path, run_cli):
    with pytest.raises(ZeroDivisionError):
        create(tmp_path / "s", Broken(rows(20)), KIND)
    for words in (("store", "info"), ("store", "verify"), ("index", "build"), ("index", "info"), ("search",)):
        told = run_cli(*words, tmp_path / "s", code=2).stderr
        assert "s: is not finished" in told and "the same command again goes on" in told
    told = run_cli("embed", "--encoder", "e", "--data", tmp_path / "s", "--output", tmp_path / "t", code=2).stderr
    assert "s: is not finished" in told
    with pytest.raises(UserError, match="s: is not finished"):
        open_store(tmp_path / "s")
    create(tmp_path / "s", Held(rows(20)), KIND)
    assert "20 items" in run_cli("store", "info", tmp_path / "s").stdout
    with pytest.raises(ZeroDivisionError):
        create(tmp_path / "none", Broken(rows(20, 20)), KIND, run=lambda job: 1 / 0)
    assert "does not exist" in run_cli("store", "info", tmp_path / "none", code=2).stderr


def test_making_a_store_again_leaves_what_an_interrupted_addition_wrote(tmp_path):
    create(tmp_path / "s", Held(rows(20)), KIND)
    with pytest.raises(ZeroDivisionError):
        append(tmp_path / "s", Broken(rows(12, 20)), KIND)
    create(tmp_path / "s", Held(rows(20)), KIND)
    assert left_behind(tmp_path / "s") == 8


def test_deleting_keeps_an_interrupted_addition(tmp_path):
    class Second(Held):
        def rows(self, start, stop, ids):
            assert start, "the first shard was written already"
            return super().rows(start, stop, ids)

    create(tmp_path / "s", Held(rows(40)), KIND)
    with pytest.raises(ZeroDivisionError):
        append(tmp_path / "s", Broken(rows(20, 40)), KIND)
    delete(tmp_path / "s", ["id-0"])
    assert append(tmp_path / "s", Second(rows(20, 40)), KIND).count == 59
    assert not (tmp_path / "s" / JOURNAL).exists()
