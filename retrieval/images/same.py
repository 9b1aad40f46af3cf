"""Pictures that stand in two sets, whatever they are called there."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .items import Images
from .picture import Picture, Span, content

END = 4096  # bytes


def stand_in(pictures: Images, others: Images) -> NDArray[np.bool_]:
    """(n,) which pictures are among the others: files of the same bytes, or arrays of the same pixels. What cannot be read is nowhere."""
    mine, theirs = pictures.source, others.source
    found = np.zeros(len(mine), bool)
    if isinstance(mine, list) and isinstance(theirs, list):
        left, right = dict(enumerate(mine)), dict(enumerate(theirs))
        for mark in (_size, _end, _whole):  # ever more is read, of ever fewer: sets may be large
            marks, known = ({row: mark(picture) for row, picture in each.items()} for each in (left, right))
            shared = (set(marks.values()) & set(known.values())) - {None}
            left = {row: picture for row, picture in left.items() if marks[row] in shared}
            right = {row: picture for row, picture in right.items() if known[row] in shared}
        found[list(left)] = True
    elif not isinstance(mine, list) and not isinstance(theirs, list) and mine.shape[1:] == theirs.shape[1:]:
        known_rows = {_digest(row.tobytes()) for row in theirs}
        found[:] = [_digest(row.tobytes()) in known_rows for row in mine]
    return found


def _size(picture: Picture) -> int | None:
    """In bytes; None, here and below, where it cannot be read."""
    try:
        if isinstance(picture, Span):
            return picture.size
        return picture.stat().st_size if isinstance(picture, Path) else len(content(picture))
    except OSError:
        return None


def _end(picture: Picture) -> bytes | None:
    try:
        if isinstance(picture, Path):
            with picture.open("rb") as file:
                file.seek(max(0, picture.stat().st_size - END))
                return _digest(file.read())
        if isinstance(picture, Span):
            skipped = max(0, picture.size - END)
            picture = picture._replace(start=picture.start + skipped, size=picture.size - skipped)
        return _digest(content(picture)[-END:])
    except OSError:
        return None


def _whole(picture: Picture) -> bytes | None:
    try:
        return _digest(content(picture))
    except OSError:
        return None


def _digest(held: bytes) -> bytes:
    return hashlib.blake2b(held, digest_size=16).digest()
