"""Pairs of which at least one side are pictures: pictures with captions, or two pictures of one thing."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.data import Asked
from retrieval.data.columns import ID_COLUMNS, one_text
from retrieval.errors import UserError

from .folders import caption_beside, files_below
from .items import Images
from .picture import Picture
from .shards import Sample, captions_of, is_shards, names_of, read_samples
from .tables import (
    CAPTION_COLUMNS,
    PATH_COLUMNS,
    Row,
    Table,
    as_written,
    is_rows,
    looks_like_pictures,
    open_table,
    picture_column,
    picture_of,
    text_of,
)

PICTURE_PAIRS = (("image1", "image2"), ("image_1", "image_2"), ("anchor", "positive"))
Column = Images | list[str]


@dataclass(frozen=True)
class Pairs:
    """Rows that belong together, by column: {"anchor": …, "positive": …, "negative_1": …, …}, all of one length.

    A column is of pictures or of texts; a row may lack some negatives where they are texts: those are "". `origin` says in
    words what was understood. ids: None where the data have none.
    """

    columns: dict[str, Column]
    origin: str
    ids: list[str] | None = None

    def __len__(self) -> int:
        return len(self.columns["anchor"])

    @cached_property
    def identities(self) -> dict[str, NDArray[np.int64]]:
        """By column (n,) a code of each row's picture or text: equal, also from column to column, for one file, one part of a
        file, one text; −1 for a negative that a row lacks."""
        known: dict[Picture | str, int] = {"": -1}
        return {
            name: np.array([known.setdefault(item, len(known)) for item in _items(column)], np.int64)
            for name, column in self.columns.items()
        }

    def told(self) -> tuple[list[str], list[str]]:
        """Anchors and positives in words: texts as they are, of pictures where they lie."""
        anchors, positives = (list(map(str, _items(self.columns[name]))) for name in ("anchor", "positive"))
        return anchors, positives

    def part(self, start: int, stop: int) -> "Pairs":
        """Rows start:stop."""
        columns = {name: _cut(column, start, stop) for name, column in self.columns.items()}
        return Pairs(columns, self.origin, self.ids and self.ids[start:stop])

    def take(self, rows: Iterable[int]) -> "Pairs":
        """Any rows, in the order asked for."""
        chosen = list(rows)
        columns = {name: _taken(column, chosen) for name, column in self.columns.items()}
        return Pairs(columns, self.origin, self.ids and [self.ids[row] for row in chosen])


def _items(column: Column) -> Sequence[Picture | str]:
    if isinstance(column, Images):
        assert isinstance(column.source, list)
        return column.source
    return column


def _cut(column: Column, start: int, stop: int) -> Column:
    return column.part(start, stop) if isinstance(column, Images) else column[start:stop]


def _taken(column: Column, rows: list[int]) -> Column:
    return column.take(rows) if isinstance(column, Images) else [column[row] for row in rows]


def read_pairs(path: Path, *, split: str = "train", asked: Asked | None = None) -> Pairs:
    """Read pictures with captions, or pairs of pictures: from a table or a Hugging Face data set with columns such as
    `image,caption`, `image1,image2` or `anchor,positive` and perhaps `negative…`; from tar shards or a folder in which
    texts stand beside the pictures under the same names (`1.jpg`, `1.txt`).

    A list of captions makes a row each. asked: columns that the user names, and how many negatives to use. split: of data
    sets that have several. Raises UserError for what has no such pairs, and for rows that lack a part.
    """
    asked = asked or Asked()
    if is_rows(path):
        return _of_table(open_table(path, split), asked)
    asked.refuse_without_columns(path)
    if is_shards(path):
        samples = read_samples(path)
        return _captioned(
            [sample.picture for sample in samples],
            (_captions(sample) for sample in samples),
            names_of(path, samples),
        )
    if path.is_dir():
        files = files_below(path)
        names = [file.relative_to(path).as_posix() for file in files]
        return _captioned(list(files), map(_beside, files), names)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a table of image,caption, tar shards, or a folder")
    raise UserError(f"{path}: no pairs with pictures; give a table of image,caption, tar shards, or a folder")


def _captioned(pictures: Sequence[Picture], captions: Iterable[list[str]], names: list[str]) -> Pairs:
    """A row a caption."""
    source: list[Picture] = []
    texts: list[str] = []
    for picture, told in zip(pictures, captions, strict=True):
        source += [picture] * len(told)
        texts += told
    said = f"{len(source):,} pairs of {len(pictures):,} images and their captions"
    ids = names if len(source) == len(names) else None
    return Pairs({"anchor": Images(source, None, said), "positive": texts}, said, ids)


def _captions(sample: Sample) -> list[str]:
    where = str(sample.beside.get("json", sample.picture))
    told = [one_text(where, "caption", each) for each in captions_of(sample)]
    if not told or not all(told):
        raise UserError(f"{sample.picture}: has no caption beside it; pack a .txt, or a .json with one, under its name")
    return told


def _beside(file: Path) -> list[str]:
    told, text = caption_beside(file), file.with_suffix(".txt")
    if not told and text.is_file():
        raise UserError(f"{text}: is empty; write a caption, or remove it and its picture")
    if not told:
        raise UserError(f"{file}: has no caption beside it; write {text.name}, or give a table of image,caption")
    return [told]


def _of_table(table: Table, asked: Asked) -> Pairs:
    path = table.path
    if not table.names:
        raise UserError(f"{path}: is empty; give a header such as image,caption and a row a pair")
    asked = asked.of(table.names)
    anchor, positive = _sides(table, asked)
    for flag, name in (("anchor", anchor), ("positive", positive), *(("negative", name) for name in asked.negative)):
        table.named(flag, name)
    negatives = list(asked.negative) or [name for name in table.names if name.strip().lower().startswith("negative")]
    widths = _widths(table, negatives)
    places = [place for name in negatives for place in _places(name, widths)][: asked.negatives]
    names = [anchor, positive, *places]
    negatives = negatives if widths else places
    identifier = table.find(ID_COLUMNS)
    rows = partial(_rows, table, [anchor, positive, *negatives, *([identifier] if identifier else [])], widths)
    kinds = _kinds(table, names, rows())
    found: list[list[Any]] = [[] for _ in names]
    ids: list[str] = []
    for number, row in rows():
        for values in _each(table, number, row, names, kinds):
            for column, value in zip(found, values, strict=True):
                column.append(value)
            if identifier:
                ids.append(as_written(table, number, identifier, row[identifier]))
    used = [anchor, positive, *negatives]
    said = f"{len(found[0]):,} pairs, columns {', '.join(used)}"
    if others := [name for name in table.names if name not in (*used, identifier)]:
        said += f"; not used: {', '.join(others)}"
    ours = ["anchor", "positive", *(f"negative_{at}" for at in range(1, len(names) - 1))]
    columns: dict[str, Column] = {
        name: Images(each, None, said) if is_picture else each
        for name, each, is_picture in zip(ours, found, kinds, strict=True)
    }
    return Pairs(columns, said, ids if ids and len(set(ids)) == len(ids) else None)


def _sides(table: Table, asked: Asked) -> tuple[str, str]:
    """Which columns belong together."""
    if asked.anchor and asked.positive:
        return asked.anchor, asked.positive
    for choice in PICTURE_PAIRS:
        one, other = (table.find((name,)) for name in choice)
        if one and other:
            return one, other
    picture, caption = picture_column(table), table.find(CAPTION_COLUMNS)
    if picture is None or caption is None:
        remedy = "" if asked.optional else ", or name two by --anchor and --positive"  # which name those of --data
        raise UserError(
            f"{table.path}: no columns image and caption, or image1 and image2 (found: {', '.join(table.names) or 'none'}); rename "
            f"them{remedy}"
        )
    return picture, caption


def _widths(table: Table, negatives: Sequence[str]) -> dict[str, int]:
    """How many negatives a row has at most in those columns that hold lists."""
    widths: dict[str, int] = {}
    for _, row in table.rows(negatives) if negatives else ():
        for name in negatives:
            if isinstance(row[name], list):
                widths[name] = max(widths.get(name, 0), len(row[name]))
    return widths


def _places(name: str, widths: dict[str, int]) -> list[str]:
    return [f"{name}[{at}]" for at in range(widths[name])] if name in widths else [name]


def _rows(table: Table, names: Sequence[str], widths: dict[str, int]) -> Iterator[Row]:
    """Rows in which each negative of a list has a place of its own, None where the list is shorter."""
    for number, row in table.rows(names):
        for name in widths:
            cell = row[name]
            several = cell if isinstance(cell, list) else [cell]
            row |= dict(zip_longest(_places(name, widths), several))
        yield number, row


def _kinds(table: Table, names: Sequence[str], rows: Iterable[Row]) -> list[bool]:
    """Which of the columns are pictures: by their names, else by the first row that has something there."""
    first: dict[str, Any] = {}
    for _, row in rows:
        first = {name: first.get(name) or row[name] for name in names}
        if all(first.values()):
            break
    if not first:
        raise UserError(f"{table.path}: is empty; give a row a pair")
    kinds = [
        name.strip().lower() in (*PATH_COLUMNS, "image1", "image2", "image_1", "image_2")
        or looks_like_pictures(first[name])
        for name in names
    ]
    if not any(kinds[:2]):
        raise UserError(f"{table.path}: {names[0]} and {names[1]} are texts both; train on them by train text")
    return kinds


def _each(
    table: Table, number: int, row: dict[str, Any], names: Sequence[str], kinds: Sequence[bool]
) -> Iterator[list[Any]]:
    """The row's values: once, or once for each of its captions."""
    lists = [
        name
        for name, is_picture in zip(names[:2], kinds, strict=False)
        if not is_picture and isinstance(row[name], list)
    ]
    repeats = max((len(row[name]) for name in lists), default=1)
    if repeats == 0:
        raise UserError(f"{table.path}: line {number} lacks its {lists[0]}; complete or remove it")
    for at in range(repeats):
        values = [row[name][at] if name in lists else row[name] for name in names]
        yield [
            _value(table, number, name, value, is_picture, may_lack=place >= 2)
            for place, (name, value, is_picture) in enumerate(zip(names, values, kinds, strict=True))
        ]


def _value(table: Table, number: int, name: str, value: Any, is_picture: bool, *, may_lack: bool) -> Picture | str:
    if is_picture:
        return picture_of(table, number, name, value, missing=False)
    if looks_like_pictures(value):
        raise UserError(
            f"{table.path}: line {number}: its {name} is a picture, those before are texts; keep one kind a column"
        )
    return one_text(f"{table.path}: line {number}", name, value) if may_lack else text_of(table, number, name, value)
