"""How vectors are stored: float32, float16, bfloat16 or int8 with a scale a row.

NumPy and HDF5 have no bfloat16: it is stored as its bits, uint16, and named by an attribute of the data set.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import UserError

Floats = NDArray[np.float32]
STORED_AS = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int8": np.int8}
LARGEST = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38, "int8": 3.4e38}
NAMED = 3  # how many ids an error names
LONGEST = 1e18  # of vectors
UNIT = 1e-3  # how far from 1 a length may be: float16 rounds by half of that
ROUNDED = {"bfloat16": 1e-2, "int8": 1e-2}  # and of what was stored so before


class Encoded(NamedTuple):
    """Vectors as they are stored: data (n, d) of STORED_AS[dtype]; scales (n,) float32 for int8, else None."""

    data: NDArray[Any]
    scales: Floats | None = None


def encode(vectors: Floats, dtype: str) -> Encoded:
    """float32 (n, d) rounded to nearest in `dtype`. int8: x ≈ data · scale with scale = max |x| / 127 of the row."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if dtype == "float32":
        return Encoded(vectors)
    if dtype == "float16":
        return Encoded(vectors.astype(np.float16))
    if dtype == "bfloat16":
        bits = vectors.view(np.uint32)
        return Encoded(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16))  # nearest, ties to even
    assert dtype == "int8", dtype
    # A subnormal scale has no reciprocal: such rows are stored as zeros, which the check of the stored rows refuses.
    scales = (np.abs(vectors).max(axis=1, initial=0) / 127).astype(np.float32)
    scales[scales < np.finfo(np.float32).tiny] = 0
    steps = np.divide(vectors, scales[:, None], out=np.zeros_like(vectors), where=scales[:, None] > 0)
    return Encoded(np.clip(np.rint(steps), -127, 127).astype(np.int8), scales)


def decode(stored: Encoded, dtype: str) -> Floats:
    """The stored values as float32 (n, d), in new memory."""
    if dtype == "float32":
        return np.array(stored.data)
    if dtype == "float16":
        return stored.data.astype(np.float32)
    if dtype == "bfloat16":
        bits = stored.data.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    assert stored.scales is not None
    values = stored.data.astype(np.float32)
    values *= stored.scales[:, None]
    return values


def not_unit(vectors: Floats) -> tuple[int, float] | None:
    """The first of vectors (n, d) whose length is not 1, and its length; None where there is none."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    off = np.abs(lengths - 1) > UNIT
    return (int(off.argmax()), float(lengths[off.argmax()])) if off.any() else None


def refuse_bad_vectors(
    vectors: Floats,
    ids: Sequence[Any] | NDArray[np.int64],
    dtype: str = "float32",
    *,
    zero: bool = False,
    unit: bool = False,
) -> tuple[Encoded, Floats]:
    """The vectors as `dtype` stores them, and the norms (n,) float32 of what is stored.

    Raises UserError, naming the first ids, where a row is not finite, is too large for `dtype`, is longer than LONGEST, has
    length zero unless `zero` allows it, or where `unit` asks for it another length than 1.
    """
    largest = LARGEST.get(dtype, np.inf)
    _refuse(
        ~np.isfinite(_squares(vectors)), ids, "are not finite (NaN or infinity); look at these inputs, or the encoder"
    )
    if largest < np.inf:
        too_large = np.abs(vectors).max(axis=1, initial=0) > largest
        _refuse(too_large, ids, f"overflow {dtype} (largest {largest:.6g}); store them as float32")
    stored = encode(vectors, dtype)
    norms = np.sqrt(_squares(stored.data if dtype == "float32" else decode(stored, dtype)))
    _refuse(
        norms > LONGEST, ids, f"are longer than {LONGEST:g}, so that products of two overflow float32; scale them all"
    )
    if not zero:
        _refuse(norms == 0, ids, "are zero, so have no direction; look at these inputs, or the encoder")
    if unit:
        _refuse(
            np.abs(norms - 1) > ROUNDED.get(dtype, UNIT),
            ids,
            "are not of length 1; divide by it, or store them as not normalized",
        )
    return stored, np.asarray(norms, dtype=np.float32)


def _squares(vectors: Floats) -> NDArray[np.float64]:
    """The squared length of each row, which is finite if and only if the row is."""
    lengths: NDArray[np.float64] = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
    return lengths


def _refuse(bad: NDArray[np.bool_], ids: Sequence[Any] | NDArray[np.int64], what: str) -> None:
    if bad.any():
        named = ", ".join(str(ids[row]) for row in np.flatnonzero(bad)[:NAMED])
        raise UserError(f"{bad.sum():,} of {len(ids):,} vectors (ids {named}) {what}")
