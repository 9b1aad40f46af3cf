"""Search a bundle."""

from typing import NamedTuple

import numpy as np

from retrieval.neighbors import Floats
from retrieval.store import read_columns

from .bundle import Bundle, as_float32


class Hit(NamedTuple):
    """One result: cosine with the query, the item's id, its label or None, and whatever else the store has of it."""

    score: float
    id: str | int
    label: str | None
    payload: dict[str, str]


def search(bundle: Bundle, queries: Floats, k: int) -> list[list[Hit]]:
    """The k best items of each query, best first; fewer where the index holds, or an approximate one reaches, fewer.

    queries: (q, d) float32 unit vectors of the bundle's own encoder.
    """
    k = min(k, bundle.index.ntotal)
    scores, rows = bundle.index.search(as_float32(queries), k)
    needed = np.unique(rows[rows >= 0])  # FAISS pads with −1
    ids, labels, payload = read_columns(bundle.items, needed)
    place = {int(row): at for at, row in enumerate(needed)}

    def hit(score: float, row: int) -> Hit:
        at = place[row]
        item = ids[at] if isinstance(ids, list) else int(ids[at])
        return Hit(score, item, labels[at] if labels else None, {name: column[at] for name, column in payload.items()})

    return [
        [hit(float(score), int(row)) for score, row in zip(scores[q], rows[q], strict=True) if row >= 0]
        for q in range(len(queries))
    ]
