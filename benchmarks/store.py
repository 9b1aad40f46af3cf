"""Reading and writing a store, beside a plain NumPy memory map of the same vectors.

    python benchmarks/store.py [--rows 200000] [--dim 384]

Every line is a ratio of medians over interleaved rounds, the files in the page cache. The ceiling is the memory map: what
NumPy alone reads at, copying. At the end a head is run over a store of a million rows.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import header

from retrieval.embed import embed
from retrieval.encoder import MINILM, Encoder, load_encoder
from retrieval.store import Held, Kind, Rows, create
from retrieval.store.dtypes import Encoded, decode
from retrieval.train.head import append_head

ROUNDS = 9


def unit_rows(count: int, dim: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def medians(ways: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}


def reading(folder: Path, vectors: np.ndarray, dtype: str, shard_rows: int) -> None:
    count, dim = vectors.shape
    rows = Rows(
        vectors, [f"document-{i}" for i in range(count)], None, {"text": [f"text number {i}" for i in range(count)]}
    )
    started = time.perf_counter()
    store = create(folder / f"{dtype}-{shard_rows}", Held(rows), Kind(dim, dtype, shard_rows=shard_rows))
    wrote = time.perf_counter() - started
    plain = folder / f"{dtype}-{shard_rows}.raw"
    stored = np.concatenate([store.stored(number).data for number in range(len(store.shards))])
    stored.tofile(plain)
    parts = [store.stored(number).scales for number in range(len(store.shards))]
    scales = None if parts[0] is None else np.concatenate(parts)
    mapped = np.memmap(plain, stored.dtype, "r", shape=stored.shape)
    megabytes = stored.nbytes / 1e6
    print(
        f"\n{dtype}, {count:,} × {dim}, {len(store.shards)} shards of {shard_rows:,}, {megabytes:.0f} MB; written with ids and"
    )
    print(f"texts, hashed and synced, in {wrote:.2f} s ({megabytes / wrote:.0f} MB/s)")

    def line(what: str, ours: float, theirs: float, target: str) -> None:
        print(
            f"  {what:<44}{ours * 1e3:9.1f} ms  memory map {theirs * 1e3:9.1f} ms  speed {theirs / ours:5.2f} ×  {target}"
        )

    def shards() -> None:
        for number in range(len(store.shards)):
            np.array(store.stored(number).data)

    def map_blocks() -> None:
        for start in range(0, count, shard_rows):
            np.array(mapped[start : start + shard_rows])

    taken = medians({"store": shards, "map": map_blocks})
    line("every block in order, as stored", taken["store"], taken["map"], "target ≥ 0.9")
    if dtype != "float32":

        def decoded() -> None:
            for number in range(len(store.shards)):
                store.vectors(number)

        def map_decoded() -> None:
            for start in range(0, count, shard_rows):
                here = slice(start, start + shard_rows)
                decode(Encoded(mapped[here], None if scales is None else scales[here]), dtype)

        taken = medians({"store": decoded, "map": map_decoded})
        line("the same as float32", taken["store"], taken["map"], "")
    for many in (100, 1000, 10_000, 50_000):
        picked = np.random.default_rng(1).integers(0, count, many)

        def map_take(rows: np.ndarray = picked) -> np.ndarray:
            if dtype == "float32":
                return mapped[rows]
            return decode(Encoded(mapped[rows], None if scales is None else scales[rows]), dtype)

        taken = medians({"store": partial(store.take, picked), "map": map_take}, 99 if many <= 1000 else ROUNDS)
        line(f"{many:,} random rows as float32", taken["store"], taken["map"], "target ≥ 0.5")
    taken = medians({"whole": lambda: [len(rows) for rows in store]}, 3)
    print(f"  every block with ids and texts               {taken['whole'] * 1e3:9.1f} ms")


def heads(folder: Path, rows: int) -> None:
    """A head over a million cached embeddings."""
    torch.manual_seed(0)
    base = load_encoder(MINILM, "cpu")
    model = load_encoder(MINILM, "cpu").model
    append_head(model, torch.nn.Linear(base.dim, base.dim))
    encoder = {"name": base.name, "fingerprint": base.fingerprint}
    held = Held(Rows(unit_rows(rows, base.dim), np.arange(rows)))
    store = create(folder / "base", held, Kind(base.dim, modality="text", encoder=encoder))
    started = time.perf_counter()
    embed(Encoder(model, "headed"), store, folder / "headed")
    taken = time.perf_counter() - started
    product = 2 * rows * base.dim**2
    left, right = torch.randn(4096, base.dim), torch.randn(base.dim, base.dim)
    bare = statistics.median(medians({"sgemm": lambda: left @ right}, 50).values()) * rows / 4096
    print(f"\na head over {rows:,} × {base.dim} cached embeddings, to a new store: {taken:.1f} s")
    print(f"  of which the matrix product alone would take {bare:.1f} s ({product / bare / 1e9:.0f} GFLOP/s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--head-rows", type=int, default=1_000_000)
    asked = parser.parse_args()
    print(header())
    vectors = unit_rows(asked.rows, asked.dim)
    with tempfile.TemporaryDirectory() as place:
        for dtype, shard_rows in (
            ("float32", 4096),
            ("float32", 65_536),
            ("float16", 4096),
            ("bfloat16", 4096),
            ("int8", 4096),
        ):
            reading(Path(place), vectors, dtype, shard_rows)
    with tempfile.TemporaryDirectory() as place:
        heads(Path(place), asked.head_rows)


if __name__ == "__main__":
    main()
