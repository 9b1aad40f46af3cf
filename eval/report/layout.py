"""Maps: vectors on a plane, so that near ones stay near."""

import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from retrieval.errors import UserError
from retrieval.neighbors import Floats, exact_neighbors

Way = Literal["tsne", "umap", "pca"]
LANDMARKS = 5000
PLACED_BY = 5  # landmarks that say where another item lies


def on_a_plane(vectors: Floats, way: Way = "tsne", seed: int = 0) -> NDArray[np.float64]:
    """Unit vectors (n, d) → points (n, 2) in [0, 1].

    t-SNE (van der Maaten, Hinton, JMLR 2008) and UMAP (McInnes, Healy, Melville, 2018) keep neighbourhoods; sizes of clusters
    and distances far apart mean nothing. They are computed for at most 5,000 items drawn at random; every other item is placed at
    the median of its five nearest of those. PCA keeps the directions in which the items differ most, and is linear.
    """
    way = usable(vectors, way)
    if way == "pca":
        return _scaled(_principal(vectors))
    order = np.random.default_rng(seed).permutation(len(vectors))
    chosen, rest = np.sort(order[:LANDMARKS]), np.sort(order[LANDMARKS:])
    points = np.empty((len(vectors), 2))
    points[chosen] = (_tsne if way == "tsne" else _umap)(vectors[chosen], seed)
    if len(rest):
        near = exact_neighbors(vectors[rest], vectors[chosen], PLACED_BY)
        points[rest] = np.median(points[chosen][near.ids], axis=1)  # a mean would lie between two clusters
    return _scaled(points)


def usable(vectors: Floats, way: Way) -> Way:
    """PCA where the vectors are too few, or of one dimension, for another way."""
    return "pca" if len(vectors) < 5 or vectors.shape[1] < 2 else way


def _tsne(vectors: Floats, seed: int) -> NDArray[np.float64]:
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    found = TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=seed, max_iter=500)
    return np.asarray(found.fit_transform(vectors), np.float64)


def _umap(vectors: Floats, seed: int) -> NDArray[np.float64]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numba, about itself
            from umap import UMAP
    except ImportError:
        raise UserError("--map umap: umap-learn is not installed; pip install 'retrieval-toolkit[umap]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a seed means one thread
        made = UMAP(metric="cosine", n_neighbors=min(15, len(vectors) - 1), random_state=seed).fit_transform(vectors)
    return np.asarray(made, np.float64)


def _principal(vectors: Floats) -> NDArray[np.float64]:
    centred = vectors - vectors.mean(0, dtype=np.float64)
    _, directions = np.linalg.eigh(centred.T @ centred)
    points: NDArray[np.float64] = centred @ directions[:, ::-1][:, :2]
    return points if points.shape[1] == 2 else np.column_stack([points, np.zeros(len(points))])


def _scaled(points: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = points.min(0), points.max(0)
    scaled: NDArray[np.float64] = (points - low) / np.maximum(high - low, 1e-9)
    return scaled
