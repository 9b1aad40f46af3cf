"""Exact search beside FAISS's flat index, torch's product and topk, and usearch: speed at equal results.

    python benchmarks/exact.py [--rows 60000] [--dims 128 768] [--device cpu] [--data fashion-mnist.npy]

GFLOP/s are 2 · queries · rows · dim over the median time of interleaved rounds. Ceilings, measured in the same run: the
best rate of a 2,048³ product in float32 by any library here (on a GPU also bfloat16), and reading the base once.
«As installed» is FAISS in a fresh process without the settings of retrieval/index/backend.py.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from machine import header
from store import medians, unit_rows

from retrieval.index.backend import faiss
from retrieval.neighbors import Base, exact_neighbors

K = 10
AS_INSTALLED = """
import json, sys, time, statistics
import faiss, numpy as np
sys.path.insert(0, {here!r})
from store import unit_rows
faiss.omp_set_num_threads({threads})
base = unit_rows({rows}, {dim})
index = faiss.IndexFlatIP({dim})
index.add(base)
found = {{}}
for count in {counts}:
    queries = np.ascontiguousarray(unit_rows(count, {dim}, seed=1))
    times = []
    for _ in range(5 if count < 1000 else 2):
        started = time.perf_counter()
        index.search(queries, {k})
        times.append(time.perf_counter() - started)
    found[count] = statistics.median(times)
print(json.dumps(found))
"""


def seconds(way: Callable[[], Any], rounds: int = 7) -> float:
    return medians({"way": way}, rounds)["way"]


def ceilings(device: str) -> dict[str, float]:
    """GFLOP/s of matrix products by each library, and GB/s of reading."""
    a = torch.randn(2048, 2048, device=device)
    operations = 2 * 2048**3 / 1e9
    rates = {}
    if device == "cpu":
        b = a.numpy()
        one_dnn = torch.ops.mkldnn._linear_pointwise
        rates["float32, oneDNN"] = operations / seconds(lambda: one_dnn(a, a, None, "none", [], ""))
        rates["float32, torch.mm"] = operations / seconds(lambda: a @ a)
        rates["float32, NumPy's OpenBLAS"] = operations / seconds(lambda: b @ b)
        rates["float64, torch.mm"] = operations / seconds(lambda: a.double() @ a.double())
    else:
        a = torch.randn(8192, 8192, device=device)
        operations = 2 * 8192**3 / 1e9
        half = a.bfloat16()
        rates["float32"] = operations / seconds(lambda: synchronised(a @ a))
        rates["bfloat16"] = operations / seconds(lambda: synchronised(half @ half))
    large = torch.ones(2**27, device=device)
    rates["reading, GB/s"] = large.numel() * 4 / 1e9 / seconds(lambda: synchronised(large.sum()))
    return rates


def synchronised(value: Any) -> Any:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return value


def ways(base: np.ndarray, queries: np.ndarray, device: str) -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {}
    dim = base.shape[1]
    if device == "cpu":
        kept = Base(base, "inner_product", keep=True)
        flat = faiss().IndexFlatIP(dim)
        flat.add(base)
        b, q = torch.from_numpy(base), torch.from_numpy(queries)
        found["ours"] = lambda: exact_neighbors(queries, base, K)
        found["ours, kept base"] = lambda: exact_neighbors(queries, kept, K)
        found["IndexFlatIP, best"] = lambda: flat.search(queries, K)
        if 4 * len(queries) * len(base) < 2e9:
            found["torch mm + topk"] = lambda: (q @ b.T).topk(K)
        from usearch.index import MetricKind, search

        if len(queries) <= 256:
            found["usearch exact"] = lambda: search(
                base, queries, K, MetricKind.IP, exact=True, threads=torch.get_num_threads()
            )
        return found
    ready = Base(base, "inner_product", device)
    resources = faiss().StandardGpuResources()
    flat = faiss().GpuIndexFlatIP(resources, dim)
    flat.add(base)
    q = torch.from_numpy(queries).to(device)
    b = torch.from_numpy(base).to(device)
    found["ours"] = lambda: exact_neighbors(q, ready, K)
    found["GpuIndexFlatIP"] = lambda: flat.search(queries, K)
    found["torch bf16 mm + topk, not exact"] = lambda: synchronised(
        [(part.bfloat16() @ b.T.bfloat16()).topk(K) for part in q.split(max(1, 2**31 // len(base)))]
    )
    return found


def as_installed(rows: int, dim: int, counts: list[int]) -> dict[int, float]:
    code = AS_INSTALLED.format(
        here=__file__.rpartition("/")[0] or ".", threads=torch.get_num_threads(), rows=rows, dim=dim, counts=counts, k=K
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return {int(count): taken for count, taken in json.loads(out.splitlines()[-1]).items()}


def compare(base: np.ndarray, counts: list[int], device: str, top: float, plain: dict[int, float]) -> None:
    rows, dim = base.shape
    for count in counts:
        queries = np.ascontiguousarray(unit_rows(count, dim, seed=1))
        tried = ways(base, queries, device)
        taken = medians(tried, 9 if count < 1000 else 3)
        if count in plain:
            taken["IndexFlatIP, as installed"] = plain[count]
        operations = 2 * count * rows * dim / 1e9
        print(f"\n{rows:,} × {dim}, {count:,} queries")
        for name, spent in taken.items():
            rate = operations / spent
            times = "" if name == "ours" else f"   ours {spent / taken['ours']:6.2f} × as fast"
            if name != "ours, kept base" and "ours, kept base" in taken and name != "ours":
                times += f", kept {spent / taken['ours, kept base']:6.2f} ×"
            print(f"  {name:<34}{spent * 1e3:10.2f} ms {rate:8.0f} GFLOP/s {100 * rate / top:5.0f} %{times}")
        ours = exact_neighbors(queries[:1000], base, K, device=device).ids
        theirs = tried["IndexFlatIP, best" if device == "cpu" else "GpuIndexFlatIP"]()[1][:1000]
        print(f"  neighbours equal to FAISS's: {(ours == theirs).mean():.5f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--dims", type=int, nargs="+", default=[128, 768])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 16, 64, 256, 1024, 10_000])
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    print(header())
    faiss().omp_set_num_threads(torch.get_num_threads())
    rates = ceilings(asked.device)
    for name, rate in rates.items():
        print(f"ceiling: {name:<28}{rate:8.0f}")
    top = max(
        rate for name, rate in rates.items() if name.startswith("bfloat16" if asked.device != "cpu" else "float32")
    )
    for dim in asked.dims:
        plain = as_installed(asked.rows, dim, asked.counts) if asked.device == "cpu" else {}
        compare(unit_rows(asked.rows, dim), asked.counts, asked.device, top, plain)


if __name__ == "__main__":
    main()
