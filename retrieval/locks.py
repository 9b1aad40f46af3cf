"""Who may write, and who is reading: advisory locks of the kernel, which end with their process however it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from retrieval.errors import UserError

LOCK = ".lock"


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold the right to write to a folder. Raises UserError at once if another process (or thread) holds it."""
    while True:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(f"{folder}: another process is writing to it; wait until it is done") from None
        except OSError as error:
            os.close(descriptor)
            raise UserError(f"{folder}: its file system has no locks ({error}); write to another place") from None
        if still_there(descriptor, folder / LOCK):
            break
        os.close(descriptor)  # the folder was renamed between the two calls
    try:
        yield
    finally:
        os.close(descriptor)


def still_there(descriptor: int, path: Path) -> bool:
    """Whether a path still leads to the file that was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def start_reading(folder: Path, manifest: str) -> tuple[int, int]:
    """Descriptors of a folder and of its manifest; the second tells writers that someone reads this generation, until it is closed.

    The manifest's name stands for another file after the next change. Raises FileNotFoundError where there is none.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # On a file system without locks old files may go while we read: an error then, never a wrong row.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits only while old files are being removed
        generation = os.open(manifest, os.O_RDONLY, dir_fd=descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    with suppress(OSError):
        fcntl.flock(generation, fcntl.LOCK_SH)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    return descriptor, generation


@contextmanager
def no_reader_beginning(folder: Path) -> Iterator[bool]:
    """Whether nobody is just beginning to read; none can before the block ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _alone(descriptor)
    finally:
        os.close(descriptor)


def is_read(manifest: Path) -> bool:
    """Whether someone reads the generation of a manifest."""
    descriptor = os.open(manifest, os.O_RDWR)  # which the locks of a network's file system ask for
    try:
        return not _alone(descriptor)
    finally:
        os.close(descriptor)


def _alone(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
