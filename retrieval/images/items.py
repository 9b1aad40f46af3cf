"""Pictures with labels: in memory, or decoded when they are asked for."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval.artifact import sha256_json
from retrieval.errors import UserError
from retrieval.wording import plural

from .decode import decode
from .picture import Picture, stamps

Bytes = NDArray[np.uint8]
REMEDY = ", or leave such out: --skip-bad of embed and train image, skip_bad=True of read_images"


@dataclass(frozen=True)
class Images:
    """Pictures with optional labels: either an array in memory, or a list of what is decoded when it is asked for.

    source: uint8 (n, height, width) grey or (n, height, width, 3) colour, or a list of n `Picture`s. ids: of those, what the
    folder, table or tar calls each, wherever that lies; None for arrays, which are numbered by row. at_least: the shorter
    side in pixels that whoever asks has a use for, as `decode` takes it. captions: what is shown beside them.
    payload: columns that are kept.
    """

    source: Bytes | list[Picture]
    labels: list[str] | None
    origin: str
    skipped: tuple[Picture, ...] = ()
    ids: list[str] | None = None
    at_least: int | None = None
    captions: list[str] | None = None
    payload: Mapping[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Image.Image:
        if isinstance(self.source, list):
            try:
                return decode(self.source[row], self.at_least)
            except UserError as error:
                raise UserError(f"{error}{REMEDY}") from None
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
        told: list[Any] = [] if self.captions is None else [self.captions]
        told += [dict(self.payload)] if self.payload else []
        if isinstance(self.source, list):
            return sha256_json([self.ids, stamps(self.source), self.labels, *told])
        content = hashlib.sha256(np.ascontiguousarray(self.source).data).hexdigest()
        return sha256_json([self.source.shape, content, self.labels, *told])

    def part(self, start: int, stop: int) -> "Images":
        """Rows start:stop."""
        return self._picked(self.source[start:stop], lambda column: column[start:stop])

    def take(self, rows: Iterable[int]) -> "Images":
        """Any rows, in the order asked for."""
        chosen = list(rows)
        source = [self.source[row] for row in chosen] if isinstance(self.source, list) else self.source[chosen]
        return self._picked(source, lambda column: [column[row] for row in chosen])

    def _picked(self, source: Bytes | list[Picture], pick: Callable[[list[str]], list[str]]) -> "Images":
        labels, ids, captions = (column and pick(column) for column in (self.labels, self.ids, self.captions))
        payload = {name: pick(column) for name, column in self.payload.items()}
        return replace(self, source=source, labels=labels, ids=ids, captions=captions, payload=payload, skipped=())


def described(count: int, labels: list[str] | None, captions: Sequence[str] = ()) -> str:
    """What was read, in words. captions: "" where a picture has none."""
    classes = plural(len(set(labels)), "class") if labels is not None else "no labels"
    told = sum(map(bool, captions))
    return f"{plural(count, 'image')}, {classes}" + (f", {told:,} captions" if told else "")
