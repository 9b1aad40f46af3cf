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
        if _still_there(descriptor, folder / LOCK):
            break
        os.close(descriptor)  # the folder was renamed between the two calls
    try:
        yield
    finally:
        os.close(descriptor)


def _still_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def start_reading(folder: Path) -> int:
    """A descriptor of the folder that tells writers that someone reads it, until it is closed."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    # On a file system without locks old files may go while we read: an error then, never a wrong row.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits only while old files are being removed
    return descriptor


@contextmanager
def nobody_reading(folder: Path) -> Iterator[bool]:
    """Whether no reader has the folder open; none can begin before the block ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except OSError:
            alone = False
        yield alone
    finally:
        os.close(descriptor)
