"""Parts of paper.py: the pictures, the encoder (ResNet-18 in place of ResNet-50), and what is read out of its features."""

import gzip
import io
import multiprocessing
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from machine import data_folder
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from retrieval.eval.labels import classes
from retrieval.eval.neighborhood import VOTES, neighborhood, vote
from retrieval.neighbors import Base, exact_neighbors

BATCH = 1000  # pictures at a time in the read-out
BINS = 50
PROBE_ROUNDS = 100
# Of cosines. Features come out of a ReLU and have none below 0.
RANGES = {"features": (0.0, 1.0), "outputs": (-1.0, 1.0)}
PIXELS = {  # mean and deviation of each channel
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "fashion-mnist": ((0.286,) * 3, (0.353,) * 3),
}


class Pictures(NamedTuple):
    """uint8 (n, C, 32, 32) and class codes (n,) of the training and the test part."""

    train: Tensor
    train_codes: Tensor
    test: Tensor
    test_codes: Tensor


def load(name: str, cache: Path, limit: int | None) -> Pictures:
    """Pictures of a data set in memory, CIFAR-10 decoded once; `limit` so many of either part, drawn at random."""
    folder = data_folder() / name
    parts = cifar(folder / "cifar10_jpg.tar.gz", cache) if name == "cifar10" else fashion(folder)
    chosen: list[Tensor] = []
    for pixels, codes in zip(parts[::2], parts[1::2], strict=True):
        rows = np.random.default_rng(0).permutation(len(codes))[:limit] if limit else slice(None)
        chosen += [torch.from_numpy(pixels[rows]), torch.from_numpy(codes[rows])]
    return Pictures(*chosen)


def cifar(archive: Path, cache: Path) -> list[NDArray[Any]]:
    """Training pixels and codes, test pixels and codes; kept in `cache`, under a name with the archive's size."""
    kept = cache / f"retrieval-cifar10-{archive.stat().st_size}"
    names = [f"{kept}-{part}-{what}.npy" for part in ("train", "test") for what in ("pixels", "codes")]
    if not all(map(os.path.exists, names)):
        cache.mkdir(parents=True, exist_ok=True)
        for name, array in zip(names, decode_archive(archive), strict=True):
            unfinished = f"{name[:-4]}-{os.getpid()}.npy"
            np.save(unfinished, array)
            os.replace(unfinished, name)
    return [np.load(name) for name in names]


def decode_archive(archive: Path) -> list[NDArray[Any]]:
    with tarfile.open(archive) as tar:
        files = {each.name: tar.extractfile(each).read() for each in tar if each.name.endswith(".jpg")}  # type: ignore[union-attr]
    names = sorted(files)
    with multiprocessing.get_context("fork").Pool() as pool:
        pixels = np.stack(pool.map(decode, [files[name] for name in names], chunksize=500))
    part, word = (np.array([name.split("/")[-3 + place] for name in names]) for place in (0, 1))
    codes = np.unique(word, return_inverse=True)[1]
    return [array[part == each] for each in ("train", "test") for array in (pixels, codes)]


def decode(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


def fashion(folder: Path) -> list[NDArray[Any]]:
    """The same of Fashion-MNIST, with a black border of two pixels."""
    found: list[NDArray[Any]] = []
    for part in ("train", "t10k"):
        with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
            pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
        with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
            codes = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
        found += [np.pad(pixels, ((0, 0), (0, 0), (2, 2), (2, 2))), codes]
    return found


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """Two convolutions and a way around them (He et al., "Deep residual learning for image recognition", CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv(inputs, outputs, 3, stride), conv(outputs, outputs, 3)
        self.around = nn.Identity() if inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.second(F.relu(self.first(x), inplace=True))
        return F.relu(inside + self.around(x), inplace=True)


class Network(nn.Module):
    """ResNet-18 for small pictures (first convolution 3 × 3 with stride 1, no pooling after it) and the projection head.

    features: (B, 3, S, S) → (B, 8 · width); forward: the head's outputs (B, 128), not of unit length, in float32.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        blocks: list[nn.Module] = []
        for stage, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
            blocks += [Block(inputs, outputs, 1 if stage == 0 else 2), Block(outputs, outputs, 1)]
        self.body = nn.Sequential(conv(3, width, 3), nn.ReLU(inplace=True), *blocks)
        hidden = nn.Linear(sizes[-1], 512, bias=False)
        self.head = nn.Sequential(hidden, nn.BatchNorm1d(512), nn.ReLU(inplace=True), nn.Linear(512, 128))

    def features(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(x)
        return found.float().mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        with torch.autocast(x.device.type, enabled=False):
            found: Tensor = self.head(features)
        return found


@torch.no_grad()
def encode(network: Network, pictures: Tensor, prepare: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Features (n, d) and outputs (n, 128) of pictures as they are, of unit length, in float32."""
    network.eval()
    features, outputs = [], []
    for part in torch.split(pictures, BATCH):
        features.append(network.features(prepare(part)))
        outputs.append(network.head(features[-1]))
    network.train()
    return F.normalize(torch.cat(features), dim=1), F.normalize(torch.cat(outputs), dim=1)


def read_out(
    train: Tensor, train_codes: Tensor, test: Tensor, test_codes: Tensor, outputs: Tensor
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures and histograms of features (n, d), and of the test pictures' outputs, all of unit length."""
    figures = votes(train, train_codes, test, test_codes)
    figures["linear"] = linear_probe(train, train_codes, test, test_codes)
    figures |= among_themselves(test, test_codes)
    histograms = {}
    for name, vectors in (("features", test), ("outputs", outputs)):
        histograms[name] = similarities(vectors, test_codes, *RANGES[name])
        figures |= {f"{name} {kind}": histograms[name][f"{kind} mean"] for kind in ("same", "different")}
    return figures, histograms


def votes(train: Tensor, train_codes: Tensor, test: Tensor, test_codes: Tensor) -> dict[str, float]:
    """Accuracy of the three votes of `retrieval.eval.neighborhood`, by test pictures' neighbours among the training pictures."""
    found = exact_neighbors(test, train, min(max(VOTES), len(train)), device=str(train.device))
    codes, truth = train_codes.cpu().numpy()[found.ids], test_codes.cpu().numpy()
    accuracies = {}
    for voters, temperatures in VOTES.items():
        winners = vote(found.scores[:, :voters], codes[:, :voters], list(temperatures.values()))
        for name, winner in zip(temperatures, winners, strict=True):
            accuracies[name] = float((winner == truth).mean())
    return accuracies


def among_themselves(test: Tensor, codes: Tensor) -> dict[str, float]:
    """R@1 and MAP@R of each test picture among the others."""
    relevance, rows = classes([str(code) for code in codes.tolist()]), np.arange(len(test))
    base, found = Base(test, "inner_product", str(test.device)), relevance.counts() - 1
    judged = neighborhood(
        test.cpu().numpy(), base, relevance, rows, found, itself=True, ks=(1,), similarities=False
    ).values  # fmt: skip
    return {name: float(judged[name].mean()) for name in ("r@1", "map@r")}


def linear_probe(train: Tensor, train_codes: Tensor, test: Tensor, test_codes: Tensor) -> float:
    """Accuracy on `test` of a logistic regression of `train`, each feature brought to mean 0 and deviation 1.

    Full batches, L-BFGS; the penalty is scikit-learn's at C = 1: ‖W‖² / 2n beside the mean loss.
    """
    mean, deviation = train.mean(0), train.std(0).clamp(min=1e-6)
    train, test = (train - mean) / deviation, (test - mean) / deviation
    count = int(train_codes.max()) + 1
    weights = torch.zeros(count, train.shape[1], device=train.device, requires_grad=True)
    bias = torch.zeros(count, device=train.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=PROBE_ROUNDS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(train @ weights.T + bias, train_codes) + (weights**2).sum() / (2 * len(train))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(((test @ weights.T + bias).argmax(1) == test_codes).float().mean())


@torch.no_grad()
def similarities(vectors: Tensor, codes: Tensor, low: float, high: float) -> dict[str, Any]:
    """How cosines of pairs of one class, and of two, are spread: counts in BINS equal parts of low … high, and means."""
    counts = torch.zeros(2 * BINS, dtype=torch.int64, device=vectors.device)
    totals = torch.zeros(2, dtype=torch.float64, device=vectors.device)
    columns = torch.arange(len(vectors), device=vectors.device)
    for rows in torch.split(columns, BATCH):
        once = columns > rows[:, None]  # every pair once, and none with itself
        cosines = (vectors[rows] @ vectors.T)[once]
        different = (codes[rows, None] != codes)[once].long()
        place = ((cosines - low) / (high - low) * BINS).long().clamp(0, BINS - 1)
        counts += torch.bincount(place + BINS * different, minlength=2 * BINS)
        totals.index_add_(0, different, cosines.double())
    same, apart = counts.view(2, BINS)
    means = (totals / torch.stack([same.sum(), apart.sum()])).tolist()
    return {
        "range": [low, high],
        "same": same.tolist(),
        "different": apart.tolist(),
        "same mean": means[0],
        "different mean": means[1],
    }
