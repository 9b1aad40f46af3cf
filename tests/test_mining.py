"""Hard negatives: equal to a slow obvious way, to sentence-transformers' miner where both do the same, and never a known positive."""

import csv
import json

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from retrieval.data import Asked, Texts, read_texts
from retrieval.encoder import MINILM, load_encoder
from retrieval.errors import UserError
from retrieval.samples import docs_as_pairs, library_docs
from retrieval.train.mine_texts import mine_texts
from retrieval.train.mining import Mining, Relations, mine


def slowly(of, scores, own, mining):
    """The definition, candidate by candidate."""
    found = []
    for row in range(len(of.anchor)):
        anchor = of.anchor[row]
        known = {of.positives[p] for a, p in zip(of.anchor, of.positive, strict=True) if a == anchor}
        known |= {of.anchors[anchor], *of.has[1][of.has[0] == anchor].tolist()}
        order = sorted(range(len(of.documents)), key=lambda d, a=anchor: (-scores[a, d], d))
        seen, ranked = set(), []
        for document in order:
            code = of.documents[document]
            if code not in known and code not in seen:
                ranked.append(document)
                seen.add(code)
        ranked = ranked[mining.first : mining.last]
        s, p = scores[anchor], own[row]
        passing = [
            d
            for d in ranked
            if (mining.most is None or s[d] <= mining.most)
            and (mining.least is None or s[d] >= mining.least)
            and (mining.absolute_margin is None or s[d] <= p - np.float32(mining.absolute_margin))
            and (mining.relative_margin is None or s[d] <= p - np.float32(mining.relative_margin) * abs(p))
        ]
        found.append(passing[: mining.negatives])
    return found


margins = st.one_of(st.none(), st.floats(-0.5, 0.5, width=32))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 9999),
    st.integers(1, 4),
    st.integers(0, 3),
    margins,
    margins,
    margins,
    margins,
    st.integers(1, 7),
    st.booleans(),
)
def test_negatives_are_those_of_the_definition(seed, negatives, first, most, least, absolute, relative, block, repeats):
    random = np.random.default_rng(seed)
    anchors, positives, documents, rows = 9, 7, 40, 20
    of = Relations(
        random.integers(0, anchors, rows),
        random.integers(0, positives, rows),
        np.arange(anchors),
        random.choice(60, positives, replace=False),
        random.integers(0, 50, documents)
        if repeats
        else random.permutation(60)[:documents],  # anchors and positives among them
        np.stack([random.integers(0, anchors, 15), random.integers(0, 60, 15)]),
    )
    scores = random.uniform(-1, 1, (anchors, documents)).astype(np.float32).round(2)
    own = random.uniform(-1, 1, rows).astype(np.float32)
    mining = Mining(negatives=negatives, first=first, last=12, most=most, least=least, absolute_margin=absolute, relative_margin=relative)  # fmt: skip
    where = {(a, p): own[row] for row, (a, p) in enumerate(zip(of.anchor.tolist(), of.positive.tolist(), strict=True))}
    own = np.array([where[a, p] for a, p in zip(of.anchor.tolist(), of.positive.tolist(), strict=True)], np.float32)

    def search(asked, k):
        order = np.argsort(-scores[asked], axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores[asked], order, 1), order

    def score(a, p):
        return np.array([where[pair] for pair in zip(a.tolist(), p.tolist(), strict=True)], np.float32)

    import retrieval.train.mining as module

    module.ANCHORS, before = block, module.ANCHORS
    try:
        made = {row: negs for part in mine(of, search, score, mining) for row, negs in zip(part.rows.tolist(), part.negatives, strict=True)}  # fmt: skip
    finally:
        module.ANCHORS = before
    wanted = slowly(of, scores, own, mining)
    assert sorted(made) == list(range(rows))
    for row, expected in enumerate(wanted):
        got = [int(n) for n in made[row] if n >= 0]
        assert [round(float(scores[of.anchor[row], n]), 6) for n in got] == [round(float(scores[of.anchor[row], n]), 6) for n in expected]  # fmt: skip
        assert len(set(of.documents[got])) == len(got)


def test_a_text_that_stands_many_times_takes_one_rank():
    none = np.zeros(1, np.int64)
    of = Relations(none, none, np.array([-1]), np.array([-2]), np.array([5] * 50 + [6, 6, 7, 8, 9]))
    ranks = np.arange(55)

    def search(asked, k):
        return -ranks[None, :k].astype(np.float32), ranks[None, :k]

    (found,) = mine(of, search, lambda a, p: np.ones(1, np.float32), Mining(negatives=3, first=1, last=4))
    assert found.negatives.tolist() == [[50, 52, 53]]
    (found,) = mine(of, search, lambda a, p: np.ones(1, np.float32), Mining(negatives=3, first=0, last=90))
    assert found.negatives.tolist() == [[0, 50, 52]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Documentation: summary and body, of which some summaries stand twice."""
    data = docs_as_pairs(library_docs()[:220])
    rows = list(zip(data.columns["anchor"], data.columns["positive"], strict=True))[:60]
    rows += [(rows[0][0], rows[1][1]), (rows[2][0], rows[3][1])]
    path = tmp_path_factory.mktemp("mine") / "pairs.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("anchor", "positive"), *rows])
    return path


def negatives_of(path):
    data = read_texts(path)
    names = [name for name in data.columns if name.startswith("negative")]
    return [
        (a, p, [data.columns[name][row] for name in names if data.columns[name][row]])
        for row, (a, p) in enumerate(zip(data.columns["anchor"], data.columns["positive"], strict=True))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("margin", [None, 0.05])
def test_sentence_transformers_mines_the_same(pairs, run_cli, tmp_path, minilm, margin):
    """On pairs whose anchors stand once, which is all that it treats as we do."""
    data = read_texts(pairs)
    once = data.take(range(4, 60))
    path = tmp_path / "once.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("anchor", "positive"), *zip(*once.columns.values(), strict=True)])
    extra = ["--relative-margin", margin] if margin else []
    run_cli("mine", "--data", path, "--model", MINILM, "--count", 2, "--ranks", "0:21", *extra, "--output", tmp_path / "m.jsonl", "--device", "cpu")  # fmt: skip
    # Of range_max it takes one more, since it counts the positive too.
    theirs = mine_hard_negatives(
        Dataset.from_dict({name: list(column) for name, column in once.columns.items()}),
        load_encoder(MINILM, "cpu").model, anchor_column_name="anchor", positive_column_name="positive", num_negatives=2,
        range_max=20, relative_margin=margin, output_format="n-tuple", verbose=False,
    )  # fmt: skip
    ours = {(a, p): set(n) for a, p, n in negatives_of(tmp_path / "m.jsonl")}
    assert len(theirs) > 30
    for row in theirs:
        assert ours[row["anchor"], row["positive"]] == {row["negative_1"], row["negative_2"]}


@pytest.mark.slow
def test_known_positives_are_never_mined_and_rows_keep_their_order(pairs, run_cli, tmp_path, tiny):
    words = ["mine", "--data", pairs, "--model", tiny, "--device", "cpu"]
    for name in ("a.jsonl", "a.csv", "a.tsv"):
        run_cli(*words, "--output", tmp_path / name)
    found = negatives_of(tmp_path / "a.jsonl")
    assert found == negatives_of(tmp_path / "a.csv") == negatives_of(tmp_path / "a.tsv")
    data = read_texts(pairs)
    assert [a for a, _, _ in found] == list(data.columns["anchor"]) and [p for _, p, _ in found] == list(data.columns["positive"])  # fmt: skip
    for anchor, _, negatives in found:
        assert len(negatives) == 3 and not {p for a, p, _ in found if a == anchor} & set(negatives)
    assert not list(tmp_path.glob(".*"))
    again = json.loads(run_cli(*words, "--output", tmp_path / "b.jsonl", "--json").stdout)
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes() and again["mined"] == 3 * 62
    run_cli(*words, "--choose", "random", "--output", tmp_path / "r.jsonl")
    run_cli(*words, "--choose", "random", "--output", tmp_path / "s.jsonl", "--seed", 1)
    one, other = (negatives_of(tmp_path / name) for name in ("r.jsonl", "s.jsonl"))
    assert one != other and one != found


@pytest.mark.slow
def test_negatives_of_the_data_are_kept_and_not_mined_again(pairs, run_cli, tmp_path, tiny):
    words = ["mine", "--model", tiny, "--device", "cpu"]
    run_cli(*words, "--data", pairs, "--output", tmp_path / "a.jsonl")
    run_cli(*words, "--data", tmp_path / "a.jsonl", "--output", tmp_path / "b.jsonl")
    once, again = (negatives_of(tmp_path / name) for name in ("a.jsonl", "b.jsonl"))
    for (_, _, had), (anchor, _, has) in zip(once, again, strict=True):
        assert has[:3] == had and len(set(has)) == 6 == len(has), anchor


@pytest.mark.slow
def test_scores_are_told_as_the_encoder_gives_them(pairs, run_cli, tmp_path, tiny):
    words = ["mine", "--data", pairs, "--model", tiny, "--device", "cpu", "--ranks", "0:9"]
    told = json.loads(run_cli(*words, "--output", tmp_path / "a.jsonl", "--json").stdout)["scores"]
    rows, encoder = negatives_of(tmp_path / "a.jsonl"), SentenceTransformer(str(tiny), device="cpu")
    texts = sorted({text for a, p, n in rows for text in (a, p, *n)})
    vectors = dict(zip(texts, encoder.encode(texts, normalize_embeddings=True), strict=True))
    own = [vectors[a] @ vectors[p] for a, p, _ in rows]
    other = [[vectors[a] @ vectors[n] for n in negatives] for a, _, negatives in rows]
    assert np.allclose(told["positives"], np.quantile(own, (0.25, 0.5, 0.75)), atol=1e-3)
    assert np.allclose(told["negatives"], np.quantile(sum(other, []), (0.25, 0.5, 0.75)), atol=1e-3)
    nearer = np.mean([score >= mine for mine, scores in zip(own, other, strict=True) for score in scores])
    assert told["nearer_than_positive"] == pytest.approx(nearer, abs=0.01) and nearer > 0.05
    shown = run_cli(*words, "--output", tmp_path / "b.jsonl").stdout
    assert f"{nearer:.0%} of the negatives are no farther than their positive" in shown
    assert "--relative-margin 0.05 leaves them out" in shown and shown.count(", not ") == 3
    shown = run_cli(*words, "--relative-margin", 0.001, "--output", tmp_path / "c.jsonl").stdout
    assert "no farther" not in shown and "median and quartiles" in shown
    shown = run_cli(*words, "--max-negative", -1, "--output", tmp_path / "d.jsonl").stdout
    assert "0 negatives" in shown and "quartiles" not in shown


@pytest.mark.slow
def test_any_corpus_gives_the_same(pairs, run_cli, tmp_path, tiny):
    """Texts, a store of them, an index over that, and an index that is built for it."""
    corpus = tmp_path / "corpus.txt"
    texts = [" ".join(text.split()) for text in docs_as_pairs(library_docs()[220:420]).columns["positive"]]
    corpus.write_text("\n".join([*texts, texts[0]]), "utf-8")
    run_cli("embed", "--encoder", tiny, "--data", corpus, "--output", tmp_path / "store", "--device", "cpu")
    run_cli("index", "build", tmp_path / "store", "--output", tmp_path / "index")
    words = ["mine", "--data", pairs, "--model", tiny, "--device", "cpu", "--corpus"]
    made = []
    for name, extra in (("corpus.txt", []), ("store", []), ("index", []), ("corpus.txt", ["--recall", 0.9])):
        run_cli(*words, tmp_path / name, *extra, "--output", tmp_path / f"{len(made)}.jsonl")
        made.append(negatives_of(tmp_path / f"{len(made)}.jsonl"))
    assert made[0] == made[1] == made[2] and {n for _, _, all_of in made[0] for n in all_of} <= set(texts)
    same = np.mean([len(set(a[2]) & set(b[2])) / 3 for a, b in zip(made[0], made[3], strict=True)])
    assert same > 0.8
    error = run_cli("mine", "--data", pairs, "--model", tiny, "--corpus", tmp_path / "nothing", "--output", tmp_path / "x.jsonl", code=2)  # fmt: skip
    assert "does not exist" in error.stderr


@pytest.mark.slow
def test_documents_are_mined_and_no_queries(pairs, run_cli, tmp_path, tiny):
    """Of pairs the positives and negatives, of a BEIR folder all of its corpus."""
    (tmp_path / "pairs.csv").write_text("anchor,positive,negative\nwho asks,one,two\nwho knows,three,\n")
    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    (beir / "corpus.jsonl").write_text(
        "".join(f'{{"_id": "{t}", "title": "", "text": "{t}"}}\n' for t in ("one", "two", "three"))
    )
    (beir / "queries.jsonl").write_text('{"_id": "q", "text": "who asks"}\n')
    (beir / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\tone\t1\n")
    for corpus in (tmp_path / "pairs.csv", beir):
        output = tmp_path / f"{corpus.name}.jsonl"
        run_cli("mine", "--data", pairs, "--model", tiny, "--corpus", corpus, "--output", output, "--device", "cpu")
        assert all(set(negatives) == {"one", "two", "three"} for _, _, negatives in negatives_of(output))


@pytest.mark.slow
def test_judges_decide(pairs, run_cli, tmp_path, tiny, minilm):
    words = ["mine", "--data", pairs, "--model", MINILM, "--device", "cpu", "--count", 1, "--ranks", "0:7"]
    run_cli(*words, "--guide", tiny, "--relative-margin", 0.001, "--output", tmp_path / "guided.jsonl")
    guide = SentenceTransformer(str(tiny), device="cpu")
    guided = negatives_of(tmp_path / "guided.jsonl")
    assert any(n for _, _, n in guided)
    for a, p, negatives in guided:
        for n in negatives:
            va, vp, vn = guide.encode([a, p, n], normalize_embeddings=True)
            assert va @ vn <= (va @ vp) * 0.999 + 1e-5
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertForSequenceClassification(BertConfig(vocab_size=30522, num_labels=1, **sizes)).save_pretrained(
        tmp_path / "cross"
    )
    minilm.model.tokenizer.save_pretrained(tmp_path / "cross")
    run_cli(*words, "--cross-encoder", tmp_path / "cross", "--output", tmp_path / "crossed.jsonl")
    run_cli(*words[:-4], "--count", 7, "--ranks", "0:7", "--output", tmp_path / "all.jsonl")
    judge = CrossEncoder(str(tmp_path / "cross"), device="cpu")
    for (a, _, chosen), (_, _, candidates) in zip(
        negatives_of(tmp_path / "crossed.jsonl"), negatives_of(tmp_path / "all.jsonl"), strict=True
    ):
        scores = judge.predict([(a, c) for c in candidates], show_progress_bar=False)
        assert scores[candidates.index(chosen[0])] >= scores.max() - 1e-5


@pytest.mark.parametrize(
    "options,words",
    [
        (["--ranks", "5:6"], "leaves no 3 candidates"),
        (["--ranks", "5:6"], "(--count)"),
        (["--ranks", "x"], "write ranks such as 10:100"),
        (["--ranks", "²:30"], "write ranks such as 10:100"),
        (["--guide", "a", "--cross-encoder", "b"], "let one of them judge"),
        (["--output", "x.parquet"], "name a file that ends with"),
    ],
)
def test_mistakes_are_one_line(pairs, run_cli, tmp_path, options, words):
    error = run_cli(
        "mine", "--data", pairs, "--model", MINILM, "--output", tmp_path / "x.jsonl", *options, code=2
    ).stderr
    assert words in error and len(error.strip().splitlines()) == 1


def test_data_without_pairs_are_refused(texts, run_cli, tmp_path):
    assert "has no pairs to mine for" in run_cli("mine", "--data", texts, "--model", MINILM, "--output", tmp_path / "x.jsonl", code=2).stderr  # fmt: skip
    other = tmp_path / "other.csv"
    other.write_text("frage,thema\na,b\n")
    for data in (texts, other):
        error = run_cli("mine", "--data", data, "--model", MINILM, "--output", tmp_path / "x.jsonl", code=2).stderr
        assert "by --anchor and --positive" in error and "--text" not in error
    with pytest.raises(UserError, match="leaves no 3"):
        Mining(last=2)


def test_a_mistake_leaves_nothing_to_go_on_from(pairs, run_cli, tmp_path):
    (tmp_path / "none").mkdir()
    words = ["mine", "--data", pairs, "--model", tmp_path / "none", "--output", tmp_path / "a.jsonl"]
    run_cli(*words, code=2)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("judge", ["--guide", "--cross-encoder"])
def test_a_judge_that_is_nowhere_is_told_before_anything_is_embedded(pairs, run_cli, tmp_path, tiny, judge):
    words = ["mine", "--data", pairs, "--model", tiny, judge, tmp_path / "none", "--output", tmp_path / "a.jsonl"]
    told = run_cli(*words, code=2).stderr
    assert f"{tmp_path / 'none'}: no such folder" in told and "embed" not in told.replace("embedding", "")
    assert not list(tmp_path.glob(".*"))


def test_negatives_that_training_would_pass_over_are_told(pairs, run_cli, tmp_path, tiny):
    words = ["mine", "--model", tiny, "--device", "cpu"]
    first = run_cli(*words, "--data", pairs, "--count", 6, "--output", tmp_path / "a.jsonl")
    assert "Note" not in first.stderr
    again = run_cli(*words, "--data", tmp_path / "a.jsonl", "--count", 2, "--output", tmp_path / "b.jsonl")
    assert "up to 8 negatives, of which training uses 7; give it --negatives 8" in again.stderr
    assert len(read_texts(tmp_path / "b.jsonl", Asked(negatives=8)).columns) == 10


def test_what_is_mined_is_read_back(run_cli, tiny, tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [("how\rold", "ten\tyears"), ("who", "a\nman"), ("where", "here")]
    path.write_text("".join(json.dumps({"anchor": a, "positive": p}) + "\n" for a, p in rows))
    words = ["mine", "--data", path, "--model", tiny, "--count", 1, "--ranks", "0:2", "--device", "cpu", "--output"]
    run_cli(*words, tmp_path / "a.csv")
    run_cli(*words, tmp_path / "a.jsonl")
    assert [(a, p) for a, p, _ in negatives_of(tmp_path / "a.csv")] == rows
    assert negatives_of(tmp_path / "a.csv") == negatives_of(tmp_path / "a.jsonl")
    path.write_text(
        json.dumps({"anchor": "a\n\tb", "positive": "c"}) + "\n" + json.dumps({"anchor": "d", "positive": "e"})
    )
    said = run_cli(*words, tmp_path / "a.tsv", code=2).stderr
    assert "write .jsonl" in said and not (tmp_path / "a.tsv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("choose", ["top", "random"])
def test_lists_are_mined_as_files_are(pairs, run_cli, tmp_path, tiny, choose):
    encoder, data = load_encoder(str(tiny), "cpu"), read_texts(pairs)
    mining = Mining(negatives=2, choose=choose, relative_margin=0.01)
    words = ["--model", tiny, "--device", "cpu", "--count", 2, "--choose", choose, "--relative-margin", 0.01]
    (tmp_path / "corpus.txt").write_text("\n".join(corpus := [f"text of number {i % 9}" for i in range(20)]), "utf-8")

    def encode(texts, role):
        return encoder.encode(texts, role=role)

    def rows(texts):
        columns = zip(*texts.columns.values(), strict=True)
        return [(a, p, [n for n in negatives if n]) for a, p, *negatives in columns]

    for among, flags in ((None, []), (corpus, ["--corpus", tmp_path / "corpus.txt"])):
        run_cli("mine", "--data", pairs, *words, *flags, "--output", tmp_path / "m.jsonl", "--overwrite")
        once = mine_texts(encode, data, mining, corpus=among)
        assert rows(once) == [(a, p, list(n)) for a, p, n in negatives_of(tmp_path / "m.jsonl")]
        again = mine_texts(encode, once, mining, corpus=among)
        assert list(again.columns)[2:] == [f"negative_{number}" for number in (1, 2, 3, 4)]
        for (_, _, had), (_, _, has) in zip(rows(once), rows(again), strict=True):
            assert has[: len(had)] == had and len(set(has)) == len(has)
    with pytest.raises(UserError, match="columns text: mining is for pairs"):
        mine_texts(encode, Texts({"text": ["a", "b"]}))
