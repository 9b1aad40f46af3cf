"""Encoding: the values of SentenceTransformer.encode, whatever the batches; order, repeats, memory that runs out; embedding
a corpus, interrupted and resumed, on one device and on several."""

import signal
import time
from pathlib import Path

import apart
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from retrieval.artifact import staging_folder
from retrieval.cpus import usable_cpus
from retrieval.data import Texts, read_texts, scan_texts
from retrieval.embed import embed, encode_all
from retrieval.encode import Encoding, ahead_of
from retrieval.encoder import MINILM, Encoder
from retrieval.errors import UserError, is_disk_full
from retrieval.images import Images
from retrieval.locks import LOCK
from retrieval.store import open_store
from retrieval.store.journal import rows_left
from retrieval.tokens import as_tokens, batches_by_length, pad


@pytest.fixture(scope="module")
def tiny():
    """A bag of words in eight dimensions, in no time."""
    from faults import tiny_encoder

    return tiny_encoder()


def words(count, ids=False):
    texts = [f"w{i % 97} w{i % 13} w{i}" for i in range(count)]
    return Texts(
        {"text": texts}, [str(i % 3) for i in range(count)], [f"i{i}" for i in range(count)] if ids else None, ""
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK}


@settings(max_examples=200)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=200), st.integers(1, 3000), st.integers(1, 600))
def test_batches_hold_every_item_once_within_the_budget(lengths, most, enough):
    lengths = np.array(lengths)
    batches = batches_by_length(lengths, most, enough)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        tokens = len(batch) * lengths[batch].max()
        assert tokens <= most or len(batch) == 1
        if len(set(lengths[batch].tolist())) > 1:  # lengths are mixed only to make a batch large enough
            longest = lengths[batch].max()
            assert (len(batch) - (lengths[batch] == lengths[batch].min()).sum()) * longest < enough


def test_values_are_those_of_sentence_transformers(minilm, docs):
    want = minilm.model.encode(docs, normalize_embeddings=True)
    got = Encoding(minilm.model).encode(docs)
    assert np.abs(got - want).max() < 1e-5 and got.dtype == np.float32
    assert np.abs(got[::-1] - want).max() > 1e-2


def test_less_padding_than_sentence_transformers(minilm, docs):
    encoding = Encoding(minilm.model)
    ours = [make()["attention_mask"] for _, make in encoding.prepare_texts(docs).batches]
    by_characters = sorted(docs, key=len, reverse=True)
    theirs = [minilm.model.preprocess(by_characters[i : i + 32])["attention_mask"] for i in range(0, len(docs), 32)]
    assert sum(int(m.sum()) for m in ours) == sum(int(m.sum()) for m in theirs)
    padding = [sum(m.numel() - int(m.sum()) for m in masks) for masks in (ours, theirs)]
    assert padding[0] < 0.5 * padding[1]


def test_padding_is_the_tokenizers(minilm):
    tokenizer = minilm.model.tokenizer
    texts = ["one", "one two three", "a rather longer text than the others"]
    plain = tokenizer(texts, padding=True, return_tensors="pt")
    for side in ("right", "left"):
        tokenizer.padding_side = side
        padded = pad(as_tokens(tokenizer(texts)), np.arange(3), tokenizer)
        want = tokenizer(texts, padding=True, return_tensors="pt")
        assert all((padded[name] == want[name]).all() for name in want)
    tokenizer.padding_side = "right"
    assert (plain["input_ids"] == tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]).all()


def test_prompts_are_put_before(minilm, docs):
    model = minilm.model
    were = model.prompts, model.default_prompt_name
    model.prompts, model.default_prompt_name = {"query": "query: "}, "query"
    try:
        got, want = Encoding(model).encode(docs[:5]), model.encode(docs[:5], normalize_embeddings=True)
    finally:
        model.prompts, model.default_prompt_name = were
    assert np.abs(got - want).max() < 1e-5
    assert np.abs(got - Encoding(model).encode(docs[:5])).max() > 1e-2


def test_encoding_leaves_the_fingerprint(docs):
    from retrieval.encoder import fingerprint, load_encoder

    model = load_encoder(MINILM, "cpu").model
    before = fingerprint(model)
    Encoding(model).encode(docs[:2])
    assert fingerprint(model) == before
    model.encode(docs[:2])
    assert fingerprint(model) == before


def test_repeats_are_encoded_once(minilm, monkeypatch):
    encoding, seen = Encoding(minilm.model), []
    forward = encoding._forward
    monkeypatch.setattr(encoding, "_forward", lambda features, count: seen.append(count) or forward(features, count))
    told = []
    vectors = encoding.encode(["a", "b", "a", "c", "a"], told.append)
    assert sum(seen) == 3 and sum(told) == 5
    assert (vectors[0] == vectors[2]).all() and (vectors[0] == vectors[4]).all() and (vectors[0] != vectors[1]).any()


def test_out_of_memory_is_answered_by_smaller_batches(minilm, docs, monkeypatch):
    encoding = Encoding(minilm.model)
    want = encoding.encode(docs[:40])
    encoding.tokens, encoding.enough, real, room = 4096, 4096, encoding.model.forward, 300

    def scarce(features, **options):
        if features["input_ids"].numel() > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(features, **options)

    monkeypatch.setattr(encoding.model, "forward", scarce)
    assert np.abs(encoding.encode(docs[:40]) - want).max() < 1e-5
    assert encoding.tokens < 4096
    room = 10
    with pytest.raises(UserError, match="one item alone does not fit"):
        encoding.encode(["more words than there is room for in any memory"])


@pytest.mark.parametrize("compute,most", [("bfloat16", 0.02), ("float16", 0.004)])
def test_half_precision_is_near(docs, compute, most):
    from retrieval.encoder import load_encoder

    want = Encoding(load_encoder(MINILM, "cpu").model).encode(docs[:20])
    half = Encoding(load_encoder(MINILM, "cpu").model, compute=compute).encode(docs[:20])
    assert half.dtype == np.float32 and 0 < np.abs(half - want).max() < most


def test_a_backend_that_computes_something_else_is_refused(minilm, docs, tmp_path, monkeypatch):
    class Wrong(Encoding):
        def _embeddings(self, features):
            return (
                super()._embeddings(features).flip(1) if self.compute == "bfloat16" else super()._embeddings(features)
            )

    monkeypatch.setattr("retrieval.embed.Encoding", Wrong)
    from retrieval.encoder import load_encoder

    with pytest.raises(UserError, match="--compute bfloat16: gives other vectors"):
        embed(
            load_encoder(MINILM, "cpu"), Texts({"text": docs[:20]}, None, None, ""), tmp_path / "s", compute="bfloat16"
        )


def test_futures_run_ahead():
    drawn = []
    ahead = ahead_of((drawn.append(i) or i for i in range(6)), 2)
    assert next(ahead) == 0 and drawn == [0, 1, 2]
    assert list(ahead) == [1, 2, 3, 4, 5]


def test_cores_are_counted():
    assert usable_cpus() >= 1


def test_a_file_read_by_blocks_is_the_file_read_whole(tmp_path):
    path = tmp_path / "a.csv"
    rows = [f'"line {i}\nwith ""quotes"", é",l{i % 2},k{i}' for i in range(25)]
    path.write_text("text,label,id\r\n" + "\n\n".join(rows), encoding="utf-8-sig")
    whole, scanned = read_texts(path), scan_texts(path, 4)
    assert scanned.origin == whole.origin and len(scanned) == 25
    for start in (20, 0, 24, 8):
        part = scanned.part(start, min(start + 4, 25))
        assert (part.texts, part.labels, part.ids) == tuple(
            column[start : start + 4] for column in (whole.texts, whole.labels, whole.ids)
        )
    path.write_text("text\nchanged")
    with pytest.raises(UserError, match="changed while it was read"):
        scanned.part(0, 4)


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".tsv"])
def test_other_files_by_blocks(tmp_path, ending):
    lines = {".txt": "{}", ".jsonl": '{{"text": "{}"}}', ".tsv": "{}"}[ending]
    head = "text\n" if ending == ".tsv" else ""
    (tmp_path / f"a{ending}").write_text(head + "\n\n".join(lines.format(f"text {i}") for i in range(9)) + "\n")
    scanned = scan_texts(tmp_path / f"a{ending}", 4)
    assert [t for start in (0, 4, 8) for t in scanned.part(start, min(start + 4, 9)).texts] == [
        f"text {i}" for i in range(9)
    ]


def test_a_store_keeps_order_and_columns(tiny, tmp_path):
    data = words(37, ids=True)
    embed(tiny, data, tmp_path / "store", shard_rows=10)
    rows = open_store(tmp_path / "store", check=True).load()
    assert rows.payload == {"text": data.texts} and rows.labels == data.labels and rows.ids == data.ids
    assert (rows.embeddings == encode_all(tiny, data)).all()


class Breaking(Encoding):
    """Fails after so many blocks, as if killed."""

    left = 2

    def start(self, *words):
        if not self.left:
            raise ZeroDivisionError
        self.left -= 1
        return super().start(*words)


def test_an_interrupted_embedding_goes_on_where_it_stopped(tiny, tmp_path, monkeypatch):
    embed(tiny, words(35), tmp_path / "unbroken", shard_rows=10)
    with monkeypatch.context() as patch:
        patch.setattr("retrieval.embed.Encoding", Breaking)
        with pytest.raises(ZeroDivisionError):
            embed(tiny, words(35), tmp_path / "store", shard_rows=10)
    assert not (tmp_path / "store").exists() and rows_left(staging_folder(tmp_path / "store")) == 20
    kept, done = [], []
    embed(tiny, words(35), tmp_path / "store", shard_rows=10, resumed=kept.append, progress=done.append)
    assert kept == [20] and sum(done) == 35 and not staging_folder(tmp_path / "store").exists()
    assert contents(tmp_path / "store") == contents(tmp_path / "unbroken")
    again = []
    embed(tiny, words(35), tmp_path / "store", shard_rows=10, resumed=again.append)
    assert again == []  # finished already


@pytest.mark.parametrize("change", [{"dtype": "float16"}, {"compute": "bfloat16"}, {"data": words(36)}])
def test_another_job_does_not_resume(tmp_path, monkeypatch, change):
    from faults import tiny_encoder

    with monkeypatch.context() as patch:
        patch.setattr("retrieval.embed.Encoding", Breaking)
        with pytest.raises(ZeroDivisionError):
            embed(tiny_encoder(), words(35), tmp_path / "store", shard_rows=10)
    kept = []
    embed(
        tiny_encoder(), **{"data": words(35), **change}, output=tmp_path / "store", shard_rows=10, resumed=kept.append
    )
    assert kept == [0]


def test_appending_numbers_on_and_replacing_replaces(tiny, tmp_path):
    embed(tiny, words(25), tmp_path / "a", shard_rows=10)
    assert embed(tiny, words(5), tmp_path / "a", add=True).load().ids.tolist() == list(range(30))
    embed(tiny, words(25, ids=True), tmp_path / "b", shard_rows=10)
    with pytest.raises(UserError, match="of the new ids already"):
        embed(tiny, words(26, ids=True), tmp_path / "b", add=True)
    newer = Texts({"text": ["w1 new", "w2 new"]}, ["9", "9"], ["i3", "x"], "")
    rows = embed(tiny, newer, tmp_path / "b", replace=True).load()
    assert len(rows) == 26 and rows.ids[-2:] == ["i3", "x"] and rows.ids.count("i3") == 1
    with pytest.raises(UserError, match="dtype of the store: float32"):
        embed(tiny, newer, tmp_path / "b", dtype="int8", replace=True)
    other = Encoder(SentenceTransformer(modules=list(tiny.model), device="cpu"), "other")
    other.model.truncate_dim = 4
    with pytest.raises(UserError, match="dim of the store: 64"):
        embed(other, newer, tmp_path / "b", replace=True)


def test_progress_goes_with_the_work(minilm):
    """Longest texts come first; a quarter of the work is said to be a quarter of the rows."""
    encoding, told = Encoding(minilm.model), []
    prepared = encoding.prepare_texts(["word " * 60 + str(i) for i in range(30)] + [f"short {i}" for i in range(90)])
    encoding.run(prepared, told.append)
    assert sum(told) == 120 and told[0] > len(prepared.batches[0][0])


def test_a_picture_is_called_as_its_folder_calls_it(pictures, tmp_path, monkeypatch):
    from retrieval.images import read_images

    monkeypatch.chdir(pictures.parent)
    relative, absolute = read_images(Path(pictures.name)), read_images(pictures)
    assert relative.ids == absolute.ids and relative.fingerprint == absolute.fingerprint
    assert relative.ids[0].count("/") == 1


def test_pictures_are_decoded_ahead_and_kept_in_order(pictures, tmp_path):
    from retrieval.images import read_images
    from retrieval.train.vision import network

    data = read_images(pictures)
    encoder = Encoder(network("small", 8, "cpu", 0).eval(), "small")
    store = embed(encoder, data, tmp_path / "s", batch_size=7, shard_rows=50)
    want = encoder.model.encode([data[row] for row in range(len(data))], normalize_embeddings=True)
    assert np.abs(store.load().embeddings - want).max() < 1e-5 and store.load().ids == data.ids
    assert isinstance(data.part(3, 5), Images)


def test_only_the_head_runs_over_a_store_of_its_base(minilm, docs, tmp_path):
    from retrieval.encoder import load_encoder
    from retrieval.train.head import append_head

    data = Texts({"text": docs}, None, [f"d{i}" for i in range(len(docs))], "")
    base = embed(minilm, data, tmp_path / "base", shard_rows=40)
    headed = load_encoder(MINILM, "cpu").model
    append_head(headed, torch.nn.Linear(384, 384))
    encoder = Encoder(headed, "headed")
    whole = embed(encoder, data, tmp_path / "whole", shard_rows=40)
    again = embed(encoder, base, tmp_path / "again", shard_rows=40)
    one, other = whole.load(), again.load()
    assert (
        np.abs(one.embeddings - other.embeddings).max() < 1e-5
        and np.abs(base.embeddings() - one.embeddings).max() > 0.1
    )
    assert (one.ids, one.payload, whole.manifest["encoder"]) == (other.ids, other.payload, again.manifest["encoder"])
    with pytest.raises(UserError, match="which headed is not a head over"):
        embed(encoder, whole, tmp_path / "x")


@pytest.fixture
def forked(monkeypatch):
    """Embedding processes that begin with everything imported."""
    monkeypatch.setattr("retrieval.workers.get_context", lambda _: apart.forked)


@pytest.mark.slow
def test_two_processes_make_the_same_store(minilm, docs, tmp_path, forked):
    data = Texts({"text": docs}, None, None, "")
    one = embed(minilm, data, tmp_path / "one", shard_rows=40)
    two = embed(minilm, data, tmp_path / "two", shard_rows=40, devices=["cpu", "cpu"])
    assert contents(tmp_path / "one").keys() == contents(tmp_path / "two").keys()
    assert (one.load().embeddings == two.load().embeddings).all()


@pytest.mark.slow
def test_a_process_that_fails_says_why(minilm, docs, tmp_path, forked):
    data = Texts({"text": docs}, None, None, "")
    with pytest.raises(UserError, match="no such folder"):
        embed(Encoder(minilm.model, "./nosuch"), data, tmp_path / "s", devices=["cpu", "cpu"])


def test_a_full_disk_leaves_nothing_under_the_final_name(tiny, small_disk):
    with pytest.raises(Exception) as caught:
        embed(tiny, words(20_000), small_disk / "store")
    assert is_disk_full(caught.value) and not (small_disk / "store").exists()


def test_a_full_disk_is_one_line_on_the_command_line(tiny, small_disk, tmp_path, run_cli):
    embed(tiny, words(20_000), tmp_path / "store")
    result = run_cli("index", "build", tmp_path / "store", "--output", small_disk / "index", code=2)
    assert f"{small_disk}" in result.output and "disk is full" in result.output
    assert [path.name for path in small_disk.iterdir()] == [".index.partial"]  # the same command goes on from it


@pytest.mark.slow
def test_processes_do_not_outlive_a_killed_parent(docs, tmp_path):
    """They would write beside the run that takes the job up again, which is then ended as schedulers do it."""
    import psutil

    (tmp_path / "a.txt").write_text("\n".join(f"{i} {text}" for i in range(100) for text in docs))
    words = [
        "embed",
        "--encoder",
        MINILM,
        "--data",
        tmp_path / "a.txt",
        "--device",
        "cpu,cpu",
        "--output",
        tmp_path / "s",
    ]

    def started():
        running = apart.begin(apart.command, *words)
        parent, deadline = psutil.Process(running.process.pid), time.monotonic() + 120
        while len(parent.children(recursive=True)) < 2:
            assert running.process.is_alive() and time.monotonic() < deadline
            time.sleep(0.1)
        return running, parent.children(recursive=True)

    running, children = started()
    running.process.kill()
    assert running.end().returncode == -signal.SIGKILL
    assert not psutil.wait_procs(children, timeout=120)[1]  # they look when they have imported what they need
    running, children = started()
    running.process.terminate()
    done = running.end()
    said = done.stderr
    assert done.returncode == 130 and "interrupted" in said and "rows are kept" in said and "Traceback" not in said
    assert not psutil.wait_procs(children, timeout=20)[1]
