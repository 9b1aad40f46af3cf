"""Reading images: class folders, unlabelled folders, CSV of path and label, `.npz` and IDX arrays."""

import csv
import gzip
import hashlib
import struct
import threading
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from retrieval.artifact import sha256_json
from retrieval.errors import UserError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PATH_COLUMNS = ("path", "image", "file", "filename")
LABEL_COLUMNS = ("label", "class", "category")
REMEDY = ", or (train, embed) leave such files out with --skip-bad"
Bytes = NDArray[np.uint8]
_FILTERS = threading.Lock()


@dataclass(frozen=True)
class Images:
    """Pictures with optional labels: either an array in memory, or files that are decoded when asked for.

    source: uint8 (n, height, width) grey or (n, height, width, 3) colour, or a list of n paths. ids: of paths, what the
    folder or the CSV calls each, wherever that lies; None for arrays, which are numbered by row.
    """

    source: Bytes | list[Path]
    labels: list[str] | None
    origin: str
    skipped: tuple[Path, ...] = ()
    ids: list[str] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Image.Image:
        if isinstance(self.source, list):
            return decode(self.source[row])
        return Image.fromarray(self.source[row]).convert("RGB")

    @property
    def is_pairs(self) -> bool:
        """Never: pictures stand alone."""
        return False

    @property
    def has_labels(self) -> bool:
        return self.labels is not None

    @property
    def has_ids(self) -> bool:
        return self.ids is not None

    @property
    def fingerprint(self) -> str:
        """Names what is embedded and stored: files by name, size and time, arrays by content."""
        if isinstance(self.source, list):
            stats = [path.stat() for path in self.source if path.exists()]
            return sha256_json([self.ids, [[s.st_size, s.st_mtime_ns] for s in stats], self.labels])
        content = hashlib.sha256(np.ascontiguousarray(self.source).data).hexdigest()
        return sha256_json([self.source.shape, content, self.labels])

    def part(self, start: int, stop: int) -> "Images":
        """Rows start:stop."""
        labels, ids = (column and column[start:stop] for column in (self.labels, self.ids))
        return Images(self.source[start:stop], labels, self.origin, ids=ids)

    def take(self, rows: Iterable[int]) -> "Images":
        """Any rows, in the order asked for."""
        chosen = list(rows)
        source = [self.source[row] for row in chosen] if isinstance(self.source, list) else self.source[chosen]
        labels, ids = (column and [column[row] for row in chosen] for column in (self.labels, self.ids))
        return Images(source, labels, self.origin, ids=ids)


def decode(path: Path) -> Image.Image:
    """One picture as RGB, turned upright by its EXIF orientation. Raises UserError naming the file."""
    try:
        with _opened(path) as picture:
            upright = ImageOps.exif_transpose(picture)
            if upright.mode == "P" and "transparency" in upright.info:  # dropped here rather than with a warning below
                upright = upright.convert("RGBA")
            return upright.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{path}: more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller{REMEDY}") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError):
        raise UserError(f"{path}: does not decode as an image; replace it{REMEDY}") from None


def _opened(path: Path) -> Image.Image:
    """The file, with its header read; one too large to be harmless is an error. Filters of warnings are the whole process's."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(path)


def is_image_data(path: Path) -> bool:
    """Whether `path` is read as images (a folder, an array, a CSV with a path column) rather than as texts."""
    if path.is_dir() or path.suffix.lower() in (".npz", ".gz") or _is_idx(path):
        return True
    if path.suffix.lower() == ".csv" and path.is_file():
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            names = [name.strip().lower() for name in next(csv.reader(file), [])]
        return any(name in names for name in PATH_COLUMNS)
    return False


def read_images(path: Path, *, skip_bad: bool = False) -> Images:
    """Read a folder of class folders, an unlabelled folder, a CSV `path,label`, an `.npz` or an IDX file.

    With skip_bad every file is decoded once, and those that fail are left out and counted in `skipped`.
    """
    if path.is_dir():
        images = _folder(path)
    elif not path.is_file():
        raise UserError(
            f"{path}: no such file or folder; give a folder of images, a CSV of path,label, an .npz or an IDX file"
        )
    elif path.suffix.lower() == ".csv":
        images = _csv(path)
    elif path.suffix.lower() == ".npz":
        images = _npz(path)
    elif _is_idx(path):
        images = _idx(path)
    else:
        raise UserError(f"{path}: not image data; give a folder of images, a CSV of path,label, an .npz or an IDX file")
    return _without_bad(images) if skip_bad else images


def _without_bad(images: Images) -> Images:
    if not isinstance(images.source, list):
        return images
    good, bad = [], []
    for row, path in enumerate(images.source):
        try:
            decode(path)
            good.append(row)
        except UserError:
            bad.append(path)
    if not good:
        raise UserError(f"{images.source[0].parent}: none of the {len(bad):,} images decodes; give image files")
    return replace(images.take(good), skipped=tuple(bad))


def _described(count: int, labels: list[str] | None) -> str:
    return f"{count:,} images" + (f", {len(set(labels)):,} classes" if labels is not None else ", no labels")


def _folder(path: Path) -> Images:
    files = sorted(
        p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file() and not p.name.startswith(".")
    )
    if not files:
        raise UserError(
            f"{path}: holds no images ({', '.join(ENDINGS)}); give one folder a class, or a folder of images"
        )
    nested = [len(p.relative_to(path).parts) > 1 for p in files]
    if any(nested) and not all(nested):
        loose = files[nested.index(False)]
        raise UserError(
            f"{path}: has class folders and also loose images such as {loose.name}; move them into a class folder"
        )
    labels = [p.relative_to(path).parts[0] for p in files] if all(nested) else None
    ids = [p.relative_to(path).as_posix() for p in files]
    return Images(files, labels, _described(len(files), labels), ids=ids)


def _csv(path: Path) -> Images:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a UTF-8 CSV ({error}); save it as UTF-8 with a header path,label") from None
    names = {name.strip().lower(): name for name in (rows[0] if rows else {}) if name}
    column = next((names[name] for name in PATH_COLUMNS if name in names), None)
    if column is None:
        raise UserError(
            f"{path}: {'no column path' if rows else 'is empty'}; give a header path,label and a row an image"
        )
    label = next((names[name] for name in LABEL_COLUMNS if name in names), None)
    for number, row in enumerate(rows, 2):
        if not row[column] or (label and not row[label]):
            raise UserError(
                f"{path}: line {number} lacks its {column if not row[column] else label}; complete or remove it"
            )
    files = [path.parent / row[column] for row in rows]
    labels = [row[label] for row in rows] if label else None
    return Images(files, labels, _described(len(files), labels), ids=[row[column] for row in rows])


def _npz(path: Path) -> Images:
    arrays = _guarded(path, lambda: dict(np.load(path, allow_pickle=False)), "an .npz")
    pictures = next((arrays[name] for name in ("images", "x", "data") if name in arrays), None)
    if pictures is None:
        raise UserError(
            f"{path}: has no array 'images' (found: {', '.join(arrays) or 'none'}); save images= and labels="
        )
    labels = next((arrays[name] for name in ("labels", "y", "label") if name in arrays), None)
    return _array(path, pictures, labels)


def _is_idx(path: Path) -> bool:
    """Whether a file begins like an IDX file of bytes (MNIST's format), compressed or not."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            return file.read(4) in (b"\0\0\x08\x03", b"\0\0\x08\x04")
    except OSError:
        return False


def _read_idx(path: Path) -> Bytes:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        content = bytearray(file.read())  # torch wants arrays it may write to
    rank = content[3]
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _idx(path: Path) -> Images:
    """An IDX file of images; the labels beside it, under MNIST's names (`…images-idx3…` and `…labels-idx1…`), if there."""
    pictures = _guarded(path, lambda: _read_idx(path), "an IDX file")
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    labels = _guarded(beside, lambda: _read_idx(beside), "an IDX file") if beside != path and beside.is_file() else None
    return _array(path, pictures, labels)


def _guarded(path: Path, read: Callable[[], Any], what: str) -> Any:
    try:
        return read()
    except Exception:  # numpy, zip and gzip each fail in their own ways, and advise things we never do
        raise UserError(f"{path}: not {what} that can be read; write it again") from None


def _array(path: Path, pictures: NDArray[Any], labels: NDArray[Any] | None) -> Images:
    if pictures.dtype != np.uint8 or not (pictures.ndim == 3 or (pictures.ndim == 4 and pictures.shape[3] in (1, 3))):
        found = f"{pictures.dtype} of shape {pictures.shape}"
        raise UserError(f"{path}: images are {found}; give uint8 of (n, height, width) or (n, height, width, 3)")
    if len(pictures) == 0:
        raise UserError(f"{path}: is empty; give at least one image")
    if labels is not None and labels.shape != (len(pictures),):
        raise UserError(f"{path}: {len(pictures):,} images but labels of shape {labels.shape}; give one label an image")
    if labels is not None and labels.dtype.kind == "f" and np.isnan(labels).any():
        raise UserError(f"{path}: label {int(np.isnan(labels).argmax())} is NaN; give every image a label")
    names = [str(label) for label in labels.tolist()] if labels is not None else None
    if pictures.ndim == 4 and pictures.shape[3] == 1:
        pictures = pictures[..., 0]
    return Images(pictures, names, _described(len(pictures), names))
