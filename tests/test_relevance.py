"""Relevance against pytrec_eval, and the files that it reads and writes."""

import json

import numpy as np
import pytest
import pytrec_eval
from test_cli import read_json

from retrieval.encoder import MINILM
from retrieval.errors import UserError
from retrieval.eval.relevance import evaluate_relevance, ranked, ranking
from retrieval.formats.trec import Run, read_beir, read_qrels, read_run, run_lines

THEIRS = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "p": "P", "success": "success"}
KS = (1, 5, 10)


def made_up(seed):
    """Graded judgments, also 0 and negative, and results with equal scores, in few decimals; some queries in one only."""
    generator = np.random.default_rng(seed)
    documents = [f"d{i}" for i in range(60)]
    qrels = {f"q{i}": {d: int(generator.integers(-1, 4)) for d in generator.choice(documents, 8)} for i in range(25)}
    scores = {}
    for i in range(3, 28):
        found = generator.choice(documents, generator.integers(1, 30), replace=False)
        scores[f"q{i}"] = {d: float(np.round(generator.random(), 1) * 1e-3 + 7) for d in found}
    return qrels, scores


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("level", [1, 2])
def test_it_equals_trec_eval(seed, level):
    qrels, scores = made_up(seed)
    wanted = {f"{name}.{','.join(map(str, KS))}" for name in THEIRS.values()}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, wanted, relevance_level=level).evaluate(scores)
    found = evaluate_relevance(qrels, Run(scores, 0), ks=KS, level=level)
    for row, query in enumerate(found.queries.ids):
        for name, their in THEIRS.items():
            for k in KS:
                expected = theirs[query][f"{their}_{k}"] if query in theirs else 0
                assert found.queries.values[f"{name}@{k}"][row] == pytest.approx(expected, abs=1e-9), (query, name, k)
        hits = [qrels[query].get(d, 0) >= level for d in ranked(scores.get(query, {}))]
        for k in KS:
            expected = 1 / (hits.index(True) + 1) if True in hits[:k] else 0
            assert found.queries.values[f"mrr@{k}"][row] == expected
    answerable = [q for q, grades in qrels.items() if max(grades.values()) >= level]
    assert found.queries.ids == answerable
    assert found.counts["without_results"] == sum(q in ("q0", "q1", "q2") for q in answerable)
    assert found.counts["without_relevant"] == 25 - len(answerable) and found.counts["not_judged"] == 3


def test_ties_are_broken_by_id_from_high_to_low_after_rounding_to_float32():
    assert ranked({"a": 1.0, "c": 1.0 + 1e-9, "b": 2.0, "d": 1.0}) == ["b", "d", "c", "a"]
    reversed_ = evaluate_relevance({"q": {"a": 1}}, Run({"q": {"a": 1.0, "b": 1.0}}, 0), ks=(1,))
    assert reversed_.queries.values["mrr@1"][0] == 0  # a constant scorer gains nothing by the order of its lines


def test_self_hits_and_unknown_documents():
    qrels, run = {"a": {"b": 1, "gone": 1}}, Run({"a": {"a": 3.0, "b": 2.0}}, 0)
    kept = evaluate_relevance(qrels, run, ks=(1,), corpus={"a", "b"})
    dropped = evaluate_relevance(qrels, run, ks=(1,), drop_self=True)
    assert (kept.queries.values["p@1"][0], dropped.queries.values["p@1"][0]) == (0, 1)
    assert (kept.counts["themselves"], kept.counts["unknown"]) == (0, 1)
    assert (dropped.counts["themselves"], dropped.counts["unknown"]) == (1, None)


def test_names_that_do_not_match_are_refused():
    with pytest.raises(UserError, match="no judgment has a grade of 3; the highest is 1"):
        evaluate_relevance({"q": {"a": 1}}, Run({"q": {"a": 1.0}}, 0), level=3)
    with pytest.raises(UserError, match="do the two name queries alike"):
        evaluate_relevance({"1": {"a": 1}}, Run({"q1": {"a": 1.0}}, 0))


def test_files_read_back(tmp_path):
    _, scores = made_up(9)
    path = tmp_path / "a.run"
    path.write_bytes(b"".join(run_lines(query, documents) for query, documents in ranking(Run(scores, 0))))
    back = read_run(path)
    assert back.repeated == 0 and back.scores.keys() == scores.keys()
    for query, found in scores.items():
        assert back.scores[query] == pytest.approx(found, abs=1e-6) and list(back.scores[query]) == ranked(found)
    with pytest.raises(UserError, match="TREC runs take no spaces"):
        run_lines("q", [("a b", 1.0)])
    path.write_text("q Q0 a 1 0.5 x\nq Q0 a 2 0.7 x\n")
    assert read_run(path) == Run({"q": {"a": 0.7}}, 1)


@pytest.mark.parametrize(
    "content",
    ["q1 0 d1 2\nq1 0 d2 0\n", "q1\td1\t2\nq1\td2\t0\n", "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n", "query,doc,grade\nq1,d1,2\nq1,d2,0\n"],
)  # fmt: skip
def test_judgments_in_every_form(tmp_path, content):
    path = tmp_path / "qrels"
    path.write_text(content)
    assert read_qrels(path) == {"q1": {"d1": 2, "d2": 0}}


@pytest.mark.parametrize(
    "reader,content,message",
    [
        (read_qrels, "", "has no judgments"),
        (read_qrels, "q d\n", "line 1 has 2 fields"),
        (read_qrels, "q 0 d 1\nq 0 d x\n", "line 2: the grade 'x' is no integer"),
        (read_qrels, "q 0 c high\nq 0 d 1\n", "line 1: the grade 'high' is no integer"),
        (read_qrels, "q 0 d 1\nq 0 d 2\n", "line 2 judges 'd' of query 'q' again"),
        (read_run, "", "has no results"),
        (read_run, "q Q0 d 1 0.5\n", "line 1 has 5 fields"),
        (read_run, "q Q0 d 1 nan x\n", "line 1: the score 'nan'"),
        (read_run, "q Q0 d 1 high x\n", "line 1: the score 'high'"),
    ],
)
def test_damaged_files_are_refused(tmp_path, reader, content, message):
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        reader(path)


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    docs = {
        "d1": ("Sorting", "put a list in order"),
        "d2": ("", "open a file and read its lines"),
        "d3": ("Locks", "wait for a thread"),
    }
    lines = [json.dumps({"_id": i, "title": title, "text": text}) for i, (title, text) in docs.items()]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    asked = {"q1": "how to sort", "q2": "read a file", "q3": "not judged"}
    (folder / "queries.jsonl").write_text("\n".join(json.dumps({"_id": i, "text": text}) for i, text in asked.items()))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t2\n")
    return folder


def test_a_beir_folder(beir, run_cli, minilm, tmp_path):
    read = read_beir(beir)
    assert read.corpus[:2] == ["Sorting put a list in order", "open a file and read its lines"]
    assert (read.query_ids, read.qrels) == (["q1", "q2"], {"q1": {"d1": 1}, "q2": {"d2": 2}})
    run, judged = tmp_path / "a.run", tmp_path / "judged"
    words = ["eval", "relevance", "--beir", beir, "--encoder", MINILM, "-k", 2, "--run-output", run, "--output", judged]
    found = read_json(run_cli(*words, "--json"))
    assert found["metrics"] == dict.fromkeys(found["metrics"], 1) | {"p@2": 0.5}
    again = read_json(
        run_cli("eval", "relevance", "--qrels", beir / "qrels" / "test.tsv", "--run", run, "-k", 2, "--json")
    )
    assert again["metrics"] == found["metrics"]
    assert (judged / "queries.csv").read_text().startswith("query,ndcg@2")
    with pytest.raises(UserError, match=r"choose another split \(found: test\)"):
        read_beir(beir, "dev")
    (beir / "queries.jsonl").write_text('{"_id": "q1"}')
    with pytest.raises(UserError, match="line 1 is no JSON object with _id and text"):
        read_beir(beir)


def test_stores_and_an_index_answer_alike(text_path, run_cli, tmp_path):
    folder, _ = text_path
    ids = json.loads(run_cli("search", folder / "index", "--store", folder / "store", "-k", 1, "--json").stdout)[
        "results"
    ]
    qrels = tmp_path / "qrels"
    qrels.write_text("".join(f"{r['query']} 0 {r['hits'][0]['id']} 1\n" for r in ids[:20]))
    words = ["eval", "relevance", "--qrels", qrels, "--queries", folder / "store", "--json", "--corpus"]
    exact, index = (read_json(run_cli(*words, folder / name)) for name in ("store", "index"))
    assert exact == index and exact["metrics"]["mrr@1"] == 1


def test_a_shallow_run_is_said(run_cli, tmp_path):
    (tmp_path / "a.run").write_text("q Q0 d 1 0.5 x\nq Q0 e 2 0.4 x\n")
    (tmp_path / "qrels").write_text("q 0 d 1\n")
    words = ["eval", "relevance", "--qrels", tmp_path / "qrels", "--run", tmp_path / "a.run"]
    assert "no query has more than 2 results, so figures at 100 are of those" in run_cli(*words).stdout
    assert "no query has more" not in run_cli(*words, "-k", 2).stdout


def test_one_is_told_as_one(run_cli, tmp_path):
    (tmp_path / "qrels").write_text("q 0 d 1\nr 0 d 1\n")
    (tmp_path / "a.run").write_text("q Q0 q 1 0.5 x\n")
    words = ["eval", "relevance", "--qrels", tmp_path / "qrels", "--run", tmp_path / "a.run"]
    lines = run_cli(*words).stdout.splitlines()
    assert {"2 judged queries", "1 judged query without results, counted as 0"} <= set(lines)
    assert any(line.startswith("1 query finds a document of its own id") for line in lines)
    (tmp_path / "qrels").write_text("q 0 d 1\n")
    assert "1 judged query" in run_cli(*words).stdout.splitlines()


@pytest.mark.parametrize(
    "words,message",
    [
        ([], "give one of --run FILE"),
        (["--qrels", "Q", "--run", "Q", "--beir", "."], "give one of --run FILE"),
        (["--run", "Q"], "--qrels: is needed"),
        (["--qrels", "Q", "--queries", "."], "go together"),
        (["--beir", "."], "--beir and --encoder: go together"),
    ],
)
def test_unclear_calls_are_refused(run_cli, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Q").write_text("q 0 d 1\n")
    assert message in run_cli("eval", "relevance", *words, code=2).stderr


def test_documents_that_are_named_otherwise_are_said(run_cli, tmp_path):
    (tmp_path / "qrels.txt").write_text("q 0 17 1\nr 0 18 0\n")
    words = ("eval", "relevance", "--qrels", tmp_path / "qrels.txt", "--run")
    for name, found in (("other", "fn-17"), ("same", "18")):  # judged, if only for another query
        (tmp_path / name).write_text(f"q Q0 {found} 1 0.5 x\n")
        done = run_cli(*words, tmp_path / name, "--json")
        told = "no document that was found is judged (found 'fn-17'; judged '17', '18')" in done.stderr
        assert told == (name == "other") == ("warnings" in json.loads(done.stdout))
