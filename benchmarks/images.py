"""Training on pictures: where a step's time goes, views beside a loader of single pictures, and classes that were never seen.

    RETRIEVAL_DATA=… python benchmarks/images.py [--part step|views|unseen] [--device cuda]

    step      training pictures a second, two views each, and what share is decoding, augmenting, forward, backward and optimizer
    views     SimCLR's views of pictures in memory: ours in batches on the device, and a DataLoader that changes each alone by
              Pillow, as torchvision's transforms do
    unseen    the protocol of metric learning: trained on half of the classes, judged on the other half; R@1 and MAP@R before and
              after, three seeds, paired intervals

Fashion-MNIST, and 500 × 375 JPEGs that are made here.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import data_folder, header
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch.utils.data import DataLoader, Dataset

from retrieval.cli.held import by_classes
from retrieval.cli.options import quiet_libraries
from retrieval.cpus import usable_cpus
from retrieval.encoder import Encoder
from retrieval.eval.compare import compare, paired
from retrieval.images import Images, read_images
from retrieval.train import pictures as held_pictures
from retrieval.train.augment import SIMCLR, augment
from retrieval.train.image import ImageConfig, train_image
from retrieval.train.loss import named
from retrieval.train.pictures import Pictures
from retrieval.train.sentence_loss import SentenceLoss
from retrieval.train.vision import network

PAIRS = 128
STEPS = 12
CLOCKED = {  # a part of a step, and the method that does it
    "fetching or decoding": (Pictures, "features"),
    "augmenting": (Pictures, "views"),
    "forward and loss": (SentenceLoss, "forward"),
}
SEEDS = (0, 1, 2)
METHODS = {
    "H-SCL, κ = 2": "hcl",
    "SINCERE (κ = 0)": "infonce",
    "SINCERE, t = .05": "infonce(temperature=0.05)",
    "SINCERE, t = .2": "infonce(temperature=0.2)",
    "SupCon": "supcon",
}


def fashion(part: str) -> Images:
    return read_images(data_folder() / "fashion-mnist" / f"{part}-images-idx3-ubyte.gz")


def photographs(folder: Path, count: int) -> Images:
    """JPEGs of soft light and grain, which compress as photographs do."""
    rng = np.random.default_rng(0)
    paths = []
    for row in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        grain = np.asarray(coarse, np.float32) + rng.normal(scale=8, size=(375, 500, 3))
        paths.append(folder / f"{row}.jpg")
        Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).save(paths[-1], quality=88)
    return Images(list(paths), None, "photographs")


def seconds(work: Callable[[], Any], device: torch.device, times: int = 5) -> float:
    """The median of some calls, after one that warms up."""
    found = []
    for _ in range(times + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def step(asked: argparse.Namespace) -> None:
    device = torch.device(asked.device)
    with tempfile.TemporaryDirectory() as scratch:
        files = photographs(Path(scratch), 4 * PAIRS)
        _step("Fashion-MNIST, held as bytes", fashion("train").part(0, 4096), "small", 28, device)
        _step("500 × 375 JPEGs, held", files, "small", 64, device)
        _step("500 × 375 JPEGs, decoded as they come", files, "small", 64, device, limit=0)


def _step(title: str, data: Images, name: str, side: int, device: torch.device, limit: int | None = None) -> None:
    """Whole training, with a clock around each part: what is in none of them is backward, optimizer and the trainer."""
    spent: dict[str, list[float]] = {part: [] for part in CLOCKED}
    kept = {part: getattr(owner, method) for part, (owner, method) in CLOCKED.items()}
    room, held_pictures.MEMORY_LIMIT = (
        held_pictures.MEMORY_LIMIT,
        held_pictures.MEMORY_LIMIT if limit is None else limit,
    )

    def clocked(part: str) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            found = kept[part](*given, **named)
            if device.type == "cuda":
                torch.cuda.synchronize()
            spent[part].append(time.perf_counter() - started)
            return found

        return call

    times: list[float] = []
    try:
        for part, (owner, method) in CLOCKED.items():
            setattr(owner, method, clocked(part))
        config = ImageConfig(steps=STEPS, batch_size=PAIRS, scratch=True, augment="simclr")
        model = network(name, side, str(device), 0)
        loss = named("hcl(label_mask=False)")
        train_image(model, Images(data.source, None, ""), config, loss, source=title, progress=lambda _: times.append(time.perf_counter()))  # fmt: skip
    finally:
        held_pictures.MEMORY_LIMIT = room
        for part, (owner, method) in CLOCKED.items():
            setattr(owner, method, kept[part])
    a_step = statistics.median(np.diff(times[1:]).tolist())
    shares = {part: statistics.median(each[2:]) / a_step for part, each in spent.items()}
    shares["backward, optimizer and the rest"] = 1 - sum(shares.values())
    told = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
    print(f"{title}: {PAIRS / a_step:,.0f} pictures/s, {1e3 * a_step:,.0f} ms a step of {PAIRS}; {told}", flush=True)


class OneByOne(Dataset[Any]):
    """Two views of each picture, as torchvision's transforms make them of one alone, by Pillow."""

    def __init__(self, data: Images, side: int) -> None:
        self.data, self.side = data, side

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.stack([self.view(self.data[row]) for _ in range(2)])

    def view(self, picture: Image.Image) -> torch.Tensor:
        random = np.random.default_rng()
        width, height = picture.size
        area, ratio = random.uniform(0.2, 1) * width * height, np.exp(random.uniform(-np.log(4 / 3), np.log(4 / 3)))
        w, h = min(width, round((area * ratio) ** 0.5)), min(height, round((area / ratio) ** 0.5))
        left, top = random.integers(0, width - w + 1), random.integers(0, height - h + 1)
        picture = picture.resize((self.side, self.side), Image.Resampling.BILINEAR, (left, top, left + w, top + h))
        if random.random() < 0.5:
            picture = ImageOps.mirror(picture)
        if random.random() < 0.8:
            for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                picture = change(picture).enhance(random.uniform(0.6, 1.4))
            hue, *rest = picture.convert("HSV").split()
            turned = Image.fromarray((np.asarray(hue, np.uint8) + np.uint8(random.integers(0, 26))).astype(np.uint8))
            picture = Image.merge("HSV", (turned, *rest)).convert("RGB")
        if random.random() < 0.2:
            picture = picture.convert("L").convert("RGB")
        if random.random() < 0.5:
            picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def views(asked: argparse.Namespace) -> None:
    device = torch.device(asked.device)
    rng = np.random.default_rng(0)
    for side in (32, 64):
        data = Images(rng.integers(0, 256, (2048, side, side, 3), dtype=np.uint8), None, "")
        pixels = torch.from_numpy(data.source).permute(0, 3, 1, 2).contiguous().to(device)  # type: ignore[arg-type]
        rows = torch.randint(0, len(data), (256,), device=device)
        ours = seconds(lambda pixels=pixels, rows=rows, side=side: augment(pixels[rows].repeat(2, 1, 1, 1), (side, side), SIMCLR), device)  # type: ignore[misc]  # fmt: skip
        workers = usable_cpus()
        loader = DataLoader(OneByOne(data, side), 256, num_workers=workers)
        started = time.perf_counter()
        for batch in loader:
            batch.to(device)
        theirs = (time.perf_counter() - started) / len(data) * 256
        print(f"two views of {side} × {side}: {256 / ours:,.0f} pictures/s in batches of 256, {256 / theirs:,.0f} by a DataLoader with {workers} workers and Pillow: {theirs / ours:.1f} ×", flush=True)  # fmt: skip


def unseen(asked: argparse.Namespace) -> None:
    """Classes in the order of their names: the first half to train on, all rows; the second half's test pictures to judge by."""
    train, test = fashion("train"), fashion("t10k")
    names = sorted(set(train.labels or []))
    seen = set(names[: len(names) // 2])
    train = train.take([row for row, label in enumerate(train.labels or []) if label in seen])
    judged = test.take([row for row, label in enumerate(test.labels or []) if label not in seen])
    held = by_classes(judged)
    methods = {name: METHODS[name] for name in asked.method or METHODS}
    print(f"\nFashion-MNIST, classes {', '.join(sorted(seen))} to train on ({len(train):,}), {len(judged):,} pictures of the others; {asked.steps} steps of {PAIRS} pairs")  # fmt: skip
    before, tables = [], {name: [] for name in methods}  # type: ignore[var-annotated]
    for seed in SEEDS:
        start = network("small", 28, asked.device, seed)
        before.append(held.judge(Encoder(start, "small")))
        for name, loss in methods.items():
            model = network("small", 28, asked.device, seed)
            config = ImageConfig(steps=asked.steps, batch_size=PAIRS, seed=seed, scratch=True)
            train_image(model, train, config, named(loss), source="fashion")
            tables[name].append(held.judge(Encoder(model, "small")))
            told = "  ".join(f"{metric} {tables[name][-1].means()[metric]:.4f}" for metric in held.shown)
            print(f"  {name:<18} seed {seed}  {told}", flush=True)
    for metric in held.shown:
        untrained = statistics.mean(each.means()[metric] for each in before)
        print(f"\n  {metric}: untrained {untrained:.4f}")
        for name, runs in tables.items():
            sides, _ = paired([before, runs])
            found = compare(sides[0], sides[1], metric)
            line = f"    {name:<18} {statistics.mean(each.means()[metric] for each in runs):.4f}   − untrained: {found.difference:+.4f} [{found.interval[0]:+.4f}, {found.interval[1]:+.4f}]"  # fmt: skip
            if name != next(iter(tables)):
                sides, _ = paired([runs, next(iter(tables.values()))])
                against = compare(sides[0], sides[1], metric)
                line += f"   {next(iter(tables))} − it: {against.difference:+.4f} [{against.interval[0]:+.4f}, {against.interval[1]:+.4f}] {against.verdict()}"  # fmt: skip
            print(line, flush=True)


PARTS = {"step": step, "views": views, "unseen": unseen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--method", choices=METHODS, action="append", help="of `unseen`: only those")
    parser.add_argument("--steps", type=int, default=300, help="of `unseen`")
    asked = parser.parse_args()
    data_folder()  # before anything is printed
    quiet_libraries()
    print(header(), flush=True)
    for name in asked.part or PARTS:
        PARTS[name](asked)


if __name__ == "__main__":
    main()
