"""Pictures in Arrow and Parquet files, as Hugging Face's data sets have them: read by the cell, and the rest by the row.

An Arrow file is mapped into memory. Parquet is compressed, so a row group of it is read at a time, and a few are kept: data
sets of pictures have a hundred rows in each.
"""

import json
import threading
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrieval.errors import UserError, first_line

KEPT = 4  # row groups
_GROUPS = threading.Lock()


def cell_bytes(file: Path, column: str, row: int) -> bytes:
    """What a cell holds, as it is in the file."""
    stamp = file.stat().st_mtime_ns
    if file.suffix == ".arrow":
        value = _mapped(file, stamp)[column][row]
    else:
        with _GROUPS:  # so that threads do not read the same group each
            starts = _starts(file, stamp)
            group = bisect_right(starts, row) - 1
            value = _group(file, stamp, column, group)[row - starts[group]]
    return bytes(value["bytes"].as_buffer() if isinstance(value, pa.StructScalar) else value.as_buffer())


@lru_cache(64)
def _mapped(file: Path, stamp: int) -> Any:
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_stream(source).read_all()


@lru_cache(64)
def _starts(file: Path, stamp: int) -> list[int]:
    """The first row of each group, and the end."""
    told = pq.read_metadata(file)
    starts = [0]
    for group in range(told.num_row_groups):
        starts.append(starts[-1] + told.row_group(group).num_rows)
    return starts


@lru_cache(KEPT)
def _group(file: Path, stamp: int, column: str, group: int) -> Any:
    with pq.ParquetFile(file) as opened:
        return opened.read_row_group(group, [column])[column]


def schema(file: Path) -> Any:
    """The columns of an Arrow or Parquet file. Raises UserError for what is not whole."""
    try:
        if file.suffix == ".arrow":
            return _mapped(file, file.stat().st_mtime_ns).schema
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise _not_whole(file, error) from None


def _not_whole(file: Path, error: Exception) -> UserError:
    kind = "Arrow" if file.suffix == ".arrow" else "Parquet"
    return UserError(f"{file}: is not whole {kind} ({first_line(error)[:120]}); download it again")


def holds_pictures(kind: Any) -> bool:
    """Whether a column of this type holds the bytes of files."""
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def class_names(file: Path) -> dict[str, list[str]]:
    """What the numbers in some columns stand for, as data sets keep it in what they write."""
    told = (schema(file).metadata or {}).get(b"huggingface", b"{}")
    features = json.loads(told).get("info", {}).get("features", {})
    classes = {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    return {name: kind["names"] for name, kind in classes.items() if kind.get("_type") == "ClassLabel"}


def rows(file: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    """Those columns of each row. A column of pictures' bytes says True where they are there, else the path that stands beside
    them, or nothing."""
    wanted = {name: schema(file).field(name).type for name in names}
    try:
        for batch in _batches(file, names):
            columns = {name: _told(batch[name], kind) for name, kind in wanted.items()}
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))
    except (pa.ArrowException, OSError) as error:
        raise _not_whole(file, error) from None


def _batches(file: Path, names: list[str]) -> Iterator[Any]:
    if file.suffix == ".arrow":
        yield from _mapped(file, file.stat().st_mtime_ns).select(names).to_batches()
    else:
        with pq.ParquetFile(file) as opened:
            for group in range(opened.num_row_groups):
                yield from opened.read_row_group(group, names).to_batches()


def _told(column: Any, kind: Any) -> list[Any]:
    if not holds_pictures(kind):
        return column.to_pylist()  # type: ignore[no-any-return]
    if not pa.types.is_struct(kind):
        return [held or None for held in column.is_valid().to_pylist()]
    held = pc.struct_field(column, "bytes").is_valid().to_pylist()
    paths = pc.struct_field(column, "path").to_pylist() if kind.get_field_index("path") >= 0 else [None] * len(held)
    return [has or path for has, path in zip(held, paths, strict=True)]
