"""Folders of image files: one folder a class, or none."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from retrieval.errors import UserError

from .items import Images, described

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff")


def is_picture_name(name: str) -> bool:
    """Whether a file is a picture by the end of its name; hidden ones are none, such as those that macOS adds."""
    last = PurePosixPath(name)
    return last.suffix.lower() in ENDINGS and not last.name.startswith(".")


def files_below(path: Path) -> list[Path]:
    """The pictures of a folder and the folders in it, sorted. Raises UserError where there are none."""
    return _told_apart(path)[0]


def read_folder(path: Path, *, captions: bool = False, labels: bool = True) -> Images:
    """Labelled by the first folder below `path`, if the pictures stand in folders. captions, labels: whether they are kept."""
    files, others = _told_apart(path)
    told = [caption_beside(file) for file in files] if captions else []
    others[".txt"] -= sum(map(bool, told))
    ids = [p.relative_to(path).as_posix() for p in files]
    classes = labels_by_folder(path, ids) if labels else None
    left = f"; not read: {_told(others)}" if +others else ""  # such as a phone's .heic, perhaps all of a class
    origin = described(len(files), classes, told) + left
    return Images(list(files), classes, origin, ids=ids, captions=told if any(told) else None)


def caption_beside(picture: Path) -> str:
    """What the text of the same name says, "" where there is none. Raises UserError for one that is not UTF-8."""
    text = picture.with_suffix(".txt")
    try:
        return text.read_text("utf-8-sig").strip() if text.is_file() else ""
    except UnicodeDecodeError:
        raise UserError(f"{text}: is not UTF-8; convert it, for instance with iconv") from None


def _told(others: Counter[str]) -> str:
    return ", ".join(f"{count:,} {ending}" for ending, count in (+others).most_common(5))


def _told_apart(path: Path) -> tuple[list[Path], Counter[str]]:
    """The pictures below a folder, sorted, and how many others of which endings there are. What is hidden counts as neither."""
    pictures: list[Path] = []
    others: Counter[str] = Counter()
    for file in walked(path):
        ending = file.suffix.lower() or file.name
        if not file.is_file():
            others[f"{ending} (a broken link)"] += file.is_symlink()
        elif is_picture_name(file.name):
            pictures.append(file)
        else:
            others[ending] += 1
    if not pictures:
        there = f"; found {_told(others)}" if +others else ""
        raise UserError(
            f"{path}: holds no images ({', '.join(ENDINGS)}{there}); give one folder a class, or a folder of images"
        )
    return sorted(pictures), others


def walked(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """What stands in a folder and the folders in it, but for folders themselves and what is hidden. Links are followed, unless
    they lead back to one of the folders above."""
    above = (*above, os.path.realpath(folder))
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
        elif os.path.realpath(path) not in above:
            yield from walked(path, above)


def labels_by_folder(source: Path, names: Sequence[str]) -> list[str] | None:
    """The first folder of each name, None if none stands in one. Raises UserError where some do and some do not."""
    nested = ["/" in name for name in names]
    if not all(nested):
        if any(nested):
            loose = PurePosixPath(names[nested.index(False)]).name
            raise UserError(
                f"{source}: has class folders and also loose images such as {loose}; move them into a class folder, or leave "
                f"labels out: --no-labels of embed and train image"
            )
        return None
    return [name.partition("/")[0] for name in names]
