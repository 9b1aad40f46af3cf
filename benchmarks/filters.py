"""Searches with a filter, of rows near the query and far from it: recall and time, beside FAISS that passes over rows by itself.

    RETRIEVAL_DATA=… python benchmarks/filters.py [--factories HNSW16 …]

Fashion-MNIST, 60,000 × 784, by cosine; an index of each type tuned to recall@10 .95 with one half of the test pictures, asked with
others for rows of half of the classes (30,000), by pictures of these classes and of the other ones, and for as many rows drawn at random. FAISS
alone gets a selector of the rows and as many times the tuned effort as rows are forbidden. Times are medians of turns.
"""

import argparse
import gzip
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import data_folder, header

from retrieval.index.backend import faiss
from retrieval.index.build import build
from retrieval.index.bundle import Index
from retrieval.index.kinds import parameters
from retrieval.index.plan import Goal
from retrieval.index.search import search
from retrieval.neighbors import exact_neighbors
from retrieval.store import Held, Kind, Rows, create

K, GOAL, TURNS = 10, 0.95, 5
CLASSES = (0, 2, 3, 4, 6)  # worn above the waist: they lie together
Case = tuple[str, np.ndarray, np.ndarray]


def fashion(part: str) -> tuple[np.ndarray, np.ndarray]:
    folder = data_folder() / "fashion-mnist"
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784).astype(np.float32)
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return pixels / np.linalg.norm(pixels, axis=1, keepdims=True), labels


def cases(labels: np.ndarray, queries: np.ndarray, query_labels: np.ndarray) -> Iterator[Case]:
    """Name, queries, which rows may be found."""
    may, inside = np.isin(labels, CLASSES), np.isin(query_labels, CLASSES)
    yield "of the query's half", queries[inside][:300], may
    yield "of the other half", queries[~inside][:300], may
    yield "at random", queries[:300], np.random.default_rng(0).random(len(labels)) < 0.5


def by_selector(index: Index, where: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """FAISS, told to look at some rows only."""
    times = len(where) / where.sum()
    settings = {
        name: value if name == "rerank" else round(value * times) for name, value in index.about["search"].items()
    }
    selector = faiss().IDSelectorBitmap(np.packbits(where, bitorder="little"))
    inner = parameters(index.faiss, settings)
    inner.sel, asked = selector, inner
    if index.engine is not index.faiss:  # codes, scored again
        asked = faiss().IndexRefineSearchParameters(k_factor=settings["rerank"], base_index_params=inner)
    return lambda queries: np.asarray(index.engine.search(queries, K, params=asked)[1])


def timed(ways: dict[str, Callable[[np.ndarray], Any]], blocks: list[np.ndarray]) -> dict[str, float]:
    """Milliseconds a query of each way, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            for block in blocks:
                way(block)
            if turn:  # the first warms up
                taken[name].append((time.perf_counter() - started) / sum(map(len, blocks)))
    return {name: 1000 * statistics.median(some) for name, some in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factories", nargs="+", default=["HNSW16", "IVF256,Flat", "IVF256,PQ98"])
    asked = parser.parse_args()
    print(header())
    (base, labels), (queries, query_labels) = fashion("train"), fashion("t10k")
    with tempfile.TemporaryDirectory() as scratch:
        store = create(Path(scratch) / "store", Held(Rows(base, np.arange(len(base)))), Kind(784, shard_rows=65_536))
        for factory in asked.factories:
            index = build(store, Path(scratch) / factory, factory=factory, queries=queries[:5000], goal=Goal(GOAL))
            print(f"\n{factory}, recall@{K} without a filter {index.about['measured']['recall']:.3f}")
            print(f"{'rows':20} {'':14} recall  ms a query in a batch  alone")
            for name, some, where in cases(labels, queries[5000:], query_labels[5000:]):
                told(index, base, name, some, where)


def told(index: Index, base: np.ndarray, name: str, queries: np.ndarray, where: np.ndarray) -> None:
    rows = np.flatnonzero(where)
    truth = rows[exact_neighbors(queries, base[rows], K).ids]
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "ours": lambda some: search(index, some, K, where=where).rows,
        "FAISS alone": by_selector(index, where),
        "all compared": lambda some: rows[exact_neighbors(some, base[rows], K).ids],
    }
    batch = timed(ways, [queries])
    alone = timed(ways, [queries[i : i + 1] for i in range(20)])
    for way, find in ways.items():
        one = np.concatenate([find(queries[i : i + 1]) for i in range(100)])
        shares = [(truth[: len(f), :, None] == f[:, None]).any(2).mean() for f in (find(queries), one)]
        print(
            f"{name:20} {way:14} {shares[0]:.3f}  {batch[way]:8.2f}  alone {shares[1]:.3f} {alone[way]:8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
