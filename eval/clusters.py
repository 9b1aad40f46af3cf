"""Class clustering judged by retrieval: does an item's neighbourhood hold its own class?

Definitions, for a query with R other items of its class, neighbours by cosine, itself left out by index:

    R@k           1 if any of the k nearest shares the class (metric learning's Recall@k; R@1 is also Precision@1)
    R-precision   share of the R nearest that share the class
    MAP@R         (1/R) Σ_{i ≤ R} P@i · rel_i   (Musgrave, Belongie, Lim, "A Metric Learning Reality Check", ECCV 2020, 3.2)
    kNN@20        accuracy of a vote of the 20 nearest weighing e^{cos/0.07} (the protocol of DINO and solo-learn)
    NMI, AMI, ARI of k-means on the unit vectors, k = number of classes, against the classes (scikit-learn)

Means are over queries. A class of one has no R: such queries are left out of the neighbour metrics and counted as
`singletons`; they stay among the neighbours of others, and in k-means.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score

from retrieval.errors import UserError
from retrieval.neighbors import Floats, Ints, Neighbors, neighbor_tiles

VOTERS, VOTE_TEMPERATURE = 20, 0.07
KMEANS_STARTS = 3

ClusterMetrics = TypedDict(
    "ClusterMetrics",
    {
        "r@1": float,
        "r@10": float,
        "r-precision": float,
        "map@r": float,
        "knn@20": float,
        "nmi": float,
        "ami": float,
        "ari": float,
        "n": int,
        "classes": int,
        "singletons": int,
    },
)
NAMES = ("r@1", "r@10", "r-precision", "map@r", "knn@20", "nmi", "ami", "ari")


def cluster_metrics(vectors: Floats, labels: Sequence[str], *, seed: int = 0, device: str = "cpu") -> ClusterMetrics:
    """All of the above for (n, d) unit vectors and n labels. Memory beyond the vectors: a tile of scores.

    Raises UserError where there is nothing to measure: one class, no class of two, or a vector that is not finite.
    """
    assert len(vectors) == len(labels)
    if not np.isfinite(vectors).all():
        raise UserError(
            f"{(~np.isfinite(vectors)).any(1).sum():,} of {len(vectors):,} vectors are not finite; embed again"
        )
    names, codes = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
    sizes = np.bincount(codes)
    if len(names) < 2:
        raise UserError(f"only one class ({str(names[0])!r}); clustering needs at least two")
    queries = np.flatnonzero(sizes[codes] > 1)
    if not len(queries):
        raise UserError(f"each of the {len(names):,} classes has one member; clustering needs classes of two or more")
    others = sizes[codes] - 1
    k = min(len(vectors) - 1, max(int(others.max()), VOTERS, 10))
    sums = np.zeros(5)
    start = 0
    for tile in neighbor_tiles(vectors[queries], vectors, k, self_rows=queries, device=device):
        rows = queries[start : start + len(tile.ids)]
        start += len(rows)
        sums += _sums(tile, codes, rows, others[rows])
    r1, r10, r_precision, map_r, vote = (sums / len(queries)).tolist()
    found = KMeans(len(names), n_init=KMEANS_STARTS, random_state=seed).fit_predict(vectors)
    return {
        "r@1": r1,
        "r@10": r10,
        "r-precision": r_precision,
        "map@r": map_r,
        "knn@20": vote,
        "nmi": float(normalized_mutual_info_score(codes, found)),
        "ami": float(adjusted_mutual_info_score(codes, found)),
        "ari": float(adjusted_rand_score(codes, found)),
        "n": len(vectors),
        "classes": len(names),
        "singletons": int((sizes == 1).sum()),
    }


def _sums(tile: Neighbors, codes: Ints, rows: Ints, others: Ints) -> NDArray[np.float64]:
    """R@1, R@10, R-precision, MAP@R and the vote, each summed over the queries of one tile. rows, others: (q,)."""
    neighbor_codes = codes[tile.ids]  # (q, k)
    relevant = neighbor_codes == codes[rows][:, None]
    within_r = np.arange(relevant.shape[1]) < others[:, None]
    hits = relevant & within_r
    precision = np.cumsum(relevant, axis=1, dtype=np.int32) / np.arange(1, relevant.shape[1] + 1)
    return np.array(
        [
            relevant[:, 0].sum(),
            relevant[:, :10].any(1).sum(),
            (hits.sum(1) / others).sum(),
            ((precision * hits).sum(1) / others).sum(),
            (_vote(tile.scores[:, :VOTERS], neighbor_codes[:, :VOTERS]) == codes[rows]).sum(),
        ],
        dtype=np.float64,
    )


def _vote(scores: Floats, codes: Ints) -> Ints:
    """The class with the heaviest vote of each query; of equal ones, that of the nearest neighbour. (q, voters) → (q,)."""
    weights = np.exp((scores.astype(np.float64) - 1) / VOTE_TEMPERATURE)
    same = codes[:, :, None] == codes[:, None, :]
    best = (same * weights[:, None, :]).sum(2).argmax(1)  # the first of equals is the nearest
    winners: Ints = codes[np.arange(len(codes)), best]
    return winners
