"""Which rows, or classes, lie near each other under an encoder: what hard batches are made of."""

import numpy as np

from retrieval.neighbors import Floats, exact_neighbors

from .batches import Rows

NEAR = 64  # neighbours of each row


def near_rows(vectors: Floats, labels: Rows | None) -> Rows:
    """Of unit vectors (n, d): the rows nearest to each row, (n, ≤ NEAR), or with labels (n,) the classes nearest to each class,
    (c, c − 1)."""
    if labels is None:
        rows = np.arange(len(vectors))
        return exact_neighbors(vectors, vectors, min(NEAR, len(rows) - 1), self_rows=rows).ids
    sums = np.zeros((labels.max() + 1, vectors.shape[1]), np.float32)
    np.add.at(sums, labels, vectors)
    classes = np.arange(len(sums))
    return exact_neighbors(sums, sums, len(sums) - 1, metric="cosine", self_rows=classes).ids
