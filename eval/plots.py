"""Pictures as SVG text: a map of points by class, two overlaid histograms."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from retrieval.neighbors import Floats

# Ten colours that differ in hue and lightness.
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#767f8b")
MAPPED = 1000
SAMPLED = 500


def map_points(vectors: Floats, seed: int = 0) -> NDArray[np.float64]:
    """(n, d) → (n, 2) in [0, 1] by t-SNE on cosine distance: neighbourhoods are faithful, distances far apart are not."""
    perplexity = min(30, (len(vectors) - 1) / 3)
    flat = TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=seed, max_iter=500).fit_transform(
        vectors
    )
    low, high = flat.min(0), flat.max(0)
    scaled: NDArray[np.float64] = ((flat - low) / np.maximum(high - low, 1e-9)).astype(np.float64)
    return scaled


def scatter(points: NDArray[np.float64], labels: Sequence[str], side: int = 360) -> str:
    """A map coloured by class; each point names its class on hover."""
    names = sorted(set(labels))
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    dots = "".join(
        f'<circle cx="{8 + x * (side - 16):.1f}" cy="{8 + y * (side - 16):.1f}" r="2.6" fill="{colour[label]}">'
        f"<title>{_escape(label)}</title></circle>"
        for (x, y), label in zip(points, labels, strict=True)
    )
    return f'<svg viewBox="0 0 {side} {side}" role="img" aria-label="map of embeddings">{dots}</svg>'


def legend(labels: Sequence[str]) -> str:
    """The classes and their colours."""
    keys = "".join(
        f'<span><i style="background:{COLOURS[i % len(COLOURS)]}"></i>{_escape(name)}</span>'
        for i, name in enumerate(sorted(set(labels)))
    )
    return f"<p class=legend>{keys}</p>"


def similarity_histogram(
    vectors: Floats, labels: Sequence[str], seed: int = 0, width: int = 360, height: int = 150
) -> str:
    """Cosines of pairs of one class against pairs of two, over a sample of items; each histogram sums to one."""
    chosen = np.random.default_rng(seed).choice(len(vectors), min(SAMPLED, len(vectors)), replace=False)
    cosines = vectors[chosen] @ vectors[chosen].T
    codes = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)[1][chosen]
    pair = np.triu(np.ones_like(cosines, dtype=bool), 1)
    same = codes[:, None] == codes[None]
    edges = np.linspace(-1, 1, 61)
    shapes = []
    counts = [np.histogram(cosines[pair & which], edges)[0] for which in (~same, same)]
    shares = [count / max(1, count.sum()) for count in counts]
    top = max(share.max() for share in shares)
    for share, colour in zip(shares, ("#767f8b", "#4269d0"), strict=True):
        steps = [
            f"{width * (i / 60):.1f},{height - 18 - share[i] / top * (height - 26):.1f} "
            f"{width * ((i + 1) / 60):.1f},{height - 18 - share[i] / top * (height - 26):.1f}"
            for i in range(60)
        ]
        outline = f"0,{height - 18} {' '.join(steps)} {width},{height - 18}"
        shapes.append(f'<polygon points="{outline}" fill="{colour}" fill-opacity=".45" stroke="{colour}"/>')
    ticks = "".join(
        f'<text x="{width * (v + 1) / 2:.0f}" y="{height - 4}" text-anchor="{anchor}">{v:g}</text>'
        for v, anchor in ((-1, "start"), (-0.5, "middle"), (0, "middle"), (0.5, "middle"), (1, "end"))
    )
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="similarity histograms">{"".join(shapes)}{ticks}</svg>'


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
