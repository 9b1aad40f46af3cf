"""Class clustering judged by retrieval: does an item's neighbourhood hold its own class, and do classes stand apart?

What is measured is defined where it is computed: neighbourhood metrics in neighborhood.py, k-means and its agreement with the
classes in kmeans.py, the geometry of the classes in geometry.py.

Means are over queries. A query without relevant items, such as a class of one, is left out and counted; it stays among the
neighbours of others, and in k-means.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from retrieval.errors import UserError
from retrieval.given import listed, numbers
from retrieval.neighbors import Base, Floats, Ints, Neighbors

from .geometry import Geometry, geometry, item_values
from .kmeans import agreement, kmeans
from .labels import Classes, Relevance, classes, label_sets
from .neighborhood import neighborhood
from .values import PerQuery

KS = (1, 5, 10)
SEEDS = 3
NAMES = ("r@1", "r@10", "r-precision", "map@r", "knn@20", "nmi", "ami", "ari")
"""The headline."""

ClusterMetrics = dict[str, Any]
Stage = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Opens a stage of the work, of so many steps; what it gives is told the steps that are done."""


def unseen(what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """A stage that nobody watches."""
    return nullcontext(lambda steps: None)


@dataclass(frozen=True)
class Settings:
    """ks: of r@k, p@k and map@k; by default 1, 5 and 10, as far as the base goes. sample: judge so many queries, drawn at
    random. seeds: how many times k-means runs, 0 for not at all. separator: between the labels of an item that has several."""

    metric: str = "cosine"
    ks: tuple[int, ...] | None = None
    sample: int | None = None
    seeds: int = SEEDS
    separator: str | None = None
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Clusters:
    """What was found.

    queries: per query; rows: (q,) which items the queries are; relevant: (q,) how many items each has to find; nearest: the
    first neighbours of each. counts: n, classes, queries, singletons, unanswerable (without anything relevant to find), tied
    (whose first two neighbours are equally near). points: (n, d) the items that queries come from, unit vectors for cosines; own:
    their classes, None if they have several each. partition: by metric, one value a run of k-means. metric: of the neighbours.
    """

    queries: PerQuery
    rows: Ints
    relevant: Ints
    nearest: Neighbors
    relevance: Relevance
    counts: dict[str, int]
    points: Floats
    own: Classes | None
    partition: dict[str, list[float]] = field(default_factory=dict)
    metric: str = "cosine"
    seed: int = 0

    @cached_property
    def geometry(self) -> Geometry | None:
        """Of the queries' classes, for cosines; computed when it is asked for, which judging during training does not."""
        if self.metric != "cosine" or self.own is None or len(self.own.names) < 2:
            return None
        return geometry(self.points, self.own.codes, self.seed)

    def means(self) -> dict[str, float]:
        """Every metric by name."""
        geometric = {} if self.geometry is None else self.geometry.values
        return self.queries.means() | {name: float(np.mean(each)) for name, each in self.partition.items()} | geometric


def evaluate_clusters(
    vectors: Floats,
    labels: Sequence[str],
    settings: Settings = Settings(),  # noqa: B008
    *,
    ids: Sequence[str] | None = None,
    reference: tuple[Floats, Sequence[str]] | None = None,
    stage: Stage = unseen,
) -> Clusters:
    """Judge (n, d) vectors by n labels, each item a query among the others, or among the reference's vectors and labels.

    Vectors of other numbers are taken as float32, in which all is computed. Raises UserError where there is nothing to measure: rows
    and labels that differ in number, items without a label, vectors that are not finite or have no direction, one class, no query
    with anything relevant to find, a k beyond the base.
    """
    itself = reference is None
    vectors, labels = _usable(vectors, labels, settings.metric)
    base_vectors, base_labels = (vectors, labels) if reference is None else _usable(*reference, settings.metric)
    if base_vectors.shape[1] != vectors.shape[1]:
        raise UserError(f"the queries have {vectors.shape[1]} dimensions, the reference {base_vectors.shape[1]}")
    relevance = _relevance(base_labels, None if itself else labels, settings.separator)
    found = relevance.counts() - itself
    rows, unanswerable = _queries(found, relevance, settings)
    ks = _cut_offs(settings.ks, len(base_vectors) - itself)
    directed = settings.metric == "cosine"  # then of unit vectors the inner product
    points = unit(vectors) if directed else vectors
    base_points = points if itself else unit(base_vectors) if directed else base_vectors
    base = Base(base_points, "inner_product" if directed else settings.metric, settings.device)
    queries = points if len(rows) == len(points) else points[rows]
    with stage("judge", len(rows)) as advance:
        values, nearest = neighborhood(
            queries, base, relevance, rows, found[rows], itself=itself, ks=ks, similarities=directed, progress=advance
        )
    counts = {"n": len(base_vectors), "queries": len(rows), "unanswerable": unanswerable, "tied": _tied(nearest)}
    partition: dict[str, list[float]] = {}
    own = None
    if isinstance(relevance, Classes):
        class_sizes = np.bincount(relevance.codes)
        counts |= {"classes": len(class_sizes), "singletons": int((class_sizes == 1).sum())}
        if directed:
            of = relevance.query_codes[rows]
            values |= item_values(queries, of, base_points, relevance.codes, itself=itself)
        own = relevance if itself else classes(labels)
        partition = _partition(points, own, settings, stage)
    names = [str(row if ids is None else ids[row]) for row in rows.tolist()]
    per_query = PerQuery(names, [relevance.groups[row] for row in rows.tolist()], values)
    how = (settings.metric, settings.seed)
    return Clusters(per_query, rows, found[rows], nearest, relevance, counts, points, own, partition, *how)


def _usable(vectors: Any, labels: Sequence[Any], metric: str) -> tuple[Floats, list[str]]:
    """As float32 and strings. Raises UserError for what cannot be judged."""
    found, names = np.asarray(numbers(vectors), np.float32), _named(labels)
    refuse_unusable(found, names, metric)
    return found, names


def _relevance(labels: Sequence[str], queries: Sequence[str] | None, separator: str | None) -> Relevance:
    return classes(labels, queries) if separator is None else label_sets(labels, queries, separator)


def _partition(points: Floats, own: Classes, settings: Settings, stage: Stage) -> dict[str, list[float]]:
    """How runs of k-means agree with the classes, by metric."""
    count = len(own.names)
    if count < 2 or not settings.seeds:
        return {}
    runs = []
    with stage("k-means", settings.seeds) as advance:
        for run in range(settings.seeds):
            runs.append(agreement(own.codes, kmeans(points, count, settings.seed + run)))
            advance(1)
    return {name: [run[name] for run in runs] for name in runs[0]}


def cluster_metrics(vectors: Floats, labels: Sequence[str], *, seed: int = 0, device: str = "cpu") -> ClusterMetrics:
    """The headline for (n, d) unit vectors and n labels, and n, classes, singletons."""
    found = evaluate_clusters(vectors, labels, Settings(seed=seed, device=device))
    means = found.means()
    return {name: means[name] for name in NAMES if name in means} | {
        name: found.counts[name] for name in ("n", "classes", "singletons")
    }


def summary(found: Clusters, seed: int = 0) -> dict[str, Any]:
    """All that was found, as plain data: metrics with intervals, counts, each class, what is mixed up (examples as rows)."""
    result: dict[str, Any] = {
        "metrics": found.means(),
        "intervals": found.queries.intervals(seed),
        "intervals_by_class": found.queries.intervals_by_group(seed),
        "counts": found.counts,
        "spread": {name: [min(each), max(each)] for name, each in found.partition.items()},
    }
    if not isinstance(found.relevance, Classes):
        return result
    by_class, names = found.queries.group_means(), found.queries.group_codes[0]
    result["macro"] = {name: float(each.mean()) for name, each in by_class.items()}
    sizes = found.queries.group_sizes()
    result["per_class"] = [
        {"class": name, "queries": sizes[i], **{metric: float(each[i]) for metric, each in by_class.items()}}
        for i, name in enumerate(names)
    ]
    if found.geometry is not None and found.own is not None:
        result["nearest_classes"] = [found.own.names[c] for c in found.geometry.smallest]
        result["spectrum"] = found.geometry.spectrum.tolist()
    result["confusion"] = [asdict(mixed) for mixed in confusion(found)]
    return result


@dataclass(frozen=True)
class Mixed:
    """Two classes that are mixed up. share: of the neighbours of the first that are of the second; example: the query and the
    neighbour, as rows, that are most alike; similarity: theirs, by the metric "euclidean" their distance."""

    query: str
    neighbor: str
    share: float
    example: tuple[int, int]
    similarity: float


def confusion(found: Clusters, most: int = 20) -> list[Mixed]:
    """The pairs of classes that are mixed up most, by the first neighbours (at most ten, and as many as are relevant)."""
    relevance = found.relevance
    assert isinstance(relevance, Classes)
    looked = np.minimum(found.relevant, found.nearest.ids.shape[1])
    within = np.arange(found.nearest.ids.shape[1]) < looked[:, None]
    own, other = relevance.query_codes[found.rows], relevance.codes[found.nearest.ids]
    query, place = np.nonzero(within & (other != own[:, None]))
    keys = own[query] * len(relevance.names) + other[query, place]
    scores = found.nearest.scores[query, place]
    apart = scores if found.metric == "euclidean" else -scores
    order = np.lexsort((apart, keys))  # of each pair the most alike first
    pairs, first, times = np.unique(keys[order], return_index=True, return_counts=True)
    seen = np.bincount(own, looked, len(relevance.names))
    shares = times / seen[pairs // len(relevance.names)]
    best = np.lexsort((pairs, -shares))[:most]
    mixed = []
    for at in best.tolist():
        example = order[first[at]]
        a, b = divmod(int(pairs[at]), len(relevance.names))
        row, neighbor = int(found.rows[query[example]]), int(found.nearest.ids[query[example], place[example]])
        mixed.append(
            Mixed(relevance.names[a], relevance.names[b], float(shares[at]), (row, neighbor), float(scores[example]))
        )
    return mixed


def _named(labels: Sequence[Any]) -> list[str]:
    """Labels by position, whatever holds them. Raises UserError for items that have none: they would be taken for a class."""
    found = listed("labels", labels)
    if (row := next((row for row, label in enumerate(found) if label is None or label != label), None)) is not None:
        raise UserError(f"labels: {found[row]!r} in row {row} is no class; leave such items out")
    return [str(label) for label in found]


def refuse_unusable(vectors: Floats, labels: Sequence[str] | None, metric: str) -> None:
    """Raise UserError for rows and labels that differ in number, vectors that are not finite or have no direction."""
    if labels is not None and len(vectors) != len(labels):
        raise UserError(f"{len(vectors):,} vectors but {len(labels):,} labels; there must be one a vector")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise UserError(
            f"{(~finite).sum():,} of {len(vectors):,} vectors are not finite, the first in row {int(finite.argmin())}; embed again"
        )
    empty = ~vectors.any(axis=1)
    if metric == "cosine" and empty.any():
        raise UserError(
            f"{empty.sum():,} of {len(vectors):,} vectors are all zeros, the first in row {int(empty.argmax())}; they have no direction"
        )


def refuse_unclustered(relevance: Relevance, found: Ints) -> None:
    """Raise UserError for one class, and where no item has anything relevant to find; found: (n,) how many each has."""
    if isinstance(relevance, Classes) and len(relevance.names) < 2:
        raise UserError(f"only one class ({relevance.names[0]!r}); clustering needs at least two")
    if not (found > 0).any():
        raise UserError(
            f"none of the {len(found):,} items shares its class with another; clustering needs classes of two or more"
        )


def _queries(found: Ints, relevance: Relevance, settings: Settings) -> tuple[Ints, int]:
    """The rows that are asked, and how many have nothing relevant to find."""
    refuse_unclustered(relevance, found)
    rows = np.flatnonzero(found > 0)
    unanswerable = len(found) - len(rows)
    if settings.sample is not None and settings.sample < len(rows):
        rows = np.sort(np.random.default_rng(settings.seed).choice(rows, settings.sample, replace=False))
    return rows, unanswerable


def _cut_offs(ks: tuple[int, ...] | None, available: int) -> tuple[int, ...]:
    if ks is None:
        return tuple(k for k in KS if k <= available) or (1,)
    if max(ks) > available:
        raise UserError(f"-k {max(ks)}: there are only {available:,} other items")
    return tuple(sorted(set(ks)))


def _tied(nearest: Neighbors) -> int:
    return int((nearest.scores[:, 0] == nearest.scores[:, 1]).sum()) if nearest.scores.shape[1] > 1 else 0


def unit(vectors: Floats) -> Floats:
    """Of length 1; the same array if they are already, to the precision of float32."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if np.abs(lengths - 1).max() < 1e-6:
        return vectors
    scaled: Floats = (vectors / lengths[:, None]).astype(np.float32)
    return scaled
