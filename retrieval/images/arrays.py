"""Pictures that come as arrays: `.npz`, and IDX, MNIST's format."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import UserError

from .items import Bytes, Images, described


def read_npz(path: Path, *, labels: bool = True) -> Images:
    """Its images, and its labels if there are any. labels: whether they are read."""
    arrays = _guarded(path, lambda: dict(np.load(path, allow_pickle=False)), "an .npz")
    pictures = next((arrays[name] for name in ("images", "x", "data") if name in arrays), None)
    if pictures is None:
        raise UserError(
            f"{path}: has no array 'images' (found: {', '.join(arrays) or 'none'}); save images= and labels="
        )
    classes = next((arrays[name] for name in ("labels", "y", "label") if name in arrays), None)
    return _array(path, pictures, classes if labels else None)


def is_idx(path: Path) -> bool:
    """Whether a file begins like an IDX file of bytes (MNIST's format), compressed or not."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            return file.read(4) in (b"\0\0\x08\x03", b"\0\0\x08\x04")
    except OSError:
        return False


def _read_idx(path: Path) -> Bytes:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        content = bytearray(file.read())  # torch wants arrays it may write to
    rank = content[3]
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_idx_file(path: Path, *, labels: bool = True) -> Images:
    """An IDX file of images; the labels beside it, under MNIST's names (`…images-idx3…` and `…labels-idx1…`), if there. labels: whether
    they are read."""
    pictures = _guarded(path, lambda: _read_idx(path), "an IDX file")
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    is_there = labels and beside != path and beside.is_file()
    return _array(path, pictures, _guarded(beside, lambda: _read_idx(beside), "an IDX file") if is_there else None)


def _guarded(path: Path, read: Callable[[], Any], what: str) -> Any:
    try:
        return read()
    except Exception:  # numpy, zip and gzip each fail in their own ways, and advise things we never do
        raise UserError(f"{path}: not {what} that can be read; write it again") from None


def _array(path: Path, pictures: NDArray[Any], labels: NDArray[Any] | None) -> Images:
    if pictures.dtype != np.uint8 or not (pictures.ndim == 3 or (pictures.ndim == 4 and pictures.shape[3] in (1, 3))):
        found = f"{pictures.dtype} of shape {pictures.shape}"
        raise UserError(f"{path}: images are {found}; give uint8 of (n, height, width) or (n, height, width, 3)")
    if len(pictures) == 0:
        raise UserError(f"{path}: is empty; give at least one image")
    if labels is not None and labels.shape != (len(pictures),):
        raise UserError(f"{path}: {len(pictures):,} images but labels of shape {labels.shape}; give one label an image")
    if labels is not None and labels.dtype.kind == "f" and np.isnan(labels).any():
        raise UserError(f"{path}: label {int(np.isnan(labels).argmax())} is NaN; give every image a label")
    names = [str(label).strip() for label in labels.tolist()] if labels is not None else None
    if pictures.ndim == 4 and pictures.shape[3] == 1:
        pictures = pictures[..., 0]
    return Images(pictures, names, described(len(pictures), names))
