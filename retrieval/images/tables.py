"""Tables of pictures: a path in each row (CSV, TSV, JSONL), or the picture itself (Parquet, Hugging Face's data sets)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.data import ID_COLUMNS, LABEL_COLUMNS, Lines
from retrieval.data.columns import Asked, as_text, cell_text, kept_columns, named_column, one_text
from retrieval.data.rows import line_rows
from retrieval.data.tables import as_class, class_names, is_hub_name, is_table, table_files
from retrieval.errors import UserError

from . import cells
from .folders import is_picture_name
from .items import Images, described
from .picture import Cell, Picture

LINES = (".csv", ".tsv", ".jsonl", ".ndjson")
PATH_COLUMNS = ("path", "image", "file", "filename", "file_name", "image_path", "img")
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "description", "sentence", "sentences")
Row = tuple[int, dict[str, Any]]  # the number of its line, or of the row, and its cells


@dataclass(frozen=True)
class Table:
    """names: of all columns. holding: those with pictures' bytes. files: Arrow or Parquet, none where rows are lines of text."""

    path: Path
    names: list[str]
    holding: frozenset[str] = frozenset()
    files: tuple[Path, ...] = ()

    def find(self, choices: Sequence[str]) -> str | None:
        """The first of those columns that the table has, as it writes it."""
        return next((name for choice in choices for name in self.names if name.strip().lower() == choice), None)

    def named(self, flag: str, name: str | None) -> str | None:
        """A column that the user names. Raises UserError where the table lacks it."""
        return named_column(self.path, self.names, flag, name)

    def rows(self, names: Sequence[str]) -> Iterator[Row]:
        """Those columns of each row. A picture's bytes are told by their place, and classes by their names."""
        if not self.files:
            for _, number, row in line_rows(Lines(self.path)):
                yield number, {name: row.get(name) for name in names}
        number = 0
        for file in self.files:
            classes = {name: told for name, told in class_names(cells.schema(file)).items() if name in names}
            for at, row in enumerate(cells.rows(file, list(names))):
                for name in self.holding.intersection(names):
                    row[name] = Cell(file, name, at) if row[name] is True else row[name]
                for name, told in classes.items():
                    row[name] = as_class(row[name], told)
                number += 1
                yield number, row


def is_rows(path: Path) -> bool:
    """Whether a path can be a table: by its ending, or as a data set in a folder or on the hub."""
    return (path.exists() and (path.suffix.lower() in LINES or is_table(path))) or is_hub_name(path)


def open_table(path: Path, split: str) -> Table:
    """Look at a table's columns, none where it is empty. Raises UserError where it cannot be read."""
    if path.suffix.lower() in LINES:
        first = next(line_rows(Lines(path)), None)
        return Table(path, [] if first is None else list(first[2]))
    files = table_files(path, split)
    kinds = cells.schema(files[0])
    for file in files[1:]:
        if (other := cells.schema(file).names) != kinds.names:
            raise UserError(
                f"{file}: has columns {', '.join(other)}, {files[0].name} has {', '.join(kinds.names)}; give alike ones"
            )
    holding = frozenset(field.name for field in kinds if cells.holds_pictures(field.type))
    return Table(path, list(kinds.names), holding, tuple(files))


def picture_column(table: Table) -> str | None:
    """The column of the pictures: one that holds them, else one that is called as their paths are."""
    named = table.find(PATH_COLUMNS)
    if table.holding and named not in table.holding:
        return next(name for name in table.names if name in table.holding)
    return named


def read_table(table: Table, asked: Asked, *, missing: bool, captions: bool = False) -> Images:
    """Rows of a picture and perhaps a label, an id and columns to keep, and with `captions` a caption, which is to be stored, so that no
    id may stand twice. missing: also of pictures that are not there."""
    column, label, name = _columns(table, asked)
    caption = table.find(CAPTION_COLUMNS) if captions else None
    if caption in (column, label, name, *table.holding):
        caption = None
    used = {"picture": column, "label": label, "id": name, "caption": caption}
    kept = kept_columns(table.path, table.names, asked, used)
    taken = [*filter(None, used.values()), *kept]
    source: list[Picture] = []
    labels: list[tuple[int, Any]] = []
    ids: list[str] = []
    told: list[str] = []
    payload: dict[str, list[str]] = {each: [] for each in kept}
    seen: dict[str, int] = {}
    for number, row in table.rows(taken):
        source.append(picture_of(table, number, column, row[column], missing=missing))
        if label:
            labels.append((number, row[label]))
        if name:
            ids.append(as_written(table, number, name, row[name]))
        elif column not in table.holding:
            ids.append(row[column])
        if captions and ids and seen.setdefault(ids[-1], number) != number:
            raise _repeated(table, name, ids[-1], seen[ids[-1]], number)
        if caption:
            told.append(as_caption(row[caption]))
        for each in kept:
            payload[each].append(cell_text(f"{table.path}: line {number}", each, row[each]))
    if not source:
        raise UserError(f"{table.path}: is empty; give a row an image")
    classes = _labels(table, label, labels) if label else None
    origin = f"{described(len(source), classes)}; columns {', '.join(taken)}"
    if others := [each for each in table.names if each not in taken]:
        origin += f"; not used: {', '.join(others)}"
    return Images(source, classes, origin, ids=ids or None, captions=told or None, payload=payload)


def _columns(table: Table, asked: Asked) -> tuple[str, str | None, str | None]:
    """Those of the pictures, the labels and the ids."""
    path, said, asked = table.path, asked, asked.of(table.names)
    if not table.names:
        raise UserError(f"{path}: is empty; give a header path,label and a row an image")
    column = table.named("image", asked.image) or picture_column(table)
    if column is None:
        remedy = (
            f"rename one to {said.image or PATH_COLUMNS[0]!r}"
            if asked.optional
            else "name one so in the header, or by --image"
        )
        raise UserError(f"{path}: no column {', '.join(PATH_COLUMNS)} (found: {', '.join(table.names)}); {remedy}")
    label = table.named("label", asked.label) or table.find(LABEL_COLUMNS) if asked.labels else None
    name = table.named("id", asked.id) or table.find(ID_COLUMNS)
    for flag, other in (("label", label), ("id", name)):
        if other == column:
            raise UserError(f"--{flag} {other}: is the column of the pictures; name another")
    return column, label, name


def _repeated(table: Table, column: str | None, value: str, first: int, number: int) -> UserError:
    """Of an id, which is the path where no column has ids."""
    where = f"{table.path}: line {number}: {column or 'picture'} {value!r} stands in line {first} already"
    if column:
        return UserError(f"{where}; ids must be unique")
    return UserError(f"{where}, and paths are the ids; keep one row a picture, or name a column of ids by --id")


def as_caption(value: Any) -> str:
    """A caption, or a list of them, as it is shown and not searched: it may be empty."""
    return "; ".join(filter(None, (as_text(each).strip() for each in (value if isinstance(value, list) else [value]))))


def _labels(table: Table, column: str, values: list[tuple[int, Any]]) -> list[str] | None:
    """None for a data set that has no labels at all where others of its kind have them, as in many test splits."""
    if table.files and all(value is None for _, value in values):
        return None
    return [text_of(table, number, column, value) for number, value in values]


def text_of(table: Table, number: int, column: str, value: Any) -> str:
    """A cell that must not be empty."""
    text = one_text(f"{table.path}: line {number}", column, value)
    if not text:
        raise UserError(f"{table.path}: line {number} lacks its {column}; complete or remove it")
    return text


def as_written(table: Table, number: int, column: str, value: Any) -> str:
    """One that is an id or a path."""
    text_of(table, number, column, value)
    return as_text(value)


def picture_of(table: Table, number: int, column: str, value: Any, *, missing: bool) -> Picture:
    """The picture of a cell; paths begin at the table's folder. Raises UserError where there is none."""
    if isinstance(value, Cell):
        return value
    if value is not None and not isinstance(value, str):
        raise UserError(f"{table.path}: line {number}: its {column} is no path ({value!r:.40}); give a path")
    text = as_written(table, number, column, value)
    file = (table.files[0] if table.files else table.path).parent / text
    if not missing and not file.is_file():
        raise UserError(f"{table.path}: line {number}: {text}: no such file; correct the path, or remove the row")
    return file


def looks_like_pictures(value: Any) -> bool:
    """Whether a cell is a picture: its bytes, or a path that ends like one."""
    return isinstance(value, Cell) or (isinstance(value, str) and "\n" not in value and is_picture_name(value))
