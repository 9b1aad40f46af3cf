"""What kills, full disks and flipped bytes do to a store: nothing that matters.

    python benchmarks/faults.py                 # some minutes; prints its counts and fails at the first lost row

Each operation runs in a process of its own, on a disk that is made slow (writes in pieces with pauses), is killed with
SIGKILL at instants spread evenly between its first write and its end, and is then run again. Checked every time: what was
committed before is readable, and the final folder equals, byte for byte, the one of an unbroken run. Disks are filled for
real: a small file system, one size after the other. Needs root for that part alone.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fault_injection import Operation, arguments, broken, keep, killed, small_disk, spread_kills, unbroken_run
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from retrieval.artifact import staging_folder
from retrieval.data import Texts
from retrieval.embed import embed
from retrieval.encoder import Encoder
from retrieval.errors import UserError, is_disk_full
from retrieval.locks import LOCK
from retrieval.store import Held, Kind, Rows, append, compact, create, delete, open_store
from retrieval.store.journal import rows_left

ROWS, DIM = 3000, 64
SHARD_ROWS = 512  # small, so that an operation writes many files


def words(count: int, start: int = 0) -> Texts:
    texts = [f"w{i % 97} w{i % 89} w{i % 83}" for i in range(start, start + count)]
    return Texts(
        {"text": texts}, [str(i % 7) for i in range(count)], [f"id-{i}" for i in range(start, start + count)], ""
    )


def tiny_encoder() -> Encoder:
    """A bag of words: an encoder that is as quick as the disk."""
    torch.manual_seed(0)
    vocabulary = {f"w{i}": i for i in range(97)} | {"[UNK]": 97}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return Encoder(SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=DIM)], device="cpu"), "tiny")


def random_rows(count: int, start: int = 0) -> Rows:
    vectors = np.random.default_rng(start).normal(size=(count, DIM)).astype(np.float32)
    names = [f"id-{i}" for i in range(start, start + count)]
    return Rows(vectors, names, None, {"text": [f"text of {name}" for name in names]})


def operations(encoder: Encoder) -> list[Operation]:
    kind = Kind(DIM, metric="inner_product", normalized=False, shard_rows=SHARD_ROWS)

    def base(folder: Path) -> None:
        create(folder, Held(random_rows(ROWS)), kind)

    def worn(folder: Path) -> None:
        base(folder)
        delete(folder, [f"id-{i}" for i in range(0, ROWS, 3)])
        append(folder, Held(random_rows(700, ROWS)), kind)

    def embedded(folder: Path) -> None:
        embed(encoder, words(1000), folder, shard_rows=SHARD_ROWS)

    return [
        Operation("embed", lambda f: None, lambda f: embed(encoder, words(ROWS), f, shard_rows=SHARD_ROWS)),
        Operation("embed --append", embedded, lambda f: embed(encoder, words(ROWS, 1000), f, add=True)),
        Operation("append", base, lambda f: append(f, Held(random_rows(ROWS, ROWS)), kind)),
        Operation("replace", base, lambda f: append(f, Held(random_rows(ROWS, 1500)), kind, replace=True)),
        Operation("compact", worn, compact),
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != LOCK}


def kill_one(operation: Operation, template: Path, place: Path, want: dict[str, bytes], after: float) -> bool:
    """Kill the operation `after` seconds after its first write; whether that was inside a write. Checks everything."""
    folder = place / "store"
    if template.exists():
        shutil.copytree(template, folder)
    old = contents(folder) if folder.exists() else {}
    inside = killed(lambda: operation.act(folder), after)
    if folder.exists():  # the old generation or the new one, whole
        with open_store(folder, check=True) as store:
            found = store.load()
        assert contents(folder)["manifest.json"] in (old.get("manifest.json"), want["manifest.json"])
        assert len(found) == store.count
    elif old:
        raise AssertionError("the store is gone")
    kept = (
        staging_folder(folder) if operation.name == "embed" else folder
    )  # where an unfinished call leaves its journal
    done = rows_left(kept) if kept.exists() else 0
    told: list[int] = []
    if operation.name.startswith("embed"):
        run_again(operation, folder, told)
        assert not told or told[0] == done, f"{done} rows were committed, {told} kept"
    else:
        operation.act(folder)
    assert contents(folder) == want, f"{operation.name}: not the store of an unbroken run"
    return inside


def run_again(operation: Operation, folder: Path, told: list[int]) -> None:
    """The same embedding again, noting how many rows it keeps."""
    import retrieval.store.journal as journal

    plain = journal.Shards.__init__

    def noting(self: Any, *args: Any) -> None:
        plain(self, *args)
        told.append(self.rows)

    journal.Shards.__init__ = noting  # type: ignore[method-assign]
    try:
        operation.act(folder)
    finally:
        journal.Shards.__init__ = plain  # type: ignore[method-assign]


def kills(operation: Operation, count: int, place: Path) -> tuple[int, int]:
    """Kill an operation at `count` instants; how many, and how many of them inside a write."""
    template, unbroken = place / "template", place / "unbroken"
    for folder in (template, unbroken):
        operation.before(folder)
    span = unbroken_run(lambda: operation.act(unbroken))
    want = contents(unbroken)
    return spread_kills(lambda folder, after: kill_one(operation, template, folder, want, after), span, count, place)


def full_disks(operation: Operation, count: int, place: Path) -> tuple[int, int]:
    """Fill the disk at `count` points of an operation; how many, and how many of them failed for it, all in one error."""
    template, unbroken = place / "template", place / "unbroken"
    for folder in (template, unbroken):
        operation.before(folder)
    operation.act(unbroken)
    want = contents(unbroken)
    had = sum(map(len, contents(template).values())) // 1024 if template.exists() else 0
    most = sum(map(len, want.values())) // 1024 + 64
    failed = 0
    for kib in np.linspace(had + 16, had + most, count).astype(int).tolist():
        with small_disk(place, kib + 4 * (kib // 256)) as disk:
            folder = disk / "store"
            if template.exists():
                shutil.copytree(template, folder)
            old = contents(folder) if folder.exists() else {}
            try:
                operation.act(folder)
            except Exception as error:
                if not is_disk_full(error):
                    raise
                failed += 1
                if old:
                    with open_store(folder, check=True):
                        pass
                    assert {name: contents(folder)[name] for name in old} == old
                else:
                    assert not folder.exists()
                subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
                operation.act(folder)
            assert contents(folder) == want
    return count, failed


def flips(folder: Path, every: int) -> int:
    """Flip a bit of every `every`-th byte of every file; all must be found by verify and on opening with `check`."""
    count = 0
    for path in sorted(folder.iterdir()):
        if path.name == LOCK:
            continue
        content = bytearray(path.read_bytes())
        for offset in range(0, len(content), every):
            content[offset] ^= 1 << offset % 8
            path.write_bytes(content)
            try:
                open_store(folder, check=True)
            except UserError:
                count += 1
            else:
                raise AssertionError(f"{path.name}: byte {offset} changed and nobody noticed")
            content[offset] ^= 1 << offset % 8
        path.write_bytes(content)
    open_store(folder, check=True).close()
    return count


def main() -> None:
    asked = arguments(__doc__, kills=200, disks=40)
    torch.set_num_threads(1)
    result = broken(operations(tiny_encoder()), kills, full_disks, asked)
    with tempfile.TemporaryDirectory() as place:
        create(Path(place) / "store", Held(random_rows(3)[:3]), Kind(DIM, metric="inner_product", normalized=False))
        delete(Path(place) / "store", ["id-1"])
        result["flipped"] = flips(Path(place) / "store", 1)
        print(f"every byte of a store flipped: {result['flipped']:,}, each one noticed")
    keep(result, asked)


if __name__ == "__main__":
    main()
