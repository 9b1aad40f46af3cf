"""`retrieval demo`: the whole path on real data that come with the dependencies."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .held import before_and_after, by_classes
from .options import common, pick_device, quiet_libraries
from .output import Advance, emit, progress, say

if TYPE_CHECKING:
    from retrieval.data import Texts
    from retrieval.encoder import Encoder
    from retrieval.eval.report.page import Section
    from retrieval.images import Images
    from retrieval.train.curve import Curve

QUERIES = ("read a file line by line", "wait until another thread is done", "how far apart are two dates")
DIGIT_STEPS, DOC_STEPS = 120, 300
TITLES = {"r@1": "R@1", "map@r": "MAP@R", "knn@20": "kNN@20", "ami": "AMI"}
SHOWN = tuple(TITLES)
WHEN = ("before", "after")


@click.command()
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Folder to write."
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier demo.")
@common
def demo(output: Path, overwrite: bool, seed: int, as_json: bool) -> None:
    """Fine-tune, embed, index, search and evaluate on real data, in minutes, on a laptop.

    Handwritten digits with a small network from scratch, and the documentation of Python's own standard library with
    all-MiniLM-L6-v2. What is judged was never trained on. Writes OUTPUT/report.html.

    \b
    Example:
      retrieval demo
    """
    started = time.monotonic()
    quiet_libraries()
    from retrieval.artifact import creating, now
    from retrieval.eval.report.page import render

    with creating(output, "demo", overwrite=overwrite) as (folder, manifest):
        sections = [*_digits(folder / "digits", seed), *_docs(folder / "docs", seed)]
        seconds = time.monotonic() - started
        foot = f"Made by retrieval demo on {now()[:10]} in {seconds:.0f} seconds. Everything is measured on items that were never trained on."
        lead = (
            "The same search before and after fine-tuning with hardness-controlled contrastive loss (κ\u202f=\u202f2)."
        )
        (folder / "report.html").write_text(
            render("Does the neighbourhood hold its own class?", lead, sections, foot), "utf-8"
        )
        manifest |= {"seconds": round(seconds, 1)}
    result = {
        "report": str(output / "report.html"),
        "seconds": round(time.monotonic() - started, 1),
        **{
            section.title: dict(zip(WHEN, map(_headline, section.values["sides"]), strict=True))
            for section in _judged(sections)
        },
    }
    lines = [*_table(sections), f"The report with pictures: {output / 'report.html'}   ({result['seconds']:.0f} s)"]
    emit(result, as_json, lines)


@dataclass(frozen=True)
class _Trained:
    """An encoder after training, and what it made of the held-out items before (n, d)."""

    encoder: "Encoder"
    curve: "Curve"
    before: Any
    title: str
    note: str


def _digits(folder: Path, seed: int) -> "list[Section]":
    from retrieval.embed import encode_all
    from retrieval.encoder import Encoder
    from retrieval.samples import digits
    from retrieval.train.image import ImageConfig, train_image
    from retrieval.train.loss import named
    from retrieval.train.pictures import longest_side
    from retrieval.train.vision import network

    data = digits()
    train_rows, test_rows = _split(len(data), 2 / 3, seed)
    train, test = data.take(train_rows), data.take(test_rows)
    say(f"digits: {len(train):,} to train on, {len(test):,} to judge by; a ResNet from scratch")
    encoder = Encoder(network("small", longest_side(train), pick_device(None), seed), "small")
    before = encode_all(encoder, test)
    config, loss = ImageConfig(steps=DIGIT_STEPS, seed=seed, scratch=True), named("hcl")
    with progress("train", DIGIT_STEPS) as bar:
        curve = train_image(encoder.model, train, config, loss, source="digits", progress=lambda c: _step(bar, c))
    note = f"A small ResNet from scratch, {DIGIT_STEPS} steps on {len(train):,} pictures; {len(test):,} others are searched."
    trained = _Trained(encoder, curve, before, "Handwritten digits", note)
    return _artifacts(folder, trained, test, slice(None), seed)


def _docs(folder: Path, seed: int) -> "list[Section]":
    from retrieval.encoder import MINILM, load_encoder
    from retrieval.eval.report.artifacts import searches_section
    from retrieval.index.bundle import open_index
    from retrieval.index.search import hits, search
    from retrieval.samples import docs_as_texts, library_docs
    from retrieval.train.loss import named
    from retrieval.train.text import TextConfig, train_text

    docs = library_docs()
    modules = sorted({doc.module for doc in docs})
    seen = {modules[i] for i in _split(len(modules), 2 / 3, seed)[0]}
    data = docs_as_texts([doc for doc in docs if doc.module not in seen] + [doc for doc in docs if doc.module in seen])
    held_out = slice(sum(doc.module not in seen for doc in docs))
    train = docs_as_texts([doc for doc in docs if doc.module in seen])
    labels = (data.labels or [])[held_out]
    say(
        f"docs: {len(train):,} texts of {len(seen)} modules to train on, {len(labels):,} of {len(set(labels))} other modules to judge by"
    )
    encoder = load_encoder(MINILM, pick_device(None))
    before = _encode(encoder, list(data.texts[held_out]))
    config, loss = TextConfig(head=True, steps=DOC_STEPS, lr=1e-4, seed=seed), named("hcl")
    with progress("encode", len(train)) as encoded, progress("train", DOC_STEPS) as bar:
        curve = train_text(
            encoder.model, train, config, loss, source="docs", encoded=encoded, progress=lambda c: _step(bar, c)
        )
    note = (
        f"all-MiniLM-L6-v2 with a linear head, {DOC_STEPS} steps on the documentation of {len(seen)} modules; class = module. "
        f"Judged on {len(set(labels))} modules it has not seen; the searches run over all {len(data):,} texts."
    )
    trained = _Trained(encoder, curve, before, "Python's standard library", note)
    judged, run = _artifacts(folder, trained, data, held_out, seed)
    index = open_index(folder / "index")
    found = hits(index, search(index, encoder.encode(list(QUERIES)), 5))
    told = [
        (q, [(h.score, str(h.id), h.payload.get("text", "")) for h in best])
        for q, best in zip(QUERIES, found, strict=True)
    ]
    return [judged, searches_section("Searches", told), run]


def _artifacts(folder: Path, trained: _Trained, data: "Texts | Images", judged: slice, seed: int) -> "list[Section]":
    """Run, store and index, as the commands would write them; what is judged, before and after, and the run as sections."""
    from retrieval.embed import embed
    from retrieval.eval.report.artifacts import run_section
    from retrieval.eval.report.items import Items, items_section
    from retrieval.images import Images
    from retrieval.index.build import build
    from retrieval.train.run import read_run, save_run

    with progress("embed", len(data)) as bar:
        store = embed(trained.encoder, data, folder / "store", progress=bar)
    build(store, folder / "index", seed=seed)
    shown = data.take(range(len(data))[judged])
    texts, pictures = (None, shown) if isinstance(shown, Images) else (shown.texts, None)
    ids = [str(i) for i in store.ids_between(0, store.count)[judged]]
    vectors = (trained.before, store.embeddings()[judged])
    sides = [
        Items(name, each, None if shown.labels is None else list(shown.labels), ids, texts=texts, pictures=pictures)
        for name, each in zip(WHEN, vectors, strict=True)
    ]
    section = items_section(trained.title, trained.note, sides, seed=seed)
    held = by_classes(shown)
    before, after = (held.measure(each) for each in vectors)
    metrics = {"held-out": before_and_after(held, before, after, seed)}
    save_run(folder / "run", trained.encoder, trained.curve, {"demo": folder.name, "seed": seed}, metrics)
    return [section, run_section(f"{trained.title}: training", *read_run(folder / "run"))]


def _headline(side: dict[str, Any]) -> dict[str, Any]:
    from retrieval.eval.clusters import NAMES

    counts = {name: side["counts"][name] for name in ("n", "classes", "singletons")}
    return {name: side["metrics"][name] for name in NAMES} | counts


def _encode(encoder: "Encoder", texts: list[str]) -> Any:
    from retrieval.data import Texts
    from retrieval.embed import encode_all

    with progress("before", len(texts)) as bar:
        return encode_all(encoder, Texts({"text": texts}), progress=bar)


def _split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    import numpy as np

    order = np.random.default_rng(seed).permutation(count).tolist()
    cut = int(count * share)
    return order[:cut], order[cut:]


def _step(bar: Advance, curve: "Curve") -> None:
    bar(1, note=f"loss {curve[-1]['loss']:.3f}")


def _judged(sections: "list[Section]") -> "list[Section]":
    return [section for section in sections if "sides" in section.values]


def _table(sections: "list[Section]") -> list[str]:
    """Before and after, a line each; then what the first search found."""
    lines = ["".join([f"{'before → after':<40}", *(f"{TITLES[name]:<16}" for name in SHOWN)]).rstrip()]
    for section in _judged(sections):
        before, after = (side["metrics"] for side in section.values["sides"])
        title = f"{section.title}, {section.values['items']:,} unseen"
        changes = (f"{before[name]:.3f} → {after[name]:.3f}" for name in SHOWN)
        lines.append("".join([f"{title:<40}", *(f"{change:<16}" for change in changes)]).rstrip())
    for search in [search for section in sections for search in section.values.get("searches", ())][:1]:
        lines += ["", f'search "{search["query"]}"']
        lines += [f"  {hit['score']:.2f}  {hit['id']:<24} {hit['text'][:70]}" for hit in search["hits"]]
    return [*lines, ""]
