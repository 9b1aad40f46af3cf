"""Stored rows as queries that an index has never seen.

A graph finds the neighbours of a row that it holds by the row's own links, more easily than those of a vector from outside (docs/log.md: .96 of them
for .88). So a graph that is tuned or measured by stored rows forgets these for the time being: nothing leads to them, and a node that was
linked to one is linked to the nearest of that one's neighbours instead, about as it would be had the row never been added.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np

from retrieval.neighbors import Floats, Ints, Neighbors, exact_neighbors

from .backend import faiss
from .bundle import Index
from .kinds import layers

SHARE = 10  # of the rows one in so many is forgotten at most
FEW = 40  # forgotten rows, of which half would measure nothing


class Graph(NamedTuple):
    """Links (l,) of all nodes, one after the other, to be changed in place, −1 where there is none; where each node's begin (n + 1,), how
    many of them are on the lowest level, which nodes (n,) stand on that level alone, and the vectors that it links."""

    links: Ints
    starts: Ints
    width: int
    low: Any
    storage: Any


def graph_of(index: Index) -> Graph | None:
    """The graph of an index, None where there is none, or none that can be changed: on a GPU, or mapped from its file."""
    f = faiss()
    if index.device != "cpu" or any(
        isinstance(each, np.memmap) for each in getattr(index.faiss, "referenced_objects", [])
    ):
        return None
    for part in layers(index.faiss):
        if isinstance(part, f.IndexHNSW):
            graph = part.hnsw
            starts = f.vector_to_array(graph.offsets).astype(np.int64)
            links = f.rev_swig_ptr(graph.neighbors.data(), graph.neighbors.size())
            low = f.vector_to_array(graph.levels) == 1
            low[graph.entry_point] = False
            return Graph(links, starts, int(graph.nb_neighbors(0)), low, f.downcast_index(part.storage))
        if isinstance(part, f.IndexNSG):
            kept = part.nsg.get_final_graph()
            count, width = int(kept.N), int(kept.K)
            low = np.ones(count, bool)
            low[part.nsg.enterpoint] = False
            links = f.rev_swig_ptr(kept.data, count * width)
            return Graph(links, np.arange(count + 1) * width, width, low, f.downcast_index(part.storage))
    return None


def forgotten(index: Index, rows: Ints, k: int, stack: ExitStack) -> tuple[Ints, Neighbors] | None:
    """Which of some stored rows a graph forgets until `stack` is left, and their exact k nearest among the rest; None where there is no
    graph to forget them, or too few rows."""
    graph = None if index.exact or not index.covered else graph_of(index)
    if graph is None:
        return None
    some = forgettable(index, graph, rows)
    if len(some) < FEW or index.rows.count - len(some) < k:
        return None
    found = nearest_others(index, np.asarray(index.rows.take(some), np.float32), k, some)
    stack.enter_context(forgetting(index, graph, some))
    return some, found


def forgettable(index: Index, graph: Graph, rows: Ints) -> Ints:
    """Those of some rows that the graph can forget, and not too many of them."""
    rows = rows[rows < index.covered]
    some: Ints = rows[graph.low[index.numbers(rows)]][: index.covered // SHARE]
    return some


@contextmanager
def forgetting(index: Index, graph: Graph, rows: Ints) -> Iterator[None]:
    """While this lasts, no search finds these rows by the graph."""
    forgotten = np.zeros(len(graph.low) + 1, bool)  # the last for links to nothing, −1
    forgotten[index.numbers(rows)] = True
    index.forgotten[rows] = True
    places = np.flatnonzero(forgotten[graph.links])
    targets = graph.links[places]
    order = np.argsort(targets, kind="stable")
    ends = np.cumsum(np.unique(targets, return_counts=True)[1])
    changed: list[tuple[Ints, Ints]] = []
    try:
        for group in np.split(places[order], ends[:-1]):
            _lead_past(graph, group, forgotten, changed)
        yield
    finally:
        index.forgotten[rows] = False
        for where, before in reversed(changed):
            graph.links[where] = before


def _lead_past(graph: Graph, places: Ints, forgotten: Any, changed: list[tuple[Ints, Ints]]) -> None:
    """Instead of to one node, which all these places link to, lead each to the nearest of its neighbours that is not linked yet."""
    target = int(graph.links[places[0]]) if len(places) else -1
    if target < 0:
        return
    start = graph.starts[target]
    beyond = graph.links[start : start + graph.width]
    beyond = beyond[(beyond >= 0) & ~forgotten[beyond]].astype(np.int64)
    nodes = np.searchsorted(graph.starts, places, "right") - 1
    near = _likeness(graph, nodes, beyond)
    for place, node, row in zip(places.tolist(), nodes.tolist(), near, strict=True):
        span = np.arange(graph.starts[node], graph.starts[node] + graph.width)
        changed.append((span, graph.links[span]))
        there = graph.links[span]
        row[np.isin(beyond, there) | (beyond == node)] = -np.inf
        if len(row) and row.max() > -np.inf:
            graph.links[place] = beyond[row.argmax()]
        else:  # the last link takes its place: FAISS reads up to the first −1
            last = span[np.count_nonzero(there >= 0) - 1]
            graph.links[place], graph.links[last] = graph.links[last], -1


def _likeness(graph: Graph, nodes: Ints, others: Ints) -> Floats:
    """(nodes, others): how near they are to each other, larger nearer."""
    if not len(others):
        return np.empty((len(nodes), 0), np.float32)
    one, other = (graph.storage.reconstruct_batch(each) for each in (nodes, others))
    product: Floats = one @ other.T
    if graph.storage.metric_type == faiss().METRIC_L2:
        product = 2 * product - (other**2).sum(1)
    return product


def nearest_others(index: Index, queries: Floats, k: int, left_out: Ints) -> Neighbors:
    """The exact k nearest of all rows but some."""
    out = np.zeros(index.rows.count, bool)
    out[left_out] = True
    deep = 2 * k + 8
    while True:
        deep = min(deep, index.rows.count)
        found = exact_neighbors(queries, index.base, deep)
        kept = ~out[found.ids]
        if deep == index.rows.count or (kept.sum(1) >= k).all():
            return found.ordered(np.argsort(~kept, axis=1, kind="stable")[:, :k])
        deep *= 2
