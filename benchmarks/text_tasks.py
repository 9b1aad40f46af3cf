"""The tasks of benchmarks/text.py, read from the data sets in RETRIEVAL_DATA."""

import csv
import json
import os
import re
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from retrieval.cli.held import HeldOut, by_judgments
from retrieval.data import Texts, read_texts
from retrieval.encoder import Encoder, load_encoder

DATA = Path(os.environ.get("RETRIEVAL_DATA", "."))
READOUT = 4000  # sentences of each task at most
FOLDS = 5


def banking(part: str) -> Texts:
    return read_texts(DATA / "banking77" / "banking_data" / f"{part}.csv")


def banking_pairs(count: int = 4096) -> Texts:
    """Pairs of questions with one intent."""
    data = banking("train")
    random = np.random.default_rng(0)
    labels = np.array(data.labels)
    of_class = {label: np.flatnonzero(labels == label) for label in np.unique(labels)}
    rows = random.integers(0, len(data), count)
    others = [int(random.choice(of_class[labels[row]])) for row in rows]
    return Texts({"anchor": [data.texts[r] for r in rows], "positive": [data.texts[r] for r in others]}, None, None, "")


def snli(pairs: bool = False) -> Texts:
    """Premise, an entailed and a contradicting hypothesis, from the dev and test parts."""
    found: dict[str, dict[str, str]] = {}
    for part in ("dev", "test"):
        sides = [(DATA / "snli-devtest" / "dataset" / "eSNLI" / f"{name}.{part}").read_text("utf-8").splitlines() for name in ("s1", "s2", "labels")]  # fmt: skip
        for premise, hypothesis, label in zip(*sides, strict=True):
            found.setdefault(premise, {})[label.strip()] = hypothesis
    rows = [
        (p, h["entailment"], h["contradiction"]) for p, h in found.items() if {"entailment", "contradiction"} <= set(h)
    ]
    names = ("anchor", "positive") if pairs else ("anchor", "positive", "negative_1")
    columns = dict(zip(names, zip(*rows, strict=True), strict=False))
    return Texts({name: list(column) for name, column in columns.items()}, None, None, f"{len(rows):,} triplets")


def stsb(part: str) -> Texts:
    with open(DATA / "stsb" / "data" / f"stsb-en-{part}.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    columns = {"anchor": [row[0] for row in rows], "positive": [row[1] for row in rows]}
    return Texts(columns, None, None, f"STS-B {part}", np.array([float(row[2]) for row in rows]))


def cosqa() -> tuple[Texts, HeldOut]:
    """Docstring's first line → code without it, of functions that no test query wants; and the test queries among all functions."""
    with tarfile.open(DATA / "cosqa-retrieval" / "cosqa-retrieval.tar.gz") as archive:
        codes = json.load(archive.extractfile("data/search/code_idx_map.txt"))  # type: ignore[arg-type]
        asked = json.load(archive.extractfile("data/search/cosqa-retrieval-test-500.json"))  # type: ignore[arg-type]
    wanted = {str(entry["code"]) for entry in asked}
    pairs = []
    for code in codes:
        found = re.search(r'"""(.+?)"""|\'\'\'(.+?)\'\'\'', code, re.DOTALL)
        told = " ".join(((found.group(1) or found.group(2)).strip().splitlines() or [""])[0].split()) if found else ""
        if found and len(told.split()) >= 4 and code not in wanted:
            pairs.append((told, code.replace(found.group(0), "")))
    with tempfile.TemporaryDirectory() as folder:
        beir = Path(folder)
        (beir / "qrels").mkdir()
        _lines(beir / "corpus.jsonl", ({"_id": f"c{number}", "text": code} for code, number in codes.items()))
        _lines(beir / "queries.jsonl", ({"_id": entry["idx"], "text": entry["doc"]} for entry in asked))
        judged = "".join(f"{entry['idx']}\tc{codes[entry['code']]}\t1\n" for entry in asked)
        (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
        held = by_judgments(beir, "test")
    anchors, positives = zip(*pairs, strict=True)
    return Texts({"anchor": list(anchors), "positive": list(positives)}, None, None, f"{len(pairs):,} pairs"), held


def _lines(path: Path, rows: object) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")  # type: ignore[attr-defined]


FILES = {"MR": "rt-polarity.all", "CR": "custrev.all", "SUBJ": "subj.all", "MPQA": "mpqa.all"}


def _labelled(name: str) -> tuple[list[str], np.ndarray]:
    lines = (DATA / "sent-conv" / "data" / name).read_text(encoding="latin-1").splitlines()
    labels, _, texts = zip(*(line.partition(" ") for line in lines if line.strip()), strict=True)
    return list(texts), np.array(labels)


def sentence_lines() -> Texts:
    """Sentences of the five tasks without their labels."""
    texts = [text for name in (*FILES.values(), "TREC.train.all") for text in _labelled(name)[0]]
    return Texts({"text": list(dict.fromkeys(texts))}, None, None, "")


def readouts(encoder: Encoder) -> dict[str, float]:
    """Accuracy of a logistic regression on frozen embeddings, and the mean over tasks."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    found = {}
    for task, name in FILES.items():
        texts, labels = _labelled(name)
        rows = np.random.default_rng(0).permutation(len(texts))[:READOUT]
        vectors = encoder.encode([texts[row] for row in rows])
        found[task] = float(
            cross_val_score(LogisticRegression(C=16, max_iter=1000), vectors, labels[rows], cv=FOLDS).mean()
        )
    (train, classes), (test, wanted) = _labelled("TREC.train.all"), _labelled("TREC.test.all")
    model = LogisticRegression(C=16, max_iter=1000).fit(encoder.encode(train), classes)
    found["TREC"] = float(model.score(encoder.encode(test), wanted))
    return found | {"mean": statistics.mean(found.values())}


def mining_beside_peer(name: str) -> None:
    """SNLI's premises and entailed hypotheses, each premise once: seconds from texts to negatives, and how many agree."""
    from click.testing import CliRunner
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    from retrieval.cli import cli

    data = snli(pairs=True)
    columns = {name: list(column) for name, column in data.columns.items()}
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder) / "pairs.csv", Path(folder) / "mined.jsonl"
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("anchor", "positive"), *zip(*columns.values(), strict=True)])
        for margin in (None, 0.05):
            words = ["mine", "--data", path, "--model", name, "--ranks", "0:50", "--output", output, "--overwrite"]
            began = time.perf_counter()
            done = CliRunner().invoke(
                cli, [str(w) for w in [*words, *(["--relative-margin", margin] if margin else [])]]
            )
            ours = time.perf_counter() - began
            assert done.exit_code == 0, done.output
            model = load_encoder(name).model
            began = time.perf_counter()
            theirs = mine_hard_negatives(Dataset.from_dict(columns), model, num_negatives=3, range_max=50, relative_margin=margin, output_format="n-tuple", verbose=False)  # fmt: skip
            other = time.perf_counter() - began
            mined = read_texts(output)
            sets = {(a, p): {mined.columns[f"negative_{k}"][row] for k in (1, 2, 3)} for row, (a, p) in enumerate(zip(mined.columns["anchor"], mined.columns["positive"], strict=True))}  # fmt: skip
            same = statistics.mean(len(sets[row["anchor"], row["positive"]] & {row[f"negative_{k}"] for k in (1, 2, 3)}) / 3 for row in theirs)  # fmt: skip
            print(f"mining, {len(data):,} pairs, relative margin {margin}: ours {ours:.1f} s, mine_hard_negatives {other:.1f} s ({other / ours:.2f} ×); {same:.1%} of its negatives are ours too", flush=True)  # fmt: skip


def base_sized(folder: Path) -> None:
    """A BERT of 110 million parameters behind MiniLM's tokenizer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel

    tokenizer = load_encoder("all-MiniLM-L6-v2", "cpu").model.tokenizer
    BertModel(BertConfig(vocab_size=len(tokenizer))).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    SentenceTransformer(modules=[Transformer(str(folder / "bert")), Pooling(768)]).save_pretrained(
        str(folder / "encoder")
    )
