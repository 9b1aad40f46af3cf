"""The HDF5 files of ann-benchmarks: train, test, neighbors, distances, and the attribute `distance`.

Their conventions: "euclidean" distances are not squared, "angular" is 1 − cos, and vectors need not be of unit length.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from retrieval.errors import UserError, first_line
from retrieval.neighbors import Floats, Ints, exact_neighbors
from retrieval.store import Rows, Store

from .arrays import as_floats

METRIC_OF = {"angular": "cosine", "euclidean": "euclidean"}
DISTANCE_OF = {metric: distance for distance, metric in METRIC_OF.items()}


@dataclass(frozen=True)
class AnnBenchmarks:
    """One part of such a file: "train" (the base) or "test" (the queries)."""

    path: Path
    part: str
    data: Any
    distance: str | None
    columns: tuple[str, ...] = ()

    @property
    def metric(self) -> str | None:
        """None where the file names no distance, or one that no store has, such as hamming."""
        return METRIC_OF.get(self.distance or "")

    @property
    def count(self) -> int:
        return int(self.data.shape[0])

    @property
    def dim(self) -> int:
        return int(self.data.shape[1])

    def ids(self, start: int, stop: int) -> None:
        return None

    def rows(self, start: int, stop: int) -> Rows:
        try:
            block = self.data[start:stop]
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({first_line(error)}); fetch it again") from None
        return Rows(as_floats(block, self.path, start), np.arange(start, stop))


def open_ann_benchmarks(path: Path, part: str) -> AnnBenchmarks:
    """Open one part. Raises UserError naming what the file lacks."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: not an HDF5 file that can be read ({first_line(error)})") from None
    data = file.get(part)
    if not isinstance(data, h5py.Dataset) or data.ndim != 2 or data.dtype.kind not in "fiu" or data.shape[1] == 0:
        found = ", ".join(file) or "nothing"
        raise UserError(
            f"{path}: has no vectors in {part!r} (found: {found}); ann-benchmarks files have train and test"
        )
    distance = file.attrs.get("distance")
    distance = distance.decode(errors="replace") if isinstance(distance, bytes) else distance
    return AnnBenchmarks(path, part, data, distance if isinstance(distance, str) else None)


class Forgiving:
    """A file for HDF5 to write to, which crashes the process if a write fails: the failure is kept, and raised at the end."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.failure = file, None  # type: tuple[BinaryIO, OSError | None]

    def write(self, content: Any) -> int:
        try:
            if self.failure is None:
                self.file.write(content)
        except OSError as error:
            self.failure = error
        return len(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def write_ann_benchmarks(file: BinaryIO, base: Store, queries: Store, k: int, device: str = "cpu") -> None:
    """A base, queries, and the exact k nearest of each by the base's metric, as ann-benchmarks has them."""
    metric = base.manifest["metric"]
    if metric not in DISTANCE_OF:
        raise UserError(f"{base.folder}: ann-benchmarks has no {metric}; it knows {' and '.join(DISTANCE_OF.values())}")
    if queries.dim != base.dim or queries.manifest["metric"] != metric:
        raise UserError(
            f"{queries.folder}: is {queries.dim} × {queries.manifest['metric']}, the base {base.dim} × {metric}"
        )
    if not 0 < k <= base.count:
        raise UserError(f"-k {k}: the base has {base.count:,} rows; ask for 1 to as many")
    train, test = base.embeddings(), queries.embeddings()
    ids, distances = nearest(test, train, k, metric, device)
    forgiving = Forgiving(file)
    with h5py.File(forgiving, "w") as made:
        made.attrs.update(type="dense", distance=DISTANCE_OF[metric], dimension=base.dim, point_type="float")
        made["train"], made["test"] = train, test
        made["neighbors"], made["distances"] = ids.astype(np.int32), distances
    if forgiving.failure is not None:
        raise forgiving.failure


def nearest(queries: Floats, base: Floats, k: int, metric: str, device: str) -> tuple[Ints, Floats]:
    """The k nearest of each query, nearest first: rows (q, k), and distances (q, k) computed anew in float64."""
    found = exact_neighbors(queries, base, k, metric=metric, device=device)
    if metric == "euclidean":
        return found.ids, found.scores
    distances = np.concatenate([*_angular(queries, base, found.ids), np.empty((0, k))])
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(found.ids, order, 1), np.take_along_axis(distances, order, 1).astype(np.float32)


def _angular(queries: Floats, base: Floats, found: Ints) -> Iterator[Any]:
    for start in range(0, len(queries), 256):
        q, b = (
            queries[start : start + 256, None].astype(np.float64),
            base[found[start : start + 256]].astype(np.float64),
        )
        yield 1 - (q * b).sum(2) / (np.linalg.norm(q, axis=2) * np.linalg.norm(b, axis=2))
