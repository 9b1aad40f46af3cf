"""Pictures that tests write in every format: small, of noise, labelled, and kept as they are by PNG."""

import io
import tarfile

import numpy as np
from PIL import Image

DIGIT_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LABELS = ["cat", "dog", "cat", "eel", "dog", "eel", "cat"]


def noise(count=7, size=(9, 8)):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(count)]


def photo(width=1600, height=1200, seed=0):
    """Something like a photograph: soft light, edges, grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    light = np.stack([np.sin(x / (90 + 40 * c)) + np.cos(y / (70 + 30 * c)) for c in range(3)], 2)
    for _ in range(40):
        at, radius = rng.uniform(0, 1, 2) * (width, height), rng.uniform(5, 10 + width / 6)
        light[(x - at[0]) ** 2 + (y - at[1]) ** 2 < radius**2] += rng.normal(size=3)
    light += rng.normal(scale=0.1, size=light.shape)
    return Image.fromarray(np.clip(128 + 45 * light, 0, 255).astype(np.uint8))


def as_bytes(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def tar(path, members, **options):
    """A tar of {name: bytes}; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members.items():
            told = tarfile.TarInfo(name)
            told.size = len(content)
            archive.addfile(told, io.BytesIO(content))
    return path


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
