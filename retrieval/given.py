"""What callers from Python give where lists or vectors are asked for: lists, arrays, tensors, columns of pandas."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from retrieval.errors import UserError


def numbers(values: Any) -> np.ndarray[Any, Any]:
    """As NumPy has them: of tensors on any device without their gradient, and bfloat16, which it lacks, as float32."""
    if hasattr(values, "detach"):
        held = values.detach().cpu()
        values = held.float() if str(held.dtype) == "torch.bfloat16" else held
    return np.asarray(values)


def listed(name: str, values: Any, count: int | None = None) -> list[Any]:
    """By position, whatever a column of pandas is indexed by. Raises UserError for one string, for what has no order, and for another
    number than `count`."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise UserError(f"{name}: is of type {type(values).__name__}; give a list")
    if count is not None and len(values) != count:
        raise UserError(f"{count:,} rows, {len(values):,} {name}; give one a row")
    return values if type(values) is list else list(values)


def strings(name: str, values: Any, count: int | None = None) -> list[str]:
    """The same of strings alone."""
    found = listed(name, values, count)
    if set(map(type, found)) - {str} and not all(isinstance(value, str) for value in found):
        other = next(value for value in found if not isinstance(value, str))
        raise UserError(f"{name}: {other!r} is no string; make strings of them")
    return found
