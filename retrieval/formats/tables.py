"""Parquet: a column of vectors, and ids, labels and whatever else beside them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.data import ID_COLUMNS, LABEL_COLUMNS
from retrieval.data.columns import as_text, named_column
from retrieval.errors import UserError, first_line
from retrieval.store import Ids, Rows, Store

from .arrays import as_floats

VECTOR_COLUMNS = ("embedding", "embeddings", "vector", "vectors", "emb")
TAKEN = {*VECTOR_COLUMNS, *ID_COLUMNS, *LABEL_COLUMNS}  # names of columns that an import takes for more than a payload
SMALL = 1024  # rows read at a time
LARGEST_ID = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are what, where its names do not say so. payload: the others that are kept; None: all."""

    vectors: str | None = None
    id: str | None = None
    label: str | None = None
    payload: tuple[str, ...] | None = None


@dataclass
class ParquetFile:
    """A table whose columns were told apart by name and type. Rows are best asked for in order: going back reads again."""

    path: Path
    file: Any
    vectors: str
    id: str | None
    label: str | None
    others: list[str]
    dim: int
    part: str | None
    metric: None = None
    _cursors: dict[tuple[str, ...], tuple[int, Any, Iterator[Any]]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return int(self.file.metadata.num_rows)

    @property
    def columns(self) -> tuple[str, ...]:
        return (*(["labels"] if self.label else []), *(f"payload/{_payload_name(name)}" for name in self.others))

    def ids(self, start: int, stop: int) -> Ids | None:
        return None if self.id is None else self._ids(self._read((self.id,), start, stop), start)

    def rows(self, start: int, stop: int) -> Rows:
        """Rows start:stop; numbered from start if the table has no ids."""
        wanted = (self.vectors, *([self.id] if self.id else []), *([self.label] if self.label else []), *self.others)
        table = self._read(wanted, start, stop)
        ids = np.arange(start, stop) if self.id is None else self._ids(table, start)
        labels = self._strings(table, self.label, start, required=True) if self.label else None
        payload = {_payload_name(name): self._strings(table, name, start) for name in self.others}
        return Rows(self._vectors(table, start), ids, labels, payload)

    def _vectors(self, table: Any, start: int) -> Any:
        column = table[self.vectors].combine_chunks()
        values = pa.array([]) if not len(column) else column.flatten()
        fixed = pa.types.is_fixed_size_list(column.type)
        lengths = np.full(len(column), self.dim) if fixed else np.diff(column.offsets)
        bad = column.is_null().to_numpy(zero_copy_only=False) | (lengths != self.dim)
        if bad.any() or values.null_count:
            row = start + (int(bad.argmax()) if bad.any() else values.is_null().to_pylist().index(True) // self.dim)
            raise UserError(
                f"{self.path}: row {row} of {self.vectors!r} is not a vector of {self.dim} numbers; mend it"
            )
        return as_floats(values.to_numpy(zero_copy_only=False).reshape(len(column), self.dim), self.path, start)

    def _ids(self, table: Any, start: int) -> Ids:
        column = table[self.id]
        if column.null_count:
            row = start + column.is_null().to_pylist().index(True)
            raise UserError(f"{self.path}: row {row} has no {self.id!r}; give every row one, or rename the column")
        if pa.types.is_integer(column.type):
            ids = column.to_numpy()
            if (ids > LARGEST_ID).any():
                bad = int((ids > LARGEST_ID).argmax())
                raise UserError(
                    f"{self.path}: row {start + bad} has {self.id!r} {ids[bad]}, above 2⁶³ − 1; make it a string"
                )
            return np.asarray(ids, dtype=np.int64)
        return [str(i) for i in column.to_pylist()]

    def _strings(self, table: Any, name: str, start: int, *, required: bool = False) -> list[str]:
        values = table[name].to_pylist()
        if required and None in values:
            raise UserError(f"{self.path}: row {start + values.index(None)} has no {name!r}; give every row a label")
        try:
            return [as_text(value) for value in values]
        except TypeError:
            raise UserError(
                f"{self.path}: column {name!r} holds bytes, which no text stands for; name the others by --payload"
            ) from None

    def _read(self, columns: tuple[str, ...], start: int, stop: int) -> Any:
        """Some columns of rows start:stop, going on from where the last call for these columns ended."""
        at, rest, batches = self._cursors.get(columns, (0, None, iter(())))
        if at > start or columns not in self._cursors:
            at, rest = 0, None
            batches = self.file.iter_batches(batch_size=SMALL, columns=list(columns))
        parts = []
        while at < stop:
            if rest is None:
                rest = pa.Table.from_batches([self._next(batches)])
            skip = max(0, min(start - at, len(rest)))
            take = rest.slice(skip, stop - max(at, start))
            parts.append(take)
            used = skip + len(take)
            at, rest = at + used, rest.slice(used) if used < len(rest) else None
        self._cursors[columns] = (at, rest, batches)
        schema = pa.schema([self.file.schema_arrow.field(name) for name in columns])
        return pa.concat_tables(parts) if parts else schema.empty_table()

    def _next(self, batches: Iterator[Any]) -> Any:
        try:
            return next(batches)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.path}: cannot be read ({first_line(error)}); fetch it again") from None


def open_parquet(path: Path, asked: Columns) -> ParquetFile:
    """Open a table with a column of vectors. Raises UserError naming what was found."""
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file that can be read ({first_line(error)})") from None
    names = file.schema_arrow.names
    if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise UserError(f"{path}: two columns are called {twice!r}; rename one")
    for flag, chosen in (("vectors", asked.vectors), ("id", asked.id), ("label", asked.label), *(("payload", name) for name in asked.payload or ())):  # fmt: skip
        named_column(path, names, flag, chosen)
    vectors = _vector_column(path, file.schema_arrow, asked.vectors)
    plain = [name for name in names if not pa.types.is_nested(file.schema_arrow.field(name).type)]
    identifier, label = (
        chosen or next((name for choice in choices for name in plain if name.lower() == choice), None)
        for chosen, choices in ((asked.id, ID_COLUMNS), (asked.label, LABEL_COLUMNS))
    )
    for flag, name in (("id", identifier), ("label", label)):
        if name not in (None, *plain):
            raise UserError(
                f"--{flag} {name}: of {path} is no column of single values; choose among {', '.join(plain)}"
            )
    kept = names if asked.payload is None else asked.payload
    others = [name for name in names if name in kept and name not in (vectors, identifier, label)]
    if any("/" in name or name in (".", "") for name in others):
        raise UserError(f"{path}: a column's name is empty or has a slash ({', '.join(others)}); rename it")
    if len({_payload_name(name) for name in others}) < len(others):
        raise UserError(
            f"{path}: two columns are of one name, with and without payload. ({', '.join(others)}); rename one"
        )
    part = None if asked == Columns() else repr((vectors, identifier, label, *others))
    opened = ParquetFile(path, file, vectors, identifier, label, others, 0, part)
    opened.dim = _dimension(opened, file.schema_arrow.field(vectors).type)
    return opened


def _vector_column(path: Path, schema: Any, asked: str | None) -> str:
    lists = [field.name for field in schema if _is_vector(field.type)]
    found = [asked] if asked else [name for name in lists if name.lower() in VECTOR_COLUMNS] or lists
    if len(found) == 1 and found[0] in lists:
        return found[0]
    told = ", ".join(lists) or f"none among {', '.join(schema.names)}"
    raise UserError(f"{path}: cannot tell the column of vectors (lists of numbers: {told}); name it by --vectors")


def _is_vector(kind: Any) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)):
        return False
    return bool(pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _dimension(opened: ParquetFile, kind: Any) -> int:
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    if not opened.count:
        raise UserError(f"{opened.path}: has no rows, and does not say of how many dimensions they would be")
    first = opened._read((opened.vectors,), 0, 1)[opened.vectors].to_pylist()
    if not first[0]:
        raise UserError(f"{opened.path}: its first row has no vector in {opened.vectors!r}; give every row one")
    return len(first[0])


def _column_name(payload: str) -> str:
    """The column of a payload; one that an import would take for the id, the label or the vector has a prefix."""
    return f"payload.{payload}" if payload.lower() in TAKEN or payload.startswith("payload.") else payload


def _payload_name(column: str) -> str:
    return column.removeprefix("payload.")


def write_parquet(file: BinaryIO, store: Store) -> None:
    """Everything in a store: columns id, label, the payload's, and embedding (float16 stores as halffloat, else float)."""
    half = store.dtype == "float16"
    value = pa.float16() if half else pa.float32()
    fields = [("id", pa.int64() if store.manifest["ids"] == "integer" else pa.string())]
    if "labels" in store.manifest["columns"]:
        fields.append(("label", pa.string()))
    payload = [name.removeprefix("payload/") for name in store.manifest["columns"] if name != "labels"]
    fields += [(_column_name(name), pa.string()) for name in payload]
    schema = pa.schema([*fields, ("embedding", pa.list_(value, store.dim))])
    with pq.ParquetWriter(file, schema) as writer:
        for rows in store:
            flat = pa.array(rows.embeddings.astype(np.float16 if half else np.float32).ravel())
            columns = [
                rows.ids,
                *([rows.labels] if rows.labels is not None else []),
                *(rows.payload[name] for name in payload),
            ]
            vectors = pa.FixedSizeListArray.from_arrays(flat, store.dim)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=False)]
            writer.write_table(pa.Table.from_arrays([*arrays, vectors], schema=schema))
