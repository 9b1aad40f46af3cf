"""The embedding store: a folder of immutable HDF5 shards and a manifest written last.

    STORE/manifest.json               the present generation: counts, dimension, dtype, metric, encoder, its shards and their hashes
    STORE/part-00000.h5               rows (shard.py says what is in one)
    STORE/part-00000.deleted-3.npy    which of its rows generation 3 deleted

A shard appears under its name only when it is whole (temp → fsync → rename). A change writes new shards or tombstones, then
the next manifest; readers keep the generation that they opened.
"""

from .compact import compact
from .dtypes import STORED_AS, UNIT, Floats, not_unit, refuse_bad_vectors
from .kind import SHARD_ROWS, Kind
from .merge import merge
from .reader import KIND, Store, open_store
from .shard import Ids, Rows, read_columns, write_columns
from .source import Held, Source, StoreRows
from .writer import Job, add, append, create, delete

__all__ = [
    "KIND",
    "SHARD_ROWS",
    "STORED_AS",
    "UNIT",
    "Floats",
    "Held",
    "Ids",
    "Job",
    "Kind",
    "Rows",
    "Source",
    "Store",
    "StoreRows",
    "add",
    "append",
    "compact",
    "create",
    "delete",
    "merge",
    "open_store",
    "read_columns",
    "not_unit",
    "refuse_bad_vectors",
    "write_columns",
]
