"""The index bundle on disk: the rows of a store, and a FAISS index over them.

INDEX/index.faiss      opens with plain faiss.read_index; its ids number all rows ever written, deleted ones too
INDEX/part-00000.h5    what the rows are, vectors included: shards of a store, linked from the one that it was built from
INDEX/manifest.json    a store's, and under "index": factory, tuned parameters, measured recall, how many rows FAISS covers

Rows that FAISS does not cover yet are searched exactly, and deleted ones are passed over: every type takes changes.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from retrieval.artifact import Manifest, writing_atomically
from retrieval.cpus import usable_memory
from retrieval.errors import UserError
from retrieval.store import Rows, Store, open_store
from retrieval.store.ids import hashes

from .backend import faiss, faiss_metric
from .kinds import Abilities, abilities

if TYPE_CHECKING:  # torch, which what is only said of an index need not wait for
    from retrieval.neighbors import Base, Ints

KIND = "index"
FIRST_FILE = "index.faiss"
KEPT_UP_TO = 1 << 30  # bytes of vectors that exact search holds a packed copy of
# Ends "why" of an index that was imported from codes.
DECODED = ", its vectors as its codes give them back: recall and scores are of these"
LATE_HELD = 2**21  # numbers, of 8 bytes: as many as one query may be compared with (search.LATE_SCORED)
MAPPED_FROM = 0.5  # of the memory that there is: larger indexes are mapped instead of read


@dataclass(frozen=True)
class Index:
    """One generation of an index, opened for searching.

    device: "cpu", or GPUs as in "cuda" or "cuda:0,cuda:1": a whole copy on each, or with `shards` a part on each.
    """

    rows: Store
    device: str = "cpu"
    shards: bool = False

    @property
    def folder(self) -> Path:
        return self.rows.folder

    @property
    def manifest(self) -> Manifest:
        return self.rows.manifest

    @cached_property
    def mark(self) -> str:
        """Tells this generation from all others, those of an index that it took the place of included: they are numbered alike."""
        return self.rows.manifest_hash[:12]

    @cached_property
    def about(self) -> Manifest:
        """file, factory, covers, search, measured and what else the manifest says of the FAISS index."""
        return dict(self.manifest["index"])

    @cached_property
    def metric(self) -> str:
        return str(self.manifest["metric"])

    @property
    def measure(self) -> str:
        """What is computed: of unit vectors the cosine is the inner product."""
        return "inner_product" if self.metric == "cosine" else self.metric

    @cached_property
    def exact(self) -> bool:
        """Whether every vector is compared."""
        return bool(self.about["factory"] == "Flat")

    @cached_property
    def faiss(self) -> Any:
        """The FAISS index, read on first use."""
        with self.rows.open_file(self.about["file"]) as file:
            found = read_faiss(file)
        if (found.ntotal, found.d) != (self.about["covers"], self.rows.dim):
            raise UserError(
                f"{self.folder / self.about['file']}: holds {found.ntotal:,} × {found.d} where the manifest says "
                f"{self.about['covers']:,} × {self.rows.dim}; build the index again"
            )
        return found

    @cached_property
    def abilities(self) -> Abilities:
        return abilities(self.faiss)

    @cached_property
    def engine(self) -> Any:
        """The FAISS index as it is searched: on its device; on the CPU what coded vectors find is scored again from the
        stored ones inside FAISS, where those can be mapped as one table."""
        if self.device != "cpu":
            from .gpu import to_gpus

            return to_gpus(self.faiss, self.device, shards=self.shards)
        able = self.abilities
        table = self.rows.table(self.about["covers"]) if able.coded and not able.refined else None
        return self.faiss if table is None else refined(self.faiss, table, self.rows.dtype, self.metric)

    @cached_property
    def rescored(self) -> bool:
        """Whether its scores are approximate, so that candidates must be scored again after FAISS."""
        return self.abilities.coded and (self.device != "cpu" or self.engine is self.faiss)

    @cached_property
    def calls(self) -> dict[tuple[tuple[str, int], ...], Any]:
        """FAISS's parameters of calls, by their settings: making them takes as long as a short search."""
        return {}

    @cached_property
    def covered(self) -> int:
        """How many of the live rows FAISS covers; they come first."""
        ordinals = self.rows.ordinals
        covers = int(self.about["covers"])
        return min(covers, self.rows.count) if ordinals is None else int(np.searchsorted(ordinals, covers))

    @cached_property
    def forgotten(self) -> NDArray[np.bool_]:
        """(covered,) which rows a graph has forgotten for the time being, so that nothing else is to find them: forget.py sets them."""
        return np.zeros(self.covered, bool)

    @cached_property
    def late(self) -> NDArray[np.float64] | None:
        """The vectors (n, d) of the live rows that FAISS does not cover, for queries that come one by one; None where they are many."""
        rows = np.arange(self.covered, self.rows.count)
        return self.rows.take(rows).astype(np.float64) if len(rows) * self.rows.dim <= LATE_HELD else None

    @cached_property
    def labels(self) -> tuple[dict[str, int], NDArray[np.int32]]:
        """The labels that there are, numbered, and the number of each row's (n,). Raises UserError where there are none."""
        if "labels" not in self.manifest["columns"]:
            raise UserError(f"{self.folder}: its items have no labels")
        known: dict[str, int] = {}
        held = (label for shard in range(len(self.rows.shards)) for label in self.rows.column(shard, "labels"))
        codes = np.fromiter((known.setdefault(label, len(known)) for label in held), np.int32, self.rows.count)
        return known, codes

    @cached_property
    def marks(self) -> NDArray[np.int64]:
        """(n,) hashes of the ids, by which few rows are left to look for one in."""
        return np.concatenate(
            [np.empty(0, np.int64), *(hashes(self.rows.ids(n)) for n in range(len(self.rows.shards)))]
        )

    @cached_property
    def base(self) -> "Base":
        """All live rows, made ready for exact search."""
        from retrieval.neighbors import Base

        whole = self.rows.dtype == "float32" and self.rows.ordinals is None
        vectors = self.rows.table(self.rows.count) if whole else None
        keep = self.rows.count * self.rows.dim * 4 <= KEPT_UP_TO
        where = self.device.partition(",")[0]
        return Base(self.rows if vectors is None else vectors, self.measure, where, keep=keep and where == "cpu")

    def numbers(self, rows: "Ints") -> "Ints":
        """FAISS's numbers of live rows: of all that were ever written."""
        ordinals = self.rows.ordinals
        return rows if ordinals is None else ordinals[rows]

    def live_rows(self, found: "Ints") -> "Ints":
        """Row numbers of the store for ids that FAISS gave; −1 stays −1."""
        ordinals = self.rows.ordinals
        if ordinals is None or not len(ordinals):
            return found
        places = np.searchsorted(ordinals, found).clip(max=len(ordinals) - 1)
        return np.where((found >= 0) & (ordinals[places] == found), places, -1)


def open_index(folder: Path | str, *, check: bool = False, device: str = "cpu", shards: bool = False) -> Index:
    """Open an index; its files are checked as the manifest states them, with `check` by every hash whatever the size."""
    return Index(Store(Path(folder), kind=KIND, check=check), device, shards)


def read_faiss(file: BinaryIO, *, changing: bool = False) -> Any:
    """A FAISS index from an open file: to be changed, or to be searched only.

    What is searched only is mapped where it is larger than half of the memory; else it lies in one buffer of NumPy's, whose
    large pages make graphs a fifth faster (docs/log.md), and FAISS would end the process if something were added to it.
    """
    f = faiss()
    try:
        if changing:
            return f.read_index(f.PyCallbackIOReader(file.read, 1 << 24))
        large = os.fstat(file.fileno()).st_size > MAPPED_FROM * usable_memory()
        buffer = np.memmap(file, np.uint8, "r") if large else np.fromfile(file, np.uint8)
        reader = f.ZeroCopyIOReader(f.swig_ptr(buffer), len(buffer))
        index = f.read_index(reader)
        index.referenced_objects = [buffer, reader]
        return index
    except RuntimeError as error:
        raise UserError(f"{file.name}: FAISS cannot read it ({faiss_message(error)}); build the index again") from None


def refined(index: Any, table: NDArray[Any], dtype: str, metric: str) -> Any:
    """An index whose candidates are scored again from a table of vectors (n, d), which is not copied."""
    f = faiss()
    measure = faiss_metric(metric)
    if dtype == "float32":
        exact = f.IndexFlat(index.d, measure)
    else:
        code = f.ScalarQuantizer.QT_fp16 if dtype == "float16" else f.ScalarQuantizer.QT_bf16
        exact = f.IndexScalarQuantizer(index.d, code, measure)
        exact.is_trained = True
    # The owner of an empty vector is nobody: the table must outlive the index, as the store does whose map it is.
    view = f.MaybeOwnedVectorUInt8.create_view(f.swig_ptr(table.view(np.uint8)), table.nbytes, exact.codes.owner)
    exact.codes, exact.ntotal = view, len(table)
    return f.IndexRefine(index, exact)


def write_faiss(index: Any, path: Path) -> dict[str, Any]:
    """Write an index durably; returns its size and hash. FAISS's own writer reports success on a full disk; this raises."""
    digest = hashlib.sha256()
    with writing_atomically(path) as file:

        def write(block: bytes) -> int:
            digest.update(block)
            return file.write(block)

        writer = faiss().PyCallbackIOWriter(write, 1 << 24)
        faiss().write_index(index, writer)
        del writer  # its destructor flushes the last block
        file.flush()
        size = file.tell()
    return {"bytes": size, "sha256": digest.hexdigest()}


def require_fitting(manifest: Manifest, other: Manifest, source: str) -> None:
    """Refuse the vectors of a store or index that cannot be compared with those of an index."""
    for name in ("dim", "metric", "normalized"):
        if other[name] != manifest[name]:
            raise UserError(
                f"{source}: {name} is {other[name]}, of the index {manifest[name]}; they do not go together"
            )
    require_same_encoder(manifest, (other["encoder"] or {}).get("fingerprint"), source)


def read_queries(manifest: Manifest, folder: Path, *, check: bool = False) -> Rows:
    """Every row of a store of queries, for the store or index of a manifest. Raises UserError if they do not fit it."""
    store = open_store(folder, check=check)
    require_fitting(manifest, store.manifest, str(folder))
    return store.load()


def require_same_encoder(manifest: Manifest, fingerprint: str | None, source: str) -> None:
    """Refuse vectors of another encoder than the one that made the index. None: of an encoder that is not known."""
    made_by = manifest["encoder"] or {"fingerprint": None, "name": "an encoder that was never told"}
    if made_by["fingerprint"] != fingerprint:
        said = [mark[:12] if mark else "none" for mark in (fingerprint, made_by["fingerprint"])]
        if manifest["kind"] != KIND:
            raise UserError(
                f"{source}: is of another encoder than the store to be searched (fingerprint {said[0]}, the store has {said[1]} "
                f"from {made_by['name']}); embed both with one"
            )
        raise UserError(
            f"{source}: is not the encoder of this index (fingerprint {said[0]}, the index has {said[1]} from "
            f"{made_by['name']}); search with that encoder, or embed and build again"
        )


def faiss_message(error: Exception) -> str:
    """FAISS's message without its C++ signature, source line and condition; the condition where it says no more."""
    plain = re.sub(r"^Error in .* at \S+:\d+: (Error: )?", "", str(error), flags=re.DOTALL)
    plain = re.sub(r"^'.*' failed: ", "", plain, flags=re.DOTALL)
    plain = re.sub(r"^'(.*)' failed\s*$", r"needs \1", plain, flags=re.DOTALL)
    return " ".join(plain.split())[:200]


def as_float32(vectors: Any) -> Any:
    return np.ascontiguousarray(vectors, dtype=np.float32)
