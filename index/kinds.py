"""What FAISS's index types can do, and their search parameters by one set of names.

nprobe   inverted files: how many lists a query looks into
effort   graphs (HNSW, NSG): how many nodes a query keeps open (FAISS's efSearch, search_L)
rerank   coded vectors: how many times k candidates are fetched, to be scored again from the stored vectors
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from retrieval.errors import UserError

from .backend import faiss

Settings = dict[str, Any]  # whole numbers; a rerank may lie between two
KNOBS = ("nprobe", "effort", "rerank")  # lists, candidates of a graph, candidates scored again over k
LARGEST_EFFORT = 4096
LEAST_OF_NSG = 200  # rows: FAISS refuses up to 100, and ended the process with some of up to 150


@dataclass(frozen=True)
class Abilities:
    """knob: the parameter that trades time for recall, None if there is none; limit: its largest useful value. coded: its
    scores are approximate. refined: it scores again by itself. selects: it can be told to look at some rows only. grows: it
    takes more rows once it is built."""

    knob: str | None
    limit: int
    coded: bool
    refined: bool
    selects: bool
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


def least_rows(index: Any) -> int:
    """How few rows FAISS can build a type of."""
    return LEAST_OF_NSG if any(isinstance(part, faiss().IndexNSG) for part in layers(index)) else 0


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
    searched = chain[-1] if graph is None else graph
    deaf = takes_nothing(searched) or isinstance(searched, f.IndexIVFAdditiveQuantizer | f.IndexIVFPQR)
    return Abilities(
        knob,
        limit,
        coded=changed or not plain,
        refined=refined,
        selects=not deaf,
        grows=not (isinstance(graph, f.IndexNSG) or built_at_once(index)),
    )


def takes_nothing(index: Any) -> bool:
    """Whether FAISS searches a type without any parameters: none for a call, and no selector of rows."""
    f = faiss()
    return isinstance(index, f.IndexNSG | f.IndexPQ | f.IndexLSH | f.IndexAdditiveQuantizer | f.IndexFastScan)


def refuse_unsteerable(index: Any, name: str) -> None:
    """Raise UserError for the types whose nprobe or effort FAISS does not let a call choose."""
    f = faiss()
    if any(isinstance(part, f.IndexIVFAdditiveQuantizerFastScan | f.Index2Layer) for part in layers(index)):
        raise UserError(f"{name}: FAISS lets no search choose how far it looks in this type; take another")


def parameters(index: Any, settings: Settings, selector: Any = None) -> Any:
    """FAISS's search parameters for one call; the index itself stays as it is, so that threads can share it.

    Only an NSG takes none: its effort is set on the index.
    """
    f = faiss()
    index = f.downcast_index(index)
    if isinstance(index, f.IndexPreTransform):
        return f.SearchParametersPreTransform(index_params=parameters(index.index, settings, selector))
    if isinstance(index, f.IndexRefine):
        inner = parameters(index.base_index, settings, selector)
        return f.IndexRefineSearchParameters(k_factor=settings.get("rerank", 1), base_index_params=inner)
    if isinstance(index, f.IndexIVF):
        nprobe = min(settings.get("nprobe", 1), index.nlist)
        if isinstance(f.downcast_index(index.quantizer), f.IndexHNSW):  # which must find the lists first
            coarse = f.SearchParametersHNSW(efSearch=max(2 * nprobe, 64))
            return f.SearchParametersIVF(nprobe=nprobe, sel=selector, quantizer_params=coarse)
        return f.SearchParametersIVF(nprobe=nprobe, sel=selector)
    if isinstance(index, f.IndexHNSW):
        return f.SearchParametersHNSW(efSearch=settings.get("effort", 16), sel=selector)
    if isinstance(index, f.IndexNSG):
        # FAISS draws so many different rows to begin with, and never returns where there are fewer.
        index.nsg.search_L = min(settings.get("effort", 16), max(1, index.ntotal))
    return None if takes_nothing(index) else f.SearchParameters(sel=selector)
