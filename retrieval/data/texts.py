"""Texts by column: in memory, or mapped from a file of their own where there are many."""

import hashlib
import json
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from retrieval.errors import UserError
from retrieval.given import strings

from .columns import PAYLOAD

if TYPE_CHECKING:
    from .rows import Place

BLOCK = 8192
IN_MEMORY = 2**27  # characters of texts that are held as Python's own strings


class Mapped(Sequence[str]):
    """A column of strings in a file that is mapped into memory, of which the system keeps what is used."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __iter__(self) -> Iterator[str]:
        for chunk in self._column.chunks:
            yield from chunk.to_pylist()

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        if not isinstance(at, slice):
            return self._column[at].as_py()  # type: ignore[no-any-return]
        start, stop, step = at.indices(len(self))
        part = self._column[start:stop]
        return Mapped(part) if step == 1 else part.to_pylist()[::step]

    def take(self, rows: Iterable[int]) -> list[str]:
        return [self._column[int(row)].as_py() for row in rows]  # Arrow's own take copies the whole column first


def taken(column: Sequence[str], rows: Iterable[int]) -> list[str]:
    """Those rows of a column, in that order."""
    return column.take(rows) if isinstance(column, Mapped) else [column[row] for row in rows]


class Collected:
    """Rows of strings that come one by one: lists, until there are many characters; then a file, read back as mapped columns."""

    def __init__(self, names: Iterable[str], in_memory: int = IN_MEMORY) -> None:
        self.columns: dict[str, list[str]] = {name: [] for name in names}
        self.in_memory, self.characters = in_memory, 0
        self._file: Any = None
        self._writer: pa.RecordBatchStreamWriter | None = None

    def add(self, row: dict[str, str]) -> None:
        for name, column in self.columns.items():
            column.append(row[name])
            self.characters += len(row[name])
        if self.characters > self.in_memory and len(column) >= BLOCK:
            self._spill()

    def _spill(self) -> None:
        schema = pa.schema([(name, pa.large_string()) for name in self.columns])
        if self._writer is None:
            self._file = tempfile.NamedTemporaryFile(prefix="retrieval-", suffix=".arrow")  # noqa: SIM115
            self._writer = pa.ipc.new_stream(self._file, schema)
        self._writer.write_batch(
            pa.record_batch(list(self.columns.values()), schema=schema),
        )
        self.columns = {name: [] for name in self.columns}

    def finish(self) -> dict[str, Sequence[str]]:
        if self._writer is None:
            return dict(self.columns)
        self._spill()
        self._writer.close()
        self._file.flush()
        with pa.memory_map(self._file.name) as mapped:  # the map outlives the file's name
            table = pa.ipc.open_stream(mapped).read_all()
        self._file.close()
        return {name: Mapped(table[name]) for name in self.columns}


@dataclass(frozen=True)
class Texts:
    """Rows of text, by column.

    `columns` is {"text": […]} or {"anchor": […], "positive": […], "negative": […], …}; all have one length. A row may have fewer
    negatives than another: the rest are empty. `labels`, `ids` and `scores` (of pairs) are None where the data have none.
    `origin` says in words what was understood. `payload`: other columns, which are kept beside the embedded one.
    """

    columns: Mapping[str, Sequence[str]]
    labels: Sequence[str] | None = None
    ids: Sequence[str] | None = None
    origin: str = ""
    scores: NDArray[np.float64] | None = None
    payload: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Columns may be arrays and pandas. Raises UserError for other values than strings, and for columns that differ in length."""
        count = len(next(iter(self.columns.values())))
        order = sorted(self.columns, key=lambda name: name != "anchor")  # which stands for its row
        columns = {name: _column(name, self.columns[name], count) for name in order}
        labels, ids = (
            None if column is None else _column(name, column, count)
            for name, column in (("labels", self.labels), ("ids", self.ids))
        )
        payload = {name: _column(name, column, count) for name, column in self.payload.items()}
        if "text" in payload:
            raise UserError("payload: 'text' is what is embedded; call the column otherwise")
        if self.scores is not None and len(self.scores) != count:
            raise UserError(f"{count:,} rows, {len(self.scores):,} scores; give one a row")
        for name, value in (("columns", columns), ("labels", labels), ("ids", ids), ("payload", payload)):
            object.__setattr__(self, name, value)

    @property
    def is_pairs(self) -> bool:
        return "anchor" in self.columns

    @property
    def texts(self) -> Sequence[str]:
        """The column that is embedded: `text`, or every anchor."""
        return next(iter(self.columns.values()))

    @cached_property
    def codes(self) -> dict[str, NDArray[np.int64]]:
        """By column, the code of each row's text."""
        return {name: text_codes(column) for name, column in self.columns.items()}

    @property
    def fingerprint(self) -> str:
        """Names what is embedded and stored."""
        digest = hashlib.sha256()
        kept = [list(self.payload), *self.payload.values()] if self.payload else []
        for column in (self.texts, self.labels, self.ids, *kept):
            for start in range(0, len(column or ()), BLOCK):
                digest.update(json.dumps(list((column or ())[start : start + BLOCK])).encode())
            digest.update(b"|")
        return digest.hexdigest()

    @property
    def mark(self) -> str:
        """Names all that is trained on."""
        digest = hashlib.sha256()
        for codes in (*self.codes.values(), text_codes(self.labels or ())):
            digest.update(len(codes).to_bytes(8, "little") + codes.tobytes())
        return digest.hexdigest()

    @property
    def has_labels(self) -> bool:
        return self.labels is not None

    @property
    def has_ids(self) -> bool:
        return self.ids is not None

    def part(self, start: int, stop: int) -> "Texts":
        """Rows start:stop."""
        scores = None if self.scores is None else self.scores[start:stop]
        return self._picked(lambda column: list(column[start:stop]), scores)

    def take(self, rows: Iterable[int]) -> "Texts":
        """Any rows, in the order asked for."""
        chosen = list(rows)
        scores = None if self.scores is None else self.scores[chosen]
        return self._picked(lambda column: taken(column, chosen), scores)

    def _picked(self, pick: Callable[[Sequence[str]], list[str]], scores: NDArray[np.float64] | None) -> "Texts":
        columns, payload = (
            {name: pick(column) for name, column in held.items()} for held in (self.columns, self.payload)
        )
        labels, ids = (None if column is None else pick(column) for column in (self.labels, self.ids))
        return Texts(columns, labels, ids, self.origin, scores, payload)

    def __len__(self) -> int:
        return len(self.texts)


def _column(name: str, values: Any, count: int) -> Sequence[str]:
    return values if isinstance(values, Mapped) and len(values) == count else strings(name, values, count)


@dataclass(frozen=True)
class TextFile:
    """A file of texts that stays on disk: read through once, checked and counted, then read by blocks in any order.

    starts: the place of every `block`-th row. wanted: as `wanted_columns`. fields: the header of a table without its own.
    """

    path: Path
    count: int
    block: int
    starts: "list[Place]"
    wanted: dict[str, str]
    fields: list[str]
    fingerprint: str
    stamp: tuple[int, int]
    origin: str

    @property
    def has_labels(self) -> bool:
        return "label" in self.wanted

    @property
    def has_ids(self) -> bool:
        return "id" in self.wanted

    @property
    def payload(self) -> list[str]:
        """The names of the columns that are kept."""
        return [name.removeprefix(PAYLOAD) for name in self.wanted if name.startswith(PAYLOAD)]

    def __len__(self) -> int:
        return self.count

    def part(self, start: int, stop: int) -> Texts:
        """Rows start:stop, which are one block. Raises UserError if the file is no longer what it was."""
        from .read import read_block

        assert start % self.block == 0 and stop == min(start + self.block, self.count), (start, stop)
        if stamp(self.path) != self.stamp:
            raise UserError(f"{self.path}: changed while it was read; run the command again")
        return read_block(self, start // self.block, stop - start)


def stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def shortened(text: str, length: int) -> str:
    """For people: on one line, and no longer than that."""
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[: length - 1] + "…"


def refuse_alike(path: Path, labels: Iterable[str]) -> None:
    """Raise UserError for classes that are one and the same to a reader: but for spaces, or for how accents are written."""
    known: dict[str, str] = {}
    for label in dict.fromkeys(labels):
        read = " ".join(unicodedata.normalize("NFC", label).split())
        if known.setdefault(read, label) != label:
            raise UserError(f"{path}: classes {known[read]!r} and {label!r} look the same; write both alike")


def text_codes(texts: Iterable[str]) -> NDArray[np.int64]:
    """64 bits of each text's hash: equal for equal texts, and of ten million different ones equal for two once in 350,000 times."""
    digests = b"".join(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, np.int64)


def linked(anchors: NDArray[np.int64], positives: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs that share a text, also by way of other pairs, belong together: (n,) the least code of all their texts.

    anchors, positives: (n,) codes of each pair's texts, equal for equal ones.
    """
    found, flat = np.unique(np.concatenate([anchors, positives]), return_inverse=True)
    one, other = flat.reshape(2, -1)
    edges = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(len(found), len(found)))
    groups = connected_components(edges, directed=False)[1]
    first = np.unique(groups, return_index=True)[1]
    least: NDArray[np.int64] = found[first[groups[one]]]
    return least
