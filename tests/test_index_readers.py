"""Generations of an index and their readers: what each finds, and which files stay for it."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
from test_index import rows_for, store_of, unit

from retrieval.errors import UserError
from retrieval.index.build import build
from retrieval.index.bundle import open_index
from retrieval.index.change import add, compact, remove
from retrieval.index.search import hits, search


def test_a_reader_keeps_its_generation(store, later, tmp_path):
    folder = tmp_path / "index"
    for factory in ("IVF16,Flat", None):
        old = build(store, folder, factory=factory, overwrite=True)
        before = search(old, unit(5), 3)
        add(folder, later, replace=True)
        compact(folder)
        remove(folder, ["id-1", "id-2"])
        again = search(old, unit(5), 3)  # the FAISS file of a generation that is no more is read now
        np.testing.assert_array_equal(before.rows, again.rows)
        assert hits(old, again)[1][0].id == "id-1"
        with pytest.raises(UserError, match="has changed since this was found"):
            hits(open_index(folder), again[:1].first(2))
        old.rows.close()


def test_files_of_generations_that_nobody_reads_go_while_another_is_read(store, later, tmp_path):
    """A server that always runs kept the files of every generation since its start."""
    folder = tmp_path / "index"

    def files():
        return {path.name for path in folder.iterdir()} - {".lock"}

    first = build(store, folder, factory="IVF16,Flat")
    kept = files() - {"manifest.json"}
    second = add(folder, later, replace=True)
    assert kept < files() and "manifest-1.json" in files()
    compact(folder).rows.close()
    assert kept < files() and set(second.manifest["files"]) < files()  # both are read
    assert hits(first, search(first, unit(2), 3)) and hits(second, search(second, unit(2), 3))
    first.rows.close()
    third = remove(folder, ["id-1"])
    assert files() == {*second.manifest["files"], *third.manifest["files"], "manifest.json", "manifest-2.json"}
    assert hits(second, search(second, unit(2), 3))
    second.rows.close()
    fourth = remove(folder, ["id-2"])
    assert files() == {*third.manifest["files"], *fourth.manifest["files"], "manifest.json", "manifest-4.json"}


def test_readers_that_open_while_an_index_changes_find_all_their_files(store, tmp_path):
    folder, ended = tmp_path / "index", Event()
    build(store, folder, factory="IVF16,Flat").rows.close()

    def read():
        opened = 0
        while not ended.is_set():
            index = open_index(folder)
            time.sleep(0.02)  # its files are opened now, when they may be superseded
            assert len(index.rows.load().ids) == index.rows.count and index.faiss.ntotal == index.about["covers"]
            index.rows.close()
            opened += 1
        return opened

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for turn in range(15):
            fresh = store_of(tmp_path / f"fresh-{turn}", rows_for(20, seed=turn, first=10_000 + 20 * turn))
            add(folder, fresh).rows.close()
            remove(folder, [f"id-{10_000 + 20 * turn}"]).rows.close()
            compact(folder).rows.close()
        ended.set()
        assert all(reader.result() > 5 for reader in readers)
