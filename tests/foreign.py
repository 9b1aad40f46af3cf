"""Stores read from foreign files."""

from retrieval.formats import Imported, open_vectors
from retrieval.store import Kind, create

plain = Kind(5, metric="inner_product", normalized=False, shard_rows=4)


def back(path, folder, kind=None, **options):
    opened = open_vectors(path)
    return create(
        folder,
        Imported(opened, "inner_product", False, **options),
        kind or Kind(opened.dim, metric="inner_product", normalized=False),
    )
