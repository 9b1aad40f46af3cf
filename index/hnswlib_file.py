"""An HNSW graph as hnswlib's file (saveIndex of 0.8): the same links, vectors and labels, searched there as here."""

from typing import Any, BinaryIO

import numpy as np

from retrieval.errors import UserError
from retrieval.neighbors import Ints

from .backend import faiss
from .bundle import Index, as_float32

BLOCK = 65_536


def write_hnswlib(index: Index, file: BinaryIO) -> None:
    """Write the graph; labels are the items' ids where these are integers, else row numbers.

    Raises UserError for other types, and while there are late or removed rows.
    """
    f, graph = faiss(), index.faiss
    if not isinstance(graph, f.IndexHNSWFlat):
        raise UserError(f"{index.folder}: is {index.about['factory']}; hnswlib reads HNSW16, HNSW32 and the like")
    if index.covered < index.rows.count or index.rows.ordinals is not None:
        raise UserError(f"{index.folder}: has late or removed rows; `retrieval index compact` first")
    hnsw, count, dim = graph.hnsw, graph.ntotal, graph.d
    links = int(hnsw.nb_neighbors(1))
    ids = index.rows.ids_between(0, index.rows.count)
    labels = np.arange(count) if isinstance(ids, list) else ids
    if (labels < 0).any():
        raise UserError(
            f"{index.folder}: has the id {labels.min()}, and hnswlib knows none below 0; number its rows anew"
        )
    element = np.dtype([("count", "<u4"), ("links", "<u4", (2 * links,)), ("vector", "<f4", (dim,)), ("label", "<u8")])
    levels = f.vector_to_array(hnsw.levels) - 1  # FAISS counts the ground floor
    head = [0, count, count, element.itemsize, element.fields["label"][1], element.fields["vector"][1]]  # type: ignore[index]
    file.write(np.array(head, "<u8").tobytes())
    file.write(np.array([hnsw.max_level, hnsw.entry_point], "<i4").tobytes())
    file.write(np.array([links, 2 * links, links], "<u8").tobytes())
    file.write(np.array([1 / np.log(links)], "<f8").tobytes())
    file.write(np.array([hnsw.efConstruction], "<u8").tobytes())
    offsets, neighbours = f.vector_to_array(hnsw.offsets), f.vector_to_array(hnsw.neighbors)
    for start in range(0, count, BLOCK):
        rows = np.arange(start, min(start + BLOCK, count))
        block = np.zeros(len(rows), element)
        block["count"], block["links"] = _packed(neighbours, offsets[rows], 2 * links)
        block["vector"] = as_float32(index.rows.take(rows))
        block["label"] = labels[rows]
        file.write(block.tobytes())
    for row, level in enumerate(levels.tolist()):
        file.write(_upper(neighbours, int(offsets[row]), level, links))


def _packed(neighbours: Any, begins: Ints, width: int) -> tuple[Any, Any]:
    """How many links each row has from its place on, and the links, with 0 where there are fewer."""
    found = neighbours[begins[:, None].astype(np.int64) + np.arange(width)]
    return (found >= 0).sum(1), np.where(found >= 0, found, 0)


def _upper(neighbours: Any, begin: int, level: int, links: int) -> bytes:
    """The links of one row above the ground floor."""
    if not level:
        return np.array([0], "<u4").tobytes()
    begins = begin + 2 * links + links * np.arange(level)
    counts, found = _packed(neighbours, begins, links)
    return (
        np.array([level * 4 * (links + 1)], "<u4").tobytes() + np.column_stack([counts, found]).astype("<u4").tobytes()
    )
