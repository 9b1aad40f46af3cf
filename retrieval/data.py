"""Reading texts: CSV, TSV, JSONL and plain lines; whole into memory, or block by block.

A table is `text` with an optional label, or `anchor, positive[, negative…]`, or plain lines. Columns are found by name.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from retrieval.artifact import sha256_file, sha256_json
from retrieval.errors import UserError

TEXT_COLUMNS = ("text", "sentence", "body", "content")
LABEL_COLUMNS = ("label", "labels", "category", "class", "intent")
PAIR_COLUMNS = (("anchor", "positive"), ("query", "positive"), ("question", "answer"))
ID_COLUMNS = ("id", "_id")
FORMATS = ".csv, .tsv, .jsonl or .txt"
Place = tuple[int, int]  # the bytes and the lines before a row
Row = tuple[Place, int, dict[str, str]]  # where it begins, the number of its last line, its cells


@dataclass(frozen=True)
class Texts:
    """Rows of text, by column.

    `columns` is {"text": […]} or {"anchor": […], "positive": […], "negative": […], …}; all lists have one length.
    `labels` and `ids` are None where the file has none. `origin` says in words what was understood.
    """

    columns: dict[str, list[str]]
    labels: list[str] | None
    ids: list[str] | None
    origin: str

    @property
    def is_pairs(self) -> bool:
        return "anchor" in self.columns

    @property
    def texts(self) -> list[str]:
        """The column that is embedded: `text`, or every anchor."""
        return next(iter(self.columns.values()))

    @property
    def fingerprint(self) -> str:
        """Names what is embedded and stored."""
        return sha256_json([self.texts, self.labels, self.ids])

    @property
    def has_labels(self) -> bool:
        return self.labels is not None

    @property
    def has_ids(self) -> bool:
        return self.ids is not None

    def part(self, start: int, stop: int) -> "Texts":
        """Rows start:stop."""
        columns = {name: column[start:stop] for name, column in self.columns.items()}
        labels, ids = (column and column[start:stop] for column in (self.labels, self.ids))
        return Texts(columns, labels, ids, self.origin)

    def take(self, rows: Iterable[int]) -> "Texts":
        """Any rows, in the order asked for."""
        chosen = list(rows)
        columns = {name: [column[row] for row in chosen] for name, column in self.columns.items()}
        labels, ids = (column and [column[row] for row in chosen] for column in (self.labels, self.ids))
        return Texts(columns, labels, ids, self.origin)

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class TextFile:
    """A file of texts that stays on disk: read through once, checked and counted, then read by blocks in any order.

    starts: the place of every `block`-th row. wanted: as `_wanted_columns`. fields: the header of a table without its own.
    """

    path: Path
    count: int
    block: int
    starts: list[Place]
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

    def __len__(self) -> int:
        return self.count

    def part(self, start: int, stop: int) -> Texts:
        """Rows start:stop, which are one block. Raises UserError if the file is no longer what it was."""
        assert start % self.block == 0 and stop == min(start + self.block, self.count), (start, stop)
        if _stamp(self.path) != self.stamp:
            raise UserError(f"{self.path}: changed while it was read; run the command again")
        rows = islice(_rows(Lines(self.path, self.starts[start // self.block]), self.fields), stop - start)
        return _collect(self.path, self.wanted, rows, self.fields)


def read_texts(path: Path) -> Texts:
    """Read a file of texts. Raises UserError naming file, line and column for anything that cannot be used."""
    rows = _rows(Lines(_existing(path)))
    first = _first(path, rows)
    fields = list(first[2])
    texts = _collect(path, _wanted_columns(path, fields), chain([first], rows), fields)
    ids = texts.ids or []
    if len(set(ids)) < len(ids):
        twice = next(value for i, value in enumerate(ids) if value in ids[:i])
        raise UserError(f"{path}: id {twice!r} stands more than once; ids must be unique")
    return texts


def scan_texts(path: Path, block: int) -> TextFile:
    """Read through a file of texts without keeping it. Raises UserError as `read_texts` does, but for repeated ids."""
    stamp, fingerprint = _stamp(_existing(path)), sha256_file(path)
    rows = _rows(Lines(path))
    first = _first(path, rows)
    wanted = _wanted_columns(path, list(first[2]))
    starts, count, labels = [], 0, set()
    for place, number, row in chain([first], rows):
        if count % block == 0:
            starts.append(place)
        cells = _cells(path, wanted, number, row)
        if "label" in cells:
            labels.add(cells["label"])
        count += 1
    mark = sha256_json([fingerprint, wanted])
    origin = _origin(path, count, wanted, list(first[2]), len(labels))
    return TextFile(path, count, block, starts, wanted, list(first[2]), mark, stamp, origin)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def shortened(text: str, length: int) -> str:
    """For people: on one line, and no longer than that."""
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[: length - 1] + "…"


def _existing(path: Path) -> Path:
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give a {FORMATS} file of texts")
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a {FORMATS} file")
    return path


class Lines:
    """Lines of a UTF-8 file from some place on; `place` is where the next one begins."""

    def __init__(self, path: Path, place: Place = (0, 0)) -> None:
        self.path, self.place = path, place

    def __iter__(self) -> Iterator[str]:
        with open(self.path, "rb") as file:
            file.seek(self.place[0])
            for line in file:
                self.place = self.place[0] + len(line), self.place[1] + 1
                try:
                    yield line.decode("utf-8-sig" if self.place[1] == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise UserError(
                        f"{self.path}: line {self.place[1]} is not UTF-8; convert the file, for instance with iconv"
                    ) from None


def _rows(lines: Lines, fields: list[str] | None = None) -> Iterator[Row]:
    """Rows from where `lines` stands, for a table with the header `fields` if it does not stand there."""
    suffix = lines.path.suffix.lower()
    if suffix == ".txt":
        return _plain_rows(lines)
    if suffix in (".csv", ".tsv"):
        return _delimited_rows(lines, "," if suffix == ".csv" else "\t", fields)
    if suffix in (".jsonl", ".ndjson"):
        return json_rows(lines)
    raise UserError(f"{lines.path}: cannot read {suffix or 'a file without ending'}; give a {FORMATS} file")


def _plain_rows(lines: Lines) -> Iterator[Row]:
    place = lines.place
    for line in lines:
        if line.strip():
            yield place, lines.place[1], {"text": line.strip()}
        place = lines.place


def _delimited_rows(lines: Lines, delimiter: str, fields: list[str] | None) -> Iterator[Row]:
    path, place = lines.path, lines.place
    try:
        reader = csv.DictReader(lines, fields, delimiter=delimiter, strict=True)
        _ = reader.fieldnames  # reads the header, so that `place` is the first row's
        while True:
            place = lines.place
            row = next(reader, None)
            if row is None:
                return
            number = lines.place[1]
            if None in row:
                raise UserError(f"{path}: line {number} has more fields than the header; quote the text")
            if None in row.values():
                raise UserError(f"{path}: line {number} has fewer fields than the header; complete or remove it")
            yield place, number, row
    except csv.Error as error:
        raise UserError(f"{path}: the row that begins at line {place[1] + 1}: {error}; close the quote") from None


def json_rows(lines: Lines) -> Iterator[Row]:
    path, place = lines.path, lines.place
    for line in lines:
        number = lines.place[1]
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                raise UserError(f"{path}: line {number} is not JSON; give one object a line") from None
            if not isinstance(row, dict):
                raise UserError(f'{path}: line {number} is not an object; give one like {{"text": …}} a line')
            yield place, number, {key: _as_text(value) for key, value in row.items()}
        place = lines.place


def _as_text(value: object) -> str:
    """A JSON value as a cell; null is an empty one."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _first(path: Path, rows: Iterator[Row]) -> Row:
    first = next(rows, None)
    if first is None:
        plain = (
            "one text a line" if path.suffix.lower() == ".txt" else "at least one row, a .csv or .tsv after a header"
        )
        raise UserError(f"{path}: is empty; give {plain}")
    return first


def _cells(path: Path, wanted: dict[str, str], number: int, row: dict[str, str]) -> dict[str, str]:
    """What a row has in the wanted columns, by our names."""
    for source in wanted.values():
        value = row.get(source)
        if value is None or not value.strip():
            raise UserError(f"{path}: line {number} has no {source!r}; complete or remove the row")
    return {name: row[source] for name, source in wanted.items()}


def _collect(path: Path, wanted: dict[str, str], rows: Iterable[Row], fields: list[str]) -> Texts:
    columns: dict[str, list[str]] = {name: [] for name in wanted}
    for _, number, row in rows:
        for name, value in _cells(path, wanted, number, row).items():
            columns[name].append(value)
    labels, ids = columns.pop("label", None), columns.pop("id", None)
    origin = _origin(path, len(next(iter(columns.values()))), wanted, fields, len(set(labels or [])))
    return Texts(columns, labels, ids, origin)


def _origin(path: Path, count: int, wanted: dict[str, str], fields: list[str], classes: int) -> str:
    if path.suffix.lower() == ".txt":
        return f"{count:,} lines"
    said = f"{count:,} rows, columns {', '.join(wanted.values())}" + (f", {classes:,} classes" if classes else "")
    others = [name for name in fields if name not in wanted.values()]
    return said + (f"; not used: {', '.join(others)}" if others else "")


def _wanted_columns(path: Path, names: list[str]) -> dict[str, str]:
    """Which column of the file serves as what: {our name: its name}, in our order."""

    def find(choices: tuple[str, ...]) -> str | None:
        return next((name for choice in choices for name in names if name.strip().lower() == choice), None)

    identifier = find(ID_COLUMNS)
    extra = {"id": identifier} if identifier else {}
    for anchor_name, positive_name in PAIR_COLUMNS:
        anchor, positive = find((anchor_name,)), find((positive_name,))
        if anchor and positive:
            negatives = [name for name in names if name.strip().lower().startswith("negative")]
            return {"anchor": anchor, "positive": positive} | {name: name for name in negatives} | extra
    text, label = find(TEXT_COLUMNS), find(LABEL_COLUMNS)
    if text is None:
        found = ", ".join(names) or "none"
        raise UserError(
            f"{path}: no column text, or anchor and positive (found: {found}); rename one of them in the header"
        )
    return {"text": text} | ({"label": label} if label else {}) | extra
