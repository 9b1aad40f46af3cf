"""What is in the data, told before training: rows, repeats, classes, lengths, and what training shares with what it is judged by."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .texts import Texts, taken, text_codes

MUCH = 0.1  # of the texts, cut
MEASURED = 4096  # texts whose tokens are counted


def summarise(
    data: Texts, tokens: Callable[[list[str]], np.ndarray[Any, np.dtype[np.int64]]], limit: float | None
) -> dict[str, Any]:
    """Plain data: rows, columns, classes (how many, least, median and most rows), repeated rows, texts, and lengths in tokens of a
    sample, with the share of texts longer than `limit`, the encoder's length. tokens: how long texts are."""
    limit = None if limit == math.inf else limit  # so static embeddings have it, and JSON does not
    codes = data.codes
    rows = np.stack([*codes.values()], 1)
    told: dict[str, Any] = {
        "rows": len(data),
        "columns": list(data.columns),
        "repeated_rows": len(rows) - len(np.unique(rows, axis=0)),
        "distinct": {name: len(np.unique(each)) for name, each in codes.items()},
    }
    if data.is_pairs:
        told["equal_pairs"] = int((codes["anchor"] == codes["positive"]).sum())
    if data.labels is not None:
        sizes = np.unique(np.asarray(data.labels, dtype=object), return_counts=True)[1]
        told["classes"] = {
            "count": len(sizes),
            "least": int(sizes.min()),
            "median": float(np.median(sizes)),
            "most": int(sizes.max()),
        }
        texts = next(iter(codes.values()))
        both = {(text, label) for text, label in zip(texts.tolist(), data.labels, strict=True)}
        told["several_labels"] = len(both) - len(np.unique(texts))
    lengths = np.concatenate([tokens(_sample(column)) for column in data.columns.values()])
    told["tokens"] = {
        "median": float(np.median(lengths)),
        "q95": float(np.quantile(lengths, 0.95)),
        "longest": int(lengths.max()),
        "limit": limit,
        "cut": float((lengths > limit).mean()) if limit else 0.0,
    }
    return told


def _sample(column: Sequence[str]) -> list[str]:
    """Evenly spread rows."""
    rows = np.unique(np.linspace(0, len(column) - 1, MEASURED).astype(int)).tolist()
    return [text for text in taken(column, rows) if text]


def told_summary(told: dict[str, Any]) -> list[str]:
    """For people: a line of what there is, and one each of what should be looked at."""
    tokens = told["tokens"]
    line = f"{tokens['median']:.0f} tokens in the median, {tokens['q95']:.0f} at most in 95 %, {tokens['longest']} the longest"
    if "classes" in told:
        sizes = told["classes"]
        span = f"{sizes['least']:,}" + (f" to {sizes['most']:,}" if sizes["most"] > sizes["least"] else "")
        line += f"; {sizes['count']:,} classes of {span} rows"
    lines = [line]
    if tokens["cut"]:
        cut = (
            f"{tokens['cut']:.1%} of the texts are longer than the encoder reads, {tokens['limit']} tokens, and are cut"
        )
        lines.append(
            f"Warning: {cut}; split them, or choose an encoder that reads more" if tokens["cut"] > MUCH else cut
        )
    if told.get("several_labels"):
        lines.append(f"Warning: {told['several_labels']:,} texts stand under several labels; keep one of each")
    if told["repeated_rows"]:
        count = told["repeated_rows"]
        rows = "1 row repeats another" if count == 1 else f"{count:,} rows repeat others"
        lines.append(f"{rows}; equal texts are no negatives of each other")
    if told.get("equal_pairs"):
        lines.append(f"{told['equal_pairs']:,} pairs have the same text twice")
    return lines


def leaked(train: Texts, judged: Sequence[str]) -> int:
    """How many of the texts that are judged by stand in the training data."""
    seen = np.concatenate(list(train.codes.values()))
    return int(np.isin(text_codes(judged), seen).sum())
