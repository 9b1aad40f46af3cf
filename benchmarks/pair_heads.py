"""Linear heads over a frozen MiniLM, trained on pairs: which learning rate, for how long, by which loss?

    RETRIEVAL_DATA=… python benchmarks/pair_heads.py

Judged by queries that are never trained on: summaries → descriptions of Python modules that training has not seen (MRR), CoSQA's web queries among
its functions after training on docstring → code, and every second query of Cranfield (nDCG@10). Texts are encoded once; a head takes seconds.
"""

import argparse
import json
import re
import tempfile
from pathlib import Path

import numpy as np
import text_tasks as tasks
import torch
from machine import header

from retrieval.cli.held import HeldOut, by_judgments, by_pairs
from retrieval.cli.options import quiet_libraries
from retrieval.cli.output import silence
from retrieval.cli.trials import Trainer, by_heads
from retrieval.data import Texts
from retrieval.encoder import MINILM, load_encoder
from retrieval.eval.compare import compare, paired
from retrieval.eval.values import PerQuery
from retrieval.samples import docs_as_pairs, library_docs
from retrieval.train.loss import named

ONE_WAY = "directions='forward', within_side=False, label_mask=False"
LOSSES = {
    "HCL, κ = 2": "hcl(label_mask=False)",
    "the same, one direction": f"hcl({ONE_WAY})",
    "the same, t = .05": f"hcl(temperature=0.05, {ONE_WAY})",
    "MNRL, scale 20": "mnrl(label_mask=False)",
}
RATES, PASSES, SEEDS = (1e-3, 3e-4, 1e-4, 3e-5), (5, 20, 40), (0, 1, 2)
PAIRS, MOST, LEAST = 128, 1000, 20  # a batch, and steps, as `train text --head` has them


def documentation() -> tuple[Texts, HeldOut]:
    docs = library_docs()
    seen = set(sorted({doc.module for doc in docs})[1::2])
    train, held = (docs_as_pairs([doc for doc in docs if (doc.module in seen) == known]) for known in (True, False))
    return train, by_pairs(held)


def cranfield() -> tuple[Texts, HeldOut]:
    """Queries, which the judgments number by their place, and the abstracts that answer them; those of even places are held out."""
    folder = tasks.DATA / "cranfield"
    told = (folder / "cran.all.1400.xml").read_text("utf-8", "replace")
    found = re.findall(
        r"<docno>(.*?)</docno>.*?<title>(.*?)</title>.*?<text>(.*?)</text>", told.replace("\n", " "), re.DOTALL
    )
    abstracts = {int(number): " ".join(f"{title} {text}".split()) for number, title, text in found}
    asked = re.findall(r"<title>(.*?)</title>", (folder / "cran.qry.xml").read_text("utf-8", "replace"), re.DOTALL)
    queries = [" ".join(each.split()) for each in asked]
    rows = [line.split() for line in (folder / "cranqrel.trec.txt").read_text().splitlines()]
    judged = [(int(q), int(d)) for q, _, d, grade in rows if int(grade) > 0 and abstracts.get(int(d))]
    pairs = [(queries[q - 1], abstracts[d]) for q, d in judged if q % 2]
    with tempfile.TemporaryDirectory() as where:
        beir = Path(where)
        (beir / "qrels").mkdir()
        corpus = [{"_id": f"d{d}", "text": text} for d, text in abstracts.items() if text]
        for name, lines in (
            ("corpus", corpus),
            ("queries", [{"_id": f"q{q}", "text": text} for q, text in enumerate(queries, 1)]),
        ):
            (beir / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        told = "".join(f"q{q}\td{d}\t1\n" for q, d in judged if q % 2 == 0)
        (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + told)
        held = by_judgments(beir, "test")
    anchors, positives = zip(*pairs, strict=True)
    return Texts({"anchor": list(anchors), "positive": list(positives)}, None, None, ""), held


def heads(train: Texts, held: HeldOut, trainer: Trainer, flags: dict[str, object], loss: str, rate: float, passes: int) -> list[PerQuery]:  # fmt: skip
    """What each seed's head scores."""
    steps = min(MOST, max(LEAST, int(passes * len(train) / min(PAIRS, len(train)))))
    flags |= {"lr": rate, "steps": steps}
    return [held.measure(trainer.train(named(loss), seed)[0]) for seed in SEEDS]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    quiet_libraries()
    silence(True)
    print(header())
    encoder = load_encoder(MINILM, "cpu")
    for name, (train, held) in {"Python's documentation": documentation(), "CoSQA": tasks.cosqa(), "Cranfield": cranfield()}.items():  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            flags: dict[str, object] = {"batch_size": None, "epochs": 1.0, "whole": False, "data": name}
            trainer = by_heads(encoder, train, held, flags, Path(folder))
            before = held.measure(trainer.untrained())
            asked = len(before.ids)
            print(f"\n# {name}: {len(train):,} pairs; {held.metric} of {asked:,} queries, before {before.means()[held.metric]:.4f}")  # fmt: skip
            runs = {
                (loss, rate, passes): heads(train, held, trainer, flags, how, rate, passes)
                for loss, how in LOSSES.items() for rate in RATES for passes in PASSES
            }  # fmt: skip
            for loss in LOSSES:
                for rate in RATES:
                    means = [np.mean([run.means()[held.metric] for run in runs[loss, rate, passes]]) for passes in PASSES]  # fmt: skip
                    told = "   ".join(f"{passes} passes {mean:.4f}" for passes, mean in zip(PASSES, means, strict=True))
                    print(f"  {loss:<26} rate {rate:<7g} {told}", flush=True)
            first = next(iter(LOSSES))
            chosen = runs[first, 1e-4, 40]
            for what, other in {
                "before": [before] * len(SEEDS),
                "rate 0.001": runs[first, 1e-3, 40],
                **{loss: runs[loss, 1e-4, 40] for loss in LOSSES if loss != first},
            }.items():
                sides, _ = paired([other, chosen])
                found = compare(sides[0], sides[1], held.metric)
                low, high = found.interval
                print(f"  {first}, rate 0.0001, 40 passes − {what}: {found.difference:+.4f} [{low:+.4f}, {high:+.4f}] {found.verdict()}", flush=True)  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
