"""What FAISS's index types can do, and their search parameters by one set of names.

nprobe   inverted files: how many lists a query looks into
effort   graphs (HNSW, NSG): how many nodes a query keeps open (FAISS's efSearch, search_L)
rerank   coded vectors: how many times k candidates are fetched, to be scored again from the stored vectors
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from retrieval.errors import UserError

from .backend import faiss

if TYPE_CHECKING:
    from retrieval.store import Store

Settings = dict[str, Any]  # whole numbers; a rerank may lie between two
KNOBS = ("nprobe", "effort", "rerank")  # lists, candidates of a graph, candidates scored again over k
LARGEST_EFFORT = 4096
LEAST_OF_NSG = 200  # rows: FAISS refuses up to 100, and ended the process with some of up to 150


@dataclass(frozen=True)
class Abilities:
    """knob: the parameter that trades time for recall, None if there is none; limit: its largest useful value. coded: its
    scores are approximate. refined: it scores again by itself. grows: it takes more rows once it is built."""

    knob: str | None
    limit: int
    coded: bool
    refined: bool
    grows: bool


def layers(index: Any) -> Iterator[Any]:
    """An index and what it wraps, the innermost storage last."""
    f = faiss()
    while True:
        index = f.downcast_index(index)
        yield index
        if isinstance(index, f.IndexPreTransform):
            index = index.index
        elif isinstance(index, f.IndexRefine):
            index = index.base_index
        elif isinstance(index, f.IndexHNSW | f.IndexNSG):
            index = index.storage
        else:
            return


def built_at_once(index: Any) -> bool:
    """Whether it is a CAGRA graph, which has one level and takes no more rows."""
    return any(getattr(part, "base_level_only", False) for part in layers(index))


class Unfit(NamedTuple):
    """Why FAISS can build no graph over some rows: what they are, and in full with what to do."""

    short: str
    full: str


def unfit(index: Any, store: "Store") -> Unfit | None:
    """Why FAISS can build no index of this type over a store's rows; None where it can.

    An NSG hangs what nothing leads to on a node that has links left. Of equal vectors each takes the others for its nearest, so that
    where these are as many as its links none is left, and FAISS looks for one forever.
    """
    graph = next((part for part in layers(index) if isinstance(part, faiss().IndexNSG)), None)
    if graph is None:
        return None
    if store.count < LEAST_OF_NSG:
        return Unfit(
            "too few", f"needs {LEAST_OF_NSG} vectors at least, and {store.folder} has {store.count:,}; take Flat"
        )
    links, most = int(graph.nsg.R), _most_copies(index, store)
    if 2 * most <= links:
        return None
    return Unfit(
        "too often the same",
        f"with {links} links a vector none may stand more than {links // 2} times, or FAISS might never return, and one of "
        f"{store.folder} stands {most:,} times; take HNSW{links}",
    )


def _most_copies(index: Any, store: "Store") -> int:
    """How often the most frequent vector of a store stands: as it is given, since a transform may round equal ones differently, or as
    the index keeps it, since codes make more of them equal."""
    given = kept = np.ascontiguousarray(store.embeddings(), np.float32)
    for part in layers(index):
        if isinstance(part, faiss().IndexPreTransform):
            for number in range(part.chain.size()):
                kept = part.chain.at(number).apply(kept)
    return max(_copies(given), _copies(part.sa_encode(kept)))


def _copies(rows: Any) -> int:
    """How often the most frequent of some rows (n, d) stands."""
    whole = rows.view(f"V{rows.shape[1] * rows.itemsize}")
    return int(np.unique(whole, return_counts=True)[1].max())


def lists_of(index: Any) -> Any:
    """The inverted file in an index, None if there is none."""
    return next((part for part in layers(index) if isinstance(part, faiss().IndexIVF)), None)


def abilities(index: Any) -> Abilities:
    f, chain = faiss(), list(layers(index))
    knob, limit = None, 0
    if isinstance(chain[-1], f.IndexIVF):
        knob, limit = "nprobe", int(chain[-1].nlist)
    graph = next((part for part in chain if isinstance(part, f.IndexHNSW | f.IndexNSG)), None)
    if graph is not None:
        knob, limit = "effort", LARGEST_EFFORT
    refined = any(isinstance(part, f.IndexRefine) for part in chain)
    plain = isinstance(chain[-1], f.IndexFlat | f.IndexIVFFlat)
    changed = any(isinstance(part, f.IndexPreTransform) for part in chain)  # perhaps to fewer dimensions
    return Abilities(
        knob,
        limit,
        coded=changed or not plain,
        refined=refined,
        grows=not (isinstance(graph, f.IndexNSG) or built_at_once(index)),
    )


def takes_nothing(index: Any) -> bool:
    """Whether FAISS searches a type without any parameters: none for a call."""
    f = faiss()
    return isinstance(index, f.IndexNSG | f.IndexPQ | f.IndexLSH | f.IndexAdditiveQuantizer | f.IndexFastScan)


def refuse_unsteerable(index: Any, name: str) -> None:
    """Raise UserError for the types whose nprobe or effort FAISS does not let a call choose."""
    f = faiss()
    if any(isinstance(part, f.IndexIVFAdditiveQuantizerFastScan | f.Index2Layer) for part in layers(index)):
        raise UserError(f"{name}: FAISS lets no search choose how far it looks in this type; take another")


def parameters(index: Any, settings: Settings) -> Any:
    """FAISS's search parameters for one call; the index itself stays as it is, so that threads can share it.

    Only an NSG takes none: its effort is set on the index.
    """
    f = faiss()
    index = f.downcast_index(index)
    if isinstance(index, f.IndexPreTransform):
        return f.SearchParametersPreTransform(index_params=parameters(index.index, settings))
    if isinstance(index, f.IndexRefine):
        inner = parameters(index.base_index, settings)
        return f.IndexRefineSearchParameters(k_factor=settings.get("rerank", 1), base_index_params=inner)
    if isinstance(index, f.IndexIVF):
        nprobe = min(settings.get("nprobe", 1), index.nlist)
        if isinstance(f.downcast_index(index.quantizer), f.IndexHNSW):  # which must find the lists first
            coarse = f.SearchParametersHNSW(efSearch=max(2 * nprobe, 64))
            return f.SearchParametersIVF(nprobe=nprobe, quantizer_params=coarse)
        return f.SearchParametersIVF(nprobe=nprobe)
    if isinstance(index, f.IndexHNSW):
        return f.SearchParametersHNSW(efSearch=settings.get("effort", 16))
    if isinstance(index, f.IndexNSG):
        # FAISS draws so many different rows to begin with, and never returns where there are fewer.
        index.nsg.search_L = min(settings.get("effort", 16), max(1, index.ntotal))
    return None if takes_nothing(index) else f.SearchParameters()
