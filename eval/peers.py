"""Other tools' figures on the same vectors, by their own definitions and under their own names.

pml     pytorch-metric-learning's AccuracyCalculator() with everything as it comes: the whole ranking is looked at, and
        mean_average_precision divides by all relevant items. Its NMI and AMI come from one k-means of FAISS, whose random
        start is not reproduced: ours is of another start.
oml     OpenMetricLearning's metrics: precision@k divides by min(k, R), map@k by the hits among the first k.
mteb    MTEB's clustering task: 4 % of the items, drawn ten times with replacement to 16,384, mini-batch k-means.
dino    DINO's k-NN evaluation: votes of 10, 20, 100 and 200 neighbours weighing e^{cos/0.07}.
"""

import random
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import v_measure_score

from retrieval.errors import UserError
from retrieval.neighbors import Base, Floats, exact_neighbors, neighbor_tiles

from .kmeans import agreement, kmeans
from .labels import classes
from .neighborhood import ranked, vote

OML_KS = (1, 5, 10)
DINO_VOTERS, DINO_TEMPERATURE = (10, 20, 100, 200), 0.07
MTEB_SEED, MTEB_SHARE, MTEB_DRAWN, MTEB_TIMES, MTEB_BATCH = 42, 0.04, 16_384, 10, 512


def pml(vectors: Floats, labels: Sequence[str]) -> dict[str, float]:
    """(n, d) unit vectors and n labels."""
    found = classes(labels)
    others = found.counts() - 1
    rows = np.flatnonzero(others)
    depth = len(vectors) - 1
    totals, start = np.zeros(5), 0
    for tile in neighbor_tiles(vectors[rows], Base(vectors, "cosine"), depth, self_rows=rows):
        some = rows[start : start + len(tile.ids)]
        start += len(some)
        values = ranked(found.relevant(some, tile.ids), others[some], (1, depth))
        totals += [values[name].sum() for name in ("r@1", "r-precision", "map@r", f"map@{depth}", "mrr")]
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_average_precision", "mean_reciprocal_rank")  # fmt: skip
    partition = agreement(found.codes, kmeans(vectors, len(found.names)))
    return dict(zip(names, (totals / len(rows)).tolist(), strict=True)) | {
        "NMI": partition["nmi"],
        "AMI": partition["ami"],
    }


def oml(vectors: Floats, labels: Sequence[str]) -> dict[str, float]:
    """(n, d) unit vectors and n labels; queries without a relevant item do not count."""
    found = classes(labels)
    others = found.counts() - 1
    rows = np.flatnonzero(others)
    depth = min(max(OML_KS), len(vectors) - 1)
    ids = exact_neighbors(vectors[rows], vectors, depth, metric="cosine", self_rows=rows).ids
    relevant = found.relevant(rows, ids)
    hits = relevant.cumsum(1)
    ranks = np.arange(1, relevant.shape[1] + 1)
    values = {}
    for k in (k for k in OML_KS if k <= len(ranks)):
        values[f"cmc/{k}"] = (hits[:, k - 1] > 0).mean()
        values[f"precision/{k}"] = (hits[:, k - 1] / np.minimum(k, others[rows])).mean()
        gained = (hits[:, :k] / ranks[:k] * relevant[:, :k]).sum(1)
        values[f"map/{k}"] = (gained / np.maximum(hits[:, k - 1], 1)).mean()
    return {name: float(value) for name, value in values.items()}


def mteb(vectors: Floats, labels: Sequence[str]) -> dict[str, float]:
    """(n, d) vectors and n labels, in the order of the task's data set. Raises UserError for too few of them."""
    generator = random.Random(MTEB_SEED)
    rows = generator.sample(range(len(vectors)), int(MTEB_SHARE * len(vectors)))
    kept, names = vectors[rows], np.asarray(labels, object).astype(str)[rows]
    count = len(np.unique(names))
    if not rows:
        raise UserError(f"--like mteb: judges 4 % of the items, of {len(vectors):,} none")
    if count < 2:
        raise UserError(f"--like mteb: judges 4 % of the items, {len(rows):,}, and all are of one class")
    model = MiniBatchKMeans(count, batch_size=MTEB_BATCH, n_init=1, random_state=MTEB_SEED)
    found = []
    for _ in range(MTEB_TIMES):
        drawn = generator.choices(range(len(rows)), k=MTEB_DRAWN)
        found.append(v_measure_score(names[drawn], model.fit_predict(kept[drawn])))
    return {"v_measure": float(np.mean(found)), "v_measure_std": float(np.std(found))}


def dino(vectors: Floats, labels: Sequence[str]) -> dict[str, float]:
    """(n, d) unit vectors and n labels: accuracies in percent, as DINO prints them, each item left out of its own vote."""
    found = classes(labels)
    rows = np.arange(len(vectors))
    depth = min(max(DINO_VOTERS), len(vectors) - 1)
    right, start = dict.fromkeys(DINO_VOTERS, 0), 0
    for tile in neighbor_tiles(vectors, Base(vectors, "cosine"), depth, self_rows=rows):
        own = found.codes[start : start + len(tile.ids)]
        start += len(own)
        for voters in DINO_VOTERS:
            (elected,) = vote(tile.scores[:, :voters], found.codes[tile.ids[:, :voters]], [DINO_TEMPERATURE])
            right[voters] += int((elected == own).sum())
    return {f"{voters}-NN top1": 100 * count / len(vectors) for voters, count in right.items()}


PEERS: dict[str, Callable[[Floats, Sequence[str]], dict[str, float]]] = {
    "pml": pml,
    "oml": oml,
    "mteb": mteb,
    "dino": dino,
}
