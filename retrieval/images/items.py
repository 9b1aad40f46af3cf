"""Pictures with labels: in memory, or decoded when they are asked for."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval.artifact import sha256_json

from .decode import decode
from .picture import Picture, stamps

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Images:
    """Pictures with optional labels: either an array in memory, or a list of what is decoded when it is asked for.

    source: uint8 (n, height, width) grey or (n, height, width, 3) colour, or a list of n `Picture`s. ids: of those, what the
    folder, table or tar calls each, wherever that lies; None for arrays, which are numbered by row. at_least: the shorter
    side in pixels that whoever asks has a use for, as `decode` takes it. captions: what is shown beside them.
    """

    source: Bytes | list[Picture]
    labels: list[str] | None
    origin: str
    skipped: tuple[Picture, ...] = ()
    ids: list[str] | None = None
    at_least: int | None = None
    captions: list[str] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Image.Image:
        if isinstance(self.source, list):
            return decode(self.source[row], self.at_least)
        return Image.fromarray(self.source[row]).convert("RGB")

    @property
    def is_pairs(self) -> bool:
        """Never: pictures stand alone."""
        return False

    @property
    def has_labels(self) -> bool:
        return self.labels is not None

    @property
    def has_ids(self) -> bool:
        return self.ids is not None

    @property
    def fingerprint(self) -> str:
        """Names what is embedded and stored: files by name, size and time, parts of files also by place, arrays by content."""
        if isinstance(self.source, list):
            told = [] if self.captions is None else [self.captions]
            return sha256_json([self.ids, stamps(self.source), self.labels, *told])
        content = hashlib.sha256(np.ascontiguousarray(self.source).data).hexdigest()
        return sha256_json([self.source.shape, content, self.labels])

    def part(self, start: int, stop: int) -> "Images":
        """Rows start:stop."""
        labels, ids, captions = (column and column[start:stop] for column in (self.labels, self.ids, self.captions))
        return replace(self, source=self.source[start:stop], labels=labels, ids=ids, captions=captions, skipped=())

    def take(self, rows: Iterable[int]) -> "Images":
        """Any rows, in the order asked for."""
        chosen = list(rows)
        source = [self.source[row] for row in chosen] if isinstance(self.source, list) else self.source[chosen]
        columns = (self.labels, self.ids, self.captions)
        labels, ids, captions = (column and [column[row] for row in chosen] for column in columns)
        return replace(self, source=source, labels=labels, ids=ids, captions=captions, skipped=())


def described(count: int, labels: list[str] | None, captions: Sequence[str] = ()) -> str:
    """What was read, in words. captions: "" where a picture has none."""
    classes = f", {len(set(labels)):,} classes" if labels is not None else ", no labels"
    told = sum(map(bool, captions))
    return f"{count:,} images{classes}" + (f", {told:,} captions" if told else "")
