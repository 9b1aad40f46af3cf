"""Changing an index: every change is a new generation, published by one rename, while readers go on with the old.

New rows are found at once, compared exactly; when they are many, `fold` gives them to FAISS. Deleted rows are passed over;
`compact` takes them out. Both write the FAISS index anew, beside the old one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrieval.artifact import Manifest, creating, now, seal
from retrieval.errors import UserError
from retrieval.neighbors import Floats
from retrieval.store import Ids, Store, delete
from retrieval.store import add as add_to_store
from retrieval.store.compact import repack
from retrieval.store.merge import in_order, link_rows, plan_of_merge, refuse_unlike
from retrieval.store.writer import changing, made_by

from .backend import faiss
from .build import Progress, add_rows
from .bundle import FIRST_FILE, KIND, Index, as_float32, faiss_message, open_index, read_faiss, write_faiss
from .kinds import abilities, built_at_once, lists_of, unfit
from .plan import Goal
from .tune import tune

FOLDED_FROM = 10_000  # late rows, or a tenth of all if that is more, are given to FAISS
FOLDED_SHARE = 0.1


def add(folder: Path | str, store: Store | Path | str, *, replace: bool = False) -> Index:
    """Add the rows of a store. Ids that are there already are refused, or with `replace` their old rows are deleted.

    The same call twice in a row adds nothing the second time. Types that do not grow compare late rows exactly, however many.
    """
    add_to_store(folder, store, replace=replace, artifact=KIND)
    index = open_index(folder)
    late = index.rows.count - index.covered
    if index.abilities.grows and late >= max(FOLDED_FROM, FOLDED_SHARE * index.rows.count):
        index.rows.close()  # or the old generation's files would stay
        return fold(folder)
    return index


def remove(folder: Path | str, ids: Ids, *, missing_ok: bool = False) -> Index:
    """Delete rows by id, as `store.delete` does."""
    delete(folder, ids, artifact=KIND, missing_ok=missing_ok)
    return open_index(folder)


def fold(folder: Path | str, progress: Progress = lambda rows: None) -> Index:
    """Give FAISS the rows that it does not cover yet."""
    folder = Path(folder)
    with changing(folder, KIND) as (rows, manifest):
        index = Index(rows)
        if index.about["covers"] < rows.written:
            grown = _whole(index)
            if not abilities(grown).grows:
                raise UserError(
                    f"{folder}: a graph of this type takes no more rows; `retrieval index compact` builds it anew"
                )
            for number, first in enumerate(rows.first_ordinals[:-1].tolist()):
                if rows.first_ordinals[number + 1] > index.about["covers"]:
                    part = rows.all_vectors(number)[max(0, index.about["covers"] - first) :]
                    _attempt(folder, lambda part=part: grown.add(as_float32(part)))  # type: ignore[misc]
                    progress(len(part))
            _replace(folder, manifest, grown)
    return open_index(folder)


def compact(folder: Path | str, progress: Progress = lambda rows: None) -> Index:
    """Take deleted rows out, merge small shards, and build the FAISS index anew, as it was trained, over what is left; where its
    type cannot be built of that FAISS gets none, and all are compared exactly."""
    folder = Path(folder)
    with changing(folder, KIND) as (rows, manifest):
        index = Index(rows)
        packed = repack(folder, rows, manifest)
        if packed or index.about["covers"] < rows.written:
            grown = _whole(index)
            if built_at_once(grown):
                raise UserError(
                    f"{folder}: a CAGRA graph is built at once, on a GPU; build the index again from its store"
                )
            fit = unfit(grown, rows) is None
            if packed or fit or grown.ntotal:
                grown.reset()
                if fit:
                    _attempt(folder, lambda: add_rows(grown, rows, 0, None, progress))
                _replace(folder, manifest, grown)
    return open_index(folder)


def retune(folder: Path | str, goal: Goal, queries: Floats | None = None, seed: int = 0) -> Index:
    """Choose the search parameters anew, as a new generation; queries as in `build`."""
    folder = Path(folder)
    with changing(folder, KIND) as (rows, manifest):
        index = Index(rows)
        if not rows.count:
            raise UserError(f"{folder}: has no rows to tune by; add some first")
        # What the build did not keep was measured for its goal, on its day.
        manifest["index"] = index.about | tune([index], goal, queries, seed)[0] | {"others": []}
    return open_index(folder)


def merge(
    indexes: list[Index], output: Path, *, overwrite: bool = False, progress: Progress = lambda rows: None
) -> Index:
    """One index of the rows of several, built as the first is. Inverted files that were trained alike (`build` with
    `trained_by`) are merged list by list; for other types the rows of the later ones are added to the first.

    Indexes of the parts of one corpus are put in order, and all must be there. Raises UserError where their rows differ in kind, or
    an id stands in two of them.
    """
    output = Path(output).resolve()
    indexes = in_order(indexes)
    refuse_unlike(indexes)
    plan = plan_of_merge(indexes, output)
    if made_by(output, plan, KIND):
        return open_index(output)
    with creating(output, KIND, overwrite=overwrite) as (folder, manifest):
        rows = link_rows([index.rows for index in indexes], folder, KIND)
        seal(folder, KIND, rows)  # as a store, for types that take all rows anew
        with Store(folder, kind=KIND, trusted=True) as linked:
            grown = _joined(indexes, linked, progress)
        stated = write_faiss(grown, folder / FIRST_FILE)
        about = indexes[0].about | {"file": FIRST_FILE, "covers": grown.ntotal, "merged": len(indexes)}
        files = rows["files"] | {FIRST_FILE: stated}
        manifest |= rows | {"created": now(), "plan": plan, "index": about, "files": files}
    return open_index(output)


def _joined(indexes: list[Index], linked: Store, progress: Progress) -> Any:
    """One FAISS index over the live rows of all, in their order, as `linked` has them."""
    whole = all(i.rows.ordinals is None and i.about["covers"] == i.rows.count for i in indexes)
    grown = _whole(indexes[0])
    if whole and lists_of(grown) is not None:
        others = [_whole(index) for index in indexes[1:]]
        if all(_alike(grown, other) for other in others):
            for other in others:
                progress(other.ntotal)
                grown.merge_from(other, grown.ntotal)
            return grown
    if not (whole and abilities(grown).grows):
        grown.reset()
    if unfit(grown, linked) is None:
        _attempt(linked.folder, lambda: add_rows(grown, linked, grown.ntotal, None, progress))
    return grown


def _alike(index: Any, other: Any) -> bool:
    """Whether two inverted files were trained alike, and FAISS can merge them list by list."""
    try:
        index.check_compatible_for_merge(other)
    except RuntimeError:
        return False
    return _emptied(index) == _emptied(other)


def _emptied(index: Any) -> bytes:
    """An index as it was trained."""
    copy = faiss().clone_index(index)
    copy.reset()
    return bytes(faiss().serialize_index(copy))


def _whole(index: Index) -> Any:
    """The FAISS index as new, in memory: not the one that searches use."""
    with index.rows.open_file(index.about["file"]) as file:
        return read_faiss(file, changing=True)


def _replace(folder: Path, manifest: Manifest, grown: Any) -> None:
    """Write the next generation's FAISS index and enter it."""
    about = dict(manifest["index"])
    del manifest["files"][about["file"]]
    name = f"index-{manifest['generation'] + 1}.faiss"
    manifest["files"][name] = write_faiss(grown, folder / name)
    manifest["index"] = about | {"file": name, "covers": grown.ntotal}


def _attempt(folder: Path, step: Callable[[], Any]) -> None:
    try:
        step()
    except RuntimeError as error:
        raise UserError(f"{folder}: FAISS cannot add to it ({faiss_message(error)}); build it again") from None
