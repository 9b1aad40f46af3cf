"""Kills, full disks and flipped bytes, a few of each: benchmarks/faults.py does hundreds."""

import faults
import index_faults
import pytest
import torch

from retrieval.index import change

OPERATIONS = ["embed", "embed --append", "append", "replace", "compact"]


@pytest.fixture(scope="module")
def operations():
    torch.set_num_threads(1)
    return {operation.name: operation for operation in faults.operations(faults.tiny_encoder())}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_and_run_again_it_is_the_store_of_an_unbroken_run(operations, name, tmp_path):
    killed, inside = faults.kills(operations[name], 8, tmp_path)
    assert killed == 8 and inside >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_full_disk_leaves_the_generation_before(operations, name, tmp_path, small_disk):
    tried, full = faults.full_disks(operations[name], 6, tmp_path)
    assert tried == 6 and full >= 3


def test_every_byte_is_guarded(tmp_path):
    kind = faults.Kind(faults.DIM, metric="inner_product", normalized=False)
    faults.create(tmp_path / "store", faults.Held(faults.random_rows(3)), kind)
    faults.delete(tmp_path / "store", ["id-1"])
    assert faults.flips(tmp_path / "store", 97) > 90


def test_the_faults_are_noticed(operations, tmp_path, monkeypatch):
    """The harness can fail: where shards that were done are not taken up again, it says so."""
    monkeypatch.setattr("retrieval.store.journal._whole", lambda *words: False)
    with pytest.raises(AssertionError, match="were committed"):
        faults.kills(operations["embed"], 8, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["build", "add", "replace", "remove", "fold", "compact", "merge"])
def test_an_index_answers_as_before_or_as_after(name, tmp_path, small_disk):
    index_faults.alone()
    operation = {operation.name: operation for operation in index_faults.operations()}[name]
    (tmp_path / "killed").mkdir()
    (tmp_path / "full").mkdir()
    assert index_faults.kills(operation, 5, tmp_path / "killed")[0] == 5
    tried, full = index_faults.full_disks(operation, 5, tmp_path / "full")
    assert tried == 5 and full >= 1


def test_a_generation_published_too_early_is_noticed(tmp_path, monkeypatch):
    """The harness can fail: a manifest that names a file before it is whole."""
    index_faults.alone()
    operation = {operation.name: operation for operation in index_faults.operations()}["fold"]

    def early(index, path):
        stated = whole(index, path)
        path.write_bytes(path.read_bytes()[:-1])
        return stated

    whole = change.write_faiss
    monkeypatch.setattr(change, "write_faiss", early)
    with pytest.raises(AssertionError):
        index_faults.kills(operation, 2, tmp_path)
