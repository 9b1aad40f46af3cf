"""Artifacts on disk: folders that name themselves.

A folder of ours holds a `manifest.json`, written last, with what made it, its counts, and the size and hash of every file.
A folder under its final name is therefore always whole: it is filled beside that name and renamed at the end.
"""

import ctypes
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from retrieval import __version__
from retrieval.errors import UserError
from retrieval.locks import LOCK, sole_writer

MANIFEST = "manifest.json"
RUN_KIND = "run"  # an artifact that holds an encoder and how it was trained
FORMATS = {"store": 2, "index": 3}  # of the kinds that changed since their first format, 1
HASHED_ON_OPENING = 1 << 30  # bytes of an artifact that are always hashed when it is opened, in a second or so
REMEDIES = {
    "store": "; `retrieval embed` makes one",
    "index": "; `retrieval index build` makes one",
    "run": "; `retrieval train` makes one",
    "evaluation": "; `retrieval eval` with --output makes one",
}
Manifest = dict[str, Any]


def refuse_unfinished(final: Path) -> None:
    """Raise UserError where what makes `final` has begun, and it does not stand there yet."""
    if not final.exists() and staging_folder(final).is_dir():
        raise UserError(
            f"{final}: is not finished: what makes it was interrupted, or still runs; the same command again goes on"
        )


def staging_folder(final: Path) -> Path:
    """Where the parts of `final` are written until it is whole: beside it, so that the last step is a rename; if it is a link,
    beside what that points to."""
    final = final.resolve()
    return final.parent / f".{final.name}.partial"


@contextmanager
def creating(final: Path, kind: str, overwrite: bool = False, resume: bool = False) -> Iterator[tuple[Path, Manifest]]:
    """Fill a new artifact: yields (staging folder, manifest fields); on success seals it and renames it to `final`.

    An error leaves nothing under the final name. With `resume` the staging folder outlives the error, and the next call
    finds it as it was. Raises UserError if `final` exists and is not an empty folder, unless `overwrite` is set.
    """
    old = _aside(final.resolve())
    if old.exists() and not final.exists():  # an overwrite was killed where names cannot be exchanged
        old.rename(final.resolve())
    refuse_to_clobber(final, kind, overwrite)
    final, staging = final.resolve(), staging_folder(final)
    if _is_around_us(final):
        raise UserError(f"--output {final}: is the folder that you are in, or one above; name another, or go out of it")
    staging.mkdir(parents=True, exist_ok=True)
    with sole_writer(staging):
        try:
            refuse_to_clobber(final, kind, overwrite)  # again: another process may just have finished it
            if not resume:
                empty(staging)
            fields: Manifest = {}
            yield staging, fields
            _make_readable(staging)
            seal(staging, kind, fields)
        except BaseException:
            if not resume or (staging.is_dir() and all(path.name == LOCK for path in staging.iterdir())):
                shutil.rmtree(staging, ignore_errors=True)
            raise
        _replace_folder(staging, final)


def _is_around_us(folder: Path) -> bool:
    """Whoever is in a folder that is replaced is nowhere."""
    try:
        return Path.cwd().is_relative_to(folder)
    except FileNotFoundError:  # and so we are already
        return False


def settle(staging: Path, base: Manifest, what: str, left: str, overwrite: bool) -> None:
    """Make a staging folder one of a job with this `base`: what an interrupted call left stays if it had the same, and is removed if
    nothing of it is finished. Raises UserError where what another job has `left`, in words, would be lost, unless `overwrite` is set."""
    stated = staging / "base.json"
    told = json.dumps(base, sort_keys=True)
    if stated.exists() and stated.read_text("utf-8") == told:
        return
    if left and stated.exists() and not overwrite:
        raise UserError(
            f"--output: an interrupted {what} of other data or settings left {left} there; run that again, choose another "
            f"place, or begin anew with --overwrite"
        )
    empty(staging)
    stated.write_text(told, "utf-8")


def empty(folder: Path) -> None:
    """Remove what is in a folder of ours, but for its lock."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def refuse_to_clobber(final: Path, kind: str, overwrite: bool) -> None:
    """Raise UserError where writing to `final` would destroy something that is not ours to destroy."""
    if not final.exists():
        return
    if not final.is_dir():
        raise UserError(f"{final}: is a file; name a folder for the {kind}")
    if not any(final.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{final}: already exists; choose another --output, or replace it with --overwrite")
    if not (final / MANIFEST).exists():
        raise UserError(
            f"{final}: holds files that retrieval did not write, so --overwrite leaves it alone; empty it yourself"
        )
    found = stated_kind(final)
    if found not in (None, kind):
        raise UserError(f"{final}: is of kind {found}, which --overwrite leaves alone; choose another --output")
    with sole_writer(final):  # better now than after an hour's work
        pass


def stated_kind(folder: Path) -> str | None:
    """What a folder's manifest says that it is; None if there is none, or it cannot be read."""
    try:
        return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _replace_folder(staging: Path, final: Path) -> None:
    if final.exists():  # rename(2) replaces only empty folders
        old = _aside(final)
        shutil.rmtree(old, ignore_errors=True)
        with sole_writer(final):  # whoever is changing it would go on in the new one
            if _exchanged(staging, final):
                staging.rename(old)
            else:
                final.rename(old)
                staging.rename(final)
        shutil.rmtree(old)
    else:
        staging.rename(final)
    sync_folder(final.parent)


def _aside(final: Path) -> Path:
    return final.parent / f".{final.name}.old"


def _exchanged(one: Path, other: Path) -> bool:
    """Let two folders change names in one step, so that at no instant there is none; False where the system has no way to (Linux has)."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    at, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(at, os.fsencode(one), at, os.fsencode(other), exchange) == 0


def _make_readable(folder: Path) -> None:
    """Give every file the mode that open() would have given it: safetensors writes for its owner alone. Files with another name
    elsewhere, which an index shares with a store, are left as they are."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_nlink == 1:
            path.chmod(0o666 & ~mask)


def seal(folder: Path, kind: str, fields: Manifest) -> None:
    """Write the manifest of a finished folder, last and atomically: format, what made it, `fields`, the size and sha256 of
    each file (hashed here unless `fields` has them), its own hash."""
    manifest: Manifest = {
        "kind": kind,
        "format": FORMATS.get(kind, 1),
        "made_by": environment(),
        **fields,
        "files": fields["files"] if "files" in fields else _hash_files(folder),
    }
    write_sealed(folder / MANIFEST, manifest)


def _hash_files(folder: Path) -> Manifest:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (MANIFEST, LOCK))
    return {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in files}


def write_sealed(path: Path, fields: Manifest) -> None:
    """Write plain data as JSON that carries its own hash, atomically."""
    content = {**fields, "sha256": sha256_json(fields)}
    # Half a surrogate pair, as in a file name that is not UTF-8, becomes its escape, which JSON reads back.
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False).encode(errors="backslashreplace"))


def read_sealed(path: Path) -> Manifest | None:
    """What `write_sealed` wrote, without the hash; None if it was damaged, or is not of that kind."""
    try:
        fields: Manifest = json.loads(path.read_text(encoding="utf-8"))
        return fields if fields.pop("sha256") == sha256_json(fields) else None
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def now() -> str:
    """The time, for manifests."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_manifest(folder: Path, kind: str, *, check: bool = False, trusted: bool = False) -> Manifest:
    """The manifest of one of our folders, checked: kind, format, its own hash, every file present with its size.

    Up to 1 GiB in all every file's content is checked too, unless it is `trusted` as just written; beyond, only with `check`.
    Raises UserError, naming the file and the remedy, for anything that does not match.
    """
    manifest = read_statement(folder, kind)
    path = folder / MANIFEST
    for name, stated in manifest["files"].items():
        part = member(folder, name)
        if not part.is_file():
            raise UserError(f"{part}: missing, though {path} lists it; make the {kind} again")
        if part.stat().st_size != stated["bytes"]:
            found = part.stat().st_size
            raise UserError(
                f"{part}: has {found} bytes where the manifest says {stated['bytes']}; make the {kind} again"
            )
    size = sum(stated["bytes"] for stated in manifest["files"].values())
    if check or (size <= HASHED_ON_OPENING and not trusted):
        verify(folder, manifest["kind"], manifest["files"])
    return manifest


def read_statement(folder: Path, kind: str) -> Manifest:
    """The manifest alone, its files unseen: kind, format, its own hash."""
    path = folder / MANIFEST
    if not folder.is_dir() or not path.is_file():
        raise UserError(f"{folder}: not a retrieval {kind} (no {MANIFEST}); give a folder that `retrieval` made")
    manifest = read_sealed(path)
    if manifest is None:
        raise UserError(f"{path}: damaged or edited by hand (its hash does not match); make it again")
    if manifest.get("kind") != kind:
        found = manifest.get("kind")
        raise UserError(f"{folder}: is of kind {found}, not {kind}{REMEDIES.get(kind, '')}")
    ours = FORMATS.get(kind, 1)
    if manifest["format"] > ours:
        raise UserError(f"{folder}: format {manifest['format']} is newer than this program reads; upgrade retrieval")
    if manifest["format"] < ours:
        raise UserError(
            f"{folder}: format {manifest['format']} is older than this program reads; make the {kind} again"
        )
    return manifest


def verify(folder: Path, kind: str, files: dict[str, Any]) -> None:
    """Hash files of an artifact; raises UserError at the first that differs from what its manifest says."""
    for name, stated in files.items():
        part = member(folder, name)
        if sha256_file(part) != stated["sha256"]:
            raise UserError(f"{part}: its content does not match the manifest's hash; make the {kind} again")


def damaged(folder: Path, files: dict[str, Any]) -> list[str]:
    """The names of all files that are missing or differ from what the manifest says."""
    parts = {name: member(folder, name) for name in files}
    return [n for n, part in parts.items() if not part.is_file() or sha256_file(part) != files[n]["sha256"]]


def member(folder: Path, name: str) -> Path:
    """The path of a manifest's entry, which must lie inside the folder, links followed."""
    pure = PurePosixPath(name)
    path = folder / pure
    if pure.is_absolute() or ".." in pure.parts or not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder / MANIFEST}: entry {name!r} points outside the folder; do not use this artifact")
    return path


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a reader sees the old content or the new, never a part: temp, fsync, rename."""
    with writing_atomically(path) as file:
        file.write(content)


@contextmanager
def writing_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when the block ends, and not at all if it fails."""
    require_folder_of(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    sync_folder(path.parent)


def require_folder_of(path: Path) -> None:
    """Raise UserError where a file has no folder to stand in."""
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it, or choose another place")


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """A hash of plain data, the same for the same values in any key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def environment() -> dict[str, str]:
    """Versions of what shaped an artifact."""
    found = {"retrieval": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for package in (
        "torch",
        "sentence-transformers",
        "transformers",
        "numpy",
        "h5py",
        "faiss-cpu",
        "faiss-gpu",
        "faiss-gpu-cuvs",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
