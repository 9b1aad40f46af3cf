"""The pictures of docs/losses.md from benchmarks/results/hardness-*.jsonl and one batch of real embeddings.

    RETRIEVAL_DATA=… python benchmarks/plot_hardness.py

Left: MAP@R against κ, with and without gradient through the weights (`hardness.py banking77 --sweep`). Middle and right: what one
batch of frozen MiniLM embeddings of BANKING77 (128 pairs drawn at random) says of settings: effective sample size, floor rate.
"""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from machine import data_folder

from retrieval.cli.options import quiet_libraries
from retrieval.data import read_texts
from retrieval.encoder import MINILM, load_encoder
from retrieval.train.batches import as_codes, random_batches
from retrieval.train.loss import contrastive_loss, named

ROOT = Path(__file__).parent.parent
KAPPAS = (0.25, 0.5, 1, 2, 4, 8, 16, 32)
TEMPERATURES = (0.5, 0.2, 0.1, 0.05, 0.02)


def sweep_curves() -> dict[str, dict[float, list[float]]]:
    curves: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in (ROOT / "benchmarks/results/hardness-banking77.jsonl").read_text("utf-8").splitlines():
        run = json.loads(line)
        part, method, name, *_ = run["key"]
        if part == "sweep":
            weights = named(name).weights
            curves[f"{method}, detached" if weights.detach else method][weights.kappa].append(run["map@r"])
    return curves


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    data = read_texts(data_folder() / "banking77" / "banking_data" / "train.csv")
    rows = next(random_batches(as_codes(data.labels or []), 128, seed=0))
    encoder = load_encoder(MINILM, "cpu")
    anchors, positives = (encoder.encode([data.texts[r] for r in side]) for side in rows)
    return torch.from_numpy(anchors), torch.from_numpy(positives)


def main() -> None:
    data_folder()  # before matplotlib is set up
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    quiet_libraries()
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for name, points in sweep_curves().items():
        kappas = sorted(points)
        style = "--" if "detached" in name else "-"
        place = [max(k, 0.25) for k in kappas]  # κ = 0 has no logarithm
        left.errorbar(
            place, [np.mean(points[k]) for k in kappas], [np.std(points[k]) for k in kappas],
            fmt=style + "o", markersize=3, label=name.replace("hcl", "HCL").replace("h-scl", "H-SCL"),
            color="tab:blue" if name.startswith("hcl") else "tab:orange",
        )  # fmt: skip
    left.set(xscale="log", xlabel="κ (leftmost: 0)", title="MAP@R on BANKING77's test part", xticks=KAPPAS)
    left.set_xticklabels(["0", *(f"{k:g}" for k in KAPPAS[1:])])
    left.legend(fontsize=8)
    anchor, positive = batch()

    def seen(name: str) -> "tuple[float, float]":
        found = contrastive_loss(anchor, positive, config=named(name)).diagnostics
        assert found is not None
        return found.ess, found.floor

    middle.plot(KAPPAS, [seen(f"hcl(kappa={k})")[0] for k in KAPPAS], "-o", markersize=3)
    middle.axhline(8, color="tab:red", linewidth=0.8)
    middle.set(xscale="log", yscale="log", xlabel="κ", title="effective negatives, of 254", xticks=KAPPAS)
    middle.set_xticklabels([f"{k:g}" for k in KAPPAS])
    middle.text(0.25, 8.5, "below: training warns", color="tab:red", fontsize=8)
    taus = np.linspace(0.002, 0.1, 25)
    for t in TEMPERATURES:
        right.plot(taus, [seen(f"hcl(temperature={t}, tau_plus={tau})")[1] for tau in taus], label=f"t = {t:g}")
    right.axhline(0.2, color="tab:red", linewidth=0.8)
    right.set(xlabel="τ⁺", ylim=(-0.02, 1.02), title="share of anchors on the floor, κ = 2")
    right.legend(fontsize=8)
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
        axis.minorticks_off()
    figure.savefig(ROOT / "docs" / "hardness.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
