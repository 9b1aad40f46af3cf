"""`retrieval index build | info`."""

from pathlib import Path

import click

from .options import checks, common, emit, existing, progress, writes


@click.group()
def index() -> None:
    """Build and inspect search indexes."""


@index.command()
@click.argument("store", type=existing("folder"))
@click.option(
    "--factory", help='FAISS factory string such as "IVF256,Flat" or "HNSW32".  [default: by size; exact up to 200,000]'
)
@writes
@checks
@common
def build(
    store: Path, factory: str | None, output: Path, overwrite: bool, check: bool, seed: int, as_json: bool
) -> None:
    """Build an index from the embedding store STORE.

    \b
    Example:
      retrieval index build store --output index
    """
    from retrieval.index.build import build as build_index
    from retrieval.store import open_store

    source = open_store(store, check=check)
    with progress("index", source.count) as advance:
        bundle = build_index(source, output, factory=factory, overwrite=overwrite, seed=seed, progress=advance)
    made = bundle.manifest
    tuned = ", ".join(f"{name} {value}" for name, value in made["search"].items())
    lines = [
        f"{output}: {made['count']:,} × {made['dim']} in {made['factory']}" + (f", {tuned}" if tuned else ""),
        f"  recall@10 {made['recall@10']:.3f} against exact search (queries: a sample of the stored items)",
    ]
    emit(
        {"output": str(output), **{k: made[k] for k in ("count", "dim", "factory", "search", "recall@10")}},
        as_json,
        lines,
    )


@index.command()
@click.argument("folder", metavar="INDEX", type=existing("folder"))
@checks
@common
def info(folder: Path, check: bool, seed: int, as_json: bool) -> None:
    """Say what the index INDEX is, who made it, and how well it finds.

    \b
    Example:
      retrieval index info index
    """
    from retrieval.index.bundle import open_index

    made = open_index(folder, check=check).manifest
    encoder = made["encoder"] or {"name": "unknown", "fingerprint": "imported vectors"}
    lines = [
        f"{folder}: {made['count']:,} {made['modality'] or ''} items × {made['dim']}, {made['factory']}, cosine",
        f"  made {made['created']} by encoder {encoder['name']} ({encoder['fingerprint'][:12]})",
        f"  recall@10 {made['recall@10']:.3f}, search parameters {made['search'] or 'none'}",
    ] + (["  every file matches its hash"] if check else [])
    emit(made, as_json, lines)
