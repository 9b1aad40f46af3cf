"""Rows of line formats: CSV, TSV, JSONL and plain lines, from any place on; and written so that they are read back."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

from retrieval.errors import UserError

from .columns import counts, one_cell
from .texts import shortened

LONGEST_CELL = 2**31 - 1  # characters; Python's own limit is 131,072
FORMATS = ".csv, .tsv, .jsonl, .parquet or .txt"
Place = tuple[int, int]  # the bytes and the lines before a row
Row = tuple[Place, int, dict[str, Any]]  # where it begins, the number of its last line, its cells


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


def line_rows(lines: Lines, fields: list[str] | None = None) -> Iterator[Row]:
    """Rows from where `lines` stands, for a table with the header or the first row's names `fields` if it does not stand there."""
    suffix = lines.path.suffix.lower()
    if suffix == ".txt":
        return _plain_rows(lines)
    if suffix in (".csv", ".tsv"):
        return _delimited_rows(lines, "," if suffix == ".csv" else "\t", fields)
    if suffix in (".jsonl", ".ndjson"):
        return _alike(lines.path, json_rows(lines), fields)
    if suffix in (".gz", ".zip", ".bz2", ".xz", ".zst"):
        raise UserError(f"{lines.path}: is compressed; unpack it first")
    raise UserError(f"{lines.path}: cannot read {suffix or 'a file without ending'}; give a {FORMATS} file")


def _plain_rows(lines: Lines) -> Iterator[Row]:
    place = lines.place
    for line in lines:
        if line.strip():
            yield place, lines.place[1], {"text": line.strip()}
        place = lines.place


def _delimited_rows(lines: Lines, delimiter: str, fields: list[str] | None) -> Iterator[Row]:
    path, place = lines.path, lines.place
    names: list[str] = []
    csv.field_size_limit(LONGEST_CELL)
    try:
        reader = csv.DictReader(lines, fields, delimiter=delimiter, strict=True)
        names = list(reader.fieldnames or ())  # reads the header, so that `place` is the first row's
        if twice := next((name for name in names if name and names.count(name) > 1), None):
            raise UserError(f"{path}: has two columns {twice!r}; give each a name of its own")
        while True:
            place = lines.place
            row = next(reader, None)
            if row is None:
                return
            number = lines.place[1]
            if None in row:
                _refuse_semicolons(path, names)
                raise UserError(f"{path}: line {number} has more fields than the header; quote the text")
            if None in row.values():
                raise UserError(f"{path}: line {number} has fewer fields than the header; complete or remove it")
            if delimiter == "\t" and number > place[1] + 1 and any("\t" in cell for cell in row.values()):
                raise UserError(
                    f"{path}: a quote that begins at line {place[1] + 1} ends at line {number}; double the quotes of the text"
                )
            yield place, number, row
    except csv.Error as error:
        _refuse_semicolons(path, names)
        raise UserError(f"{path}: the row that begins at line {place[1] + 1}: {error}; close the quote") from None


def _refuse_semicolons(path: Path, names: list[str]) -> None:
    """Raise UserError where a row's commas and quotes are no fault, since its columns are separated otherwise, as by some spreadsheets."""
    if one_cell(names):
        mark = "tabs" if path.suffix.lower() == ".tsv" else "commas"
        raise UserError(f"{path}: its columns are separated by semicolons; separate them by {mark}")


def json_rows(lines: Lines) -> Iterator[Row]:
    path, place = lines.path, lines.place
    for line in lines:
        number = lines.place[1]
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                raise UserError(f"{path}: line {number} is not JSON; give one object a line") from None
            if "\\ud" in line.lower():
                _refuse_half_characters(path, number, row)
            if not isinstance(row, dict):
                raise UserError(f'{path}: line {number} is not an object; give one like {{"text": …}} a line')
            yield place, number, row
        place = lines.place


def _refuse_half_characters(path: Path, number: int, row: Any) -> None:
    """Raise UserError for half of a pair of escapes, as where a text was cut within a character: no file can hold it as UTF-8."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}: line {number} has half a character (\\ud…); complete or remove it") from None


def _alike(path: Path, rows: Iterator[Row], fields: list[str] | None) -> Iterator[Row]:
    """The rows. Raises UserError for one with a column that counts and that the first row lacks: it says which columns there are."""
    known = set(fields or ())
    for place, number, row in rows:
        if not row.keys() <= known:
            if known and (more := [name for name in row if name not in known and counts(name)]):
                raise UserError(
                    f"{path}: line {number} has {more[0]!r}, which the first row lacks; give the first row all columns, null "
                    f"where it has nothing"
                )
            known |= row.keys()
        yield place, number, row


def table_writer(file: TextIO, delimiter: str = ",") -> Any:
    """A `csv.writer` of rows that end in "\n". Python's own then leaves a lone "\r" in a cell without quotes, and cannot read it."""
    rows = SimpleNamespace(write=lambda row: file.write(row.removesuffix("\r\n") + "\n"))
    return csv.writer(rows, delimiter=delimiter, lineterminator="\r\n")


def row_writer(path: Path, file: TextIO, names: Sequence[str]) -> Callable[[Sequence[str]], object]:
    """What writes a row of texts in the format that `path` is named by, after the header. It raises UserError for one that would not
    be read back."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return lambda cells: file.write(json.dumps(dict(zip(names, cells, strict=True)), ensure_ascii=False) + "\n")
    table = table_writer(file, "\t" if suffix == ".tsv" else ",")

    def write(cells: Sequence[str]) -> None:
        if suffix == ".tsv" and any("\n" in cell for cell in cells) and any("\t" in cell for cell in cells):
            raise UserError(
                f"{path}: the row of {shortened(cells[0], 40)!r} has tabs and line ends in its texts, which are taken for a quote left "
                f"open; write .jsonl"
            )
        table.writerow(cells)

    write(names)
    return write
