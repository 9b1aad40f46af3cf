"""The new shards of a change that is not committed yet, and the journal that lets a killed change go on."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retrieval.artifact import sha256_file, sha256_json, write_atomically

from .shard import shard_name

JOURNAL = "pending.jsonl"
Entry = dict[str, Any]  # what a manifest needs to know of a shard


class Shards:
    """Shards are durable one by one and in any order; a line of the journal says so, with the hash of each.

    The same plan called again finds what is done; anything else that an earlier call left is dropped from the journal.
    """

    def __init__(self, folder: Path, plan: str, first: int) -> None:
        self.folder, self.first = folder, first
        head, entries = read_journal(folder)
        same = head == {"plan": plan, "first": first}
        self.done: dict[int, Entry] = {n: e for n, e in entries.items() if _whole(folder, first + n, e)} if same else {}
        lines = [{"plan": plan, "first": first}, *({"number": n, "entry": e} for n, e in self.done.items())]
        write_atomically(folder / JOURNAL, b"".join(map(_line, lines)))

    def name(self, number: int) -> str:
        """The file of the change's shard `number`, counted from 0."""
        return shard_name(self.first + number)

    def path(self, number: int) -> Path:
        return self.folder / self.name(number)

    def add(self, number: int, entry: Entry) -> None:
        """List a shard that stands whole under its name, whoever wrote it."""
        with open(self.folder / JOURNAL, "ab") as file:
            file.write(_line({"number": number, "entry": entry}))
            file.flush()
            os.fsync(file.fileno())
        self.done[number] = entry

    @contextmanager
    def leaving_nothing(self) -> Iterator[None]:
        """A block that leaves no journal if it fails before a shard is done: there is nothing to go on from."""
        try:
            yield
        finally:
            if not self.done:
                (self.folder / JOURNAL).unlink(missing_ok=True)

    @property
    def rows(self) -> int:
        return sum(entry["rows"] for entry in self.done.values())


def read_journal(folder: Path) -> tuple[Entry, dict[int, Entry]]:
    """The head of a journal ({} if there is none) and its entries by number; a torn or damaged line counts for nothing."""
    lines = list(_intact_lines(folder / JOURNAL))
    if not lines or "plan" not in lines[0]:
        return {}, {}
    return lines[0], {line["number"]: line["entry"] for line in lines[1:]}


def rows_left(folder: Path, next_part: int = 0) -> int:
    """How many rows an interrupted change has already written. next_part: of the store that stands in the folder, if one does; a
    journal that begins below is of a change that is done."""
    head, entries = read_journal(folder)
    return sum(entry["rows"] for entry in entries.values()) if head.get("first", 0) >= next_part else 0


def _whole(folder: Path, number: int, entry: Entry) -> bool:
    path = folder / shard_name(number)
    return path.is_file() and path.stat().st_size == entry["bytes"] and sha256_file(path) == entry["sha256"]


def _line(content: Entry) -> bytes:
    return f"{sha256_json(content)} {json.dumps(content)}\n".encode()


def _intact_lines(path: Path) -> Iterator[Entry]:
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        stated, _, text = line.partition(b" ")
        try:
            content = json.loads(text)
        except ValueError:
            continue
        if stated == sha256_json(content).encode():
            yield content
