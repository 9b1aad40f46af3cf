"""Tar files of pictures: shards as WebDataset writes them, or folders packed as they were. Nothing is unpacked.

A tar's headers are read once, and each picture later from its place in the file. A member's name is only a name: it is never
used as a path.
"""

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from retrieval.data import LABEL_COLUMNS
from retrieval.data.columns import one_text
from retrieval.errors import UserError, first_line

from .folders import ENDINGS, is_picture_name, labels_by_folder, walked
from .items import Images, described
from .picture import Picture, Span
from .tables import CAPTION_COLUMNS, as_caption

UNPACKED_BY = {  # what is compressed, by its ending, and what makes a tar of it
    **dict.fromkeys((".tar.gz", ".tgz"), "gunzip"),
    **dict.fromkeys((".tar.bz2", ".tbz2"), "bunzip2"),
    **dict.fromkeys((".tar.xz", ".txz"), "unxz"),
    **dict.fromkeys((".tar.zst", ".tzst"), "unzstd"),
}
CAPTIONS = ("txt", "caption")
SIDECARS = ("cls", "json", *CAPTIONS)
SIDECAR_BYTES = 1 << 20
BLOCK = 512  # bytes of a header, and what a tar is padded to


@dataclass(frozen=True)
class Sample:
    """A picture, and what stands beside it under the same key by its ending (`cls`, `txt`, `caption`, `json`)."""

    picture: Span
    beside: dict[str, Span]


def is_shards(path: Path) -> bool:
    """Whether a path is a tar file, or a folder that holds some and no pictures."""
    if path.is_dir():
        return any(_is_tar(p.name) for p in path.iterdir()) and not any(is_picture_name(p.name) for p in walked(path))
    return path.is_file() and _is_tar(path.name)


def _is_tar(name: str) -> bool:
    return name.lower().endswith((".tar", *UNPACKED_BY)) and not name.startswith(".")


def read_samples(path: Path) -> list[Sample]:
    """Every picture of a tar or of a folder of tars, in order. Raises UserError for what cannot be read by seeking."""
    shards = sorted(p for p in path.iterdir() if _is_tar(p.name)) if path.is_dir() else [path]
    samples = [sample for shard in shards for sample in _grouped(shard)]
    if not samples:
        raise UserError(f"{path}: holds no images ({', '.join(ENDINGS)}); pack some")
    return samples


def read_shards(path: Path, *, captions: bool = False, labels: bool = True) -> Images:
    """Labelled by `.cls` or by a label in `.json` if pictures have those, else by their folders in the tar if there are any.

    captions, labels: whether they are kept.
    """
    samples = read_samples(path)
    source: list[Picture] = [sample.picture for sample in samples]
    ids = names_of(path, samples)
    classes = _classes(path, samples) if labels else None
    told = [as_caption(captions_of(sample)) for sample in samples] if captions else []
    return Images(source, classes, described(len(source), classes, told), ids=ids, captions=told if any(told) else None)


def names_of(path: Path, samples: Sequence[Sample]) -> list[str]:
    """The pictures' names, below those of their tars if those are several."""
    names = [sample.picture.name for sample in samples]
    return [f"{s.picture.file.name}/{name}" for s, name in zip(samples, names, strict=True)] if path.is_dir() else names


def _grouped(shard: Path) -> Iterator[Sample]:
    """The pictures of a tar, each with its sidecars."""
    spans = members(shard)
    beside: dict[str, dict[str, Span]] = {}
    pictures: list[Span] = []
    for span in spans.values():
        key, ending = _key(span.name)
        if ending in SIDECARS:
            beside.setdefault(key, {})[ending] = span
        elif is_picture_name(span.name):
            pictures.append(span)
    known: dict[str, str] = {}
    for span in pictures:
        key, _ = _key(span.name)
        if key in known and key in beside:
            raise UserError(
                f"{shard}: {known[key]} and {span.name} share what describes {key}; pack one picture under each name"
            )
        known[key] = span.name
        yield Sample(span, beside.get(key, {}))


def _key(name: str) -> tuple[str, str]:
    """A member's name up to the first dot of its last part, and what follows the dot."""
    folder, slash, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


def members(shard: Path) -> dict[str, Span]:
    """The files in a tar by name. Raises UserError for one that is compressed, damaged or cut off."""
    return _members(shard, shard.stat().st_mtime_ns)


@lru_cache(64)
def _members(shard: Path, stamp: int) -> dict[str, Span]:
    packed = next((ending for ending in UNPACKED_BY if shard.name.lower().endswith(ending)), None)
    if packed:
        raise UserError(
            f"{shard}: is compressed, so that no picture can be read alone; make a .tar of it by `{UNPACKED_BY[packed]} {shard}`"
        )
    try:
        with tarfile.open(shard, "r:") as archive:
            spans = dict(_spans(shard, archive))
            _refuse_rest(shard, archive.offset)
    except UserError:
        raise
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(f"{shard}: not a whole tar ({first_line(error)}); bring it here again") from None
    return spans


def _spans(shard: Path, archive: tarfile.TarFile) -> Iterator[tuple[str, Span]]:
    size, seen = shard.stat().st_size, set()
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # it would keep all headers
        name = member.name.removeprefix("./")
        if (member.issym() or member.islnk()) and is_picture_name(name):
            raise UserError(f"{shard}: {name} is a link; pack the pictures themselves (tar --dereference)")
        if not member.isreg():
            continue
        if member.issparse() or member.offset_data + member.size > size:
            how = "is sparse" if member.issparse() else "is cut off"
            raise UserError(f"{shard}: {name} {how}; pack it, or bring it here, again")
        if name != name.encode(errors="replace").decode() or "\n" in name:
            raise UserError(f"{shard}: a member is called {name!a}; give it a name of one line in UTF-8")
        if name in seen:
            raise UserError(f"{shard}: {name} stands in it more than once; pack each name once")
        seen.add(name)
        yield name, Span(shard, name, member.offset_data, member.size)


def _refuse_rest(shard: Path, offset: int) -> None:
    """Raise UserError unless the headers end as a tar does: tarfile also stops at one that is damaged or cut off."""
    with open(shard, "rb") as file:
        file.seek(offset)
        end = file.read(BLOCK)
        if len(end) < BLOCK or any(end):
            raise UserError(f"{shard}: is cut off or damaged at byte {offset:,}; bring it here again")
        while rest := file.read(1 << 20):
            if any(rest):
                raise UserError(f"{shard}: goes on after its end, as tars do that were put together; give each alone")


def _classes(path: Path, samples: Sequence[Sample]) -> list[str] | None:
    return _labels(samples) if any(sample.beside for sample in samples) else _by_folders(path, samples)


def _by_folders(path: Path, samples: Sequence[Sample]) -> list[str] | None:
    """The first folder below those that all pictures share, as unpacking and pointing there would give."""
    parts = [sample.picture.name.split("/")[:-1] for sample in samples]
    shared = 0
    while all(len(each) > shared and each[shared] == parts[0][shared] for each in parts):
        shared += 1
    return labels_by_folder(path, ["/".join(s.picture.name.split("/")[shared:]) for s in samples])


def _labels(samples: Sequence[Sample]) -> list[str] | None:
    """Of each picture, if any has one. Raises UserError for one that has none then."""
    labels = [_label(sample) for sample in samples]
    if not any(labels):
        return None
    for sample, label in zip(samples, labels, strict=True):
        if not label:
            raise UserError(f"{sample.picture}: has no label beside it, as others have; give every picture a .cls")
    return [label for label in labels if label]


def _label(sample: Sample) -> str | None:
    if "cls" in sample.beside:
        return sidecar(sample.beside["cls"])
    fields = fields_of(sample)
    named = next((name for name in LABEL_COLUMNS if fields.get(name) is not None), None)
    return None if named is None else one_text(str(sample.beside["json"]), named, fields[named])


def captions_of(sample: Sample) -> list[Any]:
    """What stands beside a picture: .txt, .caption, or a caption, or several, in .json; nothing where there is none."""
    ending = next((each for each in CAPTIONS if each in sample.beside), None)
    if ending:
        return [sidecar(sample.beside[ending])]
    fields = fields_of(sample)
    cell: Any = next((fields[name] for name in CAPTION_COLUMNS if fields.get(name)), [])
    return cell if isinstance(cell, list) else [cell]


def sidecar(span: Span) -> str:
    """A small text in a tar."""
    if span.size > SIDECAR_BYTES:
        raise UserError(f"{span}: has {span.size:,} bytes; keep what describes a picture below {SIDECAR_BYTES:,}")
    with open(span.file, "rb") as file:
        file.seek(span.start)
        try:
            return file.read(span.size).decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise UserError(f"{span}: is not UTF-8; convert it") from None


def fields_of(sample: Sample) -> dict[str, Any]:
    """What `.json` says of a picture; nothing where there is none."""
    if "json" not in sample.beside:
        return {}
    text = sidecar(sample.beside["json"])
    try:
        found = json.loads(text)
    except ValueError:
        raise UserError(f"{sample.beside['json']}: is not JSON; write an object") from None
    if not isinstance(found, dict):
        raise UserError(f'{sample.beside["json"]}: is no JSON object; write one such as {{"label": …}}')
    return found
