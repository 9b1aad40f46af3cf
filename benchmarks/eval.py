"""Class-clustering metrics beside pytorch-metric-learning and scikit-learn: time, peak memory, and equal values.

    python benchmarks/eval.py [--sets 10 11000] [--rounds 3] [--million]

Made-up unit vectors × 128: 36,000 in 10 classes, 60,000 in 11,000 (as many as Stanford Online Products has). Each contestant
runs in a process of its own, in turns; the table has medians of the measured part, and peak memory less what the process
had when the data was made.

    ours, everything    every metric of `eval clusters` with one run of k-means, intervals too
    ours, their seven   what is needed for pytorch-metric-learning's seven: the neighbourhood metrics (all of them) and k-means
    pml                 AccuracyCalculator, its seven metrics, k="max_bin_count"
    scikit-learn        NearestNeighbors (brute, cosine) of as many neighbours, KMeans, adjusted_mutual_info_score; no metrics

The ceiling is the product of all vectors with all in float64, which decides the order of neighbours, and in float32.
--million: a million in 1,000 classes, 20,000 of them asked; with --device cuda all of them.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from machine import header

SETS = {"10": (36_000, 10, 2.0), "11000": (60_000, 11_000, 1.2), "million": (1_000_000, 1_000, 1.6)}
DIM = 128
SAME = {
    "precision_at_1": "r@1",
    "r_precision": "r-precision",
    "mean_average_precision_at_r": "map@r",
}


def made_up(name: str) -> tuple[Any, Any]:
    count, classes, noise = SETS[name]
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((classes, DIM), dtype=np.float32)
    codes = np.arange(count) % classes
    vectors = centres[codes] + np.float32(noise) * generator.standard_normal((count, DIM), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), codes


def everything(vectors: Any, codes: Any, sample: int | None = None, device: str = "cpu") -> dict[str, float]:
    from retrieval.eval.clusters import Settings, evaluate_clusters

    labels = [str(code) for code in codes.tolist()]
    found = evaluate_clusters(vectors, labels, Settings(seeds=1, sample=sample, device=device))
    intervals = found.queries.intervals()
    return found.means() | {
        f"{name} {end}": intervals[name][i] for name in ("map@r",) for i, end in ((0, "from"), (1, "to"))
    }


def their_seven(vectors: Any, codes: Any) -> dict[str, float]:
    from retrieval.eval.kmeans import agreement, kmeans
    from retrieval.eval.labels import classes
    from retrieval.eval.neighborhood import neighborhood
    from retrieval.neighbors import Base

    relevance = classes([str(code) for code in codes.tolist()])
    rows = np.arange(len(vectors))
    base = Base(vectors, "inner_product")
    values = neighborhood(
        vectors, base, relevance, rows, relevance.counts() - 1, itself=True, ks=(1,), similarities=False
    ).values
    return {name: float(each.mean()) for name, each in values.items()} | agreement(
        codes, kmeans(vectors, int(codes.max()) + 1)
    )


def pml(vectors: Any, codes: Any) -> dict[str, float]:
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    found = AccuracyCalculator(k="max_bin_count").get_accuracy(torch.from_numpy(vectors), torch.from_numpy(codes))
    return {name: float(value) for name, value in found.items()}


def scikit_learn(vectors: Any, codes: Any) -> dict[str, float]:
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_mutual_info_score
    from sklearn.neighbors import NearestNeighbors

    depth = int(np.bincount(codes).max()) - 1
    ids = (
        NearestNeighbors(n_neighbors=depth + 1, metric="cosine", algorithm="brute").fit(vectors).kneighbors(vectors)[1]
    )
    clusters = KMeans(int(codes.max()) + 1, n_init=1, init="random", random_state=0).fit(vectors).labels_
    right = codes[ids[:, 1]] == codes  # the first is taken to be the query itself
    return {"r@1": float(right.mean()), "ami": float(adjusted_mutual_info_score(codes, clusters))}


def products(vectors: Any, codes: Any) -> dict[str, float]:
    import torch

    from retrieval.neighbors.product import linear

    table = torch.from_numpy(vectors)
    found = {}
    for name, wide in (("float64", table.double()), ("float32", table)):
        started = time.perf_counter()
        for start in range(0, len(wide), 256):
            for first in range(0, len(wide), 4096):
                part, block = wide[start : start + 256], wide[first : first + 4096]
                part @ block.T if name == "float64" else linear(part, block)
        found[name] = time.perf_counter() - started
    return found


WAYS: dict[str, Callable[..., dict[str, float]]] = {
    "ours, everything": everything,
    "ours, their seven": their_seven,
    "pml": pml,
    "scikit-learn": scikit_learn,
    "products": products,
}


def one(way: str, name: str, sample: int | None, device: str) -> None:
    vectors, codes = made_up(name)
    small, few = vectors[:1100], np.arange(1100) % 10
    more = {"sample": sample, "device": device} if way == "ours, everything" else {}
    WAYS[way](small, few, **more | ({"sample": 100} if sample else {}))  # imports, and threads that start
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    values = WAYS[way](vectors, codes, **more)
    spent = time.perf_counter() - started
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"seconds": spent, "mib": peak, "values": values}))


def ask(way: str, name: str, *more: str) -> dict[str, Any]:
    words = [sys.executable, __file__, "--one", way, "--sets", name, *more]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr else f"ended by {-done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def side_by_side(name: str, rounds: int) -> None:
    count, classes, _ = SETS[name]
    print(f"\n{count:,} × {DIM}, {classes:,} classes, {rounds} rounds")
    taken: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            taken[way].append(ask(way, name))
    whole = statistics.median(run["seconds"] for run in taken["ours, everything"])
    for way, runs in taken.items():
        if any("failed" in run for run in runs):
            print(f"  {way:<20} failed: {runs[0].get('failed')}")
        elif way != "products":
            seconds = statistics.median(run["seconds"] for run in runs)
            spread = f"{min(run['seconds'] for run in runs):.1f}–{max(run['seconds'] for run in runs):.1f}"
            print(f"  {way:<20} {seconds:7.1f} s ({spread})  {max(r['mib'] for r in runs):8,.0f} MiB  {seconds / whole:5.2f} × ours, everything")  # fmt: skip
    pairs = list(zip(taken["pml"], taken["ours, their seven"], strict=True))
    ratios = [f"{a['seconds'] / b['seconds']:.2f}" for a, b in pairs]
    print(f"  pml / ours, their seven: {', '.join(ratios)}")
    best = {p: statistics.median(run["values"][p] for run in taken["products"]) for p in ("float64", "float32")}
    print(f"  ceiling: all products {best['float64']:.1f} s in float64, {best['float32']:.1f} s in float32")
    theirs, ours = taken["pml"][0]["values"], taken["ours, everything"][0]["values"]
    for their, our in SAME.items():
        print(f"  {our:<12} ours {ours[our]:.8f}  pml {theirs[their]:.8f}  apart {abs(ours[our] - theirs[their]):.1e}")
    print(f"  ami          ours {ours['ami']:.4f}  pml {theirs['AMI']:.4f}  (k-means of different starts)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="*", default=["10", "11000"], choices=list(SETS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--one", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--sample", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help="of the million")
    asked = parser.parse_args()
    if asked.one:
        one(asked.one, asked.sets[0], asked.sample, asked.device)
        return
    print(header())
    for name in asked.sets:
        side_by_side(name, asked.rounds)
    if asked.million:
        asks = [] if asked.device != "cpu" else ["--sample", "20000"]
        found = ask("ours, everything", "million", "--device", asked.device, *asks)
        values = found.get("values", {})
        who = "all of them asked" if asked.device != "cpu" else "20,000 queries among all"
        print(f"\n1,000,000 × {DIM}, 1,000 classes, {who}")
        if "failed" in found:
            print(f"  failed: {found['failed']}")
        else:
            print(f"  {found['seconds']:.0f} s, {found['mib']:,.0f} MiB beyond the data")
            print(f"  map@r {values['map@r']:.5f}, 95 % {values['map@r from']:.5f}–{values['map@r to']:.5f}; r@1 {values['r@1']:.4f}; ami {values['ami']:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
