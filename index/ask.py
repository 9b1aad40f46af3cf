"""Ask an index as people do: by texts or pictures, through the encoder that made it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retrieval.encoder import Encoder, load_encoder
from retrieval.errors import UserError
from retrieval.neighbors import Floats
from retrieval.store import refuse_bad_vectors

from .bundle import Index, require_same_encoder
from .filters import Mask
from .search import Found, Hit, search, within

FEW = 10  # results, where nobody says how many


def encoder_of(index: Index, name: str | None = None, device: str = "cpu") -> Encoder:
    """The encoder that made an index, loaded from `name` or from where the index recorded it.

    Raises UserError where it is not known, no longer there, or another than the index's.
    """
    if name is None:
        if index.manifest["encoder"] is None:
            raise UserError("--query: this index does not know the encoder of its vectors; search with --store")
        name = str(index.manifest["encoder"]["name"])
        if Path(name).is_absolute() and not Path(name).is_dir():
            raise UserError(f"--encoder: is needed, since {name}, which made this index, is no longer there")
    encoder = load_encoder(name, device)
    require_same_encoder(index.manifest, encoder.fingerprint, encoder.name)
    return encoder


def encoded(encoder: Encoder, items: Sequence[Any], names: Sequence[str]) -> Floats:
    """Queries (q, d) of texts or pictures. Raises UserError for vectors that are no numbers, by the item's name."""
    vectors = encoder.encode(items, role="query")
    refuse_bad_vectors(vectors, list(names))
    return vectors


def answer(
    index: Index, queries: Floats, k: int | None = None, *, radius: float | None = None, where: Mask | None = None
) -> Found:
    """The k best items of each query (q, d), ten if nobody says; or all within `radius`, the k best of these. where: (n,) which
    rows may be found. Raises UserError for a radius that no score can have."""
    if radius is None:
        return search(index, queries, k or FEW, where=where)
    if not math.isfinite(radius):
        raise UserError(f"--radius {radius:g}: give a number")
    if index.metric == "cosine" and not -1 <= radius <= 1:
        raise UserError(f"--radius {radius:g}: cosines are between −1 and 1; give the least that is near enough")
    if index.metric == "euclidean" and radius < 0:
        raise UserError(f"--radius {radius:g}: is less than any distance; give the largest that is near enough")
    return within(index, queries, radius, where=where).first(k)


def plain(hit: Hit) -> dict[str, Any]:
    """A result as JSON has it: score, id, label, text, and what else the item has."""
    own: dict[str, Any] = {"score": hit.score, "id": hit.id, "label": hit.label}
    payload = {f"payload.{name}" if name in own else name: value for name, value in hit.payload.items()}
    return own | {"text": None} | payload
