"""Search a bundle."""

from typing import NamedTuple

import numpy as np

from retrieval.neighbors import Floats
from retrieval.store import read_items

from .bundle import Bundle, as_float32


class Hit(NamedTuple):
    """One result: cosine with the query, and what is known of the item. label and text are None where there are none."""

    score: float
    id: str
    label: str | None
    text: str | None


def search(bundle: Bundle, queries: Floats, k: int) -> list[list[Hit]]:
    """The k best items of each query, best first; fewer where the index holds, or an approximate one reaches, fewer.

    queries: (q, d) float32 unit vectors of the bundle's own encoder.
    """
    k = min(k, bundle.index.ntotal)
    scores, rows = bundle.index.search(as_float32(queries), k)
    found = rows >= 0  # FAISS pads with −1
    items = read_items(bundle.items, np.unique(rows[found]))
    return [
        [Hit(float(score), *items[int(row)]) for score, row in zip(scores[q], rows[q], strict=True) if row >= 0]
        for q in range(len(queries))
    ]
