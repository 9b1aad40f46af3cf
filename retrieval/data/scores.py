"""Scored pairs as pairs to train on."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import UserError

from .columns import NEGATIVES
from .texts import Texts


def pairs_by_score(data: Texts, least: float | None, source: str, most: int = NEGATIVES) -> Texts:
    """The pairs that are scored `least` or more. Of scores 0 and 1 those of 1, and those of 0 of an anchor are its hard negatives,
    up to `most` with the row's own; NaN, a neutral pair, is left out.

    Raises UserError where other scores are given without `least`, or nothing is left.
    """
    scores = data.scores
    assert scores is not None
    if least is None and not says_positives(scores):
        raise UserError(
            f"{source}: pairs are scored from {scores.min():g} to {scores.max():g}; say from where on they are positives, by "
            f"--min-score"
        )
    good = np.flatnonzero(scores >= (1 if least is None else least))
    if not len(good):
        if least is None:
            raise UserError(f"{source}: has no positives, which are scored 1 or are entailed; give some")
        raise UserError(f"--min-score: no pair of {source} is scored so high; the highest is {np.nanmax(scores):g}")
    kept = data.take(good.tolist())
    columns: dict[str, Sequence[str]] = dict(kept.columns)
    said, left = f"{data.origin}; {len(good):,} of them positives", len(data) - len(good)
    if least is None and left:
        negatives = _negatives(data.take(np.flatnonzero(scores == 0).tolist()), kept)
        there = sum(name.startswith("negative") for name in columns)  # the rows' own
        more = min(max(0, most - there), max(len(negatives.get(a, ())) for a in columns["anchor"]))
        for at in range(more):
            found = (negatives.get(anchor, []) for anchor in columns["anchor"])
            columns[f"negative_{there + at + 1}"] = [texts[at] if at < len(texts) else "" for texts in found]
        told = set(columns["anchor"])
        used = sum(min(more, len(texts)) for anchor, texts in negatives.items() if anchor in told)
        said += f", {used:,} hard negatives of the same anchors"
        left -= used
    said += f", {left:,} left out" if left else ""
    return Texts(columns, None, kept.ids, said)


def says_positives(scores: NDArray[np.float64]) -> bool:
    """Whether scores say by themselves which pairs are positives: 0 and 1 do, of which NaN is neither."""
    return bool(np.isin(scores[~np.isnan(scores)], (0, 1)).all())


def _negatives(bad: Texts, kept: Texts) -> dict[str, list[str]]:
    """By anchor, the texts that it is paired with in `bad`: each once, and none that is its positive in another row."""
    found: dict[str, dict[str, None]] = {}  # in their order
    for anchor, other in zip(bad.columns["anchor"], bad.columns["positive"], strict=True):
        found.setdefault(anchor, {})[other] = None
    for anchor, positive in zip(kept.columns["anchor"], kept.columns["positive"], strict=True):
        found.get(anchor, {}).pop(positive, None)
    return {anchor: list(others) for anchor, others in found.items()}
