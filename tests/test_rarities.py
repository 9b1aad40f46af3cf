"""What a reader found: encoders of rarer kinds, searches that are at their end, data with nothing to be near."""

import json
import shutil

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertJapaneseTokenizer, BertModel

from retrieval.cli import trials
from retrieval.data import Texts
from retrieval.data.texts import Collected
from retrieval.encoder import load_encoder
from retrieval.errors import UserError
from retrieval.eval.sweep import propose
from retrieval.train import head
from retrieval.train.batches import Drawing
from retrieval.train.loss import named
from retrieval.train.text import TextConfig, plan_batches


def static(folder, words):
    torch.manual_seed(0)
    tokenizer = Tokenizer(WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")
    model.save_pretrained(str(folder), create_model_card=False)
    return load_encoder(str(folder), "cpu")


def japanese(folder, letters):
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertJapaneseTokenizer(str(folder / "vocab.txt"), word_tokenizer_type="basic", subword_tokenizer_type="character")  # fmt: skip
    tokenizer.save_pretrained(folder / "bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder / "bert")
    model = SentenceTransformer(modules=[Transformer(str(folder / "bert")), Pooling(32)], device="cpu")
    model.save_pretrained(str(folder / "encoder"), create_model_card=False)
    return folder / "encoder"


def test_static_embeddings_of_other_words_are_another_encoder(tmp_path):
    words = ["[UNK]", "red", "dog", "blue"]
    one, two = static(tmp_path / "one", words), static(tmp_path / "two", ["[UNK]", "dog", "red", "blue"])
    assert not np.allclose(one.encode(["red"]), two.encode(["red"])) and one.fingerprint != two.fingerprint
    assert static(tmp_path / "again", words).fingerprint == one.fingerprint


def test_a_tokenizer_in_python_is_used_and_told(tmp_path, run_cli):
    letters = [chr(97 + at) for at in range(26)]
    folder = japanese(tmp_path / "one", letters)
    shutil.copytree(folder, tmp_path / "elsewhere")
    mark = load_encoder(str(folder), "cpu").fingerprint
    assert load_encoder(str(tmp_path / "elsewhere"), "cpu").fingerprint == mark
    assert load_encoder(str(japanese(tmp_path / "two", letters[::-1])), "cpu").fingerprint != mark
    data = tmp_path / "data.csv"
    data.write_text("text,label\nab cd,a\nef g,a\nh i,b\nj k,b\n")
    run_cli("embed", "--encoder", folder, "--data", data, "--device", "cpu", "--output", tmp_path / "store")
    run_cli("train", "text", "--data", data, "--model", folder, "--steps", 1, "--batch-size", 2, "--no-general", "--device", "cpu", "--output", tmp_path / "run")  # fmt: skip


def test_an_adaptive_search_at_its_end_takes_what_is_farthest_from_the_rest():
    axes = {"temperature": (0.05, 0.06)}
    tried, scores = [], []
    for number in range(60):
        tried.append(propose(axes, tried, scores, 0))
        scores.append(-((tried[-1]["temperature"] - 0.055) ** 2) - number / 1e9)
    values = [setting["temperature"] for setting in tried]
    assert len(set(values)) > 50 and max(values.count(value) for value in values) <= 2


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (Texts({"anchor": ["a"], "positive": ["b"]}, None, None, ""), "x has one row, which is near no other"),
        (Texts({"text": [*"abcde"]}, ["one"] * 5, None, ""), "x has one class, which is near no other"),
    ],
)
def test_hard_batches_of_what_is_near_nothing_are_refused(data, word):
    config = TextConfig(steps=1, batch_size=2, drawing=Drawing(how="hard"))
    with pytest.raises(UserError, match=word):
        plan_batches(data, config, named("infonce(label_mask=False)"), "x")


def test_a_sweep_with_data_in_a_file_and_a_class_of_one(tmp_path, tiny, run_cli, monkeypatch):
    monkeypatch.setattr(Collected.__init__, "__defaults__", (1,))  # characters that are held in memory
    for name, rows in (("train", 9000), ("held", 40)):
        lines = [f"word {row} of {name},{row % 4}" for row in range(rows)] + ["alone,z"] * (name == "train")
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *lines]))
    result = run_cli("sweep", "--data", tmp_path / "train.csv", "--held-out", tmp_path / "held.csv", "--model", tiny, "--kappa", "0,1", "--temperature", 0.1, "--seeds", 1, "--steps", 2, "--batch-size", 8, "--device", "cpu", "--output", tmp_path / "sweep")  # fmt: skip
    assert "a class has one row, which makes no pair and is left out: 'z'" in result.stderr


def test_labels_may_be_several_in_the_reference_alone(tmp_path, run_cli):
    vectors = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for name, labels in (("asked", ["red", "round"] * 12), ("gallery", ["red|round", "blue"] * 12)):
        np.save(tmp_path / f"{name}.npy", vectors)
        (tmp_path / f"{name}.txt").write_text("\n".join(labels))
    words = ["eval", "clusters", tmp_path / "asked.npy", "--labels", tmp_path / "asked.txt", "--metric", "cosine"]
    words += ["--reference", tmp_path / "gallery.npy", "--reference-labels", tmp_path / "gallery.txt"]
    run_cli(*words, "--separator", "|")
    assert "--separator ';': no label has it" in run_cli(*words, "--separator", ";", code=2).output


def test_a_tokenizer_in_python_is_the_same_however_it_was_loaded(tmp_path):
    from transformers import ByT5Tokenizer

    from retrieval.encoder import _reads

    made = ByT5Tokenizer()
    made.save_pretrained(tmp_path / "byt5")
    loaded = [ByT5Tokenizer.from_pretrained(tmp_path / "byt5", local_files_only=only) for only in (True, False)]
    assert _reads(loaded[0]) == _reads(loaded[1])


def test_pairs_of_pictures_with_odd_names_are_written_and_read(tmp_path):
    from retrieval.cli.evaluated import PAIRS, write_evaluation
    from retrieval.cli.report import _told
    from retrieval.eval.values import PerQuery

    table = PerQuery(["0"], None, {"i2t_mrr": np.ones(1)})
    pairs = [("0", "bad\udcff.png", "x" * 200_000)]
    write_evaluation({"output": tmp_path / "judged", "overwrite": False}, "pairs", {}, {"": table}, pairs)
    assert _told(tmp_path / "judged" / PAIRS)["0"] == ["bad\udcff.png", "x" * 200_000]


def test_every_setting_of_a_sweep_fails_beside_trials_of_others(run_cli, texts, tiny, tmp_path, monkeypatch):
    words = [
        "sweep",
        "--data",
        texts,
        "--model",
        tiny,
        "--device",
        "cpu",
        "--steps",
        2,
        "--temperature",
        0.1,
        "--seeds",
        1,
    ]
    words += ["--output", tmp_path / "s", "--kappa"]
    real, made = trials.Record._made, []

    def only_one(*given):
        if made:
            raise KeyboardInterrupt
        made.append(real(*given))

    def fails(*_, **__):
        raise UserError("step 1: the loss is nan")

    with monkeypatch.context() as patch:
        patch.setattr(trials.Record, "_made", only_one)
        run_cli(*words, "0,1", code=130)
    monkeypatch.setattr(head, "train_head", fails)
    assert "every setting failed, the first so: step 1: the loss is nan" in run_cli(*words, 2, code=2).stderr


def test_what_one_run_says_nothing_of_is_told(run_cli, texts, tiny, tmp_path):
    words = ["sweep", "--data", texts, "--model", tiny, "--device", "cpu", "--steps", 2, "--temperature", 0.1]
    told = "of one run it is not known how another seed would do"
    assert told in run_cli(*words, "--kappa", "0,1", "--seeds", 1, "--output", tmp_path / "a").stdout
    assert told not in run_cli(*words, "--kappa", "0,1", "--seeds", 2, "--output", tmp_path / "b").stdout
    for name in "ab":
        run_cli("report", tmp_path / name, "--output", tmp_path / f"{name}.html")
        assert (told.capitalize() in (tmp_path / f"{name}.html").read_text("utf-8")) == (name == "a")


def test_a_sweep_of_pictures_has_no_use_for_negatives(run_cli, pictures, tmp_path):
    words = ["sweep", "--data", pictures, "--model", "small", "--whole", "--output", tmp_path / "s"]
    assert "--negatives: is for texts" in run_cli(*words, "--negatives", 3, code=2).stderr


def test_a_sweep_of_whole_encoders_lasts_as_long_as_train_does(run_cli, texts, tiny, tmp_path):
    words = ["--data", texts, "--model", tiny, "--device", "cpu", "--batch-size", 8]
    sweep = ["sweep", *words, "--whole", "--kappa", 0, "--temperature", 0.1, "--seeds", 1, "--output", tmp_path / "s"]
    assert " --steps 100 " in json.loads(run_cli(*sweep, "--json").stdout)["recommended"]["command"]
    done = run_cli("train", "text", *words, "--no-general", "--output", tmp_path / "run", "--json")
    assert json.loads(done.stdout)["steps"] == 100
