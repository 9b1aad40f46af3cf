"""Reading a store: blocks in order, ranges, random rows. The vectors are memory maps; nothing is loaded whole unasked.

A reader holds the generation that it opened: later changes do not touch it, and files it may need are not removed while it
is open.
"""

import os
import weakref
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.artifact import (
    MANIFEST,
    REMEDIES,
    Manifest,
    read_manifest,
    read_statement,
    refuse_unfinished,
    sha256_json,
)
from retrieval.artifact import verify as verify_files
from retrieval.errors import Gone, UserError
from retrieval.locks import start_reading, still_there

from .dtypes import STORED_AS, Encoded, Floats, decode
from .maps import map_shards
from .shard import Ids, Ints, Rows, concatenate, read_column, read_columns

KIND = "store"


class Part(NamedTuple):
    """Rows as they are stored: their columns without vectors, the vectors, their norms."""

    columns: Rows
    stored: Encoded
    norms: Floats


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class Store:
    """One generation of a store, opened for reading. Rows are counted without the deleted ones.

    kind: what the folder must be: a store, or an index, which holds its rows as a store does.
    """

    def __init__(self, folder: Path, *, kind: str = KIND, check: bool = False, trusted: bool = False) -> None:
        if not folder.is_dir():
            refuse_unfinished(folder)
            raise UserError(f"{folder}: no such folder{REMEDIES[kind]}")
        self.folder, self.kind = folder, kind
        while True:
            try:
                self._descriptor, generation = start_reading(folder, MANIFEST)
            except FileNotFoundError:
                read_statement(folder, kind)  # says that there is none
                continue
            self._finalizer = weakref.finalize(self, _close, self._descriptor, generation)
            self.manifest: Manifest = read_manifest(folder, kind, check=check, trusted=trusted)
            if still_there(generation, folder / MANIFEST):
                break
            self._finalizer()  # another took its place meanwhile, and may be what was read
        self._live: dict[int, Ints | None] = {}

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r}: {self.count:,} × {self.dim} {self.dtype}, {self.manifest['metric']})"

    def close(self) -> None:
        """Let go of the generation; arrays already read stay valid."""
        self._finalizer()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def count(self) -> int:
        return int(self.manifest["count"])

    def __len__(self) -> int:
        return self.count

    @cached_property
    def dim(self) -> int:
        return int(self.manifest["dim"])

    @property
    def dtype(self) -> str:
        """How vectors are stored: float32, float16, bfloat16 or int8. They are read as float32."""
        return str(self.manifest["dtype"])

    @property
    def shard_rows(self) -> int:
        """How many rows a full shard has."""
        return int(self.manifest["shard_rows"])

    @property
    def manifest_hash(self) -> str:
        """Names this very content: it covers every shard's hash."""
        return sha256_json(self.manifest)

    @property
    def shards(self) -> list[dict[str, Any]]:
        """name, rows, offset of the embeddings, and perhaps `deleted` (a file) and how many rows are live."""
        return list(self.manifest["shards"])

    @cached_property
    def starts(self) -> Ints:
        """The first row of each shard, and at the end the number of rows."""
        return np.concatenate([[0], np.cumsum(self._lives)]).astype(np.int64)

    @cached_property
    def _lives(self) -> list[int]:
        return [shard["live"] for shard in self.manifest["shards"]]

    def __iter__(self) -> Iterator[Rows]:
        """The shards in order, as rows."""
        for number in range(len(self.shards)):
            yield self.read(number)

    def read(self, number: int) -> Rows:
        """The live rows of one shard."""
        return Rows(self.vectors(number), *self._live_columns(number))

    def vectors(self, number: int) -> Floats:
        """The live vectors of one shard, float32, in new memory."""
        live = self.live(number)
        return self.all_vectors(number) if live is None else decode(_rows(self.stored(number), live), self.dtype)

    def all_vectors(self, number: int) -> Floats:
        """The vectors of one shard, deleted ones too, as float32."""
        return decode(self.stored(number), self.dtype)

    def stored(self, number: int) -> Encoded:
        """One shard's vectors as stored, deleted ones too: a read-only map (rows, d), with scales for int8."""
        first = int(self._firsts[number])
        here = slice(first, first + self.shards[number]["rows"])
        return Encoded(self._table[here], None if self._scales is None else self._scales[here])

    @cached_property
    def _mapped(self) -> tuple[NDArray[Any], Ints]:
        shards = self.shards
        rows, offsets = ([int(shard[what]) for shard in shards] for what in ("rows", "offset"))
        return map_shards(self._files(), rows, offsets, self.dim, STORED_AS[self.dtype])

    @property
    def _table(self) -> NDArray[Any]:
        """Every shard's rows, at places in one array."""
        return self._mapped[0]

    @property
    def _firsts(self) -> Ints:
        """The place of each shard's first row."""
        return self._mapped[1]

    @cached_property
    def _scales(self) -> Floats | None:
        """The scale of each place."""
        if self.dtype != "int8":
            return None
        scales = np.zeros(len(self._table), np.float32)
        for first, file in zip(self._firsts, self._files(), strict=True):
            found = read_column(file, "scales")
            scales[first : first + len(found)] = found
        return scales

    @cached_property
    def _places(self) -> Ints | None:
        """The place of each live row; None where that is its number."""
        found = self._live_from(self._firsts)
        return None if np.array_equal(found, np.arange(len(found))) else found

    def _live_from(self, firsts: Ints) -> Ints:
        """The numbers of the live rows when each shard's are counted from its own first."""
        lives = [self.live(number) for number in range(len(self.shards))]
        held = [np.arange(s["rows"]) if live is None else live for s, live in zip(self.shards, lives, strict=True)]
        return np.concatenate([np.empty(0, np.int64), *(f + rows for f, rows in zip(firsts, held, strict=True))])

    @cached_property
    def ordinals(self) -> Ints | None:
        """The number of each row when deleted ones are counted too; None where none is deleted."""
        return None if self.written == self.count else self._live_from(self.first_ordinals[:-1])

    @cached_property
    def first_ordinals(self) -> Ints:
        """The first row of each shard when deleted ones are counted too, and at the end how many there are."""
        return np.concatenate([[0], np.cumsum([shard["rows"] for shard in self.shards])]).astype(np.int64)

    @property
    def written(self) -> int:
        """How many rows there are when deleted ones are counted too."""
        return int(self.first_ordinals[-1])

    def table(self, count: int) -> NDArray[Any] | None:
        """The first `count` rows ever written, deleted ones too, as stored and as one map; None where they do not lie
        together, or are int8, whose scales lie elsewhere."""
        needed = int(np.searchsorted(self.first_ordinals, count))
        together = np.array_equal(self._firsts[:needed], self.first_ordinals[:needed])
        return self._table[:count] if together and self.dtype != "int8" else None

    def describe(self, rows: Ints) -> tuple[Ids, list[str] | None, dict[str, list[str]]]:
        """ids, labels and payload of some rows, in the order asked for."""
        order = np.argsort(rows, kind="stable")
        distinct, back = np.unique(rows[order], return_inverse=True)
        shard_of = np.searchsorted(self.starts, distinct, side="right") - 1
        parts = []
        for number in np.unique(shard_of).tolist():
            within = distinct[shard_of == number] - self.starts[number]
            live = self.live(number)
            columns = self._read(number, read_columns, within if live is None else live[within])
            parts.append(Rows(np.empty((len(within), 0), np.float32), *columns))
        if not parts:
            return [], None, {}
        place = np.empty(len(rows), np.int64)
        place[order] = back
        found = concatenate(parts, 0)[place]
        return found.ids, found.labels, found.payload

    def _files(self) -> Iterator[BinaryIO]:
        for shard in self.shards:
            with self.open_file(shard["name"]) as file:
                yield file

    def live(self, number: int) -> Ints | None:
        """Which rows of a shard are not deleted, in rising order; None if all are there."""
        if number not in self._live:
            shard = self.shards[number]
            if "deleted" not in shard:
                self._live[number] = None
            else:
                with self.open_file(shard["deleted"]) as file:
                    gone = np.load(file, allow_pickle=False)
                self._live[number] = np.setdiff1d(np.arange(shard["rows"]), gone)
        return self._live[number]

    def take(self, rows: Ints) -> Floats:
        """Vectors of some rows (k,), in the order asked for, as float32 (k, d). Raises IndexError for what is no row."""
        rows = np.asarray(rows)
        if len(rows) and rows.dtype.kind not in "iu":
            raise IndexError(f"rows are {rows.dtype}; give row numbers")
        rows = rows.astype(np.int64)
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.count):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {self.count}")
        picked = _rows(Encoded(self._table, self._scales), rows if self._places is None else self._places[rows])
        return picked.data if self.dtype == "float32" else decode(picked, self.dtype)

    def load(self) -> Rows:
        """Every row, in memory: 4 · count · dim bytes and the strings."""
        columns = [Rows(np.empty((n, 0), np.float32), *self._live_columns(i)) for i, n in enumerate(self._lives)]
        joined = concatenate(columns, 0)
        return Rows(self.embeddings(), joined.ids, joined.labels, joined.payload)

    def embeddings(self) -> Floats:
        """Every vector (count, dim) float32, in memory."""
        found = np.empty((self.count, self.dim), np.float32)
        for number, start in enumerate(self.starts[:-1]):
            found[start : self.starts[number + 1]] = self.vectors(number)
        return found

    def read_stored(self, number: int, where: slice) -> "Part":
        """Some live rows of one shard as they are stored."""
        live = self.live(number)
        rows = np.arange(self.shards[number]["rows"])[where] if live is None else live[where]
        columns = Rows(np.empty((len(rows), 0), np.float32), *self._read(number, read_columns, rows))
        return Part(columns, _rows(self.stored(number), rows), self._read(number, read_column, "norms")[rows])

    def between(self, start: int, stop: int) -> Rows:
        """Rows start:stop, whatever shards they are in. Raises IndexError unless 0 ≤ start ≤ stop ≤ count."""
        if not 0 <= start <= stop <= self.count:
            raise IndexError(f"rows {start} to {stop} of {self.count}")
        parts = []
        for number, where in self._overlaps(start, stop):
            part = self.read(number)
            parts.append(part if where == slice(0, len(part)) else part[where])
        return concatenate(parts, self.dim)

    def ids_between(self, start: int, stop: int) -> Ids:
        """The ids of rows start:stop."""
        parts = [self.ids(number)[where] for number, where in self._overlaps(start, stop)]
        if self.manifest["ids"] == "string":
            return [i for part in parts for i in part]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def _overlaps(self, start: int, stop: int) -> Iterator[tuple[int, slice]]:
        """The shards that hold some of the rows start:stop, and which of their live rows those are."""
        for number in range(len(self.shards)):
            first, end = int(self.starts[number]), int(self.starts[number + 1])
            if first < stop and start < end:
                yield number, slice(max(start - first, 0), min(stop, end) - first)

    def require_unit_vectors(self) -> None:
        """Raise UserError for vectors that cosines cannot be read off as inner products."""
        if not self.manifest["normalized"]:
            raise UserError(f"{self.folder}: its vectors are not of unit length; import them with --normalize")

    def ids(self, number: int) -> Ids:
        """The ids of one shard's live rows."""
        return self.column(number, "ids")  # type: ignore[no-any-return]

    def column(self, number: int, name: str) -> Any:
        """One column of one shard's live rows by its path in the file: "ids", "labels", "norms", "payload/text"."""
        column, live = self._read(number, read_column, name), self.live(number)
        if live is None:
            return column
        return column[live] if isinstance(column, np.ndarray) else [column[row] for row in live.tolist()]

    def _live_columns(self, number: int) -> tuple[Ids, list[str] | None, dict[str, list[str]]]:
        live = self.live(number)
        columns: tuple[Ids, list[str] | None, dict[str, list[str]]] = self._read(
            number, read_columns, slice(None) if live is None else live
        )
        return columns

    def _read(self, number: int, how: Any, *args: Any) -> Any:
        with self.open_file(self.shards[number]["name"]) as file:
            return how(file, *args)

    def open_file(self, name: str) -> BinaryIO:
        """A file of the folder that was opened, even if another stands under its name by now."""
        path = self.folder / name
        try:
            return open(path, "rb", opener=lambda _, flags: os.open(name, flags, dir_fd=self._descriptor))
        except FileNotFoundError:
            raise Gone(f"{path}: is gone; was the store replaced meanwhile? Open it again") from None

    def verify(self, names: Collection[str] | None = None) -> None:
        """Hash files of this generation, all unless named; raises UserError at the first that differs."""
        files = self.manifest["files"]
        verify_files(self.folder, self.kind, {name: files[name] for name in (files if names is None else names)})


def _rows(stored: Encoded, rows: Ints) -> Encoded:
    return Encoded(stored.data[rows], None if stored.scales is None else stored.scales[rows])


def open_store(folder: Path | str, *, check: bool = False) -> Store:
    """Open a store; its files are checked as the manifest states them, with `check` by every hash whatever the size."""
    return Store(Path(folder), check=check)
