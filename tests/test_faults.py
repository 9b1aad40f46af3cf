"""Kills, full disks and flipped bytes, a few of each: benchmarks/faults.py does hundreds."""

import faults
import pytest
import torch

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
