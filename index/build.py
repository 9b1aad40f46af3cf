"""Build an index from a store: link its rows, train on a sample, add block by block, tune, measure."""

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.artifact import (
    Manifest,
    creating,
    empty,
    environment,
    now,
    read_sealed,
    seal,
    sha256_json,
    write_sealed,
)
from retrieval.errors import UserError
from retrieval.neighbors import Floats
from retrieval.store import Store, open_store
from retrieval.store.merge import link_rows

from .backend import faiss, faiss_metric
from .bundle import (
    FIRST_FILE,
    KIND,
    Index,
    as_float32,
    faiss_message,
    open_index,
    read_faiss,
    require_fitting,
    write_faiss,
)
from .gpu import add_assigned, cagra, gpus, require_cagra, train_on
from .kinds import layers, lists_of, refuse_unsteerable, unfit
from .plan import Candidate, Goal, candidates
from .tune import tune, worth

BLOCK_ROWS = 65_536
PER_LIST = 64  # training vectors for each centre of a clustering
EFFORT = 128  # of adding to a graph (FAISS's efConstruction, 40 by default): better links, searched ever after
SAVED_EVERY = 120.0  # seconds between the states that a killed build goes on from
STATE = "building.json"
# Too few lists, links or dimensions, with which FAISS ends the process or never returns.
TOO_FEW = re.compile(r"[A-Za-z]+0(?!\d)|HNSW1(?!\d)|NSG[1-7](?!\d)")
Progress = Callable[[int], None]


def build(
    store: Store | Path | str,
    output: Path | str,
    *,
    factory: str | None = None,
    goal: Goal | None = None,
    queries: Floats | None = None,
    trained_by: Index | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    seed: int = 0,
    progress: Progress = lambda rows: None,
) -> Index:
    """Build, tune, measure and write an index; `progress` is told the rows added since it was last called.

    factory: a FAISS factory string, or None to choose by the goal, and without a goal by size. queries: (q, d) vectors of
    the kind that will be asked, of which one half tunes and the other measures; without them stored vectors stand in, each
    looking for the others. trained_by: an index whose type and training are taken over. device: where inverted files are
    trained and their vectors assigned to lists, and CAGRA graphs built. The recall reached is recorded, whatever it is. A
    call that was killed is taken up by the same call.

    Raises UserError for a factory that FAISS cannot make or build, and for what fits no memory.
    """
    output, store = Path(output), store if isinstance(store, Store) else open_store(store)
    refuse_unsuited(store)
    if device != "cpu":
        gpus(device)
    if trained_by is not None:
        chosen, made = _taken_over(trained_by, factory, store)
    else:
        chosen = (
            [Candidate(factory, 0, "as asked")]
            if factory is not None
            else candidates(store.count, store.dim, goal, store.manifest["metric"])
        )
        made = [new_index(one.factory, store, device) for one in chosen]  # a bad factory is refused before any work
    goal = goal or Goal()
    with creating(output, KIND, overwrite=overwrite, resume=True) as (folder, manifest):
        plan = _plan(store, chosen, goal, queries, seed, trained_by)
        if (read_sealed(folder / STATE) if (folder / STATE).exists() else None) != {"plan": plan}:
            empty(folder)
            write_sealed(folder / STATE, {"plan": plan})
        try:
            rows = link_rows([store], folder, KIND)
            grown = []
            for number, one in enumerate(chosen):
                file = f"candidate-{number}.faiss"
                index = made.pop(0)  # so that only one is held: they may be large
                about = grow(index, one, store, folder / file, seed, device, progress)
                del index
                grown.append(about | {"file": file, "factory": one.factory, "why": one.why})
            tried = tune_built(folder, rows, grown, goal, queries, seed)
        except UserError:
            empty(folder)  # it would not go better the next time
            raise
        best = max(tried, key=worth)
        manifest |= _finish(folder, rows, best, tried)
        (folder / STATE).unlink()
    return open_index(output.resolve())


def refuse_unsuited(store: Store) -> None:
    if not store.count:
        raise UserError(f"{store.folder}: has no rows; there is nothing to index")
    if store.manifest["metric"] == "cosine":
        store.require_unit_vectors()


def new_index(factory: str, store: Store, device: str = "cpu") -> Any:
    """An empty index of the store's metric, None for a CAGRA graph, which is built at once. Raises UserError for a factory
    string that FAISS does not take."""
    if factory.startswith("CAGRA"):
        require_cagra(factory, device)
        return None
    if not factory.strip():
        raise UserError("--factory: is empty; name a type, such as HNSW32, or leave it out")
    if (none := TOO_FEW.search(factory)) is not None:
        raise UserError(f"--factory {factory!r}: FAISS would not survive {none.group()}; give a larger number")
    if factory.startswith("IDMap"):
        raise UserError(f"--factory {factory!r}: leave IDMap out; ids are kept with the rows, for every type")
    try:
        index = faiss().index_factory(store.dim, factory, faiss_metric(store.manifest["metric"]))
    except RuntimeError as error:
        reason = faiss_message(error)
        raise UserError(f"--factory {factory!r}: FAISS cannot make it for {store.dim} dimensions ({reason})") from None
    if index.metric_type != faiss_metric(store.manifest["metric"]):
        raise UserError(
            f"--factory {factory!r}: FAISS makes it for another metric than {store.manifest['metric']}; take another type"
        )
    refuse_unsteerable(index, f"--factory {factory!r}")
    for part in layers(index):
        if hasattr(part, "do_polysemous_training"):
            part.do_polysemous_training = False  # nine tenths of training, for a kind of search that is not used here
    return index


def _taken_over(trained_by: Index, factory: str | None, store: Store) -> tuple[list[Candidate], list[Any]]:
    """An empty index trained as another is."""
    if factory is not None:
        raise UserError("--trained-by: takes the type over too; leave --factory out")
    require_fitting(trained_by.manifest, store.manifest, str(store.folder))
    with trained_by.rows.open_file(trained_by.about["file"]) as file:
        empty_one = read_faiss(file, changing=True)
    empty_one.reset()
    return [Candidate(trained_by.about["factory"], 0, f"trained by {trained_by.folder.name}")], [empty_one]


def grow(
    index: Any, one: Candidate, store: Store, path: Path, seed: int, device: str, progress: Progress = lambda rows: None
) -> Manifest:
    """Train an empty index and add all rows; what an earlier, killed call had saved is taken up.

    Returns what a manifest says of the file.
    """
    started = time.monotonic()
    if path.exists():
        with open(path, "rb") as saved:
            index = read_faiss(saved, changing=True)
        for part in layers(index):
            if isinstance(part, faiss().IndexHNSW):  # the levels that it had drawn, which the file does not tell
                for _ in range(part.ntotal):
                    part.hnsw.random_level()
    try:
        if index is None:
            index = cagra(store.embeddings(), faiss_metric(store.manifest["metric"]), one.factory, device)
        if not index.is_trained:
            train(index, store, seed, device)
        if (why := unfit(index, store)) is not None:
            raise UserError(f"--factory {one.factory!r}: {why.full}")
        add_rows(index, store, index.ntotal, path, progress, device)
    except RuntimeError as error:
        raise UserError(
            f"--factory {one.factory!r}: FAISS cannot build it on {store.count:,} vectors ({faiss_message(error)})"
        ) from None
    file = write_faiss(index, path)
    seconds = time.monotonic() - started
    return {"covers": index.ntotal, "rows": index.ntotal, "seed": seed, "seconds": round(seconds, 3), "stated": file}


def train(index: Any, store: Store, seed: int, device: str = "cpu") -> None:
    """Train on a sample that the seed decides."""
    f, count, held = faiss(), store.count, []
    kept = train_on(index, device) if device != "cpu" else None
    for part in layers(index):
        if isinstance(part, f.IndexIVF):
            part.cp.niter, part.cp.max_points_per_centroid = 20, PER_LIST
            _seeded(part.cp, seed)
            count = min(count, max(PER_LIST * int(part.nlist), BLOCK_ROWS))
        for coder in ("pq", "rq"):
            if hasattr(part, coder):
                _seeded(getattr(part, coder).cp, seed)
        if isinstance(part, f.IndexPreTransform):
            for number in range(part.chain.size()):
                transform = f.downcast_VectorTransform(part.chain.at(number))
                if isinstance(transform, f.OPQMatrix):
                    held.append((transform, f.ProductQuantizer(transform.d_out, transform.M, 8)))
                    _seeded(held[-1][1].cp, seed)
                    transform.pq = held[-1][1]
    rows = np.sort(np.random.default_rng(seed).choice(store.count, min(count, store.count), replace=False))
    index.train(as_float32(store.take(rows)))
    for transform, _ in held:
        transform.pq = None
    if kept is not None:
        lists_of(index).clustering_index = None


def _seeded(clustering: Any, seed: int) -> None:
    clustering.seed = seed % 2**31  # an int of C
    clustering.min_points_per_centroid = 1  # FAISS warns below 39, a line for every part of every vector


def add_rows(index: Any, store: Store, begun: int, path: Path | None, progress: Progress, device: str = "cpu") -> None:
    """Add the rows from `begun` on, saving now and then; on another device the lists of an inverted file are found there."""
    block, step = BLOCK_ROWS, BLOCK_ROWS // 16
    for part in layers(index):
        if isinstance(part, faiss().IndexHNSW):
            part.hnsw.efConstruction = max(part.hnsw.efConstruction, EFFORT)
        if isinstance(part, faiss().IndexNSG):  # takes all its vectors at once
            block = step = max(1, store.count)
    progress(begun)
    saved = time.monotonic()
    for start in range(begun, store.count, block):
        stop = min(start + block, store.count)
        for low in range(start, stop, step):
            high = min(low + step, stop)
            vectors = as_float32(store.take(np.arange(low, high)))
            if device != "cpu" and lists_of(index) is not None:
                add_assigned(index, vectors, low, device.partition(",")[0])
            else:
                index.add(vectors)
            progress(high - low)
        if path is not None and time.monotonic() - saved > SAVED_EVERY and stop < store.count:
            write_faiss(index, path)
            saved = time.monotonic()


def tune_built(
    folder: Path, rows: Manifest, grown: list[Manifest], goal: Goal, queries: Floats | None, seed: int
) -> list[Manifest]:
    """Tune and measure what is being built; each comes back with its search parameters and what they give."""
    staged = []
    for about in grown:
        stated = rows["files"] | {about["file"]: about["stated"]}
        seal(folder, KIND, rows | {"index": about | {"search": {}}, "files": stated})
        staged.append(Index(Store(folder, kind=KIND, trusted=True)))
    told = tune(staged, goal, queries, seed)
    for index in staged:
        index.rows.close()
    return [about | found for about, found in zip(grown, told, strict=True)]


def _finish(folder: Path, rows: Manifest, best: Manifest, tried: list[Manifest]) -> Manifest:
    """The winner under its name, the others gone; the manifest."""
    for about in tried:
        if about["file"] != best["file"]:
            (folder / about["file"]).unlink()
    (folder / best["file"]).rename(folder / FIRST_FILE)
    others = [
        {k: about[k] for k in ("factory", "search", "measured", "seconds")} for about in tried if about is not best
    ]
    about = {k: v for k, v in best.items() if k != "stated"} | {"file": FIRST_FILE, "others": others}
    return rows | {"created": now(), "index": about, "files": rows["files"] | {FIRST_FILE: best["stated"]}}


def _plan(
    store: Store, chosen: list[Candidate], goal: Goal, queries: Floats | None, seed: int, trained_by: Index | None
) -> str:
    asked = None if queries is None else hashlib.sha256(np.ascontiguousarray(queries).data).hexdigest()
    made_by = {name: kept for name, kept in environment().items() if name.startswith("faiss")}
    training = None if trained_by is None else trained_by.rows.manifest_hash
    return sha256_json(
        [
            training,
            store.manifest_hash,
            [one.factory for one in chosen],
            goal.recall,
            goal.k,
            goal.single,
            asked,
            seed,
            made_by,
        ]
    )
