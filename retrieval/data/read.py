"""From a file, folder or name to texts: what kind it is, which columns count, and one line for what cannot be used."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from retrieval.artifact import sha256_file, sha256_json
from retrieval.errors import UserError

from .columns import NLI, PAIR_LABELS, PAYLOAD, Asked, cells, wanted_columns
from .documents import Nested, as_pairs, collection, is_collection, nested_columns, nested_row
from .rows import FORMATS, Lines, line_rows
from .tables import is_hub_name, is_table, table_rows, told_split
from .texts import Collected, TextFile, Texts, refuse_alike, stamp

T = TypeVar("T")
LOOKED_AT = 1000  # rows, to see whether cells are lists
Numbered = tuple[int, dict[str, Any]]  # the number of a row's last line, or of the row, and its cells


def read_texts(path: Path | str, asked: Asked | None = None, split: str = "train") -> Texts:
    """Read texts of any kind. Raises UserError naming file, line and column for anything that cannot be used.

    asked: columns that the user named. split: of a folder or dataset that has several.
    """
    path, asked = Path(path), asked or Asked()
    if path.exists() and is_collection(path):
        asked.refuse_without_columns(path)
        return _collect_nested(path, collection(path, split), asked)
    rows = _numbered(path, split)
    first = _first(path, rows)
    rows = chain([first], rows)
    example, rows = _example(rows, lambda each: each[1])
    columns = nested_columns(example, asked)
    if columns is not None:
        nested = ((number, nested_row(str(path), number, row, columns)) for number, row in rows)
        return _collect_nested(path, nested, asked)
    wanted = wanted_columns(str(path), list(first[1]), first[1], asked)
    texts = _collect(path, wanted, rows, list(first[1]))
    return replace(texts, origin=texts.origin + told_split(path, split))


def _example(rows: Iterator[T], row_of: Callable[[T], dict[str, Any]]) -> tuple[dict[str, Any], Iterator[T]]:
    """The first row, with a list where it has nothing and one of the next has one; and all rows."""
    some = list(islice(rows, LOOKED_AT))
    found = dict(row_of(some[0]))
    for name in [name for name, cell in found.items() if cell is None]:
        found[name] = next((cell for each in some if isinstance(cell := row_of(each).get(name), list)), None)
    return found, chain(some, rows)


def _numbered(path: Path, split: str) -> Iterator[Numbered]:
    if is_table(path) or is_hub_name(path):
        return enumerate(table_rows(path, split), 1)
    return ((number, row) for _, number, row in line_rows(Lines(_existing(path))))


def scan_texts(path: Path, block: int, split: str = "train", asked: Asked | None = None) -> TextFile | Texts:
    """Read through a file of lines without keeping it. Raises UserError as `read_texts` does, but for repeated ids. What is not of
    lines is read as `read_texts` does."""
    if is_table(path) or is_hub_name(path) or (path.exists() and is_collection(path)):
        return read_texts(path, asked, split)
    asked = asked or Asked()
    found, fingerprint = stamp(_existing(path)), sha256_file(path)
    rows = line_rows(Lines(path))
    first = _first(path, rows)
    fields = list(first[2])
    example, rows = _example(chain([first], rows), lambda each: each[2])
    if nested_columns(example, asked) is not None:
        return read_texts(path, asked)
    wanted = {
        name: column
        for name, column in wanted_columns(str(path), fields, first[2], asked).items()
        if name in ("anchor", "text", "title", "label", "id") or name.startswith(PAYLOAD)
    }
    starts, count = [], 0
    labels: dict[str, None] = {}  # in their order
    for place, number, row in rows:
        if count % block == 0:
            starts.append(place)
        told = cells(str(path), wanted, number, row)
        if "label" in told:
            labels[told["label"]] = None
        count += 1
    refuse_alike(path, labels)
    mark = sha256_json([fingerprint, wanted])
    return TextFile(
        path, count, block, starts, wanted, fields, mark, found, _origin(path, count, wanted, fields, len(labels))
    )


def read_block(file: TextFile, block: int, count: int) -> Texts:
    """Rows of one block of a scanned file."""
    rows = islice(line_rows(Lines(file.path, file.starts[block]), file.fields), count)
    return _collect(file.path, file.wanted, ((number, row) for _, number, row in rows), file.fields)


def _existing(path: Path) -> Path:
    if path.is_dir():
        raise UserError(
            f"{path}: is a folder; give a {FORMATS} file of texts, a BEIR folder (corpus.jsonl, queries.jsonl, qrels), or a "
            f"dataset that save_to_disk wrote"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a {FORMATS} file")
    return path


def _first(path: Path, rows: Iterator[Any]) -> Any:
    first = next(rows, None)
    if first is None:
        plain = (
            "one text a line" if path.suffix.lower() == ".txt" else "at least one row, a .csv or .tsv after a header"
        )
        raise UserError(f"{path}: is empty; give {plain}")
    return first


def _collect(path: Path, wanted: dict[str, str], rows: Iterable[Numbered], fields: list[str]) -> Texts:
    told = Collected(name for name in wanted if name not in ("title", "label", "score"))
    known: dict[str, str] = {}  # each label as one string, however often it stands
    labels: list[str] = []
    scores: list[float] = []
    for number, row in rows:
        found = cells(str(path), wanted, number, row)
        told.add(found)
        if "label" in wanted:
            labels.append(known.setdefault(found["label"], found["label"]))
        if "score" in wanted:
            scores.append(_score(str(path), number, wanted["score"], found["score"]))
    refuse_alike(path, known)
    columns = told.finish()
    ids = columns.pop("id", None)
    payload = {name.removeprefix(PAYLOAD): columns.pop(name) for name in wanted if name.startswith(PAYLOAD)}
    origin = _origin(path, len(next(iter(columns.values()))), wanted, fields, len(known))
    texts = Texts(
        columns,
        labels if "label" in wanted else None,
        ids,
        origin,
        np.array(scores) if "score" in wanted else None,
        payload,
    )
    _refuse_repeated(path, ids)
    return texts


def _refuse_repeated(path: Path, ids: Iterable[str] | None) -> None:
    seen: set[str] = set()
    for value in ids or ():
        if value in seen:
            raise UserError(f"{path}: id {value!r} stands more than once; ids must be unique")
        seen.add(value)


def _score(source: str, number: int, column: str, value: str) -> float:
    """A number, or what a label of natural language inference stands for; NaN is neither positive nor negative."""
    if column.strip().lower() in PAIR_LABELS and value.strip().lower() in NLI:
        return NLI[value.strip().lower()]
    try:
        found = float(value)
    except ValueError:
        found = float("nan")
    if not np.isfinite(found):
        raise UserError(f"{source}: line {number}: {column} {value!r} is no number; complete or remove the row")
    return found


def _collect_nested(path: Path, rows: Iterable[tuple[int, Nested]], asked: Asked) -> Texts:
    """A row a positive. The number of negatives is that of the row that has most, up to as many as asked."""
    if asked.payload:
        raise UserError(
            f"--payload {asked.payload[0]}: a row of {path} has several texts; write a row a text, or leave it out"
        )
    names = [f"negative_{at + 1}" for at in range(asked.negatives)]
    queries, held = 0, 0
    told = Collected(["anchor", "positive", *names])
    for _, nested in rows:
        queries += 1
        held = max(held, len(nested.negatives))
        for row in as_pairs(nested, asked.negatives):
            told.add(row)
    if not queries:
        raise UserError(f"{path}: has no query with a positive; give some")
    columns, most = told.finish(), min(asked.negatives, held)
    for name in names[most:]:
        del columns[name]
    count = len(columns["anchor"])
    said = f"{count:,} pairs of {queries:,} queries"
    said += f", up to {most} negatives" + (f" ({held} in the data; --negatives)" if held > most else "") if held else ""
    return Texts(columns, None, None, said)


def _origin(path: Path, count: int, wanted: dict[str, str], fields: list[str], classes: int) -> str:
    if path.suffix.lower() == ".txt":
        return f"{count:,} lines"
    said = f"{count:,} rows, columns {', '.join(dict.fromkeys(wanted.values()))}" + (
        f", {classes:,} classes" if classes else ""
    )
    others = [name for name in fields if name not in wanted.values()]
    return said + (f"; not used: {', '.join(others)}" if others else "")
