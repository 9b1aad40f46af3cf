"""Search an index: what FAISS covers, what came later, and only the rows that are asked for."""

from dataclasses import dataclass, replace
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch

from retrieval.errors import UserError
from retrieval.given import numbers
from retrieval.neighbors import Floats, Ints, Neighbors, exact_neighbors, exact_within, score_rows
from retrieval.store.dtypes import ROUNDED

from .backend import faiss
from .bundle import Index, as_float32
from .filters import Mask
from .gpu import LARGEST_K, set_on_gpus
from .kinds import KNOBS, Settings, parameters

EXACT_UP_TO = 20_000  # rows that may be found: comparing these takes milliseconds, and is exact
# Estimates (docs/log.md), by the time in which one row is compared with a query that comes alone.
LINKS = 8  # times that for each node that a graph keeps open
STREAMED = 8  # rows of lists or codes are passed in it
BATCHED = 64  # rows are compared in it with a query of a batch
LATE_SCORED = 2**21  # products of queries with rows that FAISS does not cover, at once; beyond, exact search is as fast
# How far from 1 the squared length of a query may be: it may be a row that was stored.
SQUARED_UNIT = 2 * max(ROUNDED.values())
# How far from 1 the product of a unit vector with itself may be, as it is stored.
UNIT_ROUNDING = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3, "int8": 1e-2}


class Hit(NamedTuple):
    """One result: its score, the item's id, its label or None, and whatever else the store has of it.

    score: the cosine or inner product with the query, or by the metric "euclidean" the distance.
    """

    score: float
    id: str | int
    label: str | None
    payload: dict[str, str]


@dataclass(slots=True)
class Found:
    """The best rows of each query, best first.

    scores: (q, k) float32. rows: (q, k) row numbers of `index.rows`, −1 where there are fewer; how: what was done; mark: of the
    generation whose rows they are.
    """

    scores: Floats
    rows: Ints
    how: dict[str, Any]
    mark: str

    def __getitem__(self, queries: slice) -> "Found":
        return replace(self, scores=self.scores[queries], rows=self.rows[queries])

    def first(self, k: int | None) -> "Found":
        """The k best of each query, None for all."""
        return replace(self, scores=self.scores[:, :k], rows=self.rows[:, :k])


def search(
    index: Index, queries: Floats, k: int, *, where: Mask | None = None, settings: Settings | None = None
) -> Found:
    """The k best items of each query; fewer where the index, or what may be found of it, holds fewer.

    queries: (q, d) float32 vectors of the index's own encoder, by cosines of length 1. where: (n,) which rows may be found. settings:
    search parameters instead of the tuned ones. Raises UserError for what does not fit the index.
    """
    queries, where = _fitting(index, queries), _mask(index, where)
    if k < 0:
        raise UserError(f"k {k}: must not be below 0")
    if settings and (unknown := settings.keys() - KNOBS):
        raise UserError(f"settings: {min(unknown)} is none of {', '.join(KNOBS)}")
    count = index.rows.count
    allowed = count if where is None else int(np.count_nonzero(where))
    k = min(k, allowed)
    if not k or not len(queries):
        nothing = Neighbors(np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64))
        return _found(index, nothing, _how("exact", 0))
    covered = index.covered if where is None else int(np.count_nonzero(where[: index.covered]))
    few = where is not None and allowed <= EXACT_UP_TO
    if index.exact or few or not covered:
        return _exactly(index, queries, k, where)
    settings = tuned_for(index, k) if settings is None else settings
    (found, whole), late = _covered(index, queries, min(k, covered), covered, where, settings), 0
    if index.covered < count:
        rows = np.arange(index.covered, count)
        rows = rows if where is None else rows[where[rows]]
        late = len(rows)
        if late:
            found = _joined(found, _late(index, queries, min(k, late), rows), k, index.metric)
    how = _how("approximate", late) | {"settings": dict(settings), "covered": index.covered}
    how |= {} if where is None else {"allowed": allowed, "exact_queries": whole}
    return _found(index, found, how)


def within(index: Index, queries: Floats, radius: float, *, where: Mask | None = None) -> Found:
    """All items whose cosine or inner product is at least `radius`, or whose distance is at most: exact, whatever the type.

    Rows are filled up with −1.
    """
    queries, where = _fitting(index, queries), _mask(index, where)
    slack = UNIT_ROUNDING[index.rows.dtype] if index.metric == "cosine" else 0.0
    found = exact_within(queries, index.base, radius - slack)
    counts = np.diff(found.starts)
    query = np.repeat(np.arange(len(queries)), counts)
    kept = np.ones(len(query), bool) if where is None else where[found.rows]
    counts = np.bincount(query[kept], minlength=len(queries))
    here = np.arange(counts.max(initial=0)) < counts[:, None]
    scores, rows = np.zeros(here.shape, np.float32), np.full(here.shape, -1)
    scores[here], rows[here] = found.scores[kept], found.rows[kept]
    return _found(index, Neighbors(scores, rows), _how("exact", index.rows.count))


def hits(index: Index, found: Found) -> list[list[Hit]]:
    """What was found, with ids and all that the store has of the items. Raises UserError for what was found in another generation."""
    if found.mark != index.mark:  # row numbers stand for other items there
        raise UserError(f"{index.folder}: has changed since this was found; search the index that is open now")
    kept = found.rows >= 0
    ids, labels, payload = index.rows.describe(found.rows[kept])
    scores = (found.scores[kept] + 0.0).tolist()  # a distance of 0 may have come out as −0
    names = list(payload)
    flat = [
        Hit(
            scores[at],
            i if isinstance(i, str) else int(i),
            labels[at] if labels else None,
            {name: payload[name][at] for name in names},
        )
        for at, i in enumerate(ids)
    ]
    ends = np.cumsum(kept.sum(1)).tolist()
    return [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _exactly(index: Index, queries: Floats, k: int, where: Mask | None) -> Found:
    if where is None:
        found = exact_neighbors(queries, index.base, k)
    else:
        found = _among(index, queries, k, np.flatnonzero(where))
    compared = index.rows.count if where is None else int(np.count_nonzero(where))
    return _found(index, found, _how("exact", compared))


def _mask(index: Index, where: Mask | None) -> Mask | None:
    """Row numbers would be taken for a mask, silently."""
    if where is not None and (np.shape(where) != (index.rows.count,) or np.asarray(where).dtype != bool):
        raise UserError(f"where: give {index.rows.count:,} booleans, one a row (`filters.rows_of_ids` makes them)")
    return None if where is None else np.asarray(where)


def _fitting(index: Index, queries: Floats) -> Floats:
    if not isinstance(index, Index):
        raise UserError(f"index: is a {type(index).__name__}; give what `open_index` opened")
    if np.ndim(queries) != 2 or np.shape(queries)[1] != index.rows.dim:
        raise UserError(
            f"the queries are {np.shape(queries)}, the index has {index.rows.dim} dimensions; give (q, {index.rows.dim})"
        )
    if not (isinstance(queries, np.ndarray) and queries.dtype == np.float32 and queries.flags.c_contiguous):
        queries = as_float32(numbers(queries))
    if index.metric == "cosine" and len(queries):
        off = np.abs(np.vecdot(queries, queries) - 1)
        if not off.max() <= SQUARED_UNIT:  # not for NaN either
            row = int(off.argmax())
            raise UserError(
                f"query {row} has length {np.linalg.norm(queries[row]):.4g}, which cosine needs to be 1; divide by it"
            )
    return queries


def _found(index: Index, best: Neighbors, how: dict[str, Any]) -> Found:
    return Found(best.scores, best.ids, how, index.mark)


def _how(way: str, compared: int) -> dict[str, Any]:
    return {"way": way, "compared": compared}


@dataclass(frozen=True)
class Some:
    """Some rows of an index, as a base of exact search."""

    index: Index
    rows: Ints

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Ints) -> Floats:
        return self.index.rows.take(self.rows[rows])


def _among(index: Index, queries: Floats, k: int, rows: Ints) -> Neighbors:
    """The exact k best of some rows."""
    found = exact_neighbors(queries, Some(index, rows), k, metric=index.measure)
    return Neighbors(found.scores, rows[found.ids])


def _late(index: Index, queries: Floats, k: int, rows: Ints) -> Neighbors:
    """The exact k best of rows that FAISS does not cover. Of few queries all are scored in float64 at once: what makes exact search fast
    for many takes twenty times as long as a graph takes for one."""
    held = index.late
    if held is None or len(queries) * held.size > LATE_SCORED:
        return _among(index, queries, k, rows)
    vectors = held if len(rows) == len(held) else held[rows - index.covered]
    asked = queries.astype(np.float64)
    if index.metric == "euclidean":
        worth = -np.linalg.norm(vectors - asked[:, None], axis=2).astype(np.float32)
    else:
        worth = (asked @ vectors.T).astype(np.float32)
    best = np.stack([_best(line, k) for line in worth])
    scores = np.take_along_axis(worth, best, 1)
    return Neighbors(-scores if index.metric == "euclidean" else scores, rows[best])


def _best(scores: Floats, k: int) -> Ints:
    """The places (k,) of the largest scores (n,), equal ones in order."""
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    places = np.flatnonzero(scores >= least)
    return places[np.argsort(-scores[places], kind="stable")[:k]]


def _covered(
    index: Index, queries: Floats, k: int, covered: int, where: Mask | None, settings: Settings
) -> tuple[Neighbors, int]:
    """The k best of the `covered` rows that FAISS has and that may be found, and for how many queries these were all compared.

    FAISS looks at every row, and is asked for as many more as are in the way. What may be found can lie farther from a query than all that may
    not: queries that got fewer than k ask for four times as many, until comparing all is faster.
    """
    covers = int(index.about["covers"])
    chance = covered / covers
    asked = k if chance == 1 else min(covers, ceil((k + 2 * (k * (1 - chance)) ** 0.5) / chance))
    settings = _widened(index, settings, asked / k)
    found, short = None, np.arange(len(queries))
    while where is None and found is None or _pays(index, settings, asked, covered, len(short)):
        part = queries if found is None else queries[short]
        some = _first_allowed(_faiss_search(index, part, asked, settings), k, where)
        found = some if found is None else _put(found, short, some)
        missing = [row < 0 for row in some.ids[:, -1].tolist()]  # of one query a tenth of the time that NumPy takes
        if not any(missing):
            return found, 0
        short = short[missing]
        asked, settings = 4 * asked, _widened(index, settings, 4.0)
    may = ~index.forgotten if where is None else where[: index.covered] & ~index.forgotten
    rest = _among(index, queries[short], k, np.flatnonzero(may))
    return (rest if found is None else _put(found, short, rest)), len(short)


def _pays(index: Index, settings: Settings, asked: int, rows: int, queries: int) -> bool:
    """Whether FAISS finds so many results of each query in less time than these rows are compared with them (docs/log.md)."""
    again = asked * settings.get("rerank", 1)
    if again > (index.about["covers"] if index.device == "cpu" else LARGEST_K):
        return False
    if index.abilities.knob == "effort":
        looks = LINKS * max(asked, settings.get("effort", 1))
    else:
        looks = index.about["covers"] / STREAMED * settings.get("nprobe", 1) / max(1, index.abilities.limit)
    return bool(looks + again < rows * (1 / queries + 1 / BATCHED))


def _first_allowed(found: Neighbors, k: int, where: Mask | None) -> Neighbors:
    """The first k that may be found of each query, filled up with −1."""
    if where is None and found.ids.shape[1] == k:
        return found
    may = (found.ids >= 0) & (True if where is None else where[found.ids])
    found = found.ordered(np.argsort(~may, axis=1, kind="stable")[:, :k])
    found.ids[np.arange(k) >= may.sum(1)[:, None]] = -1
    return found


def _put(found: Neighbors, queries: Ints, some: Neighbors) -> Neighbors:
    found.scores[queries], found.ids[queries] = some.scores, some.ids
    return found


def tuned_for(index: Index, k: int) -> Settings:
    """The tuned settings; for another k than they were tuned for, as much wider as that asks for.

    More neighbours lie farther away. Of fewer, the first must still be found among as many candidates.
    """
    settings, tuned_k = dict(index.about["search"]), int(index.about["goal"]["k"])
    if k > tuned_k:
        return _widened(index, settings, k / tuned_k)
    if k < tuned_k and "rerank" in settings:
        settings["rerank"] = ceil(settings["rerank"] * tuned_k / k)
    return settings


def _widened(index: Index, settings: Settings, times: float) -> Settings:
    """Settings that look at so many times as many rows: the neighbours that may be found lie farther apart."""
    knob = index.abilities.knob
    if knob is None:
        return settings
    return settings | {knob: min(index.abilities.limit, ceil(settings.get(knob, 1) * times))}


def _faiss_search(index: Index, queries: Floats, k: int, settings: Settings) -> Neighbors:
    engine, again, covers = index.engine, index.rescored, index.about["covers"]
    if not index.abilities.grows and settings.get("rerank", 1) * k > covers:  # an NSG asked for more never returns
        settings = settings | {"rerank": max(1, covers // k)}
    fetched = min(int(k * settings.get("rerank", 1)), covers) if again else k
    if index.device != "cpu" and fetched > LARGEST_K:
        raise UserError(
            f"{fetched:,} results of a query: FAISS finds {LARGEST_K:,} at most on a GPU; search on cpu, ask for a smaller -k, or "
            f"for a filter that leaves more"
        )
    scores, ids = np.empty((len(queries), fetched), np.float32), np.empty((len(queries), fetched), np.int64)
    pointer = faiss().swig_ptr  # FAISS's own wrapper does the same, and takes a tenth of a short search for it
    engine.search_c(len(queries), pointer(queries), fetched, pointer(scores), pointer(ids), _call(index, settings))
    if index.metric == "euclidean":
        np.sqrt(np.abs(scores, out=scores), out=scores)  # FAISS's are squared, and 0 may come out a little below
    found = Neighbors(scores, index.live_rows(ids))
    return _scored_again(index, queries, found, k) if again else found


def _call(index: Index, settings: Settings) -> Any:
    if index.device != "cpu":
        set_on_gpus(index.engine, settings)
        return None
    if not index.abilities.grows:  # an NSG's effort is set on the index, for every call anew
        return parameters(index.engine, settings)
    key = tuple(settings.items())
    if key not in index.calls:
        index.calls[key] = parameters(index.engine, settings)
    return index.calls[key]


def _scored_again(index: Index, queries: Floats, found: Neighbors, k: int) -> Neighbors:
    """Candidates of coded vectors by their exact scores."""
    rows = torch.from_numpy(found.ids)
    exact = score_rows(torch.from_numpy(queries), index.base, rows.clamp_min(0)).float().cpu().numpy()
    exact[found.ids < 0] = -np.inf
    best = Neighbors(exact, found.ids).ordered(np.lexsort((found.ids, -exact), axis=1)[:, :k])
    return Neighbors(-best.scores, best.ids) if index.metric == "euclidean" else best


def _joined(one: Neighbors, other: Neighbors, k: int, metric: str) -> Neighbors:
    """The k best of both."""
    scores, rows = np.hstack([one.scores, other.scores]), np.hstack([one.ids, other.ids])
    worth = np.where(rows >= 0, -scores if metric == "euclidean" else scores, -np.inf)
    return Neighbors(scores, rows).ordered(np.lexsort((rows, -worth), axis=1)[:, :k])
