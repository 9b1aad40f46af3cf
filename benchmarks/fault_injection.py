"""The harness of faults.py and index_faults.py: an operation in a process of its own, on a disk that is slow, is killed at some instant;
or it is given a disk that is too small."""

import argparse
import builtins
import errno
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retrieval import artifact

PIECE = 16_384  # bytes written between pauses
PAUSE = 0.002  # seconds
How = Callable[["Operation", int, Path], tuple[int, int]]


@dataclass(frozen=True)
class Operation:
    """Something done to what stands in a folder: `before` makes what is there already, `act` is what gets killed."""

    name: str
    before: Callable[[Path], Any]
    act: Callable[[Path], Any]


class Clock:
    """What a child tells of its writes, in memory that outlives it: when the first began, the last ended, and whether one
    is under way."""

    LAYOUT = struct.Struct("ddq")

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, self.LAYOUT.size)

    def read(self) -> tuple[float, float, int]:
        return self.LAYOUT.unpack(self.memory[:])  # type: ignore[return-value]

    def end(self) -> None:
        """The operation is over: what it removed after its last write counts too."""
        first, _, inside = self.read()
        self.memory[:] = self.LAYOUT.pack(first, time.monotonic(), inside)

    @contextmanager
    def writing(self) -> Iterator[None]:
        first, last, _ = self.read()
        self.memory[:] = self.LAYOUT.pack(first or time.monotonic(), last, 1)
        yield
        self.memory[:] = self.LAYOUT.pack(self.read()[0], time.monotonic(), 0)


def slow_disk(clock: Clock) -> None:
    """From now on in this process: files are written in pieces with pauses, and the clock says when."""

    def slow_open(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        file = builtins.open(path, mode, *args, **options)  # noqa: SIM115
        if "w" not in mode and "a" not in mode:
            return file
        return _SlowFile(file, clock)

    for module in (artifact, sys.modules["retrieval.store.journal"]):
        module.open = slow_open  # type: ignore[attr-defined]


class _SlowFile:
    def __init__(self, file: Any, clock: Clock) -> None:
        self.file, self.clock = file, clock

    def write(self, content: Any) -> None:
        view = memoryview(content)
        for start in range(0, len(view), PIECE):
            self.file.write(view[start : start + PIECE])
            self.file.flush()
            time.sleep(PAUSE)

    def __enter__(self) -> "_SlowFile":
        self.context = self.clock.writing()
        self.context.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.context.__exit__(None, None, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def in_child(act: Callable[[], Any], clock: Clock) -> int:
    """Start `act` on a slow disk in a forked process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's idle threads; the child uses one of its own
        child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        torch.set_num_threads(1)
        slow_disk(clock)
        act()
        clock.end()
        os._exit(0)
    except BaseException as error:
        print(f"child: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)


def killed(act: Callable[[], Any], after: float) -> bool:
    """Kill `act` in a process of its own, `after` seconds after its first write; whether that was inside a write."""
    clock = Clock()
    child = in_child(act, clock)
    while clock.read()[0] == 0 and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.0002)
    time.sleep(max(0.0, clock.read()[0] + after - time.monotonic()))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return clock.read()[2] == 1


def unbroken_run(act: Callable[[], Any]) -> float:
    """Do `act` in a process of its own; the seconds from its first write to its end."""
    clock = Clock()
    child = in_child(act, clock)
    assert os.waitpid(child, 0)[1] == 0
    first, last, _ = clock.read()
    return last - first


def spread_kills(kill_one: Callable[[Path, float], bool], span: float, count: int, place: Path) -> tuple[int, int]:
    """Kill at `count` instants, spread evenly over `span` seconds; how many, and how many of them inside a write. kill_one: in an
    empty folder, so many seconds after the first write; whether that was inside one."""
    inside = 0
    for trial in range(count):
        with tempfile.TemporaryDirectory(dir=place) as folder:
            inside += kill_one(Path(folder), span * (trial + 0.5) / count)
    return count, inside


@contextmanager
def small_disk(place: Path, kib: int) -> Iterator[Path]:
    """A file system of so many KiB. Raises PermissionError without root."""
    folder = Path(tempfile.mkdtemp(dir=place))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder], capture_output=True).returncode:
        raise PermissionError(errno.EPERM, "mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def arguments(about: str | None, kills: int, disks: int) -> argparse.Namespace:
    """What the command line asks for; so many of each unless it says."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=kills, help="of each operation")
    parser.add_argument("--disks", type=int, default=disks, help="sizes of a full disk for each operation")
    parser.add_argument("--json", type=Path, help="also write the counts here")
    return parser.parse_args()


def broken(operations: Sequence[Operation], kills: How, full_disks: How, asked: argparse.Namespace) -> dict[str, Any]:
    """Kill each operation and fill its disks, as often as asked; the counts, which are printed too."""
    result: dict[str, Any] = {}
    for operation in operations:
        for what, how, count in (("killed", kills, asked.kills), ("disk full", full_disks, asked.disks)):
            with tempfile.TemporaryDirectory() as place:
                started = time.monotonic()
                total, hit = how(operation, count, Path(place))
                result[f"{operation.name}: {what}"] = [total, hit]
                said = "inside a write" if what == "killed" else "ran out of space"
                print(
                    f"{operation.name:<16}{what:<11}{total:>5} times, {hit} {said}; {time.monotonic() - started:.0f} s"
                )
    return result


def keep(result: dict[str, Any], asked: argparse.Namespace) -> None:
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n")
