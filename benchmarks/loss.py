"""Time and memory of the losses, forward and backward, beside their peers.

    python benchmarks/loss.py [--device cuda] [--dims 128 768] [--sizes 64 256 1024 4096 16384 65536] [--output NAME]

Times are medians of interleaved repetitions on one and the same embeddings; peak memory is what a process of its own reached
beyond its embeddings. Every peer goes up to the size it can hold in --memory GiB. Beside each size stands its ceiling: the three
matrix products alone that any exact loss of this family needs (logits, and the gradient to either side), in the same blocks.
Published formula: HCL as its authors wrote it (image/main.py), their Python loop for the mask left out of the timing.
--output writes the table to benchmarks/results/, --plot draws such tables.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from machine import header
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss
from sentence_transformers.sentence_transformer import losses as peers
from torch import Tensor
from torch.nn.functional import normalize

from retrieval.train.loss import ContrastiveLoss, named

RESULTS = Path(__file__).parent / "results"
T, BETA, CLASSES = 0.5, 1.0, 100
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(name: str, diagnose: bool = False) -> Callable[[int], Loss]:
    def make(pairs: int) -> Loss:
        loss = ContrastiveLoss(named(f"{name[:-1]}, temperature={T})" if ")" in name else f"{name}(temperature={T})"))
        loss.diagnose = diagnose
        return lambda a, p, labels: loss(a, p, labels=labels if loss.config.needs_labels else None)

    return make


def published(pairs: int) -> Loss:
    keep = ~(torch.eye(2 * pairs) + torch.eye(2 * pairs).roll(pairs, 1)).bool()

    def loss(a: Tensor, p: Tensor, labels: Tensor) -> Tensor:
        mask = keep.to(a.device)
        a, p = normalize(a, dim=1), normalize(p, dim=1)
        out, count = torch.cat([a, p]), 2 * pairs - 2
        neg = torch.exp(out @ out.T / T).masked_select(mask).view(2 * pairs, -1)
        pos = torch.exp((a * p).sum(-1) / T)
        pos = torch.cat([pos, pos])
        importance = (BETA * neg.log()).exp()
        reweighted = (importance * neg).sum(-1) / importance.mean(-1)
        tau = 0.1
        ng = torch.clamp((-tau * count * pos + reweighted) / (1 - tau), min=count * math.exp(-1 / T))
        return (-torch.log(pos / (pos + ng))).mean()

    return loss


def metric_learning(kind: type, labelled: bool) -> Callable[[int], Loss]:
    def make(pairs: int) -> Loss:
        loss = kind(temperature=T)
        return lambda a, p, labels: loss(
            torch.cat([a, p]), (labels if labelled else torch.arange(pairs, device=a.device)).repeat(2)
        )

    return make


def mnrl(pairs: int) -> Loss:
    loss = peers.MultipleNegativesRankingLoss(torch.nn.Identity(), scale=1 / T)
    return lambda a, p, labels: loss.compute_loss_from_embeddings([a, p], None)


class Backward(torch.autograd.Function):
    """A loss whose own backward pass is done, for the cached peer, which computes gradients in its forward pass."""

    @staticmethod
    def forward(ctx, a, p, loss):  # type: ignore[no-untyped-def]
        parts = [[x.requires_grad_() for x in side.detach().split(512)] for side in (a, p)]
        with torch.enable_grad():
            value = loss.calculate_loss(parts, None, with_backward=True)
        ctx.save_for_backward(*(torch.cat([x.grad for x in side]) for side in parts))
        return value.detach()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return (*(gradient * x for x in ctx.saved_tensors), None)


def cached_mnrl(pairs: int) -> Loss:
    loss = peers.CachedMultipleNegativesRankingLoss(
        torch.nn.Sequential(torch.nn.Identity()), scale=1 / T, mini_batch_size=512
    )
    return lambda a, p, labels: Backward.apply(a, p, loss)


# Group, and how to make the loss; the first of a group is what the others of it are compared with.
CASES: dict[str, tuple[str, Callable[[int], Loss]]] = {
    "InfoNCE": ("both sides", ours("infonce")),
    "HCL": ("both sides", ours(f"hcl(beta={BETA}, tau_plus=0.1)")),
    "HCL with diagnostics": ("both sides", ours(f"hcl(beta={BETA}, tau_plus=0.1)", diagnose=True)),
    "HCL, published formula": ("both sides", published),
    "NTXent, pytorch-metric-learning": ("both sides", metric_learning(NTXentLoss, False)),
    "SINCERE": ("labels", ours("sincere")),
    "H-SCL": ("labels", ours(f"h-scl(beta={BETA})")),
    "SupCon": ("labels", ours("supcon")),
    "SupCon, pytorch-metric-learning": ("labels", metric_learning(SupConLoss, True)),
    "InfoNCE, one direction": ("one direction", ours("mnrl")),
    "HCL, one direction": ("one direction", ours(f"hcl(beta={BETA}, directions='forward', within_side=False)")),
    "MNRL, sentence-transformers": ("one direction", mnrl),
    "cached MNRL, sentence-transformers": ("one direction", cached_mnrl),
}


def embeddings(pairs: int, dim: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows, so that peers which normalise and those which do not do the same work."""
    random = torch.Generator().manual_seed(0)
    anchor = torch.randn(pairs, dim, generator=random)
    positive = anchor + torch.randn(pairs, dim, generator=random)
    labels = torch.randint(CLASSES, (pairs,), generator=random)
    rows = (normalize(x, dim=1).to(device, dtype).requires_grad_() for x in (anchor, positive))
    return (*rows, labels.to(device))


def step(loss: Loss, anchor: Tensor, positive: Tensor, labels: Tensor) -> None:
    anchor.grad = positive.grad = None
    loss(anchor, positive, labels).backward()  # type: ignore[no-untyped-call]


def products(pairs: int, dim: int, device: str, dtype: torch.dtype, sides: int) -> Callable[[], None]:
    """The three matrix products of `sides`·pairs anchors, in blocks of at most 2²⁰ (CPU) or 2²⁶ logits."""
    rows = torch.randn(sides * pairs, dim, device=device, dtype=dtype)
    size = len(rows)
    each = min(size, max(64, 2 ** (20 if device == "cpu" else 26) // size))
    room = torch.empty(each, size, device=device, dtype=dtype)
    left, right = torch.empty_like(rows), torch.zeros_like(rows)

    def run() -> None:
        for start in range(0, size, each):
            block = rows[start : start + each]
            z = torch.mm(block, rows.T, out=room[: len(block)])
            torch.mm(z, rows, out=left[start : start + each])
            right.addmm_(z.T, block)

    return run


def timed(run: Callable[[], None], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_memory(name: str, pairs: int, dim: int, device: str, dtype: str, gib: float) -> float | None:
    """MiB beyond the embeddings that it reached, on a CPU in a process of its own; None if it did not fit."""
    if device != "cpu":
        try:
            return most_allocated(name, pairs, dim, device, getattr(torch, dtype), gib)
        except torch.OutOfMemoryError:
            return None
        finally:
            torch.cuda.empty_cache()
    words = ["--one", name, "--sizes", str(pairs), "--dims", str(dim), "--device", device, "--dtype", dtype]
    done = subprocess.run(
        [sys.executable, __file__, *words, "--memory", str(gib)], capture_output=True, text=True, timeout=3000
    )
    return float(done.stdout) if done.returncode == 0 else None


def measure_one(name: str, pairs: int, dim: int, device: str, dtype: torch.dtype, gib: float) -> None:
    inputs = embeddings(pairs, dim, device, dtype)
    step(CASES[name][1](8), *embeddings(8, dim, device, dtype))  # libraries warm up
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (int(used + gib * 2**30),) * 2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = high_water()
    step(CASES[name][1](pairs), *inputs)
    print((high_water() - before) / 1024)


def most_allocated(name: str, pairs: int, dim: int, device: str, dtype: torch.dtype, gib: float) -> float:
    inputs = embeddings(pairs, dim, device, dtype)
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / torch.cuda.mem_get_info()[1]))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(CASES[name][1](pairs), *inputs)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def high_water() -> int:
    """Peak resident memory of this process in KiB (Linux)."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


def compare(pairs: int, dim: int, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """All that fit at one size, interleaved."""
    device, dtype = arguments.device, getattr(torch, arguments.dtype)
    memory = {}
    for name in arguments.cases or CASES:
        memory[name] = peak_memory(name, pairs, dim, device, arguments.dtype, arguments.memory)
    fit = [name for name, mib in memory.items() if mib is not None]
    inputs = embeddings(pairs, dim, device, dtype)
    losses = {name: CASES[name][1](pairs) for name in fit}
    runs: dict[str, Callable[[], None]] = {
        name: lambda loss=loss: step(loss, *inputs)  # type: ignore[misc]
        for name, loss in losses.items()
    }
    runs["ceiling, both sides"] = products(pairs, dim, device, dtype, 2)
    runs["ceiling, one direction"] = products(pairs, dim, device, dtype, 1)
    times: dict[str, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    while min(map(len, times.values())) < 200 and (
        time.perf_counter() - started < arguments.seconds or not all(times.values())
    ):
        for name, run in runs.items():
            if times[name] and times[name][-1] < 0.02:
                run()  # a small one would otherwise start from caches that its predecessor has filled
            times[name].append(timed(run, device))
    found = []
    for name in arguments.cases or CASES:
        group = CASES[name][0]
        wall = statistics.median(times[name]) if name in fit else None
        ceiling = statistics.median(
            times["ceiling, one direction" if group == "one direction" else "ceiling, both sides"]
        )
        first = next((n for n in fit if CASES[n][0] == group), None)
        ratio = None
        if wall is not None and first is not None:
            ratio = statistics.median(x / y for x, y in zip(times[name], times[first], strict=True))
        work = 3 * 2 * dim * pairs**2 * (1 if group == "one direction" else 4)
        found.append(
            {"group": group, "name": name, "pairs": pairs, "dim": dim, "ms": wall and wall * 1e3, "ratio": ratio}
            | {
                "memory_mib": memory[name],
                "of_ceiling": wall and ceiling / wall,
                "ceiling_gflops": work / ceiling / 1e9,
            }
        )
    return found


def show(rows: list[dict[str, object]]) -> str:
    lines = []
    for row in rows:
        if row["ms"] is None:
            lines.append(f"{row['pairs']:>6} × {row['dim']:<4} {row['name']:<36} does not fit")
            continue
        lines.append(
            f"{row['pairs']:>6} × {row['dim']:<4} {row['name']:<36} {row['ms']:>10.2f} ms  {row['ratio']:>6.2f} ×"
            f"  {row['memory_mib']:>8.0f} MiB  {row['of_ceiling']:>5.0%} of {row['ceiling_gflops']:,.0f} GFLOP/s"
        )
    return "\n".join(lines)


def training_step(seconds: float) -> str:
    """A whole step of MiniLM on 64 pairs of short texts, with either loss."""
    from retrieval.encoder import MINILM, load_encoder

    model = load_encoder(MINILM, "cpu").model.train()
    texts = [f"question number {i} about card {i % 7}" for i in range(128)]
    losses = {name: ContrastiveLoss(named(f"{name}(temperature=0.1)")) for name in ("infonce", "hcl")}
    times: dict[str, list[float]] = {name: [] for name in losses}
    started = time.perf_counter()
    while len(times["hcl"]) < 4 or time.perf_counter() - started < seconds:
        for name, loss in losses.items():
            torch.manual_seed(len(times[name]))
            began = time.perf_counter()
            rows = model(model.preprocess(texts))["sentence_embedding"]
            loss(rows[:64], rows[64:]).backward()
            times[name].append(time.perf_counter() - began)
            model.zero_grad()
    ratios = [x / y for x, y in zip(times["hcl"], times["infonce"], strict=True)]
    low, mid, high = statistics.quantiles(ratios, n=4)
    wall = statistics.median(times["infonce"])
    return f"training step, MiniLM, 64 pairs: {wall * 1e3:.0f} ms; HCL / InfoNCE {mid:.3f} × (quartiles {low:.3f}–{high:.3f}, {len(ratios)} pairs of steps)"


def plot(rows: list[dict[str, object]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    dim = min(row["dim"] for row in rows)  # type: ignore[type-var]
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 4.2), layout="constrained")
    shown = (
        "InfoNCE",
        "HCL",
        "HCL, published formula",
        "NTXent, pytorch-metric-learning",
        "H-SCL",
        "SupCon, pytorch-metric-learning",
        "HCL, one direction",
        "MNRL, sentence-transformers",
        "cached MNRL, sentence-transformers",
    )
    for axis, key, title in zip(axes, ("ms", "memory_mib"), ("milliseconds", "MiB beyond the embeddings"), strict=True):
        for name in shown:
            points = [(r["pairs"], r[key]) for r in rows if r["name"] == name and r["dim"] == dim and r[key]]
            if points:
                peer = "," in name and "direction" not in name
                axis.plot(*zip(*points, strict=True), "--o" if peer else "-o", label=name, markersize=3)
        axis.set(
            xscale="log", yscale="log", xlabel="pairs in the batch", title=f"{title}, forward and backward, d = {dim}"
        )
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--dims", type=int, nargs="+", default=[128, 384])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--cases", nargs="+", choices=list(CASES))
    parser.add_argument("--seconds", type=float, default=30.0, help="for the repetitions of one size")
    parser.add_argument("--memory", type=float, default=12.0, help="GiB that a loss may take")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", default="", help="name of the result files; none are written without")
    parser.add_argument("--one", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument(
        "--plot", type=Path, nargs="+", help="draw earlier results (.json) into one .svg beside the first"
    )
    arguments = parser.parse_args()
    if arguments.plot:
        rows = [row for path in arguments.plot for row in json.loads(path.read_text("utf-8"))]
        plot(rows, arguments.plot[0].with_suffix(".svg"))
        return
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        dtype = getattr(torch, arguments.dtype)
        measure_one(arguments.one, arguments.sizes[0], arguments.dims[0], arguments.device, dtype, arguments.memory)
        return
    lines = [header()]
    print(lines[0], flush=True)
    rows = []
    for dim in arguments.dims:
        for pairs in arguments.sizes:
            rows += compare(pairs, dim, arguments)
            lines.append(show(rows[-len(arguments.cases or CASES) :]))
            print(lines[-1], flush=True)
    if arguments.device == "cpu":
        lines.append(training_step(arguments.seconds))
        print(lines[-1])
    if arguments.output:
        stem = RESULTS / f"{arguments.output}-{date.today()}"
        stem.with_suffix(".txt").write_text("\n".join(lines) + "\n", "utf-8")
        stem.with_suffix(".json").write_text(json.dumps(rows), "utf-8")


if __name__ == "__main__":
    main()
