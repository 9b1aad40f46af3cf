"""A picture that is not decoded yet: a file, a range of bytes in one, or a cell of a table. Small, and picklable."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .cells import cell_bytes


class Span(NamedTuple):
    """Bytes of a file, such as a member of a tar: what it is called there, where it begins, and how long it is."""

    file: Path
    name: str
    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.file}/{self.name}"


class Cell(NamedTuple):
    """A value of a column of an Arrow or Parquet file, that holds a picture's bytes."""

    file: Path
    column: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}/{self.column}/{self.row}"


Picture = Path | Span | Cell


def content(picture: Picture) -> bytes:
    """The bytes of a picture's file. Raises OSError where they are not there, or not all of them."""
    if isinstance(picture, Span):
        with open(picture.file, "rb") as file:
            file.seek(picture.start)
            found = file.read(picture.size)
        if len(found) < picture.size:
            raise EOFError(str(picture))
        return found
    if isinstance(picture, Cell):
        return cell_bytes(*picture)
    return picture.read_bytes()


def place(picture: Picture) -> Path:
    """The file that it lies in."""
    return picture if isinstance(picture, Path) else picture.file


def stamps(pictures: Sequence[Picture]) -> list[Any]:
    """What tells each from what may stand in its place another day: name, size and time of its file, and where in it.

    Names begin below the folder that holds all files, so that it may lie elsewhere that day."""
    ends = [choose((os.path.abspath(place(picture)) for picture in pictures), default="") for choose in (min, max)]
    shared = len(os.path.commonpath(ends)) if pictures else 0
    known: dict[Path, list[Any]] = {}  # of files that hold several
    found = []
    for picture in pictures:
        if isinstance(picture, Path):
            found.append(_stamp(picture, shared))
            continue
        if picture.file not in known:
            known[picture.file] = _stamp(picture.file, shared)
        found.append([*known[picture.file], *picture[1:]])
    return found


def _stamp(path: Path, shared: int) -> list[Any]:
    """Its name from a place on, size and time: None if it is gone."""
    try:
        told = os.stat(path)
    except OSError:
        return [os.path.abspath(path)[shared:], None, None]
    return [os.path.abspath(path)[shared:], told.st_size, told.st_mtime_ns]
