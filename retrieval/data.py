"""Reading texts: CSV, TSV, JSONL and plain lines.

A table is `text` with an optional label, or `anchor, positive[, negative…]`, or plain lines. Columns are found by name.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retrieval.errors import UserError

TEXT_COLUMNS = ("text", "sentence", "body", "content")
LABEL_COLUMNS = ("label", "labels", "category", "class", "intent")
PAIR_COLUMNS = (("anchor", "positive"), ("query", "positive"), ("question", "answer"))
ID_COLUMNS = ("id", "_id")
FORMATS = ".csv, .tsv, .jsonl or .txt"


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

    def __len__(self) -> int:
        return len(self.texts)


def read_texts(path: Path) -> Texts:
    """Read a file of texts. Raises UserError naming file, line and column for anything that cannot be used."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give a {FORMATS} file of texts")
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a {FORMATS} file")
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return _lines(path)
    if suffix in (".csv", ".tsv"):
        rows = _delimited_rows(path, "," if suffix == ".csv" else "\t")
    elif suffix in (".jsonl", ".ndjson"):
        rows = _json_rows(path)
    else:
        raise UserError(f"{path}: cannot read {suffix or 'a file without ending'}; give a {FORMATS} file")
    return _table(path, rows)


def _open(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, with the line number in the error where it is not UTF-8."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UserError(
                    f"{path}: line {number} is not UTF-8; convert the file, for instance with iconv"
                ) from None


def _lines(path: Path) -> Texts:
    texts = [line.strip() for line in _open(path) if line.strip()]
    if not texts:
        raise UserError(f"{path}: is empty; give one text a line")
    return Texts({"text": texts}, None, None, f"{len(texts):,} lines")


def _delimited_rows(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(_open(path), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row:
                raise UserError(f"{path}: line {reader.line_num} has more fields than the header; quote the text")
            if None in row.values():
                raise UserError(
                    f"{path}: line {reader.line_num} has fewer fields than the header; complete or remove it"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}; close the quote") from None


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(_open(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise UserError(f"{path}: line {number} is not JSON; give one object a line") from None
        if not isinstance(row, dict):
            raise UserError(f'{path}: line {number} is not an object; give one like {{"text": …}} a line')
        yield number, {key: _as_text(value) for key, value in row.items()}


def _as_text(value: object) -> str:
    """A JSON value as a cell; null is an empty one."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _table(path: Path, rows: Iterator[tuple[int, dict[str, str]]]) -> Texts:
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path}: is empty; give at least one row (a .csv or .tsv begins with a header)")
    names = list(first[1])
    wanted = _wanted_columns(path, names)
    columns: dict[str, list[str]] = {name: [] for name in wanted}
    for number, row in (first, *rows):
        for name, source in wanted.items():
            value = row.get(source)
            if value is None or not value.strip():
                raise UserError(f"{path}: line {number} has no {source!r}; complete or remove the row")
            columns[name].append(value)
    labels = columns.pop("label", None)
    ids = columns.pop("id", None)
    if ids is not None and len(set(ids)) < len(ids):
        twice = next(value for i, value in enumerate(ids) if value in ids[:i])
        raise UserError(f"{path}: id {twice!r} stands more than once; ids must be unique")
    count = len(next(iter(columns.values())))
    origin = f"{count:,} rows, columns {', '.join(wanted.values())}"
    if labels is not None:
        origin += f", {len(set(labels)):,} classes"
    return Texts(columns, labels, ids, origin)


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
