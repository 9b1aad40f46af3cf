"""Bare FAISS files: taken in with ids, and given out."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.artifact import creating, now
from retrieval.errors import UserError
from retrieval.neighbors import Floats, Ints
from retrieval.store import UNIT, Held, Ids, Kind, Rows, create
from retrieval.store.ids import first_repeated
from retrieval.store.merge import link_rows

from .backend import faiss
from .build import tune_built
from .bundle import DECODED, FIRST_FILE, KIND, Index, as_float32, faiss_message, open_index, read_faiss, write_faiss
from .kinds import layers, lists_of, refuse_unsteerable
from .plan import Goal

ROUGHLY = 0.5  # how far from 1 the length of a vector may be that was coded: few bits make it shorter, or longer


def import_faiss(
    path: Path,
    output: Path,
    *,
    ids: list[str] | None = None,
    labels: list[str] | None = None,
    metric: str | None = None,
    encoder: dict[str, Any] | None = None,
    goal: Goal | None = None,
    queries: Floats | None = None,
    overwrite: bool = False,
    seed: int = 0,
) -> Index:
    """An index of a bare FAISS file: its vectors become rows (decoded, where it holds codes), its search is tuned.

    ids: one for each vector; without them the file's own. metric: "cosine" where inner products are of unit vectors,
    else what FAISS says. encoder: {"name", "fingerprint"} of what made the vectors, if it is known.

    Raises UserError for a type that does not give its vectors back, and for ids that do not match.
    """
    try:
        with open(path, "rb") as file:
            index = read_faiss(file, changing=True)
    except UserError as error:
        raise UserError(str(error).replace("build the index again", "give what faiss.write_index wrote")) from None
    index, own = _without_map(index)
    if not index.ntotal:
        raise UserError(f"{path}: holds no vectors; there is nothing to import")
    refuse_unsteerable(index, str(path))
    metric = _metric(path, index, metric)
    vectors, listed = _vectors(path, index)
    own = listed if own is None else own
    for flag, given in (("--ids", ids), ("--labels", labels)):
        if given is not None and len(given) != len(vectors):
            found = f"{len(given):,} lines for the {len(vectors):,} vectors of {path}"
            raise UserError(f"{flag}: has {found}; give one a vector")
    if ids is not None and own is not None:
        raise UserError(f"--ids: {path} has ids of its own; leave --ids out")
    if metric == "cosine":
        _refuse_other_lengths(path, index, vectors)
        if not _keeps_vectors(index):  # codes give lengths back roughly
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    named: Ids = ids if ids is not None else own if own is not None else np.arange(len(vectors))
    if (twice := first_repeated([named])) is not None:
        raise UserError(f"{path}: id {twice!r} stands more than once; ids must be unique")
    if listed is not None:  # rows are numbered from 0 here, so its lists are filled anew
        index.reset()
        index.add(vectors)
    kind = Kind(vectors.shape[1], metric=metric, normalized=metric == "cosine", encoder=encoder)
    with creating(output, KIND, overwrite=overwrite) as (folder, manifest):
        made = create(folder / "rows", Held(Rows(vectors, named, labels)), kind)
        rows = link_rows([made], folder, KIND)
        made.close()
        shutil.rmtree(folder / "rows")
        stated = write_faiss(index, folder / FIRST_FILE)
        why = f"imported from {path.name}" + ("" if _keeps_vectors(index) else DECODED)
        about = {"file": FIRST_FILE, "factory": _described(index), "why": why, "seed": seed}
        about |= {"covers": index.ntotal, "rows": index.ntotal, "stated": stated, "others": []}
        about = tune_built(folder, rows, [about], goal or Goal(), queries, seed)[0]
        del about["stated"]
        manifest |= rows | {"created": now(), "index": about, "files": rows["files"] | {FIRST_FILE: stated}}
    return open_index(output.resolve())


def export_faiss(index: Index, path: Path) -> dict[str, Any]:
    """The FAISS index alone, with the items' ids where these are integers; where they are strings, ids are row numbers.

    Raises UserError while it lacks late rows or has deleted ones.
    """
    if index.covered < index.rows.count or index.rows.ordinals is not None:
        raise UserError(f"{index.folder}: has late or deleted rows; `retrieval index compact` first")
    ids = index.rows.ids_between(0, index.rows.count)
    if isinstance(ids, list) or np.array_equal(ids, np.arange(len(ids))):
        return write_faiss(index.faiss, path)
    mapped = faiss().IndexIDMap2(faiss().IndexFlat(index.faiss.d, index.faiss.metric_type))  # takes empty ones only
    mapped.index, mapped.own_fields = index.faiss, False
    faiss().copy_array_to_vector(np.ascontiguousarray(ids, np.int64), mapped.id_map)
    mapped.ntotal = index.faiss.ntotal
    mapped.construct_rev_map()
    return write_faiss(mapped, path)


def _without_map(index: Any) -> tuple[Any, Ints | None]:
    """What an IDMap wraps, and its ids."""
    f = faiss()
    if not isinstance(index, f.IndexIDMap):
        return index, None
    ids = f.vector_to_array(index.id_map).astype(np.int64)
    inner = f.downcast_index(index.index)
    inner.referenced_objects = [index]  # which owns it; FAISS cannot copy some types
    return inner, ids


def _metric(path: Path, index: Any, asked: str | None) -> str:
    said = {faiss().METRIC_INNER_PRODUCT: "inner_product", faiss().METRIC_L2: "euclidean"}.get(index.metric_type)
    if said is None:
        raise UserError(f"{path}: is of FAISS's metric {index.metric_type}; inner product and L2 are what we know")
    if asked in (None, said) or (asked, said) == ("cosine", "inner_product"):
        return asked or said
    raise UserError(f"--metric {asked}: {path} says {said}; leave it out")


def _refuse_other_lengths(path: Path, index: Any, vectors: Floats) -> None:
    """Raise UserError unless vectors are of length 1; of codes, which give them back roughly, unless half of them nearly are."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    off = np.abs(lengths - 1)
    if off.max() > UNIT if _keeps_vectors(index) else np.median(off) > ROUGHLY:
        worst = int(off.argmax())
        raise UserError(
            f"{path}: vector {worst} has length {lengths[worst]:.4g}, which cosine needs to be 1; leave --metric out"
        )


def _vectors(path: Path, index: Any) -> tuple[Floats, Ints | None]:
    """All vectors by rising id, and those ids where they are not 0, 1, …"""
    f = faiss()
    # FAISS would end the process.
    if any(isinstance(part, f.IndexFastScan | f.IndexIVFFastScan) for part in layers(index)):
        raise UserError(f"{path}: holds 4-bit codes, which FAISS does not give back; embed again and build an index")
    if any(isinstance(part, f.IndexLSH) for part in layers(index)):
        raise UserError(
            f"{path}: holds a bit for each hash, from which no vector comes back; embed again and build an index"
        )
    lists = lists_of(index)
    ids = None
    if lists is not None:
        found = [
            f.rev_swig_ptr(lists.invlists.get_ids(n), lists.invlists.list_size(n)).copy() for n in range(lists.nlist)
        ]
        ids = np.sort(np.concatenate(found).astype(np.int64))
        lists.set_direct_map_type(f.DirectMap.Hashtable)
    try:
        vectors = index.reconstruct_n(0, index.ntotal) if ids is None else index.reconstruct_batch(ids)
    except RuntimeError as error:
        reason = faiss_message(error)
        raise UserError(f"{path}: does not give its vectors back ({reason}); embed again and build an index") from None
    if lists is not None:
        lists.set_direct_map_type(f.DirectMap.NoMap)
    return as_float32(vectors), None if ids is None or np.array_equal(ids, np.arange(len(ids))) else ids


def _keeps_vectors(index: Any) -> bool:
    """Whether the file has the vectors themselves, in float32."""
    f, chain = faiss(), list(layers(index))
    again = next((f.downcast_index(part.refine_index) for part in chain if isinstance(part, f.IndexRefine)), chain[-1])
    turned = any(isinstance(part, f.IndexPreTransform) for part in chain) and again is chain[-1]
    return isinstance(again, f.IndexFlat | f.IndexIVFFlat) and not turned


def _described(index: Any) -> str:
    if isinstance(index, faiss().IndexFlat):
        return "Flat"
    names = [type(part).__name__.removeprefix("Index") for part in layers(index)]
    return names[0] if len(names) == 1 else " over ".join(names)
