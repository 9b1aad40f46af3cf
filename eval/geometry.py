"""How unit vectors of classes lie on the sphere: silhouettes, alignment and uniformity, and how far classes have collapsed to
points that stand apart, the limit that Robinson et al. (2021, §4) prove for the hardest negatives.

With class means μ_c, their mean μ, Σ_W the covariance within classes, Σ_B that of the class means (Papyan, Han, Donoho, PNAS
2020):

    nc1                 tr(Σ_W Σ_B⁺) / C                                   0: every class is a point
    nc2-norms           standard deviation / mean of ‖μ_c − μ‖             0: means equally far out
    nc2-angles          standard deviation of cos(μ_c − μ, μ_c' − μ)       0: equal angles
    nc2-simplex         mean |cos + 1/(C − 1)|                             0: the angles of a simplex
    cdnv                mean over pairs of (v_c + v_c') / (2 ‖μ_c − μ_c'‖²), v_c = E‖x − μ_c‖²  (Galanti et al., ICLR 2022)
    angle, best-angle   smallest angle between two class means in degrees, and the largest that C points can have (Tammes'
                        problem): a simplex for C ≤ d + 1, 90° for C ≤ 2d, beyond that an upper bound
    alignment           mean ‖x − y‖² over pairs of one class; uniformity: log mean e^{−2‖x − y‖²} over all pairs (Wang, Isola,
                        ICML 2020), of at most 10,000 items
    effective-rank      e^{entropy} of the singular values divided by their sum (Roy, Vetterli, EUSIPCO 2007)
    silhouette          mean over items of (b − a)/max(a, b), a: mean cosine distance to its own class, b: to the nearest other
    nearest-mean        accuracy of the class whose mean direction is nearest, the item itself left out of its own class's
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import betaincinv

from retrieval.intervals import Doubles
from retrieval.neighbors import Floats, Ints
from retrieval.neighbors.product import linear

from .labels import sums

TILE = 2**22  # numbers held at a time
UNIFORM = 10_000
TINY = 1e-300
NOISE = 1e-6  # of cosines of float32 vectors


class Geometry(NamedTuple):
    """values: the above by name; spectrum: singular values, largest first; smallest: the pair of classes with that angle."""

    values: dict[str, float]
    spectrum: Doubles
    smallest: tuple[int, int]


def item_values(queries: Floats, query_codes: Ints, base: Floats, codes: Ints, *, itself: bool) -> dict[str, Doubles]:
    """nearest-mean and, if the queries are items of the base themselves, silhouette, of each query (q,). All distances to a
    class follow from the sum of its vectors.

    queries: (q, d), base: (n, d), both unit; query_codes: (q,), −1 for a class that the base does not have; codes: (n,). Items
    alone in their class have a silhouette of 0, and so have those that lie on their class and on another one, as in scikit-learn.
    """
    totals, sizes = sums(base, codes, int(codes.max()) + 1), torch.from_numpy(np.bincount(codes))
    directions = _directions(totals).float()
    means = (totals / sizes[:, None]).float()
    nearest, silhouettes = np.empty(len(queries)), np.empty(len(queries))
    step = max(1, TILE // len(means))
    for start in range(0, len(queries), step):
        some = slice(start, start + step)
        part, own = torch.from_numpy(queries[some]), torch.from_numpy(query_codes[some])
        row = torch.arange(len(part))
        to_mean = linear(part, directions)
        if itself:
            without = totals[own] - part  # the class without the item
            alone = (part * without).sum(1)
            to_mean[row, own] = (alone / torch.linalg.vector_norm(without, dim=1).clamp_min(TINY)).float()
            to_class = linear(part, means)
            to_class[row, own] = -torch.inf
            # Distances of items that are one point come out a little beside 0.
            a = (1 - alone / (sizes[own] - 1).clamp_min(1)).clamp_min(0)
            b = (1 - torch.from_numpy(to_class.numpy().max(axis=1)).double()).clamp_min(0)
            larger = torch.maximum(a, b)
            silhouettes[some] = torch.where((sizes[own] > 1) & (larger >= NOISE), (b - a) / larger, 0.0).numpy()
        nearest[some] = to_mean.numpy().argmax(axis=1) == query_codes[some]
    return {"nearest-mean": nearest} | ({"silhouette": silhouettes} if itself else {})


def geometry(vectors: Floats, codes: Ints, seed: int = 0) -> Geometry:
    """Of unit vectors (n, d) and their classes (n,), every class from 0 to C − 1 having an item."""
    count, dim = int(codes.max()) + 1, vectors.shape[1]
    sizes = np.bincount(codes)
    means = sums(vectors, codes, count).numpy() / sizes[:, None]
    scatter = _scatter(vectors)
    variances = np.maximum(0.0, 1 - (means**2).sum(1))
    pairs = (sizes.astype(np.float64) * (sizes - 1)).sum()
    apart = (sizes * (sizes - (sizes * (means**2).sum(1)))).sum() * 2  # Σ over ordered pairs of one class of ‖x − y‖²
    angle, smallest = _smallest_angle(means)
    spectrum = np.sqrt(np.linalg.eigvalsh(scatter)[::-1].clip(min=0))
    values = {
        "nc1": _nc1(scatter, means, sizes),
        **_nc2(means),
        "cdnv": _cdnv(means, variances),
        "angle": angle,
        "best-angle": best_angle(count, dim),
        "alignment": float(apart / pairs) if pairs else 0.0,
        "uniformity": _uniformity(vectors, seed),
        "effective-rank": _effective_rank(spectrum),
    }
    return Geometry(values, spectrum, smallest)


def best_angle(count: int, dim: int) -> float:
    """Degrees between the nearest two of C points on the sphere in d dimensions, placed as well as can be; for C > 2d a bound
    that may not be reached: 90°, or where caps of half the angle would cover more than the sphere."""
    if count <= dim + 1:
        return float(np.degrees(np.arccos(-1 / (count - 1))))
    if count <= 2 * dim or dim < 2:
        return 90.0
    squared_sine = betaincinv((dim - 1) / 2, 0.5, min(1.0, 2 / count))  # a cap's share of the sphere is half of this
    return float(min(90.0, np.degrees(2 * np.arcsin(np.sqrt(squared_sine)))))


def _scatter(vectors: Floats) -> Doubles:
    """Σ x xᵀ (d, d)."""
    found = torch.zeros((vectors.shape[1], vectors.shape[1]), dtype=torch.float64)
    for start in range(0, len(vectors), 2**14):
        part = torch.from_numpy(vectors[start : start + 2**14]).double()
        found += part.T @ part
    return found.numpy()


def _nc1(scatter: Doubles, means: Doubles, sizes: Ints) -> float:
    within = (scatter - (means * sizes[:, None]).T @ means) / sizes.sum()
    centred = means - means.mean(0)
    between = centred.T @ centred / len(means)
    return float(np.trace(within @ np.linalg.pinv(between, hermitian=True, rcond=1e-10)) / len(means))


def _nc2(means: Doubles) -> dict[str, float]:
    centred = torch.from_numpy(means - means.mean(0))
    lengths, count = torch.linalg.vector_norm(centred, dim=1), len(means)
    total = squares = gaps = 0.0
    for _, itself, cosines in _pairs(_directions(centred)):
        gap = cosines + 1 / (count - 1)
        gap[itself] = 0.0  # an item and itself
        total, squares, gaps = (
            total + float(gap.sum()),
            squares + float(gap.square().sum()),
            gaps + float(gap.abs().sum()),
        )
    number = count * (count - 1)
    return {
        "nc2-norms": float(lengths.std(correction=0) / lengths.mean().clamp_min(TINY)),
        "nc2-angles": float(np.sqrt(max(0.0, squares / number - (total / number) ** 2))),
        "nc2-simplex": gaps / number,
    }


def _cdnv(means: Doubles, variances: Doubles) -> float:
    table, spread = torch.from_numpy(means), torch.from_numpy(variances)
    squares, total = table.square().sum(1), 0.0
    for rows, itself, products in _pairs(table):
        apart = (squares[rows, None] + squares - 2 * products).clamp_min_(1e-12)
        apart[itself] = torch.inf
        total += float(((spread[rows, None] + spread) / (2 * apart)).sum())
    return total / (len(means) * (len(means) - 1))


def _smallest_angle(means: Doubles) -> tuple[float, tuple[int, int]]:
    best, where = -2.0, (0, 1)
    for rows, itself, cosines in _pairs(_directions(torch.from_numpy(means))):
        cosines[itself] = -2.0
        at = int(cosines.numpy().argmax())
        row, column = divmod(at, len(means))
        if float(cosines[row, column]) > best:
            best, where = float(cosines[row, column]), (rows.start + row, column)
    return float(np.degrees(np.arccos(np.clip(best, -1, 1)))), where


def _pairs(table: torch.Tensor) -> Iterator[tuple[slice, tuple[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """So many rows at a time: which, where among their products each meets itself, and the products (rows, C) with all."""
    step = max(1, TILE // len(table))
    for start in range(0, len(table), step):
        products = table[start : start + step] @ table.T
        rows = torch.arange(len(products))
        yield slice(start, start + step), (rows, rows + start), products


def _directions(vectors: torch.Tensor) -> torch.Tensor:
    unit: torch.Tensor = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min(TINY)
    return unit


def _uniformity(vectors: Floats, seed: int) -> float:
    if len(vectors) > UNIFORM:
        vectors = vectors[np.random.default_rng(seed).choice(len(vectors), UNIFORM, replace=False)]
    total = 0.0
    for _, itself, cosines in _pairs(torch.from_numpy(vectors)):
        cosines = (4 * (cosines - 1)).exp_()
        cosines[itself] = 0.0
        total += float(cosines.sum(dtype=torch.float64))
    return float(np.log(total / (len(vectors) * (len(vectors) - 1))))


def _effective_rank(spectrum: Doubles) -> float:
    shares = spectrum / spectrum.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))
