"""The paper's experiment: a network from scratch on unlabelled CIFAR-10, hard negatives against NT-Xent and the debiased loss.

    RETRIEVAL_DATA=… python benchmarks/paper.py --seeds 0 1 2 --output paper.jsonl       # a CUDA device; not yet run on one
    RETRIEVAL_DATA=… python benchmarks/paper.py --methods NT-Xent "HCL 1" --epochs 100
    python benchmarks/paper.py --table paper.jsonl more.jsonl                            # what is stored, no training
    RETRIEVAL_DATA=… python benchmarks/paper.py --small --limit 2000 --epochs 1          # does it run? a CPU will do

Robinson, Chuang, Sra, Jegelka, "Contrastive learning with hard negative samples", ICLR 2021: two views of each picture, 256
pictures a step, Adam at 1e-3, weight decay 1e-6, temperature 0.5, τ⁺ = 0.1. Each method has the same first weights, batches and
views for a seed, and is judged after its last epoch.

    NT-Xent, debiased, HCL β       the paper's; the number is β
    NT-Xent, true labels masked    pictures of the anchor's class are no negatives: what false negatives cost
    SupCon, H-SCL                  those are positives too: what labels are worth (SupCon's own temperature is 0.1)

    knn@200/.1, knn@20, knn@200/.5   weighted votes of training pictures on each test picture's class, by features before the
                                     head: lightly's, DINO's and the paper's protocol (retrieval/eval/neighborhood.py)
    linear        logistic regression of the training pictures' features, accuracy on the test pictures; no augmentation
    r@1, map@r    of each test picture among the others
    same, diff    mean cosine of two test pictures of one class, and of two classes; histograms are in the stored lines, for
                  the features and for the head's outputs
    pictures/s    training alone, two views of each; the first epoch, which warms up, is left out
    loss          mean of the last epoch; comparable only within a method

Unlike the paper: ResNet-18, not 50; 100 epochs, not 400; bfloat16 convolutions on a GPU. Both views go through the network at once,
as in lightly; the paper's code has two passes, hence other batch statistics. Augmentations are the paper's for CIFAR (crop, mirror,
colour, grey; no blur) as retrieval.train.augment has them: jitters in a fixed order, hue turned about the grey axis.
Context, not a peer at equal terms: lightly publishes 84.7 for SimCLR with ResNet-18 (knn@200/.1, 200 epochs, batch 128), on CIFAR-10's
own bytes and at the best epoch on the test set. Ours is a JPEG copy (RETRIEVAL_DATA/cifar10/SOURCE.txt), at the last epoch.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from machine import data_folder, header
from paper_network import PIXELS, Network, Pictures, encode, load, read_out
from torch import Tensor

from retrieval.train.augment import Augmentation, augment
from retrieval.train.loss import ContrastiveLoss, named


class Method(NamedTuple):
    """A loss, and what it is told of the labels: which items are further positives, which are no negatives, or nothing."""

    loss: str
    labels: Literal["unknown", "positives", "no negatives"] = "unknown"


METHODS = {
    "NT-Xent": Method("infonce(temperature=0.5)"),
    "debiased": Method("debiased(temperature=0.5, tau_plus=0.1)"),
    "HCL 0.5": Method("hcl(beta=0.5, tau_plus=0.1, temperature=0.5)"),
    "HCL 1": Method("hcl(beta=1, tau_plus=0.1, temperature=0.5)"),
    "HCL 2": Method("hcl(beta=2, tau_plus=0.1, temperature=0.5)"),
    "HCL 6": Method("hcl(beta=6, tau_plus=0.1, temperature=0.5)"),
    "NT-Xent, true labels masked": Method("infonce(temperature=0.5)", "no negatives"),
    "SupCon": Method("supcon(temperature=0.5)", "positives"),
    "H-SCL": Method("h-scl(beta=1, temperature=0.5)", "positives"),
}
SIDE = 32
AUGMENTATION = Augmentation(scale=(0.08, 1.0), ratio=4 / 3, flip=0.5, jitter=0.8, grey=0.2, blur=0.0)
WARM_UP = 3  # steps before the one that is captured
COLUMNS = ("knn@200/.1", "knn@20", "knn@200/.5", "linear", "r@1", "map@r", "features same", "features different")
SETTING = ("data", "pictures", "epochs", "batch", "small")  # runs that may be put together have these alike


class Replayed:
    """A training step, called again and again on one stream: as it is at first, then as a CUDA graph, if it can be one.

    Every call is one step. `refused` says why there is no graph.
    """

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self.step, self.calls = step, 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.refused = "" if device.type == "cuda" else "no CUDA device"

    def __call__(self) -> None:
        self.calls += 1
        if self.graph is not None:
            self.graph.replay()
        elif self.calls <= WARM_UP or self.refused:
            self.step()
        else:
            self._capture()

    def _capture(self) -> None:
        """One more step, which must not wait for the device, then the capture, which runs nothing."""
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        before, graph, done = generator.clone_state(), torch.cuda.CUDAGraph(), False
        try:
            torch.cuda.set_sync_debug_mode("error")
            self.step()
            torch.cuda.set_sync_debug_mode("default")
            before, done = generator.clone_state(), True
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                self.step()
            self.graph = graph
        except RuntimeError as error:
            torch.cuda.set_sync_debug_mode("default")
            generator.graphsafe_set_state(before)  # a capture that failed leaves the generator waiting for its end
            self.refused = explained(error)
            print(f"no CUDA graph, and slower for it: {self.refused}", file=sys.stderr, flush=True)
            if not done:
                self.step()


def explained(error: BaseException) -> str:
    """What went wrong first, and the last place outside of torch that it passed through."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}torch{os.sep}" not in f.filename]
    at = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return str(error).partition("\n")[0] + at


class Trained(NamedTuple):
    """curve: mean loss of each epoch; refused: why there was no CUDA graph, if there was none."""

    curve: list[float]
    seconds: float
    rate: float
    refused: str


def train(
    network: Network,
    forward: Callable[[Tensor], Tensor],
    method: Method,
    pixels: Tensor,
    codes: Tensor,
    prepare: Callable[[Tensor], Tensor],
    asked: argparse.Namespace,
) -> Trained:
    """Train with one method. The device is waited for once an epoch at most; weights, sums and rows stay where they are."""
    device, fast = pixels.device, pixels.is_cuda
    loss = ContrastiveLoss(named(method.loss), diagnose=False)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-6, fused=fast or None, capturable=fast)
    steps = len(pixels) // asked.batch
    rows, total = torch.zeros(asked.batch, dtype=torch.int64, device=device), torch.zeros((), device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)  # so that the graph has gradients of its own
        views = prepare(augment(pixels[rows].repeat(2, 1, 1, 1), (SIDE, SIDE), AUGMENTATION))
        with torch.autocast(device.type, torch.bfloat16, enabled=fast, cache_enabled=False):
            first, second = forward(views).chunk(2)
        classes = codes[rows]
        labels = classes if method.labels == "positives" else None
        items = classes.repeat(2) if method.labels == "no negatives" else None
        value = loss(first, second, labels=labels, items=items)
        value.backward()
        optimizer.step()
        total.add_(value.detach())

    run, curve = Replayed(step, device), torch.zeros(asked.epochs, device=device)
    began = warm = time.perf_counter()
    for epoch in range(asked.epochs):
        order = torch.randperm(len(pixels), device=device)[: steps * asked.batch].view(steps, -1)
        for batch in order:
            rows.copy_(batch)
            run()
        curve[epoch] = total / steps
        total.zero_()
        if epoch == 0 or (epoch + 1) % max(1, asked.epochs // 10) == 0:
            told = f"loss {float(curve[epoch]):.4f}, {time.perf_counter() - began:.0f} s"
            print(f"  epoch {epoch + 1} of {asked.epochs}: {told}", file=sys.stderr, flush=True)
        warm = time.perf_counter() if epoch == 0 else warm
    losses = curve.tolist()
    now = time.perf_counter()
    counted = (asked.epochs - 1, now - warm) if asked.epochs > 1 else (1, now - began)
    optimizer.zero_grad(set_to_none=True)
    return Trained(losses, now - began, counted[0] * steps * asked.batch / counted[1], run.refused)


def prepared(name: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What makes of pictures, uint8 or in [0, 1], what the network takes."""
    mean, deviation = (torch.tensor(each, device=device).view(1, 3, 1, 1) for each in PIXELS[name])

    def prepare(x: Tensor) -> Tensor:
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        return ((x - mean) / deviation).contiguous(memory_format=torch.channels_last)

    return prepare


def experiment(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Every method and seed that the output file does not have yet, each stored as soon as it is done."""
    device = torch.device(asked.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True
    started = time.perf_counter()
    data = Pictures(*(x.to(device) for x in load(asked.data, asked.cache, asked.limit)))
    if not 1 < asked.batch <= len(data.train):
        sys.exit(f"--batch {asked.batch}: must be at least 2 and at most the {len(data.train):,} pictures")
    print(f"{len(data.train):,} + {len(data.test):,} pictures in {time.perf_counter() - started:.1f} s", flush=True)
    network = Network(asked.width).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward = torch.compile(network) if asked.compile else network
    lines = stored([asked.output] if asked.output and asked.output.exists() else [])
    for seed in asked.seeds:
        for name in asked.methods:
            setting = (asked.data, len(data.train), asked.epochs, asked.batch, asked.small)
            line = {"method": name, "seed": seed, **dict(zip(SETTING, setting, strict=True))}
            if key(line) in lines:
                print(f"{name}, seed {seed}: is in {asked.output} already", flush=True)
                continue
            torch.manual_seed(seed)
            network.load_state_dict(Network(asked.width).state_dict())
            lines[key(line)] = line = line | one_run(METHODS[name], network, forward, data, asked)
            told = "  ".join(f"{column} {line['figures'][column]:.4f}" for column in COLUMNS)
            print(f"{name}, seed {seed}: {line['seconds']} s  {told}", flush=True)
            if asked.output:
                with open(asked.output, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return list(lines.values())


def one_run(
    method: Method, network: Network, forward: Callable[[Tensor], Tensor], data: Pictures, asked: argparse.Namespace
) -> dict[str, Any]:
    """Train, read out, and say all that is to be stored."""
    device, prepare = data.train.device, prepared(asked.data, data.train.device)
    with apart(device):
        trained = train(network, forward, method, data.train, data.train_codes, prepare, asked)
    started = time.perf_counter()
    (features, _), (test, outputs) = (encode(network, x, prepare) for x in (data.train, data.test))
    figures, histograms = read_out(features, data.train_codes, test, data.test_codes, outputs)
    return {
        "loss": method.loss,
        "labels": method.labels,
        "seconds": round(trained.seconds, 1),
        "pictures_per_second": round(trained.rate),
        "read_out_seconds": round(time.perf_counter() - started, 1),
        "no_graph": trained.refused,
        "compiled": asked.compile,
        "figures": {name: round(value, 5) for name, value in figures.items()},
        "curve": [round(value, 5) for value in trained.curve],
        "histograms": histograms,
        "date": str(date.today()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
    }


@contextmanager
def apart(device: torch.device) -> Iterator[None]:
    """On a stream of its own, as a CUDA graph must be captured; on other devices nothing."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize(device)
    with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        yield
    torch.cuda.synchronize(device)


def stored(files: Sequence[Path]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The lines of files; of a run made twice the last."""
    lines = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines() if line.strip()]
    return {key(line): line for line in lines}


def key(line: dict[str, Any]) -> tuple[Any, ...]:
    return (*(line[name] for name in SETTING), line["method"], line["seed"])


def print_tables(lines: Sequence[dict[str, Any]]) -> None:
    """A table for each setting: mean over seeds (least–most), in per cent, but for cosines and the loss."""
    for setting in sorted({key(line)[: len(SETTING)] for line in lines}):
        here = [line for line in lines if key(line)[: len(SETTING)] == setting]
        devices = ", ".join(sorted({line["device"] for line in here}))
        print(f"\n{', '.join(f'{name} {value}' for name, value in zip(SETTING, setting, strict=True))}; {devices}")
        heads = [*(c.replace("features ", "").replace("different", "diff") for c in COLUMNS), "pictures/s", "loss"]
        print(f"{'':<28}{'seeds':>5}" + "".join(f"{head:>22}" for head in heads))
        for name in METHODS:
            runs = [line for line in here if line["method"] == name]
            if runs:
                print(f"{name:<28}{len(runs):>5}" + "".join(f"{each:>22}" for each in cells(runs)))


def cells(runs: Sequence[dict[str, Any]]) -> list[str]:
    figures = {column: [run["figures"][column] for run in runs] for column in COLUMNS}
    shown = [
        cell(each, ".3f") if column.startswith("features") else cell([100 * x for x in each], ".1f")
        for column, each in figures.items()
    ]
    rate = float(np.mean([run["pictures_per_second"] for run in runs]))
    return [*shown, f"{rate:,.0f}", cell([run["curve"][-1] for run in runs], ".3f")]


def cell(values: Sequence[float], form: str) -> str:
    """Mean, and where there are several the least and the most."""
    spread = f" ({min(values):{form}}–{max(values):{form}})" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--data", choices=PIXELS, default="cifar10")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--output", type=Path, help="append a line of JSON for each run; what it has already is not run"
    )
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="only print what these files have")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network; pays in long runs")
    parser.add_argument("--small", action="store_true", help="a quarter of the channels, for a CPU")
    parser.add_argument("--limit", type=int, help="so many pictures of either part, for a CPU")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()), help="folder for decoded pictures")
    asked = parser.parse_args()
    asked.width = 16 if asked.small else 64
    if asked.table:
        print_tables(list(stored(asked.table).values()))
        return
    data_folder()  # before anything is printed
    print(header(), flush=True)
    print_tables(experiment(asked))


if __name__ == "__main__":
    main()
