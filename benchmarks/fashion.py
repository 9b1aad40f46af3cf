"""Fashion-MNIST: a small network from scratch, supervised, six epochs, through the command line as a user would.

    RETRIEVAL_DATA=… python benchmarks/fashion.py [--epochs 6]

Prints the raw-pixel baseline and the trained network's metrics among the 10,000 test pictures, and the pictures per second.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import data_folder, header

from retrieval.eval.clusters import cluster_metrics
from retrieval.images import read_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", default="6")
    parser.add_argument("--seed", default="0")
    arguments = parser.parse_args()
    folder = data_folder() / "fashion-mnist"
    train, test = (folder / f"{part}-images-idx3-ubyte.gz" for part in ("train", "t10k"))
    print(header(), flush=True)
    print(f"raw pixels: R@1 {raw_pixels(test):.4f}")
    with tempfile.TemporaryDirectory() as scratch:
        run, store = Path(scratch) / "run", Path(scratch) / "store"
        seconds = command(
            "train",
            "image",
            "--data",
            train,
            "--model",
            "small",
            "--output",
            run,
            "--epochs",
            arguments.epochs,
            "--seed",
            arguments.seed,
        )[0]
        rate = float(arguments.epochs) * 60_000 / seconds
        print(f"train: {seconds:.0f} s, {rate:.0f} pictures/s")
        seconds = command("embed", "--encoder", run, "--data", test, "--output", store)[0]
        print(f"embed: {seconds:.0f} s")
        metrics = command("eval", "clusters", store)[1]["metrics"]
        print({name: round(value, 4) for name, value in metrics.items()})


def command(*words: object) -> tuple[float, dict[str, Any]]:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "retrieval", *map(str, words), "--json"], stdout=subprocess.PIPE, check=True
    )
    return time.perf_counter() - started, json.loads(done.stdout)


def raw_pixels(path: Path) -> float:
    """R@1 of the pictures themselves as vectors, by cosine."""
    images = read_images(path)
    assert images.labels is not None and not isinstance(images.source, list)
    x = images.source.reshape(len(images), -1).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return cluster_metrics(x, images.labels)["r@1"]


if __name__ == "__main__":
    main()
