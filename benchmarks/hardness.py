"""Does hardness pay? Eight methods and their baseline, each tuned alike on a validation part, then judged over seeds.

    RETRIEVAL_DATA=… python benchmarks/hardness.py banking77|trec|fashion [--trials 12] [--seeds 5]
    RETRIEVAL_DATA=… python benchmarks/hardness.py banking77 --sweep

Every method gets the same number of steps, pairs and trials. Trial settings are quasi-random points of the method's own box
(temperature for all; κ, τ⁺, mu, sigma where the method has them); a trial trains on four fifths of the training part and is
judged by MAP@R on the last fifth. The best setting is trained again on the whole training part, once a seed, and judged on the
test part, which nothing before has seen. Prints means with 95 % t-intervals over seeds, and each method's difference to its
group's baseline, paired by seed. --sweep: MAP@R against κ, with and without gradient through the weights.
Every run is appended to benchmarks/results/hardness-DATA.jsonl, from which benchmarks/plot_hardness.py makes the plots.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import data_folder, header
from scipy.stats import qmc
from scipy.stats import t as student
from sklearn.model_selection import train_test_split

from retrieval.cli.options import quiet_libraries
from retrieval.data import Texts, read_texts
from retrieval.embed import encode_all
from retrieval.encoder import MINILM, Encoder, load_encoder
from retrieval.eval.clusters import cluster_metrics
from retrieval.images import Images, read_images
from retrieval.train.head import Frozen, distinct, project, train_head
from retrieval.train.image import ImageConfig, train_image
from retrieval.train.loss import LossConfig, named
from retrieval.train.text import TextConfig, plan_batches
from retrieval.train.vision import network

RESULTS = Path(__file__).parent / "results"
PAIRS = 128
T, KAPPA, TAU = ("temperature", 0.03, 0.5), ("kappa", 0.5, 16.0), ("tau_plus", 0.0, 2.0)  # τ⁺ in units of 1/classes
# Group, name, and its box; the first of a group is its baseline.
METHODS: dict[str, tuple[str, str, tuple[tuple[str, float, float], ...]]] = {
    "InfoNCE": ("classes unknown to the loss", "infonce", (T,)),
    "debiased": ("classes unknown to the loss", "debiased", (T, TAU)),
    "HCL": ("classes unknown to the loss", "hcl", (T, KAPPA, TAU)),
    "decoupled": ("classes unknown to the loss", "decoupled", (T,)),
    "ADNCE": ("classes unknown to the loss", "adnce", (T, ("mu", 0.0, 0.9), ("sigma", 0.1, 2.0))),
    "SSCL": ("classes unknown to the loss", "sscl", (T, KAPPA, TAU)),
    "SINCERE (label-masked InfoNCE)": ("classes known to the loss", "sincere", (T,)),
    "SupCon": ("classes known to the loss", "supcon", (T,)),
    "H-SCL": ("classes known to the loss", "h-scl", (T, KAPPA)),
}
LINEAR = {"tau_plus", "mu"}  # the other axes are searched by their logarithm
SWEEP_KAPPAS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


@dataclass(frozen=True)
class Task:
    """A data set: how many classes, and judge(loss, seed, final) → metrics of one run, on the test part if `final`."""

    classes: int
    judge: Callable[[LossConfig, int, bool], dict[str, float]]


def text_task(train: Texts, test: Texts, steps: int) -> Task:
    """A linear head over frozen MiniLM; the encoder runs once over everything."""
    encoder = load_encoder(MINILM, "cpu")
    texts, codes = distinct([train.texts])
    different = Texts({"text": texts}, None, None, train.origin)
    vectors, test_vectors = (torch.from_numpy(encode_all(encoder, data)) for data in (different, test))
    assert train.labels is not None and test.labels is not None
    fit, held = (np.sort(part) for part in halves(train.labels))

    def judge(loss: LossConfig, seed: int, final: bool) -> dict[str, float]:
        rows = np.arange(len(train)) if final else fit
        data = train.take(rows)
        plan = plan_batches(data, TextConfig(head=True, steps=steps, batch_size=PAIRS, seed=seed), loss, "train")
        torch.manual_seed(seed)
        head, _ = train_head(
            Frozen(vectors, codes[:, rows]), plan.batches(), loss, labels=plan.labels, steps=steps, lr=1e-3
        )
        judged, labels = (
            (test_vectors, test.labels) if final else (vectors[codes[0, held]], [train.labels[r] for r in held])
        )  # type: ignore[index]
        return neighbour_metrics(project(head, judged), labels)  # type: ignore[arg-type]

    return Task(len(set(train.labels)), judge)


def picture_task(train: Images, test: Images, steps: int) -> Task:
    """A small network from scratch."""
    assert train.labels is not None and test.labels is not None
    fit, held = (np.sort(part) for part in halves(train.labels))

    def judge(loss: LossConfig, seed: int, final: bool) -> dict[str, float]:
        data = train if final else train.take(fit)
        encoder = Encoder(network("small", 28, "cpu", seed), "small")
        config = ImageConfig(steps=steps, batch_size=PAIRS, seed=seed, scratch=True)
        train_image(encoder.model, data, config, loss, source="train")
        judged = test if final else train.take(held)
        return neighbour_metrics(encode_all(encoder, judged), judged.labels or [])

    return Task(len(set(train.labels)), judge)


def halves(labels: list[str]) -> tuple[Any, Any]:
    """Rows to train on and rows to validate by: four fifths and one fifth of every class."""
    return tuple(train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0))


def neighbour_metrics(vectors: Any, labels: list[str]) -> dict[str, float]:
    metrics = cluster_metrics(vectors, labels)
    return {name: round(metrics[name], 5) for name in ("map@r", "r@1", "knn@20")}


def tasks(name: str, folder: Path) -> Task:
    if name == "banking77":
        parts = (read_texts(folder / "banking77" / "banking_data" / f"{part}.csv") for part in ("train", "test"))
        return text_task(*parts, steps=1000)
    if name == "trec":
        return text_task(
            *(trec(folder / "sent-conv" / "data" / f"TREC.{part}.all") for part in ("train", "test")), steps=500
        )
    train, test = (read_images(folder / "fashion-mnist" / f"{part}-images-idx3-ubyte.gz") for part in ("train", "t10k"))
    rows = np.random.default_rng(0).permutation(len(train))[:10_000]
    return picture_task(train.take(rows), test, steps=80)


def trec(path: Path) -> Texts:
    lines = [line.split(" ", 1) for line in path.read_text("latin-1").splitlines()]
    return Texts({"text": [text for _, text in lines]}, [label for label, _ in lines], None, "")


def settings(method: str, trials: int, classes: int) -> list[LossConfig]:
    """Quasi-random points of the method's box."""
    group, name, box = METHODS[method]
    mask = group.startswith("classes known")
    found = []
    for point in qmc.Halton(len(box), scramble=True, rng=0).random(trials):
        values = {}
        for (key, low, high), x in zip(box, point, strict=True):
            values[key] = low + x * (high - low) if key in LINEAR else low * (high / low) ** x
        if "tau_plus" in values:
            values["tau_plus"] /= classes
        inside = ", ".join(f"{key}={value:.3g}" for key, value in values.items())
        found.append(named(f"{name}({inside}, label_mask={mask})"))
    return found


class Log:
    """Runs so far; a run that is on record is not made again."""

    def __init__(self, name: str, task: Callable[[], Task]) -> None:
        self.path = RESULTS / f"hardness-{name}.jsonl"
        lines = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
        self.runs = {json.dumps(run["key"]): run for run in map(json.loads, lines)}
        self._make, self._task = task, None

    def run(self, part: str, method: str, loss: LossConfig, seed: int, final: bool) -> dict[str, float]:
        key = [part, method, loss.name, seed, "test" if final else "validation"]
        if json.dumps(key) not in self.runs:
            self._task = self._task or self._make()
            started = time.perf_counter()
            metrics = self._task.judge(loss, seed, final)
            run = {"key": key, **metrics, "seconds": round(time.perf_counter() - started, 1)}
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(run, ensure_ascii=False) + "\n")
            self.runs[json.dumps(key)] = run
            print(f"{part} {method} {loss.name} seed {seed}: {metrics}", file=sys.stderr, flush=True)
        return self.runs[json.dumps(key)]


def compare(log: Log, trials: int, seeds: int, classes: int) -> None:
    best: dict[str, LossConfig] = {}
    for method in METHODS:
        tried = settings(method, trials, classes)
        best[method] = max(tried, key=lambda loss: log.run("tune", method, loss, 0, False)["map@r"])
    finals: dict[str, list[float]] = {method: [] for method in METHODS}
    ones: dict[str, list[float]] = {method: [] for method in METHODS}
    for seed in range(1, seeds + 1):
        for method, loss in best.items():
            run = log.run("final", method, loss, seed, True)
            finals[method].append(run["map@r"])
            ones[method].append(run["r@1"])
    baseline: dict[str, str] = {}
    for method, (group, _, _) in METHODS.items():
        if group not in baseline:
            baseline[group] = method
            print(f"\n{group:<32} MAP@R            R@1              MAP@R above the baseline  setting")
        gain = np.array(finals[method]) - finals[baseline[group]]
        above = interval(gain, "+") if method != baseline[group] else ""
        print(
            f"{method:<32} {interval(finals[method]):<16} {interval(ones[method]):<16} {above:<25} {best[method].name}"
        )


def interval(values: Any, sign: str = "") -> str:
    """Mean ± half of a 95 % t-interval."""
    half = float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return f"{np.mean(values):{sign}.4f} ± {half:.4f}"


def sweep(log: Log, seeds: int) -> None:
    print(f"\n{'κ':>5} {'HCL':>16} {'HCL, detached':>16} {'H-SCL':>16} {'H-SCL, detached':>16}")
    for kappa in SWEEP_KAPPAS:
        cells = []
        for name, rest in (("hcl", ", label_mask=False, tau_plus=0.013"), ("h-scl", "")):
            for detach in (False, True):
                loss = named(f"{name}(kappa={kappa}, detach={detach}{rest})")
                cells.append(interval([log.run("sweep", name, loss, seed, True)["map@r"] for seed in range(seeds)]))
        print(f"{kappa:>5} " + " ".join(f"{cell:>16}" for cell in cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("banking77", "trec", "fashion"))
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sweep", action="store_true")
    arguments = parser.parse_args()
    folder = data_folder()
    quiet_libraries()
    torch.set_num_threads(1)  # so that two data sets can run side by side
    print(header(), flush=True)
    log = Log(arguments.data, lambda: tasks(arguments.data, folder))
    if arguments.sweep:
        sweep(log, arguments.seeds)
    else:
        compare(log, arguments.trials, arguments.seeds, {"banking77": 77, "trec": 6, "fashion": 10}[arguments.data])


if __name__ == "__main__":
    main()
