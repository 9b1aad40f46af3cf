"""Exact search beside FAISS's flat index, torch's product and topk, and usearch: speed at equal results.

    python benchmarks/exact.py [--rows 60000] [--dims 128 768] [--device cpu] [--lists 4096]

GFLOP/s are 2 · queries · rows · dim over the median time of interleaved rounds. Ceilings, measured in the same run: the
best rate of a 2,048³ product in float32 by any library here (on a GPU also bfloat16), and reading the base once.
«As installed» is FAISS in a fresh process without the settings of retrieval/index/backend.py.
--lists: on a GPU also an inverted file of so many lists, trained, filled and searched there by retrieval/index/gpu.py.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from machine import header
from store import medians, unit_rows

from retrieval.index.backend import faiss
from retrieval.index.gpu import _resources, add_assigned, set_on_gpus, to_gpus, train_on
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


def ways(base: Any, queries: np.ndarray, device: str) -> dict[str, Callable[[], Any]]:
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
    b = torch.from_numpy(base).to(device) if isinstance(base, np.ndarray) else base
    ready, half = Base(b, "inner_product", device), b.bfloat16()
    q = torch.from_numpy(queries).to(device)
    found["ours"] = lambda: exact_neighbors(queries, ready, K)
    flat = gpu_flat(b)
    if flat is not None:
        found["GpuIndexFlatIP"] = lambda: flat.search(queries, K)
    found["torch bf16 mm + topk, not exact"] = lambda: synchronised(
        [(part.bfloat16() @ half.T).topk(K) for part in q.split(max(1, 2**31 // len(base)))]
    )
    return found


def gpu_flat(base: torch.Tensor) -> Any:
    """FAISS's flat index of the rows; None where it does not fit beside them."""
    if base.numel() * 4 > torch.cuda.mem_get_info()[0] - 2**32:
        return None
    flat = faiss().GpuIndexFlatIP(_resources(0), base.shape[1])
    for part in base.split(2**19):
        flat.add(part.cpu().numpy())
    return flat


def unit_rows_there(rows: int, dim: int, device: str) -> torch.Tensor:
    """`unit_rows`, made on a GPU."""
    generator = torch.Generator(device).manual_seed(0)
    found = torch.empty(rows, dim, device=device)
    for part in found.split(2**20):
        part.normal_(generator=generator)
        part /= part.norm(dim=1, keepdim=True)
    return found


def lists(base: torch.Tensor, count: int, device: str) -> None:
    """An inverted file on the GPU: time to build it, and queries a second beside recall@10."""
    f, dim = faiss(), base.shape[1]
    index = f.index_factory(dim, f"IVF{count},Flat", f.METRIC_INNER_PRODUCT)
    rows = base.cpu().numpy()
    began = time.perf_counter()
    kept = train_on(index, device)
    index.train(rows[:: max(1, len(rows) // (64 * count))])
    trained = time.perf_counter()
    for start in range(0, len(rows), 2**18):
        add_assigned(index, rows[start : start + 2**18], start, device)
    filled = time.perf_counter()
    there = to_gpus(index, device)
    print(
        f"  IVF{count},Flat: trained in {trained - began:.1f} s, filled in {filled - trained:.1f} s, copied in {time.perf_counter() - filled:.1f} s"
    )
    queries = unit_rows(10_000, dim, seed=1)
    exact = exact_neighbors(queries, Base(base, "inner_product", device), K).ids
    for nprobe in (4, 16, 64, 256):
        set_on_gpus(there, {"nprobe": nprobe})
        found = there.search(queries, K)[1]
        recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), exact.tolist(), strict=True)])
        speed = {n: n / seconds(lambda n=n: there.search(queries[:n], K), 5) for n in (1, 100, 10_000)}  # type: ignore[misc]
        told = ", ".join(f"{rate:,.0f} queries/s at {n:,} a call" for n, rate in speed.items())
        print(f"    nprobe {nprobe:<4} recall@{K} {recall:.3f}  {told}", flush=True)
    assert kept is not None


def as_installed(rows: int, dim: int, counts: list[int]) -> dict[int, float]:
    code = AS_INSTALLED.format(
        here=__file__.rpartition("/")[0] or ".", threads=torch.get_num_threads(), rows=rows, dim=dim, counts=counts, k=K
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return {int(count): taken for count, taken in json.loads(out.splitlines()[-1]).items()}


def compare(base: Any, counts: list[int], device: str, top: float, plain: dict[int, float]) -> None:
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
        peer = tried.get("IndexFlatIP, best" if device == "cpu" else "GpuIndexFlatIP")
        if peer is not None:
            ours = tried["ours"]().ids[:1000]
            print(f"  neighbours equal to FAISS's: {(ours == peer()[1][:1000]).mean():.5f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--dims", type=int, nargs="+", default=[128, 768])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 16, 64, 256, 1024, 10_000])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lists", type=int)
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
        there = asked.device != "cpu"
        plain = {} if there else as_installed(asked.rows, dim, asked.counts)
        base = unit_rows_there(asked.rows, dim, asked.device) if there else unit_rows(asked.rows, dim)
        compare(base, asked.counts, asked.device, top, plain)
        if there and asked.lists:
            lists(base, asked.lists, asked.device)


if __name__ == "__main__":
    main()
