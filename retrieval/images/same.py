"""Pictures that stand in two sets, whatever they are called there."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .items import Images
from .picture import Picture, Span, content


def stand_in(pictures: Images, others: Images) -> NDArray[np.bool_]:
    """(n,) which pictures are among the others: files of the same bytes, or arrays of the same pixels. Only files of equal size are read; what
    cannot be read is nowhere."""
    marks: Sequence[bytes | None]
    known: Sequence[bytes | None]
    mine, theirs = pictures.source, others.source
    if isinstance(mine, list) and isinstance(theirs, list):
        sizes, other_sizes = ([_size(picture) for picture in each] for each in (mine, theirs))
        shared = (set(sizes) & set(other_sizes)) - {-1}
        marks, known = _marks(mine, sizes, shared), _marks(theirs, other_sizes, shared)
    elif isinstance(mine, list) or isinstance(theirs, list) or mine.shape[1:] != theirs.shape[1:]:
        return np.zeros(len(mine), bool)
    else:
        marks, known = ([_digest(row.tobytes()) for row in each] for each in (mine, theirs))
    seen = {mark for mark in known if mark is not None}
    return np.array([mark in seen for mark in marks], bool)


def _marks(pictures: list[Picture], sizes: list[int], shared: set[int]) -> list[bytes | None]:
    """Of those that have one of these sizes."""
    return [_mark(picture) if size in shared else None for picture, size in zip(pictures, sizes, strict=True)]


def _size(picture: Picture) -> int:
    """In bytes, −1 where it cannot be read."""
    try:
        if isinstance(picture, Span):
            return picture.size
        return picture.stat().st_size if isinstance(picture, Path) else len(content(picture))
    except OSError:
        return -1


def _mark(picture: Picture) -> bytes | None:
    try:
        return _digest(content(picture))
    except OSError:
        return None


def _digest(held: bytes) -> bytes:
    return hashlib.blake2b(held, digest_size=16).digest()
