"""What training reads of a row: its texts with their own prompts, counted as they are padded, from data sets that take turns."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_training import PAIRS, SETTINGS, WORDS

from retrieval.data import Texts
from retrieval.data.texts import taken
from retrieval.embed import embed
from retrieval.encode import Encoding
from retrieval.encoder import load_encoder
from retrieval.tokens import prompt_of, tokenise
from retrieval.train.batches import Drawing
from retrieval.train.collate import Collator, Shares
from retrieval.train.loss import named
from retrieval.train.text import TextConfig, _sources, lengths, plan_batches, set_prompts, train_text

pytestmark = pytest.mark.slow
LABELLED = Texts({"text": PAIRS.columns["anchor"]}, [a for a in WORDS for _ in range(4)], None, "")


@pytest.fixture
def model(tiny):
    return load_encoder(str(tiny), "cpu").model


def test_every_text_is_counted_with_its_prompt(model):
    data = Texts(PAIRS.columns | {"negative_1": ["soup", ""] * 24}, None, None, "")
    found = lengths(model, data, TextConfig(query_prompt="query: ", document_prompt="a long passage: "))
    anchors, positives, negatives = data.columns.values()
    assert found[0].tolist() == tokenise(model, list(anchors), "query: ").lengths.tolist()
    assert found[1].tolist() == tokenise(model, list(positives), "a long passage: ").lengths.tolist()
    assert found[2, 0] == tokenise(model, ["soup"], "a long passage: ").lengths[0] and not found[2, 1::2].any()
    alone = lengths(model, Texts({"text": anchors}, None, None, ""), TextConfig())
    assert len(alone) == 2 and (alone[0] == alone[1]).all()


@pytest.mark.parametrize("settings", [{"steps": 6}, {"steps": None}, {"drawing": Drawing(tokens=90)}])
def test_data_sets_take_turns_so_that_an_epoch_sees_each_once(model, settings):
    config, loss = TextConfig(**{**SETTINGS, **settings}), named("hcl(label_mask=False)")
    several = [
        Texts({"anchor": PAIRS.columns["anchor"], "positive": PAIRS.columns["anchor"]}, None, None, ""),
        LABELLED,
    ]
    plans = [plan_batches(each, config, loss, "x", model) for each in several]
    pairs, classes = (source.weight for source in _sources(model, several, plans, None, config))
    assert pairs == pytest.approx(2 * classes)  # a row of a class brings another with it


@pytest.mark.parametrize("include", [True, False])
def test_texts_are_trained_with_what_their_own_prompts_give(model, include):
    """Where pooling leaves prompts out, each column's own is."""
    model.set_pooling_include_prompt(include)
    data = Texts(PAIRS.columns | {"negative_1": ["soup", ""] * 24}, None, None, "")
    config = TextConfig(**SETTINGS, query_prompt="query: ", document_prompt="a long passage: ")
    sources = _sources(model, [data], [plan_batches(data, config, named("infonce"), "x")], None, config)
    share = next(iter(Shares(sources, 1)))
    found = Collator(model, sources)(share)
    model.eval()
    vectors = torch.cat([model(chunk)["sentence_embedding"] for chunk in found["chunks"]])[found["batch"]["order"]]
    anchors, positives, negatives = (taken(column, share.pairs.anchors) for column in data.columns.values())
    others = [*positives, *(text for text in negatives if text)]
    wanted = [model.encode_query(anchors), model.encode_document(others)]
    np.testing.assert_allclose(vectors.detach(), np.concatenate(wanted), atol=1e-5)


def test_a_prompt_takes_the_place_of_the_encoders_own(tiny, tmp_path):
    def prompted(own, pairs=True, **asked):
        encoder = load_encoder(str(tiny), "cpu")
        encoder.model.prompts |= own
        encoder.model.default_prompt_name = "default" if "default" in own else None
        for _ in range(2):  # before neighbours are found, and before training
            set_prompts(encoder.model, TextConfig(**asked), pairs)
        encoder.model.save_pretrained(str(tmp_path / "e"))
        model = load_encoder(str(tmp_path / "e"), "cpu").model
        return [prompt_of(model, role) or "" for role in (None, "query", "document")]

    own = {"query": "query: ", "passage": "passage: "}
    assert prompted(own) == ["", "query: ", "passage: "]
    assert prompted(own, prompt="x: ") == ["x: "] * 3
    assert prompted(own, document_prompt="") == ["", "query: ", ""]
    assert prompted(own, query_prompt="q: ") == ["", "q: ", "passage: "]
    assert prompted(own, prompt="") == [""] * 3
    assert prompted({"default": "d: "}, query_prompt="")[1:] == ["", "d: "]
    assert prompted({"default": "d: "}, query_prompt="", document_prompt="")[1:] == ["", ""]
    assert prompted({"default": "d: "}, query_prompt="q: ") == ["d: ", "q: ", "d: "]
    prompted(own, prompt="x: ")
    plain = SentenceTransformer(str(tmp_path / "e"), device="cpu")
    assert np.array_equal(plain.encode_query(["soup"]), plain.encode(["soup"]))


def test_a_head_over_an_encoder_whose_vectors_are_cut(tiny, tmp_path):
    """It opens plainly, encodes as it was trained, and runs alone over a store of the encoder."""
    base = load_encoder(str(tiny), "cpu")
    base.model.truncate_dim = 16
    base.model.save_pretrained(str(tmp_path / "base"))
    base, encoder = (load_encoder(str(tmp_path / "base"), "cpu") for _ in range(2))
    train_text(encoder.model, PAIRS, TextConfig(head=True, steps=3), named("infonce"), source="x")
    encoder.model.save_pretrained(str(tmp_path / "head"))
    head = load_encoder(str(tmp_path / "head"), "cpu")
    texts = Texts({"text": list(PAIRS.columns["anchor"])}, None, None, "")
    found = head.encode(texts.texts)
    dense = list(head.model)[-2]
    wanted = base.encode(texts.texts) @ dense.linear.weight.detach().numpy().T + dense.linear.bias.detach().numpy()
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(found, SentenceTransformer(str(tmp_path / "head"), device="cpu").encode(texts.texts, normalize_embeddings=True), atol=1e-5)  # fmt: skip
    store = embed(base, texts, tmp_path / "store")
    np.testing.assert_allclose(embed(head, store, tmp_path / "headed").embeddings(), found, atol=1e-5)


def test_distinct_batches_keep_negatives_apart_too(model):
    columns = {"anchor": [f"q{row}" for row in range(24)], "positive": [f"a{row}" for row in range(24)]}
    columns["negative_1"] = [f"a{23 - row}" if row % 2 else "" for row in range(24)]  # other rows' positives, or none
    data = Texts(columns, None, None, "")
    config = TextConfig(**SETTINGS, drawing=Drawing(how="distinct"))
    for pairs in islice(plan_batches(data, config, named("infonce"), "x").batches(), 9):
        texts = [column[row] for column in columns.values() for row in pairs.anchors if column[row]]
        assert len(set(texts)) == len(texts) and len(pairs.anchors) == 8


@pytest.mark.parametrize(
    ("data", "asked", "rate"), [(PAIRS, None, 1e-4), (LABELLED, None, 1e-3), (PAIRS, 2e-4, 2e-4)], ids=["pairs", "labels", "asked"]
)  # fmt: skip
def test_a_head_on_pairs_learns_more_slowly_than_on_labels(model, data, asked, rate):
    """Unless it is told: at the rate of labels it learns pairs by heart (docs/log.md)."""
    config, loss = TextConfig(head=True, steps=1, lr=asked), replace(named("hcl"), label_mask=data is LABELLED)
    assert config.used([plan_batches(data, config, loss, "x")])["lr"] == rate
    train_text(model, data, config, loss, source="x")
    head = model[-2].linear.weight.detach()
    assert float((head - torch.eye(len(head))).abs().max()) == pytest.approx(rate, rel=0.01)  # Adam's first step


def test_held_out_data_that_became_worse_are_said(run_cli, tmp_path):
    """At a rate at which a head forgets everything."""
    labels = [str(at % 8) for at in range(len(PAIRS.columns["anchor"]))]
    rows = [f"{text},{label}" for text, label in zip(PAIRS.columns["anchor"], labels, strict=True)]
    held = [f"{a} and {b},{a}" for a in WORDS for b in WORDS]
    for name, lines in (("train.csv", rows), ("held.csv", held)):
        (tmp_path / name).write_text("\n".join(["text,label", *lines]) + "\n")
    words = (
        "train",
        "text",
        "--data",
        tmp_path / "train.csv",
        "--model",
        "all-MiniLM-L6-v2",
        "--head",
        "--no-general",
        "--steps",
        40,
    )
    done = run_cli(*words, "--lr", 0.3, "--eval-data", tmp_path / "held.csv", "--output", tmp_path / "a", "--json")
    assert "Warning: worse on --eval-data than before training (map@r" in done.stderr
    done = run_cli(*words, "--lr", 1e-9, "--eval-data", tmp_path / "held.csv", "--output", tmp_path / "b", "--json")
    assert "worse on --eval-data" not in done.stderr


@pytest.mark.parametrize("default", [None, "query"])
@pytest.mark.parametrize(
    "own", [{}, {"query": "query: "}, {"document": "d: "}, {"query": "q: ", "document": "d: ", "passage": "p: "}]
)
def test_queries_and_documents_have_the_prompts_for_them(minilm, docs, own, default):
    """As sentence-transformers has them, which fills in empty ones."""
    model = minilm.model
    were = model.prompts, model.default_prompt_name
    model.prompts, model.default_prompt_name = {"query": "", "document": ""} | own, default
    try:
        for role, how in (("query", model.encode_query), ("document", model.encode_document), (None, model.encode)):
            found = Encoding(model, role=role).encode(docs[:2])
            np.testing.assert_allclose(found, how(docs[:2], normalize_embeddings=True), atol=1e-5)
    finally:
        model.prompts, model.default_prompt_name = were
