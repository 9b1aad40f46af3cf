"""Folders of image files: one folder a class, or none."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from retrieval.errors import UserError

from .items import Images, described

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def is_picture_name(name: str) -> bool:
    """Whether a file is a picture by the end of its name; hidden ones are none, such as those that macOS adds."""
    last = PurePosixPath(name)
    return last.suffix.lower() in ENDINGS and not last.name.startswith(".")


def files_below(path: Path) -> list[Path]:
    """The pictures of a folder and the folders in it, sorted. Raises UserError where there are none."""
    files = sorted(p for p in path.rglob("*") if is_picture_name(p.name) and p.is_file())
    if not files:
        raise UserError(
            f"{path}: holds no images ({', '.join(ENDINGS)}); give one folder a class, or a folder of images"
        )
    return files


def read_folder(path: Path) -> Images:
    """Labelled by the first folder below `path`, if the pictures stand in folders."""
    files = files_below(path)
    ids = [p.relative_to(path).as_posix() for p in files]
    labels = labels_by_folder(path, ids)
    return Images(list(files), labels, described(len(files), labels), ids=ids)


def labels_by_folder(source: Path, names: Sequence[str]) -> list[str] | None:
    """The first folder of each name, None if none stands in one. Raises UserError where some do and some do not."""
    nested = ["/" in name for name in names]
    if not all(nested):
        if any(nested):
            loose = PurePosixPath(names[nested.index(False)]).name
            raise UserError(
                f"{source}: has class folders and also loose images such as {loose}; move them into a class folder"
            )
        return None
    return [name.partition("/")[0] for name in names]
