"""`retrieval eval clusters`."""

from pathlib import Path

import click

from retrieval.errors import UserError

from .options import checks, common, emit, existing, say


@click.group("eval")
def evaluate() -> None:
    """Measure retrieval quality."""


@evaluate.command()
@click.argument("store", type=existing("folder"))
@checks
@common
def clusters(store: Path, check: bool, seed: int, as_json: bool) -> None:
    """How tightly the classes of STORE cluster, by exact neighbours within it, each item itself left out.

    \b
    Example:
      retrieval eval clusters store --json
    """
    from retrieval.eval.clusters import NAMES, cluster_metrics
    from retrieval.store import open_store

    source = open_store(store, check=check)
    source.require_unit_vectors()
    rows = source.load()
    if rows.labels is None:
        raise UserError(f"{store}: has no labels; embed data with a column label, or class folders")
    metrics = cluster_metrics(rows.embeddings, rows.labels, seed=seed)
    if metrics["singletons"]:
        say(f"Note: {metrics['singletons']:,} classes of one member are not queries")
    lines = [f"{name:<12} {metrics[name]:.4f}" for name in NAMES]  # type: ignore[literal-required]
    lines.append(f"{metrics['n']:,} items, {metrics['classes']:,} classes, {metrics['singletons']:,} of one member")
    emit(dict(metrics), as_json, lines)
