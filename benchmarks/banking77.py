"""BANKING77 with a linear head over frozen MiniLM: does hardness pay, over three seeds?

    RETRIEVAL_DATA=… python benchmarks/banking77.py

Prints MAP@R and R@1 on the test file (neighbours within it) for HCL against InfoNCE at three temperatures, with and
without label masks, 1,000 steps of 128 pairs each. The encoder runs once over both files; every method gets the same vectors.
"""

import json
import sys
import time

import numpy as np
import torch
from machine import data_folder, header

from retrieval.cli.options import quiet_libraries
from retrieval.data import Texts, read_texts
from retrieval.embed import encode_all
from retrieval.encoder import MINILM, load_encoder
from retrieval.eval.clusters import cluster_metrics
from retrieval.train.head import Frozen, distinct, project, train_head
from retrieval.train.loss import LossConfig, named
from retrieval.train.text import TextConfig, plan_batches

STEPS, PAIRS, LR, SEEDS = 1000, 128, 1e-3, (0, 1, 2)
TEMPERATURES = (0.05, 0.1, 0.2)
METHODS = {
    "HCL κ=2 t=0.1 τ⁺=0.013": named("hcl(kappa=2, tau_plus=0.013, label_mask=False)"),
    **{f"InfoNCE t={t}": named(f"infonce(temperature={t}, label_mask=False)") for t in TEMPERATURES},
    "H-SCL κ=2 t=0.1 (label mask)": named("h-scl(kappa=2)"),
    **{f"InfoNCE t={t} (label mask)": named(f"sincere(temperature={t})") for t in TEMPERATURES},
}


def run(
    train: Texts, frozen: Frozen, test: Texts, test_vectors: torch.Tensor, loss: LossConfig, seed: int
) -> dict[str, float]:
    plan = plan_batches(train, TextConfig(head=True, steps=STEPS, batch_size=PAIRS, seed=seed), loss, "train")
    started = time.perf_counter()
    head, _ = train_head(frozen, plan.batches(), loss, labels=plan.labels, steps=STEPS, lr=LR)
    seconds = time.perf_counter() - started
    metrics = cluster_metrics(project(head, test_vectors), test.labels or [])
    return {"map@r": metrics["map@r"], "r@1": metrics["r@1"], "seconds": seconds}


def main() -> None:
    folder = data_folder() / "banking77" / "banking_data"
    quiet_libraries()
    print(header())
    train, test = read_texts(folder / "train.csv"), read_texts(folder / "test.csv")
    encoder = load_encoder(MINILM, "cpu")
    started = time.perf_counter()
    texts, codes = distinct([train.texts])
    different = Texts({"text": texts}, None, None, train.origin)
    vectors, test_vectors = (torch.from_numpy(encode_all(encoder, data)) for data in (different, test))
    print(f"encoding both files: {time.perf_counter() - started:.0f} s")
    frozen = Frozen(vectors, codes)
    before = cluster_metrics(test_vectors.numpy(), test.labels or [])
    print(f"{'frozen':<32} MAP@R {before['map@r']:.4f}  R@1 {before['r@1']:.4f}")
    results: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for seed in SEEDS:  # interleaved, so that a busy machine slows all alike
        for name, loss in METHODS.items():
            results[name].append(run(train, frozen, test, test_vectors, loss, seed))
    for name, runs in results.items():
        maps = " ".join(f"{r['map@r']:.4f}" for r in runs)
        mean = np.mean([r["map@r"] for r in runs])
        print(
            f"{name:<32} MAP@R {mean:.4f} ({maps})  R@1 {np.mean([r['r@1'] for r in runs]):.4f}"
            f"  {np.median([r['seconds'] for r in runs]):.1f} s"
        )
    for title, mine, mask in (
        ("HCL", "HCL κ=2 t=0.1 τ⁺=0.013", ""),
        ("H-SCL", "H-SCL κ=2 t=0.1 (label mask)", " (label mask)"),
    ):
        best = [max(results[f"InfoNCE t={t}{mask}"][s]["map@r"] for t in TEMPERATURES) for s in range(len(SEEDS))]
        gains = [results[mine][s]["map@r"] - best[s] for s in range(len(SEEDS))]
        print(f"{title} above InfoNCE at its best temperature, by seed: {' '.join(f'{g:+.4f}' for g in gains)}")
    print(json.dumps({name: runs for name, runs in results.items()}), file=sys.stderr)


if __name__ == "__main__":
    main()
