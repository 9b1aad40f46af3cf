"""The embedding store: round trips of any content, reading by block, range and row, changes, generations, damage."""

import json
import os
import threading

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retrieval.artifact import MANIFEST
from retrieval.errors import UserError
from retrieval.store import STORED_AS, Held, Kind, Rows, append, compact, create, delete, open_store
from retrieval.store.dtypes import decode, encode
from retrieval.store.ids import find, first_repeated
from retrieval.store.shard import shard_name

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
ANY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PLAIN = Kind(8, metric="inner_product", normalized=False, shard_rows=16)


def rows(count, start=0, dim=8, integer=False, seed=0):
    vectors = np.random.default_rng(seed + start).normal(size=(count, dim)).astype(np.float32)
    numbers = range(start, start + count)
    ids = np.arange(start, start + count) if integer else [f"id-{i}" for i in numbers]
    return Rows(vectors, ids, [str(i % 3) for i in numbers], {"text": [f"text {i} é" for i in numbers]})


def same(one, other):
    return (
        (one.embeddings == other.embeddings).all()
        and list(one.ids) == list(other.ids)
        and (one.labels, one.payload) == (other.labels, other.payload)
    )


@st.composite
def any_rows(draw, dim):
    count = draw(st.integers(0, 40))
    values = st.floats(-100, 100, width=16).filter(lambda v: abs(v) > 0.01)
    ids = draw(
        st.lists(names, min_size=count, max_size=count, unique=True)
        | st.lists(st.integers(-(2**63), 2**63 - 1), min_size=count, max_size=count, unique=True).map(
            lambda i: np.array(i, np.int64)
        )
    )
    column = st.lists(names, min_size=count, max_size=count)
    payload = draw(st.dictionaries(st.sampled_from(["text", "path", "título"]), column, max_size=2))
    return Rows(draw(arrays(np.float32, (count, dim), elements=values)), ids, draw(st.none() | column), payload)


@ANY
@given(st.data(), st.integers(1, 9), st.sampled_from(list(STORED_AS)), st.integers(1, 20))
def test_any_store_comes_back_as_it_was(tmp_path_factory, data, dim, dtype, shard_rows):
    held = data.draw(any_rows(dim))
    folder = tmp_path_factory.mktemp("any") / "store"
    kind = Kind(dim, dtype, metric="inner_product", normalized=False, shard_rows=shard_rows)
    create(folder, Held(held), kind)
    with open_store(folder, check=True) as store:
        back = store.load()
        want = decode(encode(held.embeddings, dtype), dtype)
        assert len(store.shards) == -(-len(held) // shard_rows)
        assert same(back, Rows(want, held.ids, held.labels if len(held) else None, held.payload if len(held) else {}))
        assert type(back.ids) is type(held.ids) or not len(held)
        picked = data.draw(st.lists(st.integers(0, max(0, len(held) - 1)), max_size=9 * bool(len(held))))
        assert (store.take(np.array(picked, np.int64)) == want[picked]).all()
        start, stop = sorted(data.draw(st.tuples(st.integers(0, len(held)), st.integers(0, len(held)))))
        assert (store.between(start, stop).embeddings == want[start:stop]).all()


@ANY
@given(arrays(np.float32, (5, 7), elements=st.floats(-(2.0**127), 2.0**127, width=32)))
def test_rounding_is_to_nearest(vectors):
    import torch

    bits = encode(vectors, "bfloat16").data
    assert (bits == torch.from_numpy(vectors).bfloat16().view(torch.uint16).numpy()).all()
    quantised = encode(vectors, "int8")
    error = np.abs(decode(quantised, "int8").astype(float) - vectors)
    assert (error <= 0.5001 * quantised.scales[:, None].astype(float) + 1e-36).all()


@pytest.mark.parametrize("dtype", STORED_AS)
def test_other_tools_read_a_shard(tmp_path, dtype):
    held = rows(20)
    create(tmp_path / "s", Held(held), Kind(8, dtype, normalized=False))
    with h5py.File(tmp_path / "s" / shard_name(0)) as file:
        assert file["embeddings"].attrs["dtype"] == dtype and file["embeddings"].chunks is None
        assert file["ids"].asstr()[3] == "id-3" and file["payload/text"].asstr()[3] == "text 3 é"
        norms = np.linalg.norm(decode(encode(held.embeddings, dtype), dtype), axis=1)
        assert np.allclose(file["norms"][:], norms, rtol=1e-6)


@pytest.mark.parametrize(
    "value,dtype,word",
    [
        (np.nan, "float32", "not finite"),
        (np.inf, "int8", "not finite"),
        (0.0, "float32", "zero"),
        (1e5, "float16", "overflow float16"),
        (3.4e38, "bfloat16", "overflow bfloat16"),
        (1e-9, "float16", "zero"),
        (1e-44, "int8", "zero"),
    ],
)
def test_bad_vectors_are_named_while_writing(tmp_path, value, dtype, word):
    held = rows(40)
    held.embeddings[2] = held.embeddings[33] = value
    with pytest.raises(UserError, match=f"ids id-2.*{word}"):
        create(tmp_path / "s", Held(held), Kind(8, dtype, shard_rows=16))
    assert not (tmp_path / "s").exists()


def test_zero_vectors_have_a_place_where_length_counts(tmp_path):
    held = rows(3)
    held.embeddings[1] = 0
    create(tmp_path / "s", Held(held), Kind(8, metric="euclidean", normalized=False))
    assert (open_store(tmp_path / "s").load().embeddings[1] == 0).all()


@pytest.mark.parametrize("value", ["a\0b", "\ud800"])
def test_strings_that_hdf5_cannot_hold_are_named(tmp_path, value):
    held = Rows(rows(3).embeddings, ["a", "b", "c"], None, {"text": ["x", value, "y"]})
    with pytest.raises(UserError, match="id 'b': its text"):
        create(tmp_path / "s", Held(held), PLAIN)


def test_changes_are_what_a_dictionary_would_do(tmp_path):
    """Appending, replacing, deleting and compacting, against plain Python, with an old reader looking on."""
    folder, rng = tmp_path / "s", np.random.default_rng(0)
    create(folder, Held(rows(40)), PLAIN)
    known = dict(zip(rows(40).ids, rows(40).embeddings, strict=True))
    first = open_store(folder)
    was = first.load()
    start = 40
    for turn in range(12):
        what = ["append", "replace", "delete", "compact"][turn % 4]
        if what == "append":
            new = rows(int(rng.integers(1, 40)), start)
            start += len(new)
            append(folder, Held(new), PLAIN)
            known |= dict(zip(new.ids, new.embeddings, strict=True))
        elif what == "replace":
            new = rows(20, int(rng.integers(0, start)), seed=turn)
            start = max(start, int(new.ids[-1][3:]) + 1)
            append(folder, Held(new), PLAIN, replace=True)
            for name in new.ids:
                known.pop(name, None)
            known |= dict(zip(new.ids, new.embeddings, strict=True))
        elif what == "delete":
            gone = rng.choice(list(known), 9, replace=False).tolist()
            delete(folder, gone)
            for name in gone:
                del known[name]
        else:
            before = open_store(folder).load()
            assert same(before, compact(folder).load())
        with open_store(folder, check=True) as store:
            now = store.load()
            assert store.manifest["generation"] == turn + 2 and store.count == len(known)
            assert now.ids == list(known) and (now.embeddings == np.array(list(known.values()))).all()
            assert [i for i in range(store.count) if now.payload["text"][i] != f"text {now.ids[i][3:]} é"] == []
            assert (store.take(np.arange(store.count)) == now.embeddings).all()
    assert same(first.load(), was)
    first.close()


def test_files_go_when_their_last_reader_has_gone(tmp_path):
    folder = tmp_path / "s"
    create(folder, Held(rows(40)), PLAIN)
    reader = open_store(folder)
    delete(folder, [f"id-{i}" for i in range(30)])
    compact(folder)
    assert (folder / shard_name(0)).exists() and (reader.load().embeddings == rows(40).embeddings).all()
    reader.close()
    append(folder, Held(rows(3, 100)), PLAIN)
    assert not (folder / shard_name(0)).exists() and open_store(folder, check=True).count == 13


def test_compacting_leaves_full_shards_alone_and_copies_the_rest_as_stored(tmp_path):
    kind = Kind(8, "int8", normalized=False, shard_rows=16)
    create(tmp_path / "s", Held(rows(64)), kind)
    delete(tmp_path / "s", ["id-20"])
    for start in (64, 66, 68):
        append(tmp_path / "s", Held(rows(2, start)), kind)
    before = open_store(tmp_path / "s").load()
    store = compact(tmp_path / "s")
    assert [shard["rows"] for shard in store.shards] == [16, 15, 16, 16, 6]
    assert [shard["name"] for shard in store.shards][0] == shard_name(0) and same(before, store.load())
    generation = store.manifest["generation"]
    assert compact(tmp_path / "s").manifest["generation"] == generation  # nothing to gain


def test_everything_deleted_leaves_an_empty_store(tmp_path):
    create(tmp_path / "s", Held(rows(20)), PLAIN)
    delete(tmp_path / "s", rows(20).ids)
    assert open_store(tmp_path / "s").load().embeddings.shape == (0, 8)
    assert compact(tmp_path / "s").shards == []
    append(tmp_path / "s", Held(rows(5)), PLAIN)
    assert open_store(tmp_path / "s").count == 5


def test_the_same_change_twice_is_one_change(tmp_path):
    create(tmp_path / "s", Held(rows(20)), PLAIN)
    for _ in range(2):
        assert append(tmp_path / "s", Held(rows(5, 20)), PLAIN).manifest["generation"] == 2
    for _ in range(2):
        assert delete(tmp_path / "s", ["id-3"]).count == 24
    assert (
        create(tmp_path / "t", Held(rows(20)), PLAIN).manifest == create(tmp_path / "t", Held(rows(20)), PLAIN).manifest
    )


@pytest.mark.parametrize(
    "change,word",
    [
        (lambda f: append(f, Held(rows(5, 18)), PLAIN), "has 2 .id-18, id-19. of the new ids already"),
        (lambda f: delete(f, ["id-1", "nosuch"]), "lacks 1 .nosuch. of these ids"),
        (
            lambda f: append(f, Held(rows(5, 20, dim=9)), Kind(9, metric="inner_product", normalized=False)),
            "dim of the store: 8; of the new rows: 9",
        ),
        (
            lambda f: append(f, Held(rows(5, 20)), Kind(8, "int8", "inner_product", False)),
            "dtype of the store: float32",
        ),
        (lambda f: append(f, Held(rows(5, 20, integer=True)), PLAIN), "ids of the store: string"),
        (
            lambda f: append(f, Held(Rows(rows(1).embeddings, ["x"])), PLAIN),
            "columns of the store: labels, payload/text; of the new rows: none",
        ),
        (
            lambda f: append(f, Held(Rows(rows(2).embeddings, ["x", "x"], ["", ""], {"text": ["", ""]})), PLAIN),
            "id 'x' stands",
        ),
        (lambda f: create(f, Held(rows(21)), PLAIN), "already exists"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(tmp_path, change, word):
    create(tmp_path / "s", Held(rows(20)), PLAIN)
    before = (tmp_path / "s" / MANIFEST).read_bytes()
    with pytest.raises(UserError, match=word) as caught:
        change(tmp_path / "s")
    assert "\n" not in str(caught.value) and (tmp_path / "s" / MANIFEST).read_bytes() == before


def test_a_second_writer_is_refused(tmp_path):
    create(tmp_path / "s", Held(rows(20)), PLAIN)
    inside, go = threading.Event(), threading.Event()

    class Slow(Held):
        def rows(self, start, stop, ids):
            inside.set()
            go.wait(10)
            return super().rows(start, stop, ids)

    first = threading.Thread(target=append, args=(tmp_path / "s", Slow(rows(5, 20)), PLAIN))
    first.start()
    inside.wait(10)
    for second in (lambda: append(tmp_path / "s", Held(rows(5, 30)), PLAIN), lambda: compact(tmp_path / "s")):
        with pytest.raises(UserError, match="another process is writing to it"):
            second()
    go.set()
    first.join()
    assert open_store(tmp_path / "s").count == 25


def test_overwriting_what_another_process_changes_is_refused(tmp_path):
    """It would go on with its change in the new folder."""
    create(tmp_path / "s", Held(rows(20)), PLAIN)

    class Overwritten(Held):
        def rows(self, start, stop, ids):
            with pytest.raises(UserError, match="another process is writing to it"):
                create(tmp_path / "s", Held(rows(3)), PLAIN, overwrite=True)
            return super().rows(start, stop, ids)

    append(tmp_path / "s", Overwritten(rows(5, 20)), PLAIN)
    assert open_store(str(tmp_path / "s"), check=True).count == 25


def test_rows_that_are_none_are_refused(tmp_path):
    store = create(str(tmp_path / "s"), Held(rows(20)), PLAIN)
    for wrong in ([-1], [20], [1.5], [True, False]):
        with pytest.raises(IndexError):
            store.take(wrong)
    for start, stop in ((-1, 3), (3, 21), (5, 4)):
        with pytest.raises(IndexError):
            store.between(start, stop)


def test_ids_are_found_and_repeats_too():
    blocks = [["a", "b"], ["c", "a"]]
    assert first_repeated(blocks) == "a" and first_repeated([["a"], ["b"]]) is None
    assert first_repeated([np.arange(5), np.arange(3, 6)]) == 3


def test_finding_tells_shard_and_row(tmp_path):
    create(tmp_path / "s", Held(rows(40)), PLAIN)
    delete(tmp_path / "s", ["id-17", "id-20"])
    with open_store(tmp_path / "s") as store:
        assert find(store, [["id-3", "id-21", "id-17", "x"]]) == {"id-3": (0, 3), "id-21": (1, 5)}


def damaged(tmp_path, change):
    create(tmp_path / "store", Held(rows(5)), PLAIN)
    change(tmp_path / "store")
    with pytest.raises(UserError) as caught:
        open_store(tmp_path / "store", check=True)
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


def test_a_damaged_shard_of_a_large_store_is_one_line_too(tmp_path, monkeypatch):
    """Beyond a size, opening does not hash: reading a broken shard must still not be a traceback."""
    create(tmp_path / "s", Held(rows(5)), PLAIN)
    monkeypatch.setattr("retrieval.artifact.HASHED_ON_OPENING", 0)
    path = tmp_path / "s" / shard_name(0)
    path.write_bytes(b"\0" * path.stat().st_size)
    with open_store(tmp_path / "s") as store:
        with pytest.raises(UserError, match="part-00000.h5: damaged"):
            store.read(0)
        with pytest.raises(UserError, match="does not match"):
            store.verify()


def test_compacting_does_not_bless_damage(tmp_path, monkeypatch):
    create(tmp_path / "s", Held(rows(40)), PLAIN)
    delete(tmp_path / "s", ["id-3"])
    monkeypatch.setattr("retrieval.artifact.HASHED_ON_OPENING", 0)
    path = tmp_path / "s" / shard_name(0)
    flip(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match="part-00000.h5: its content does not match"):
        compact(tmp_path / "s")


def test_a_replaced_store_is_never_read_as_the_old_one(tmp_path):
    create(tmp_path / "s", Held(rows(40)), PLAIN)
    old = open_store(tmp_path / "s")
    create(tmp_path / "s", Held(rows(40, 100)), PLAIN, overwrite=True)
    with pytest.raises(UserError, match="replaced meanwhile"):
        old.load()
    assert open_store(tmp_path / "s").load().ids[0] == "id-100"


def test_nothing_is_overwritten_unasked(tmp_path):
    create(tmp_path / "store", Held(rows(3)), PLAIN)
    with pytest.raises(UserError, match="already exists"):
        create(tmp_path / "store", Held(rows(4)), PLAIN)
    assert create(tmp_path / "store", Held(rows(4)), PLAIN, overwrite=True).count == 4
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="did not write"):
        create(mine, Held(rows(4)), PLAIN, overwrite=True)
    assert (mine / "thesis.txt").read_text() == "years of work"
