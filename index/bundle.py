"""The index bundle on disk.

INDEX/index.faiss     opens with plain faiss.read_index; its ids are row numbers
INDEX/items.h5        what each row is: ids, and labels and text where there are any
INDEX/manifest.json   metric, encoder fingerprint, tuned search parameters, measured recall; written last
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.artifact import Manifest, read_manifest
from retrieval.errors import UserError

from .backend import faiss

KIND = "index"
INDEX_FILE = "index.faiss"
ITEMS_FILE = "items.h5"


@dataclass(frozen=True)
class Bundle:
    """An opened index. `index` is a faiss.Index whose search parameters are already set."""

    folder: Path
    index: Any
    manifest: Manifest

    @property
    def items(self) -> Path:
        return self.folder / ITEMS_FILE


def write_faiss(index: Any, path: Path) -> None:
    """Write an index durably. FAISS's own writer reports success on a full disk; this one raises OSError."""
    with open(path, "wb") as file:
        writer = faiss().PyCallbackIOWriter(file.write, 1 << 24)
        faiss().write_index(index, writer)
        del writer  # its destructor flushes the last block
        file.flush()
        os.fsync(file.fileno())


def open_index(folder: Path, *, check: bool = False) -> Bundle:
    """Open a bundle: checked by its manifest, with `check` every hash whatever its size, and the index against it."""
    manifest = read_manifest(folder, KIND, check=check)
    path = folder / INDEX_FILE
    try:
        index = faiss().read_index(str(path))
    except RuntimeError as error:
        raise UserError(f"{path}: FAISS cannot read it ({faiss_message(error)}); build the index again") from None
    if (index.ntotal, index.d) != (manifest["count"], manifest["dim"]):
        found = f"{index.ntotal} × {index.d}"
        raise UserError(
            f"{path}: holds {found} where the manifest says {manifest['count']} × {manifest['dim']}; build it again"
        )
    set_parameters(index, manifest["search"])
    return Bundle(folder, index, manifest)


def set_parameters(index: Any, parameters: dict[str, int]) -> None:
    """Set search parameters by FAISS's names ("nprobe", "efSearch"), also where a transform or an id map wraps the index."""
    space = faiss().ParameterSpace()
    for name, value in parameters.items():
        space.set_index_parameter(index, name, value)


def require_same_encoder(manifest: Manifest, fingerprint: str | None, source: str) -> None:
    """Refuse vectors of another encoder than the one that made the index. None: of an encoder that is not known."""
    made_by = manifest["encoder"] or {"fingerprint": None, "name": "an encoder that was never told"}
    if made_by["fingerprint"] != fingerprint:
        said = [mark[:12] if mark else "none" for mark in (fingerprint, made_by["fingerprint"])]
        raise UserError(
            f"{source}: is not the encoder of this index (fingerprint {said[0]}, the index has {said[1]} from "
            f"{made_by['name']}); search with that encoder, or embed and build again"
        )


def faiss_message(error: Exception) -> str:
    """FAISS's message without its C++ signature and source line."""
    plain = re.sub(r"^Error in .* at \S+:\d+: (Error: )?", "", str(error), flags=re.DOTALL)
    return " ".join(plain.split())[:200]


def as_float32(vectors: Any) -> Any:
    return np.ascontiguousarray(vectors, dtype=np.float32)
