"""What kills and full disks do to an index: the last published generation opens and answers as before.

    python benchmarks/index_faults.py           # some minutes; prints its counts and fails at the first wrong answer

As faults.py does it: each operation runs in a process of its own on a slow disk, is killed with SIGKILL at instants spread
evenly between its first write and its end, and is run again. Checked every time: whatever stands under the name passes
every hash, and answers as before the operation or as after it; run again, it answers as an unbroken run.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fault_injection import Operation, arguments, broken, keep, killed, small_disk, spread_kills, unbroken_run
from store import unit_rows

from retrieval.errors import is_disk_full
from retrieval.index.backend import faiss
from retrieval.index.build import build
from retrieval.index.bundle import open_index
from retrieval.index.change import add, compact, fold, merge, remove
from retrieval.index.search import hits, search
from retrieval.store import Held, Kind, Rows, create, open_store

ROWS, DIM = 3000, 32
QUERIES = 20
Answers = list[list[tuple[Any, ...]]]


def rows(count: int, start: int = 0) -> Rows:
    names = [f"id-{i}" for i in range(start, start + count)]
    return Rows(unit_rows(count, DIM, seed=start), names, None, {"text": [f"text of {name}" for name in names]})


def operations() -> list[Operation]:
    """Of the index `place/index`."""
    kind = Kind(DIM, shard_rows=512)

    def stores(place: Path) -> None:
        create(place / "store", Held(rows(ROWS)), kind)
        create(place / "more", Held(rows(800, 2600)), kind)  # 400 of these ids are new
        create(place / "new", Held(rows(800, ROWS)), kind)

    def built(place: Path, factory: str = "IVF16,Flat") -> None:
        stores(place)
        build(open_store(place / "store"), place / "index", factory=factory)

    def worn(place: Path) -> None:
        built(place)
        add(place / "index", open_store(place / "new"))
        remove(place / "index", [f"id-{i}" for i in range(0, ROWS, 3)])

    def two(place: Path) -> None:
        stores(place)
        one = build(open_store(place / "store"), place / "one", factory="IVF16,Flat")
        build(open_store(place / "new"), place / "two", trained_by=one)

    return [
        Operation("build", stores, lambda p: build(open_store(p / "store"), p / "index", factory="HNSW8")),
        Operation("add", built, lambda p: add(p / "index", open_store(p / "new"))),
        Operation("replace", built, lambda p: add(p / "index", open_store(p / "more"), replace=True)),
        Operation("remove", built, lambda p: remove(p / "index", [f"id-{i}" for i in range(0, ROWS, 2)])),
        Operation("fold", worn, lambda p: fold(p / "index")),
        Operation("compact", worn, lambda p: compact(p / "index")),
        Operation("merge", two, lambda p: merge([open_index(p / "one"), open_index(p / "two")], p / "index")),
    ]


def answers(place: Path) -> Answers | None:
    """What the index finds, every hash checked; None where there is none."""
    if not (place / "index").exists():
        return None
    index = open_index(place / "index", check=True)
    queries = np.vstack([unit_rows(QUERIES, DIM, seed=7), unit_rows(1, DIM, seed=ROWS)])
    found = [[(hit.id, round(hit.score, 5)) for hit in best] for best in hits(index, search(index, queries, 5))]
    index.rows.close()
    return found


def finished(operation: Operation, place: Path) -> bool:
    """Run again what may have been done already; a merge or build that is done is refused, and that is right."""
    if operation.name in ("build", "merge") and (place / "index").exists():
        return False
    if operation.name == "remove" and len(open_index(place / "index").rows) < ROWS:
        return False
    operation.act(place)
    return True


def kill_one(operation: Operation, template: Path, place: Path, want: Answers, after: float) -> bool:
    shutil.copytree(template, place, dirs_exist_ok=True)
    old = answers(place)
    inside = killed(lambda: operation.act(place), after)
    assert answers(place) in (old, want), f"{operation.name}: neither as before nor as after"
    finished(operation, place)
    assert answers(place) == want, f"{operation.name}: not as an unbroken run"
    return inside


def prepared(operation: Operation, place: Path) -> tuple[Path, Answers, float]:
    """A template, the answers after an unbroken run, and how long from its first write to its end."""
    template, unbroken = place / "template", place / "unbroken"
    template.mkdir()
    operation.before(template)
    shutil.copytree(template, unbroken)
    span = unbroken_run(lambda: operation.act(unbroken))
    want = answers(unbroken)
    assert want is not None and (want != answers(template) or operation.name in ("fold", "compact"))
    return template, want, span


def kills(operation: Operation, count: int, place: Path) -> tuple[int, int]:
    """Kill an operation at `count` instants; how many, and how many of them inside a write."""
    template, want, span = prepared(operation, place)
    return spread_kills(lambda folder, after: kill_one(operation, template, folder, want, after), span, count, place)


def kibibytes(folder: Path) -> int:
    """What a folder takes on a file system of 4 KiB pages."""
    return sum(-(-path.stat().st_size // 4096) * 4 for path in folder.rglob("*") if path.is_file())


def full_disks(operation: Operation, count: int, place: Path) -> tuple[int, int]:
    """Fill the disk at `count` points of an operation; how many, and how many of them failed for it, all in one error."""
    template, want, _ = prepared(operation, place)
    had, after = kibibytes(template), kibibytes(place / "unbroken")
    failed = 0
    for kib in np.linspace(had + 16, max(after, had) + 600, count).astype(int).tolist():
        with small_disk(place, kib) as disk:
            shutil.copytree(template, disk, dirs_exist_ok=True)
            old = answers(disk)
            try:
                operation.act(disk)
            except Exception as error:
                if not is_disk_full(error):
                    raise
                failed += 1
                assert answers(disk) in (old, want)
                subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
                finished(operation, disk)
            assert answers(disk) == want
    return count, failed


def alone() -> None:
    """One thread, so that processes can be forked."""
    torch.set_num_threads(1)
    faiss().omp_set_num_threads(1)


def main() -> None:
    asked = arguments(__doc__, kills=100, disks=20)
    alone()
    keep(broken(operations(), kills, full_disks, asked), asked)


if __name__ == "__main__":
    main()
