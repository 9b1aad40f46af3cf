"""Build an index from a store: by factory string, or chosen by size; tuned and measured against exact search."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.artifact import creating, now
from retrieval.errors import UserError
from retrieval.neighbors import Floats, exact_neighbors
from retrieval.store import Store, write_columns

from .backend import faiss
from .bundle import (
    INDEX_FILE,
    ITEMS_FILE,
    KIND,
    Bundle,
    as_float32,
    faiss_message,
    open_index,
    set_parameters,
    write_faiss,
)

EXACT_UP_TO = 200_000  # vectors; below, exact search answers in milliseconds and is never wrong
TARGET_RECALL = 0.95
SAMPLED_QUERIES = 1000
DEPTH = 10


def build(
    store: Store,
    output: Path,
    *,
    factory: str | None = None,
    overwrite: bool = False,
    seed: int = 0,
    progress: Callable[[int], None] = lambda rows: None,
) -> Bundle:
    """Build, tune and write a bundle; `progress` is told the rows added since it was last called.

    factory: a FAISS factory string, or None to choose by size. Approximate indexes get the smallest search parameter that
    reaches recall@10 ≥ 0.95 on a sample of the stored vectors; the recall reached is recorded, whatever it is.
    """
    store.require_unit_vectors()
    factory = factory or choose(store.count)
    rows = store.load()
    vectors = as_float32(rows.embeddings)
    index = _make(factory, store.dim)
    with creating(output, KIND, overwrite=overwrite) as (folder, manifest):
        _train_and_add(index, vectors, factory, progress)
        search, recall = tune(index, vectors, seed)
        write_faiss(index, folder / INDEX_FILE)
        write_columns(folder / ITEMS_FILE, rows)
        manifest |= {
            "created": now(),
            "count": store.count,
            "dim": store.dim,
            "metric": "inner_product",
            "normalized": True,
            "modality": store.manifest["modality"],
            "factory": factory,
            "search": search,
            "recall@10": recall,
            "encoder": store.manifest["encoder"],
            "store": {"path": str(store.folder), "sha256": store.manifest_hash},
        }
    return open_index(output)


def choose(count: int) -> str:
    """Exact while that is fast; beyond, an inverted file with about 4 √n lists (FAISS's own guidance)."""
    if count <= EXACT_UP_TO:
        return "Flat"
    return f"IVF{2 ** round(np.log2(4 * count**0.5))},Flat"


def _make(factory: str, dim: int) -> Any:
    """An empty index for inner products of unit vectors."""
    try:
        return faiss().index_factory(dim, factory, faiss().METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UserError(
            f"--factory {factory!r}: FAISS cannot make it for {dim} dimensions ({faiss_message(error)})"
        ) from None


def _train_and_add(index: Any, vectors: Floats, factory: str, progress: Callable[[int], None]) -> None:
    try:
        if not index.is_trained:
            index.train(vectors)
        step = 65_536
        for start in range(0, len(vectors), step):
            block = vectors[start : start + step]
            if hasattr(index, "id_map"):  # an id map takes nothing without ids; rows are their own
                index.add_with_ids(block, np.arange(start, start + len(block)))
            else:
                index.add(block)
            progress(len(block))
    except RuntimeError as error:
        reason = faiss_message(error)
        raise UserError(
            f"--factory {factory!r}: FAISS cannot build it on {len(vectors):,} vectors ({reason})"
        ) from None


def tune(index: Any, vectors: Floats, seed: int) -> tuple[dict[str, int], float]:
    """Search parameters and the recall@10 they give, self left out, on a sample of the stored vectors as queries."""
    if len(vectors) < 2:
        return {}, 1.0
    sample = np.random.default_rng(seed).choice(len(vectors), min(SAMPLED_QUERIES, len(vectors)), replace=False)
    depth = min(DEPTH, len(vectors) - 1)
    truth = exact_neighbors(vectors[sample], vectors, depth, self_rows=sample).ids

    def recall() -> float:
        found = index.search(vectors[sample], depth + 1)[1]
        found = np.where(found == sample[:, None], -1, found)
        hits = (truth[:, :, None] == found[:, None, :]).any(2)
        return float(hits.mean())

    name, limit = _parameter(index)
    if name is None:
        return {}, recall()
    value = 1 if name == "nprobe" else 16
    while True:
        set_parameters(index, {name: value})
        reached = recall()
        if reached >= TARGET_RECALL or value >= limit:
            return {name: value}, reached
        value = min(2 * value, limit)


def _parameter(index: Any) -> tuple[str | None, int]:
    """The search parameter that trades time for recall, and its useful maximum; None where there is none."""
    lists = faiss().try_extract_index_ivf(index)
    if lists is not None:
        return "nprobe", int(lists.nlist)
    inner = faiss().downcast_index(index.index) if hasattr(index, "index") else index
    if hasattr(inner, "hnsw"):
        return "efSearch", 1024
    return None, 0
