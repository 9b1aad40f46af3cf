"""`retrieval search`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval.errors import UserError

from .options import checks, common, emit, existing, pick_device, quiet_libraries, uses_device

if TYPE_CHECKING:
    from retrieval.index.bundle import Bundle
    from retrieval.index.search import Hit


@click.command()
@click.argument("index", type=existing("folder"))
@click.option("--query", "queries", multiple=True, help="A text to search for; may be given several times.")
@click.option(
    "--image", "pictures", multiple=True, type=click.Path(path_type=Path), help="An image file to search for; likewise."
)
@click.option("--store", type=existing("folder"), help="An embedding store whose every row is a query.")
@click.option("--encoder", "name", help="The encoder that made the index.  [default: as the index recorded it]")
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="Results a query.")
@checks
@uses_device
@common
def search(
    index: Path,
    queries: tuple[str, ...],
    pictures: tuple[Path, ...],
    store: Path | None,
    name: str | None,
    k: int,
    check: bool,
    device: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Search the index INDEX by text, by image, or by every row of a store.

    \b
    Example:
      retrieval search index --encoder run --query "card not working" -k 5
    """
    if sum(map(bool, (queries, pictures, store))) != 1:
        raise UserError("give one kind of query: --query TEXT, --image FILE, or --store STORE")
    if any(not query.strip() for query in queries):
        raise UserError("--query: is empty; give a text to search for")
    from retrieval.index.bundle import open_index
    from retrieval.index.search import search as search_index

    bundle = open_index(index, check=check)
    names, vectors = (
        _store_queries(bundle, store, check) if store else _encoded_queries(bundle, queries, pictures, name, device)
    )
    found = search_index(bundle, vectors, k)
    result = {
        "results": [{"query": q, "hits": [_as_json(hit) for hit in hits]} for q, hits in zip(names, found, strict=True)]
    }
    lines = []
    for query, hits in zip(names, found, strict=True):
        lines += [f"{query}"] if len(names) > 1 else []
        lines += [f"{rank:>3}  {hit.score:.3f}  {_described(hit)}" for rank, hit in enumerate(hits, 1)]
    emit(result, as_json, lines)


def _store_queries(bundle: "Bundle", folder: Path, check: bool) -> tuple[list[str], Any]:
    from retrieval.index.bundle import require_same_encoder
    from retrieval.store import open_store

    store = open_store(folder, check=check)
    require_same_encoder(bundle.manifest, (store.manifest["encoder"] or {}).get("fingerprint"), str(folder))
    if store.dim != bundle.manifest["dim"]:
        raise UserError(f"{folder}: has {store.dim} dimensions, the index {bundle.manifest['dim']}; embed it again")
    store.require_unit_vectors()
    rows = store.load()
    return [str(i) for i in rows.ids], rows.embeddings


def _encoded_queries(
    bundle: "Bundle", queries: tuple[str, ...], pictures: tuple[Path, ...], name: str | None, device: str | None
) -> tuple[list[str], Any]:
    quiet_libraries()
    from retrieval.encoder import load_encoder
    from retrieval.images import decode
    from retrieval.index.bundle import require_same_encoder
    from retrieval.store import refuse_bad_vectors

    items: list[Any] = list(queries) or [decode(path) for path in pictures]
    names = list(queries) or [str(path) for path in pictures]
    encoder = load_encoder(name or _recorded_encoder(bundle), pick_device(device))
    require_same_encoder(bundle.manifest, encoder.fingerprint, encoder.name)
    vectors = encoder.encode(items)
    refuse_bad_vectors(vectors, names)
    return names, vectors


def _recorded_encoder(bundle: "Bundle") -> str:
    if bundle.manifest["encoder"] is None:
        raise UserError(
            "--query: this index is of imported vectors, whose encoder it does not know; search with --store"
        )
    recorded = str(bundle.manifest["encoder"]["name"])
    if Path(recorded).is_absolute() and not Path(recorded).is_dir():
        raise UserError(f"--encoder: is needed, since {recorded}, which made this index, is no longer there")
    return recorded


def _as_json(hit: "Hit") -> dict[str, Any]:
    return {"score": hit.score, "id": hit.id, "label": hit.label, "text": None, **hit.payload}


def _described(hit: "Hit") -> str:
    text = " ".join(hit.payload.get("text", "").split())
    shown = text if len(text) <= 100 else text[:99] + "…"
    return "  ".join(part for part in (hit.label and f"[{hit.label}]", shown or str(hit.id)) if part)
