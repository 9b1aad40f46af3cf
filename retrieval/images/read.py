"""From a path to images: what kind it is, and one line for what cannot be used."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from retrieval.cpus import usable_cpus
from retrieval.data.columns import PAIR_COLUMNS, TEXT_COLUMNS, Asked
from retrieval.data.tables import told_split
from retrieval.data.texts import refuse_alike
from retrieval.errors import UserError

from .arrays import is_idx, read_idx_file, read_npz
from .decode import decode
from .folders import is_picture_name, read_folder
from .items import Images
from .picture import Cell, Picture
from .shards import is_shards, members, read_shards
from .tables import is_rows, looks_like_pictures, open_table, picture_column, read_table

KINDS = (
    "give a folder of images, a table of path,label (CSV, TSV, JSONL, Parquet), a Hugging Face data set, tar shards, an .npz "
    "or an IDX file"
)


def is_image_data(path: Path, split: str = "train", asked: Asked | None = None) -> bool:
    """Whether `path` is read as images (a folder, tars, arrays, a table with pictures, one picture to be refused) rather than as texts."""
    if asked is not None and (asked.image or asked.text):
        return asked.image is not None
    if is_rows(path):
        table = open_table(path, split)
        column = picture_column(table)
        if column is None:
            return False
        worded = table.find(TEXT_COLUMNS) or any(all(map(table.find, ((a,), (b,)))) for a, b in PAIR_COLUMNS)
        return not worded or looks_like_pictures(next(table.rows([column]))[1][column])
    return (
        path.is_dir() or path.suffix.lower() == ".npz" or is_picture_name(path.name) or is_shards(path) or is_idx(path)
    )


def read_images(
    path: Path | str,
    *,
    skip_bad: bool = False,
    split: str = "train",
    asked: Asked | None = None,
    captions: bool = False,
) -> Images:
    """Read a folder of class folders, an unlabelled folder, a table of path and label (CSV, TSV, JSONL, Parquet), a Hugging
    Face data set (a folder that `save_to_disk` wrote, or owner/name[:config]), tar shards, an `.npz` or an IDX file.

    split: of data sets that have several. asked: columns that the user names, and whether labels are read. With skip_bad every file is decoded once, and those that fail are left out and
    named in `skipped`. captions: whether they are kept for a store, in which no id stands twice: of a table
    in a column, of folders and tars in a text beside each picture.
    """
    path, asked = Path(path), asked or Asked()
    if is_rows(path):
        images = read_table(open_table(path, split), asked, missing=skip_bad, captions=captions)
        images = replace(images, origin=images.origin + told_split(path, split))
    else:
        asked.refuse_without_columns(path)
        images = _read_other(path, captions, asked.labels)
    refuse_alike(path, images.labels or ())
    return _without_bad(path, images) if skip_bad else images


def _read_other(path: Path, captions: bool, labels: bool) -> Images:
    """What has no columns."""
    if is_shards(path):
        return read_shards(path, captions=captions, labels=labels)
    if path.is_dir():
        return read_folder(path, captions=captions, labels=labels)
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder; {KINDS}")
    if path.suffix.lower() == ".npz":
        return read_npz(path, labels=labels)
    if is_idx(path):
        return read_idx_file(path, labels=labels)
    raise UserError(f"{path}: {'is one picture' if is_picture_name(path.name) else 'not image data'}; {KINDS}")


def _without_bad(path: Path, images: Images) -> Images:
    if not isinstance(images.source, list):
        return images

    def decodes(picture: Picture) -> bool:
        try:
            decode(picture)
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(usable_cpus()) as pool:
        found = list(pool.map(decodes, images.source))
    bad = tuple(picture for picture, good in zip(images.source, found, strict=True) if not good)
    if len(bad) == len(found):
        raise UserError(f"{path}: none of the {len(bad):,} images decodes; give image files")
    return replace(images.take(row for row, good in enumerate(found) if good), skipped=bad)


def picture_at(text: str) -> Picture | None:
    """The picture that `str` of it names: a file, a member of a tar, a cell of a table. None where there is none."""
    if Path(text).is_file():
        return Path(text)
    parts = text.split("/")
    for stop in range(1, len(parts)):
        file, rest = Path("/".join(parts[:stop]) or "/"), parts[stop:]
        if file.suffix.lower() == ".tar" and file.is_file():
            return members(file).get("/".join(rest))
        if file.suffix.lower() in (".arrow", ".parquet") and file.is_file() and len(rest) == 2 and rest[1].isdecimal():
            return Cell(file, rest[0], int(rest[1]))
    return None
