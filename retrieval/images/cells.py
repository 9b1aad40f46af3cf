"""Pictures in Arrow and Parquet files, as Hugging Face's data sets have them: read by the cell, and the rest by the row.

An Arrow file is mapped into memory. Parquet is compressed, so a row group of it is read at a time, and a few are kept: data
sets of pictures have a hundred rows in each.
"""

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


def rows(file: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    """Those columns of each row. A column of pictures' bytes says True where they are there, else the path that stands beside
    them, or nothing."""
    try:
        for count, block in _blocks(file, names):
            for at in range(count):
                yield {name: block[name][at] for name in names}
    except (pa.ArrowException, OSError) as error:
        raise _not_whole(file, error) from None


def _blocks(file: Path, names: list[str]) -> Iterator[tuple[int, dict[str, list[Any]]]]:
    """Rows at a time, and their columns. Pictures' bytes are not read where it is known without that none is missing."""
    if file.suffix == ".arrow":
        for batch in _mapped(file, file.stat().st_mtime_ns).select(names).to_batches():
            yield len(batch), {name: _told(batch[name]) for name in names}
        return
    with pq.ParquetFile(file) as opened:
        holding = [name for name in names if holds_pictures(opened.schema_arrow.field(name).type)]
        for group in range(opened.num_row_groups):
            told = opened.metadata.row_group(group)
            block = {name: [True] * told.num_rows for name in holding if _is_full(told, name)}
            table = opened.read_row_group(group, [name for name in names if name not in block])
            for name in table.column_names:
                block[name] = [value for chunk in table[name].chunks for value in _told(chunk)]
            yield told.num_rows, block


def _is_full(group: Any, name: str) -> bool:
    """Whether a row group is known to have bytes in every row of a column that holds pictures."""
    leaves = [group.column(at) for at in range(group.num_columns)]
    found = [leaf.statistics for leaf in leaves if leaf.path_in_schema in (name, f"{name}.bytes")]
    return bool(found) and all(told is not None and told.has_null_count and told.null_count == 0 for told in found)


def _told(column: Any) -> list[Any]:
    if not holds_pictures(column.type):
        return column.to_pylist()  # type: ignore[no-any-return]
    if not pa.types.is_struct(column.type):
        return [held or None for held in column.is_valid().to_pylist()]
    held = pc.struct_field(column, "bytes").is_valid().to_pylist()
    has_path = column.type.get_field_index("path") >= 0
    paths = pc.struct_field(column, "path").to_pylist() if has_path else [None] * len(held)
    return [has or path for has, path in zip(held, paths, strict=True)]
