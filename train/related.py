"""Which texts of a batch are no negatives of each other: equal ones, those that its rows pair, explicit negatives that are answers."""

from functools import cached_property

import numpy as np

from retrieval.data import linked

from .batches import Rows


class Related:
    """The pairs of a data set by their texts. pairs: (2, n) codes of anchors and of positives, equal for equal texts."""

    def __init__(self, pairs: Rows) -> None:
        self.pairs = pairs

    @cached_property
    def _orders(self) -> list[Rows]:
        """By side, the rows sorted by their code; empty where all codes of both sides differ: then no text is in two pairs."""
        if all(len(np.unique(side)) == len(side) for side in self.pairs):
            return []
        return [np.argsort(side, kind="stable") for side in self.pairs]

    def among(self, anchors: Rows, texts: Rows) -> Rows:
        """(2, m) the pairs of the data whose anchor is one of these codes, and whose positive one of those."""
        asked = [np.unique(anchors), np.unique(texts)]
        if not len(texts) or not self._orders:  # which takes a while to make
            return self.pairs[:, :0]  # beyond what stands in one row
        spans = []
        for side, order, codes in zip(self.pairs, self._orders, asked, strict=True):
            spans.append([np.searchsorted(side, codes, end, sorter=order) for end in ("left", "right")])
        # By the side of which fewer pairs are to be looked through: one answer may stand in half of all rows.
        at = int(np.argmin([(last - first).sum() for first, last in spans]))
        rows = [self._orders[at][first:last] for first, last in zip(*spans[at], strict=True)]
        found = self.pairs[:, np.concatenate(rows)]
        return found[:, np.isin(found[0], asked[0]) & np.isin(found[1], asked[1])]


def identities(pairs: Rows, negatives: Rows, related: Related) -> tuple[Rows, dict[int, int]]:
    """Of a batch's pairs (2, B) and explicit negatives (k,), all by code: (2, B) what each text counts as, one number for texts that are
    no negatives of each other, and that number by code, also of negatives that are an answer of one of the anchors.

    Texts that a pair of the batch joins count as one, and what is so joined in a chain. A negative joins its anchor, the first if it
    answers several, but joins no two: by all pairs of the data such chains would soon leave nothing, of questions with three tags each, say.
    """
    numbers = linked(*pairs)
    told = dict(zip(pairs.ravel().tolist(), np.tile(numbers, 2).tolist(), strict=True))
    for anchor, negative in related.among(pairs[0], negatives).T.tolist():
        told.setdefault(negative, told[anchor])
    return np.tile(numbers, (2, 1)), told
