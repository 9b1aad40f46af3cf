"""A corpus embedded in parts, on as many machines, and stores and indexes merged: nothing lost, nothing twice, nothing else."""

import json
import re
import shutil
from dataclasses import replace

import faiss
import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_index import rows_for, unit

from retrieval.artifact import MANIFEST
from retrieval.errors import UserError
from retrieval.index.build import build, new_index
from retrieval.index.change import merge as merge_indexes
from retrieval.index.search import hits, search
from retrieval.neighbors import exact_neighbors
from retrieval.store import Held, Kind, Rows, append, create, delete, merge, open_store
from retrieval.store.writer import rows_of_part, write_in_turn

KIND = Kind(16, shard_rows=10)


def source(count=95, **changed):
    rows = rows_for(count)
    return Held(replace(Rows(unit(count, dim=16), rows.ids, rows.labels, rows.payload), **changed))


def parts_of(folder, held, of, kind=KIND):
    return [create(folder / f"part-{number}", held, kind, part=(number, of)) for number in range(1, of + 1)]


def contents(folder):
    """Its shards, byte by byte, and what its manifest says of them."""
    return json.loads((folder / MANIFEST).read_text()), {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".h5", ".npy")
    }


@given(rows=st.integers(0, 300), shard_rows=st.integers(1, 40), of=st.integers(1, 12))
def test_parts_are_whole_shards_and_every_row_once(rows, shard_rows, of):
    for number in (0, -1, of + 1):
        with pytest.raises(UserError, match=f"part {number} of {of}: there is none; parts are counted from 1"):
            rows_of_part(rows, shard_rows, (number, of))
    shards = -(-rows // shard_rows)
    if of > max(1, shards):
        with pytest.raises(UserError, match=rf"--part 1/{of}: {rows} rows in shards of {shard_rows} are {shards}; "):
            rows_of_part(rows, shard_rows, (1, of))
        return
    parts = [rows_of_part(rows, shard_rows, (number, of)) for number in range(1, of + 1)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert all(part.start % shard_rows == 0 for part in parts)
    sizes = [-(-len(part) // shard_rows) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("of", [2, 3, 10])
@pytest.mark.parametrize("numbered", [True, False])
def test_merged_parts_are_byte_by_byte_the_store_of_one_call(tmp_path, of, numbered):
    held = source()
    if numbered:  # as `embed` numbers rows without ids, from the first of the whole corpus on

        class Numbered(Held):
            def ids(self, start, stop):
                return None

            def rows(self, start, stop, ids):
                return replace(self.held[start:stop], ids=ids)

        held = Numbered(replace(held.held, ids=np.arange(95)))
    create(tmp_path / "whole", held, KIND).close()
    parts = parts_of(tmp_path, held, of)
    assert sum(part.count for part in parts) == 95 and all(part.count for part in parts)
    rng = np.random.default_rng(0)
    merge([parts[at] for at in rng.permutation(of)], tmp_path / "merged").close()
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    assert contents(tmp_path / "part-1") != contents(tmp_path / "whole")
    with h5py.File(tmp_path / "part-1" / "part-00000.h5") as shard:
        assert len(shard["ids"]) == 10


def test_a_killed_part_goes_on_and_keeps_what_it_had(tmp_path):
    class Killed(Exception):
        pass

    done = []

    def killed(job):
        assert job.todo == [5, 6, 7, 8, 9]
        write_in_turn(replace(job, asked=range(50, 70)), done.append)
        raise Killed

    def rest(job):
        assert job.todo == [7, 8, 9]
        write_in_turn(job)

    with pytest.raises(Killed):
        create(tmp_path / "part-2", source(), KIND, part=(2, 2), run=killed)
    assert done == [10, 10] and not (tmp_path / "part-2").exists()
    second = create(tmp_path / "part-2", source(), KIND, part=(2, 2), run=rest)
    assert second.load().ids == source().held.ids[50:]

    def never(job):
        raise AssertionError("was made already")

    create(tmp_path / "part-2", source(), KIND, part=(2, 2), run=never).close()
    with pytest.raises(UserError, match="already exists"):
        create(tmp_path / "part-2", source(), KIND, part=(1, 2))


def test_a_part_that_is_not_there_is_not_passed_over(tmp_path):
    one, two, three, four = parts_of(tmp_path, source(), 4)
    other = create(tmp_path / "other", source(90), KIND, part=(2, 4))
    others = {
        name: create(tmp_path / name, held, kind, part=(2, of), **more)
        for name, held, kind, of, more in [
            ("changed", source(labels=["x"] * 95), KIND, 4, {}),
            ("half", source(), replace(KIND, dtype="float16"), 4, {}),
            ("small", source(), replace(KIND, shard_rows=9), 4, {}),
            ("five", source(), KIND, 5, {}),
            ("foreign", source(), replace(KIND, encoder={"name": "e", "fingerprint": "f"}), 4, {}),
            (
                "rough",
                source(payload={"text": ["y"] * 95}),
                KIND,
                4,
                {"notes": {"computed": [{"compute": "bfloat16"}]}},
            ),
            ("batches", source(), KIND, 4, {"settings": 16}),
        ]
    }
    bare = create(tmp_path / "bare", source(), KIND)
    for given_, word in [
        ([one, three], r"part-1: of its corpus's 4 parts, 2 \(2, 4\) are not given; merge all"),
        ([one, two, three, four, two], r"part-2: is part 2 of 4, as is .*part-2; give each part once"),
        (
            [one, other, three, four],
            r"other: is no part of what .*part-1 is a part of: it is of 90 rows, not 95; embed it",
        ),
        ([other, three, four], r"other: is no part of what .*part-3 is a part of: it is of 90 rows"),  # the odd one
        (
            [one, others["changed"], three, four],
            r"changed: is no part of .*: of other data, in which pictures, .* embed it",
        ),
        ([one, others["half"], three, four], r"half: .*: --dtype is float16, not float32; embed it again"),
        ([one, others["small"], three, four], r"small: .*: --shard-rows is 9, not 10; embed it again"),
        ([one, others["five"], three, four], r"five: .*: it is of 5 parts, not 4; embed it again"),
        ([one, others["foreign"], three, four], r"foreign: .*: it is by another encoder; embed it again"),
        ([one, others["batches"], three, four], r"batches: .*: --batch-size is 16, not None; embed it again"),
        (
            [one, others["rough"], three, four],
            r"rough: .*: it was computed in another way \(`store info` of both\); embed",
        ),
        (
            [one, two, three, four, bare],
            r"bare: is no part, and .*part-1 is one; merge the parts first, or leave it out",
        ),
    ]:
        with pytest.raises(UserError, match=word):
            merge(given_, tmp_path / "merged")
        assert not (tmp_path / "merged").exists()


def test_merging_again_changes_nothing_and_never_replaces_a_part(tmp_path):
    parts = parts_of(tmp_path, source(), 3)
    folders = [tmp_path / f"part-{number}" for number in (1, 2, 3)]
    merge(folders, tmp_path / "merged").close()
    before = contents(tmp_path / "merged"), (tmp_path / "merged" / MANIFEST).stat().st_mtime_ns
    merge(parts[::-1], tmp_path / "merged").close()
    create(tmp_path / "merged", source(), KIND).close()  # it is what one call makes
    assert (contents(tmp_path / "merged"), (tmp_path / "merged" / MANIFEST).stat().st_mtime_ns) == before
    with pytest.raises(UserError, match="part-1: is one of those that are merged; choose another"):
        merge(folders, folders[0], overwrite=True)
    delete(tmp_path / "part-2", ["id-40"]).close()
    with pytest.raises(UserError, match="merged: already exists"):
        merge(folders, tmp_path / "merged")
    assert merge(folders, tmp_path / "merged", overwrite=True).count == 94
    alone = create(tmp_path / "whole", source(), KIND, part=(1, 1))
    create(tmp_path / "once", source(), KIND).close()
    merge([alone], tmp_path / "alone").close()
    assert contents(tmp_path / "alone") == contents(tmp_path / "once")


def test_numbers_of_a_part_end_where_the_next_part_begins(tmp_path):
    class Numbered(Held):
        def ids(self, start, stop):
            return None

        def rows(self, start, stop, ids):
            return replace(self.held[start:stop], ids=ids)

    held = Numbered(replace(source().held, ids=np.arange(95)))
    parts_of(tmp_path, held, 3)
    more = Numbered(replace(held.held, ids=np.arange(95)))
    with pytest.raises(
        UserError, match="part-1: is part 1 of 3, and the next part's rows have the numbers that come after"
    ):
        append(tmp_path / "part-1", more, KIND, settings=1)
    assert append(tmp_path / "part-3", more, KIND, settings=1).load().ids[-1] == 189


def test_product_quantizers_are_not_trained_for_a_search_that_nobody_asks_for(tmp_path):
    """Polysemous training takes minutes, and its codes find the same."""
    store = create(tmp_path / "store", Held(rows_for(300)), Kind(24))
    for factory in ("PQ4", "IVF4,PQ4"):
        part = faiss.downcast_index(new_index(factory, store))
        assert part.do_polysemous_training is False
        assert faiss.index_factory(24, factory).do_polysemous_training is True  # or there was nothing to be saved


def test_other_stores_are_merged_in_the_order_given(tmp_path):
    kind = replace(KIND, dtype="int8")
    one = create(tmp_path / "one", source(25), kind)
    two = create(tmp_path / "two", source(12, ids=[f"late-{i}" for i in range(12)]), kind)
    one = delete(tmp_path / "one", ["id-3", "id-24"])
    merged = merge([two, one], tmp_path / "merged")
    kept = [f"id-{i}" for i in range(25) if i not in (3, 24)]
    assert merged.load().ids == [f"late-{i}" for i in range(12)] + kept
    assert np.array_equal(merged.embeddings(), np.concatenate([two.embeddings(), one.embeddings()]))
    assert not any("deleted" in shard for shard in merged.shards) and "part" not in merged.manifest
    again = append(tmp_path / "merged", source(3, ids=["x", "y", "z"]), kind)  # it is a store like any other
    assert again.count == 38 and open_store(tmp_path / "merged", check=True).count == 38
    assert one.count == 23  # and what it was made of stays


def test_integers_go_on_from_the_largest(tmp_path):
    one = create(tmp_path / "one", source(20, ids=np.arange(20)), KIND)
    two = create(tmp_path / "two", source(20, ids=np.arange(100, 120)), KIND)
    assert merge([two, one], tmp_path / "merged").manifest["next_id"] == 120


@pytest.mark.parametrize(
    ("kind", "changed", "word"),
    [
        (KIND, {}, r"id 'id-0' stands in more than one of them; remove it from all but one"),
        (replace(KIND, dtype="float16"), {}, "dtype is float16, of .* float32; they cannot be merged"),
        (KIND, {"ids": np.arange(95)}, "ids is integer, of .* string; they cannot be merged"),
        (KIND, {"labels": None}, r"columns is \['payload/text'\], of .* they cannot be merged"),
        (replace(KIND, encoder={"name": "x", "fingerprint": "y"}), {}, "is by another encoder than .*; embed one"),
    ],
)
def test_stores_that_do_not_go_together_are_refused(tmp_path, kind, changed, word):
    one, two = create(tmp_path / "one", source(), KIND), create(tmp_path / "two", source(**changed), kind)
    with pytest.raises(UserError, match=word):
        merge([one, two], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("factory", ["IVF8,Flat", "HNSW16", "Flat"])
def test_indexes_over_parts_make_the_index_of_the_whole(tmp_path, factory):
    """Trained once, filled anywhere, merged: given out of order, found as one."""
    kind = Kind(24, shard_rows=200)
    rows = rows_for(900)
    held = Held(rows)
    parts = parts_of(tmp_path, held, 3, kind)
    first = build(parts[0], tmp_path / "index-1", factory=factory)
    others = [build(parts[at], tmp_path / f"index-{at + 1}", trained_by=first) for at in (1, 2)]
    with pytest.raises(UserError, match=r"index-2: of its corpus's 3 parts, 1 \(1\) are not given"):
        merge_indexes(others, tmp_path / "some")
    merged = merge_indexes([others[1], first, others[0]], tmp_path / "index")
    again = merge_indexes([first, *others], tmp_path / "index")
    assert again.manifest == merged.manifest
    with pytest.raises(UserError, match="index-1: is one of those that are merged"):
        merge_indexes([first, *others], tmp_path / "index-1", overwrite=True)
    built = [build(part, tmp_path / f"another-{at}", factory="SQ8") for at, part in enumerate(parts)]
    with pytest.raises(UserError, match="already exists"):  # the same rows, another index
        merge_indexes(built, tmp_path / "index")
    assert merged.rows.load().ids == rows.ids and merged.covered == 900 and "part" not in merged.manifest
    queries = unit(20, seed=5)
    truth = exact_neighbors(queries, rows.embeddings, 1).ids[:, 0]
    found = [
        hit[0].id
        for hit in hits(merged, search(merged, queries, 1, settings={"nprobe": 8} if "IVF" in factory else None))
    ]
    assert np.mean([name == rows.ids[row] for name, row in zip(found, truth, strict=True)]) >= 0.95


def test_the_command_line(tmp_path, tiny, run_cli):
    data = tmp_path / "texts.csv"
    data.write_text("text,label\n" + "".join(f"word {i} and {i * i},{i % 3}\n" for i in range(50)))
    base = ["embed", "--encoder", tiny, "--data", data, "--shard-rows", 8, "--device", "cpu"]
    run_cli(*base, "--output", tmp_path / "whole")
    for number in (3, 1, 2):
        run_cli(*base, "--part", f"{number}/3", "--output", tmp_path / f"part-{number}")
    assert (
        "is already what this command makes" in run_cli(*base, "--part", "1/3", "--output", tmp_path / "part-1").output
    )
    told = run_cli("store", "info", tmp_path / "part-2").output
    assert re.search(
        r"part 2 of 3 of 50 rows \([0-9a-f]{12}, the same of all its parts\); `retrieval store merge` joins them", told
    )
    folders = [tmp_path / f"part-{number}" for number in (2, 3, 1)]
    result = run_cli("store", "merge", *folders, "--output", tmp_path / "merged", "--json")
    assert json.loads(result.stdout)["count"] == 50
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    shutil.rmtree(tmp_path / "part-3")
    for args, word in [
        (["store", "merge", *folders[::2], "--output", tmp_path / "x"], r"parts, 1 \(3\) are not given"),
        ([*base, "--part", "8/8", "--output", tmp_path / "x"], "50 rows in shards of 8 are 7; ask for at most as many"),
        ([*base, "--part", "1/2", "--append", "--output", tmp_path / "whole"], "--part: makes a store of its own"),
        *(
            ([*base, "--part", part, "--output", tmp_path / "x"], "3/8 is the third")
            for part in ("3", "0/4", "5/4", "a/b")
        ),
    ]:
        assert re.search(word, run_cli(*args, code=2).output.replace("\n", " "))
