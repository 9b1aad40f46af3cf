"""The index commands, one after the other, as people run them; and the one line that each mistake gets."""

import json

import faiss
import numpy as np
import pytest
from test_index import rows_for, store_of, unit

from retrieval.formats import open_vectors
from retrieval.formats.trec import read_run
from retrieval.index.bundle import open_index
from retrieval.store import Rows, open_store


@pytest.fixture
def place(tmp_path):
    store_of(tmp_path / "store", rows_for(900))
    store_of(tmp_path / "new", rows_for(100, seed=3, first=900))
    store_of(tmp_path / "queries", Rows(unit(60, seed=5), [f"q{i}" for i in range(60)]))
    return tmp_path


def told(result):
    return json.loads(result.stdout)


@pytest.mark.parametrize("count,said", [(0, "has no query"), (1, "has 1 query")])
def test_one_query_is_too_few_to_tune_by(count, said, place, run_cli):
    store_of(place / "few", Rows(unit(count, seed=5), [f"q{i}" for i in range(count)]))
    words = ["index", "build", place / "store", "--queries", place / "few", "--output", place / "i"]
    assert f"{said}; give two at least" in run_cli(*words, code=2).stderr


def test_from_a_plan_to_an_export(place, run_cli):
    planned = told(
        run_cli("index", "build", place / "store", "--recall", 1, "--plan", "--output", place / "x", "--json")
    )
    assert [one["factory"] for one in planned["plan"]] == ["Flat"] and not (place / "x").exists()
    built = run_cli(
        "index",
        "build",
        place / "store",
        "--factory",
        "IVF16,Flat",
        "--queries",
        place / "queries",
        "--output",
        place / "i",
    )
    assert "against exact search, 30 real queries" in built.stdout and "nprobe" in built.stdout
    assert told(run_cli("index", "add", place / "i", place / "new", "--json"))["late"] == 100
    removed = told(run_cli("index", "remove", place / "i", "--id", "id-3", "--id", "id-950", "--json"))
    assert (removed["count"], removed["generation"]) == (998, 3)
    shown = run_cli("index", "info", place / "i").stdout
    assert "99 late rows compared exactly" in shown and "2 deleted rows passed over" in shown
    assert told(run_cli("index", "compact", place / "i", "--json"))["late"] == 0
    tuned = told(run_cli("index", "tune", place / "i", "--recall", 0.5, "--json"))
    assert tuned["search"]["nprobe"] == 1
    run_cli("index", "verify", place / "i")
    run_cli("index", "export", place / "i", "--output", place / "plain.faiss", "--ids", place / "ids.txt")
    assert faiss.read_index(str(place / "plain.faiss")).ntotal == 998
    run_cli("index", "export", place / "i", "--output", place / "x.hdf5", "--queries", place / "queries")
    words = [
        "index",
        "import",
        place / "plain.faiss",
        "--ids",
        place / "ids.txt",
        "--metric",
        "cosine",
        "--output",
        place / "back",
    ]
    assert told(run_cli(*words, "--json"))["count"] == 998
    run_cli("index", "build", place / "new", "--trained-by", place / "i", "--output", place / "part")
    assert (
        "'id-900' stands in more than one"
        in run_cli("index", "merge", place / "i", place / "part", "--output", place / "m", code=2).stderr
    )
    run_cli("index", "remove", place / "i", "--ids", place / "new-ids.txt", code=2)


@pytest.mark.parametrize("integers", [False, True])
def test_ids_that_are_not_there_are_passed_over_where_that_is_asked(tmp_path, run_cli, integers):
    ids = np.arange(50) if integers else [str(i) for i in range(50)]
    store_of(tmp_path / "store", Rows(unit(50), ids))
    run_cli("index", "build", tmp_path / "store", "--output", tmp_path / "index")
    named = ["--id", "7", "--id", "90", "--id", "91"]
    commands = (["store", "delete"], "1 deleted, 2 ids not there, 49 left"), (["index", "remove"], "1 row removed, 2 ids not there")  # fmt: skip
    for command, said in commands:
        words = [*command, tmp_path / command[0], *named]
        assert "lacks 2 (90, 91) of these ids; nothing was deleted" in run_cli(*words, code=2).stderr
        assert said in run_cli(*words, "--missing-ok").stdout
        again = told(run_cli(*words, "--missing-ok", "--json"))
        assert (again["missing"], again["count"], again["generation"]) == (3, 49, 2)


def test_a_day_with_nothing_to_remove_is_no_mistake(place, tmp_path, run_cli):
    none = tmp_path / "none.txt"
    none.write_text("")
    run_cli("index", "build", place / "store", "--output", place / "i")
    for command in (["index", "remove", place / "i"], ["store", "delete", place / "store"]):
        for flags in ([], ["--missing-ok"]):
            assert "no ids, nothing was done" in run_cli(*command, "--ids", none, *flags).stdout
        assert told(run_cli(*command, "--ids", none, "--json"))["generation"] == 1
        assert "give --id ID or --ids FILE" in run_cli(*command, code=2).stderr


def test_a_store_is_added_to_a_store_as_to_an_index(place, run_cli):
    run_cli("index", "build", place / "store", "--output", place / "i")
    for command in ("store", "index"):
        there = place / ("store" if command == "store" else "i")
        added = run_cli(command, "add", there, place / "new")
        assert "100 rows added" in added.stdout
        assert "nothing was done" in run_cli(command, "add", there, place / "new").stdout
    store, index = open_store(place / "store"), open_index(place / "i").rows
    np.testing.assert_array_equal(store.embeddings(), index.embeddings())
    assert store.load().ids == index.load().ids and store.count == 1000
    run_cli("store", "delete", place / "store", "--id", "id-1")
    again = run_cli("store", "add", place / "store", place / "new", "--replace")
    assert "0 rows added, 100 replaced, 999 in all" in again.stdout
    assert "of the new ids already" in run_cli("store", "add", place / "store", place / "new", code=2).stderr


def test_rows_that_faiss_does_not_cover_are_said_when_they_are_added(place, run_cli):
    said = "  100 late rows compared exactly; `retrieval index compact` gives them to FAISS"
    for factory, lines in (("HNSW16", [said]), ("Flat", [])):
        run_cli("index", "build", place / "store", "--factory", factory, "--output", place / factory)
        assert run_cli("index", "add", place / factory, place / "new").stdout.splitlines()[1:] == lines
    assert said in run_cli("index", "info", place / "HNSW16").stdout
    assert len(run_cli("index", "compact", place / "HNSW16").stdout.splitlines()) == 1


def test_search_goes_where_it_is_told(place, run_cli, monkeypatch):
    run_cli("index", "build", place / "store", "--factory", "HNSW16", "--output", place / "i")
    base = ["search", place / "i", "--store", place / "queries"]
    full = told(run_cli(*base, "-k", 5, "--explain", "--json"))
    assert full["how"]["way"] == "approximate" and full["how"]["settings"]["effort"] >= 1
    labelled = told(run_cli(*base, "-k", 5, "--label", "2", "--label", "3", "--json"))["results"]
    assert {hit["label"] for one in labelled for hit in one["hits"]} == {"2", "3"}
    (place / "ids.txt").write_text("id-7\nid-8\n")
    among = told(run_cli(*base, "-k", 5, "--among", place / "ids.txt", "--explain", "--json"))
    assert {hit["id"] for one in among["results"] for hit in one["hits"]} == {"id-7", "id-8"}
    assert among["how"] == {"way": "exact", "compared": 2}
    assert "may be found" not in run_cli(*base, "-k", 5, "--explain").stdout
    with monkeypatch.context() as patch:
        patch.setattr("retrieval.index.search.EXACT_UP_TO", 0)
        words = [*base, "-k", 5, "--label", "2", "--explain"]
        assert "rows may be found; recall was measured without a filter" in run_cli(*words).stdout
        assert told(run_cli(*words, "--json"))["how"]["allowed"] > 100
    near = told(run_cli(*base, "--radius", 0.6, "--json"))["results"]
    assert (
        all(hit["score"] >= 0.6 for one in near for hit in one["hits"]) and sum(len(one["hits"]) for one in near) > 30
    )
    run_cli(*base, "-k", 4, "--output", place / "a.run")
    lines = (place / "a.run").read_text().splitlines()
    assert len(lines) == 240 and lines[0].split()[:2] == ["q0", "Q0"] and lines[0].split()[3] == "1"
    run_cli(*base, "-k", 4, "--output", place / "a.npy")
    run_cli(*base, "-k", 4, "--output", place / "a.jsonl")
    assert np.load(place / "a.npy").shape == (60, 4)
    first = np.load(place / "a.npy")
    rows = [json.loads(line) for line in (place / "a.jsonl").read_text().splitlines()]
    assert [hit["id"] for hit in rows[3]["hits"]] == first[3].tolist()
    assert "IVF" not in run_cli(*base, "-k", 1, "--explain").stdout


def test_names_that_a_run_cannot_hold_are_refused_before_the_search(tmp_path, run_cli, monkeypatch):
    """A search and a loaded encoder may take minutes. What a filter leaves out need not be written."""
    from retrieval.index import ask, search

    x, ids = unit(50), [f"id-{i}" for i in range(48)] + ["id 48", "id 49"]
    store = store_of(tmp_path / "store", Rows(x, ids, ["a"] * 48 + ["b"] * 2))
    store_of(tmp_path / "queries", Rows(x[:9], [f"q{i}" for i in range(9)]))
    store_of(tmp_path / "spaced", Rows(x[:1], ["q 0"]))
    run_cli("index", "build", store.folder, "--output", tmp_path / "i")
    words, run = ["search", tmp_path / "i", "--output", tmp_path / "a.run"], ["--store", tmp_path / "queries"]
    store_of(tmp_path / "one", Rows(x[:1], ["q"]))
    told = run_cli("search", tmp_path / "i", "--store", tmp_path / "one", "-k", "1", "--output", tmp_path / "1.npy")
    assert told.stdout.endswith(": 1 query, 1 result\n")
    told = run_cli("index", "tune", tmp_path / "i", "--queries", tmp_path / "one", code=2)
    assert "has 1 query; give two at least" in told.stderr
    run_cli(*words, *run, "--label", "a", "-k", 50)
    (tmp_path / "a.run").unlink()
    for module, name in ((ask, "search"), (ask, "load_encoder"), (search, "search")):
        monkeypatch.setattr(module, name, lambda *args, **options: pytest.fail("searched"))
    (tmp_path / "qrels").write_text("q0 0 id-0 1\n")
    judged = ["eval", "relevance", "--qrels", tmp_path / "qrels", "--corpus", tmp_path / "i", "--queries"]
    for asked, said in (
        ([*words, *run, "-k", 1], "id 'id 48' (and 1 more): TREC runs take no spaces in names; write .jsonl"),
        ([*words, "--store", tmp_path / "spaced"], "query 'q 0': TREC"),
        ([*words, "--query", "two words", "--encoder", "none"], "query 'two words': TREC"),
        ([*judged, tmp_path / "queries", "--run-output", tmp_path / "b.run"], "id 'id 48' (and 1 more): TREC"),
    ):
        assert said in run_cli(*asked, code=2).stderr
    assert not list(tmp_path.glob("*.run"))


def test_results_are_written_so_that_others_read_them_right(tmp_path, run_cli):
    """The nearest has the highest score in a run, whatever the metric; what a hit says of itself is not what its row says."""
    x, count = 3 * unit(200), 200
    ids = [f"id-{i}" for i in range(count - 1)] + ["far" * 1000]
    x[-1] = 1000
    payload = {name: [f"{name} {i}" for i in range(count)] for name in ("score", "id", "label", "text")}
    rows = Rows(x, ids, ["a"] * count, payload)
    store = store_of(tmp_path / "store", rows, metric="euclidean", normalized=False)
    store_of(tmp_path / "queries", Rows(x[:9], [f"q{i}" for i in range(9)]), metric="euclidean", normalized=False)
    run_cli("index", "build", store.folder, "--output", tmp_path / "i")
    base = ["search", tmp_path / "i", "--store", tmp_path / "queries", "-k", 5]
    for name in ("a.run", "a.jsonl", "a.npy"):
        run_cli(*base, "--output", tmp_path / name)
    shown = told(run_cli(*base, "--json"))["results"]
    assert shown == [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    for number, (scores, one) in enumerate(zip(read_run(tmp_path / "a.run").scores.values(), shown, strict=True)):
        assert [hit["id"] for hit in one["hits"]] == sorted(scores, key=scores.get, reverse=True)
        assert list(scores.values()) == pytest.approx([-hit["score"] for hit in one["hits"]])
        first = one["hits"][0]
        assert (first["id"], first["label"], first["text"]) == (f"id-{number}", "a", f"text {number}")
        assert [first[f"payload.{name}"] for name in ("score", "id", "label")] == [
            f"{name} {number}" for name in ("score", "id", "label")
        ]
    found = np.load(tmp_path / "a.npy")
    assert found.tolist() == [[hit["id"] for hit in one["hits"]] for one in shown]
    assert found.dtype.itemsize < 100  # an id that is long and was not found takes no place


def test_exported_ids_do_not_replace_the_index_and_parquet_has_them(place, run_cli):
    run_cli("index", "build", place / "store", "--output", place / "i")
    out = ["index", "export", place / "i", "--output"]
    error = run_cli(*out, place / "a.faiss", "--ids", place / "a.faiss", code=2).stderr
    assert "is --output too; give each a name of its own" in error and not (place / "a.faiss").exists()
    assert "holds no strings" in run_cli(*out, place / "a.faiss").stderr
    assert "holds no strings" not in run_cli(*out, place / "a.parquet").stderr
    assert open_vectors(place / "a.parquet").ids(0, 2) == ["id-0", "id-1"]


@pytest.mark.parametrize(
    "words,said",
    [
        (["search", "{i}", "--store", "{queries}", "--label", "nine"], "label 'nine': no item"),
        (["search", "{i}", "--store", "{queries}", "--output", "{p}/a.txt"], "name a file that ends with"),
        (["search", "{i}", "--store", "{queries}", "--radius", "0.5", "--output", "{p}/a.npy"], "different number"),
        (["search", "{store}", "--store", "{queries}"], "is of kind store, not index"),
        (["search", "{i}", "--store", "{queries}", "--radius", "1.5"], "cosines are between"),
        (["search", "{i}", "--store", "{queries}", "--among", "{p}/empty.txt"], "has no ids"),
        (["search", "{i}", "--store", "{queries}", "--shards"], "several GPUs"),
        (["search", "{i}", "--store", "{queries}", "--index-device", "gpu"], "'gpu' is no device"),
        (["search", "{i}", "--store", "{small}"], "dim is 8, of the index 24"),
        (["index", "build", "{store}", "--recall", "0.9", "--output", "{i}"], "already exists"),
        (["index", "build", "{store}", "--factory", "HNSW16,PQ8", "--output", "{p}/x"], "for another metric"),
        (["index", "import", "{p}/codes.faiss", "--output", "{p}/x"], "holds 4-bit codes"),
        (["index", "add", "{i}", "{store}"], "of the new ids already"),
        (["index", "add", "{i}", "{other}"], "encoder of the store"),
        (["index", "add", "{store}", "{i}"], "is of kind index, not store"),
        (["index", "remove", "{i}"], "give --id ID or --ids FILE"),
        (["index", "remove", "{i}", "--id", "nobody"], "lacks 1 (nobody)"),
        (["index", "merge", "{i}", "--output", "{p}/m"], "give two or more"),
        (["index", "build", "{store}", "--memory", "2", "--output", "{p}/x"], "is not understood; write a number and KB, MB, GB, TB"),
        (["index", "build", "{store}", "--memory", "1MB", "--factory", "Flat", "--output", "{p}/x"], "has chosen"),
        (["index", "build", "{store}", "--latency", "fast", "--output", "{p}/x"], "write a number and us, ms, s"),
        (["index", "build", "{store}", "--queries", "{other}", "--output", "{p}/x"], "is of another encoder than the store"),
        (["index", "build", "{store}", "--factory", "CAGRA64", "--output", "{p}/x"], "built on a GPU"),
        (["index", "tune", "{store}"], "is of kind store, not index"),
        (["index", "export", "{i}", "--output", "{p}/x.hnswlib"], "hnswlib reads HNSW16"),
        (["index", "export", "{i}", "--output", "{p}/x.what"], "what"),
        (["index", "import", "{p}/broken.faiss", "--output", "{p}/x"], "FAISS cannot read it"),
        (["index", "verify", "{store}"], "is of kind store, not index"),
    ],
)  # fmt: skip
def test_mistakes_get_one_line(place, run_cli, words, said):
    run_cli("index", "build", place / "store", "--factory", "IVF16,Flat", "--output", place / "i")
    store_of(place / "other", rows_for(20, first=5000), encoder={"name": "x", "fingerprint": "g"})
    store_of(place / "small", Rows(unit(5, dim=8), [str(i) for i in range(5)]))
    codes = faiss.index_factory(24, "IVF4,PQ12x4fs", faiss.METRIC_INNER_PRODUCT)
    codes.train(unit(900))
    codes.add(unit(900))
    faiss.write_index(codes, str(place / "codes.faiss"))
    (place / "empty.txt").write_text("")
    (place / "broken.faiss").write_bytes(b"IwFl" + bytes(100))
    names = {name: place / name for name in ("i", "store", "queries", "other", "small")} | {"p": place}
    result = run_cli(*[word.format(**names) for word in words], code=2)
    assert said in result.stderr and len(result.stderr.strip().splitlines()) == 1, result.stderr


def test_what_is_not_kept_is_told_by_the_race_that_decided(tmp_path, monkeypatch):
    """Not by each one's own queries a second, which other queries and other moments measured."""
    from retrieval.cli.index import findings
    from retrieval.index.build import build

    opened = build(store_of(tmp_path / "store", rows_for(900)), tmp_path / "index", factory="IVF8,Flat")
    told = opened.about["measured"] | {"raced": 2e-6, "reached": True}
    others = [
        {"factory": "HNSW16", "measured": told | {"raced": 3e-6, "recall": 0.97, "batch_qps": 1e9}},
        {"factory": "IVF8,Flat", "measured": told | {"raced": 1e-6, "recall": 0.9, "reached": False}},
    ]
    monkeypatch.setitem(opened.about, "measured", told)
    monkeypatch.setitem(opened.about, "others", others)
    assert findings(opened)[-2:] == [
        "  not kept: HNSW16, recall 0.970, 1.50 × the time a query in batches",
        "  not kept: IVF8,Flat, recall 0.900, 0.50 × the time a query in batches, below the recall asked",
    ]
