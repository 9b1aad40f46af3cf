"""Hard negatives of pairs that fit memory, by `mining`'s rules."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from retrieval.data import Texts, text_codes
from retrieval.errors import UserError
from retrieval.given import strings
from retrieval.neighbors import Base, exact_neighbors

from .batches import Rows
from .mining import Floats, Mining, distinct, mine, relations


def mine_texts(
    encode: Callable[[list[str], str], Floats],
    data: Texts,
    mining: Mining = Mining(),  # noqa: B008
    *,
    corpus: Sequence[str] | None = None,
    device: str = "cpu",
) -> Texts:
    """Pairs with further columns of hard negatives, after their own: what `retrieval mine` writes, of what fits memory.

    encode: texts and what they are, "query" or "document", → unit vectors (n, d). corpus: where negatives are looked for, the
    positives if None. A row for which fewer pass has "" in the last ones. Raises UserError for data without pairs.
    """
    if not {"anchor", "positive"} <= data.columns.keys():
        raise UserError(f"columns {', '.join(data.columns)}: mining is for pairs; call two anchor and positive")
    anchors, positives = distinct(data, "anchor"), distinct(data, "positive")
    documents = positives.texts if corpus is None else list(dict.fromkeys(strings("corpus", corpus)))
    asked, own = encode(anchors.texts, "query"), encode(positives.texts, "document")
    base = Base(own if corpus is None else encode(documents, "document"), "inner_product", device, keep=True)

    def search(rows: Rows, k: int) -> tuple[Floats, Rows]:
        return exact_neighbors(asked[rows], base, k)

    def score(one: Rows, other: Rows) -> Floats:
        cosines: Floats = np.einsum("nd,nd->n", asked[one], own[other], dtype=np.float64).astype(np.float32)
        return cosines

    found = np.full((len(data), mining.negatives), -1, np.int64)
    for mined in mine(relations(data, anchors, positives, text_codes(documents)), search, score, mining):
        found[mined.rows, : mined.negatives.shape[1]] = mined.negatives
    held = [data.columns[name] for name in data.columns if name.startswith("negative")]
    new = [[documents[row] if row >= 0 else "" for row in column] for column in found.T.tolist()]
    negatives = {f"negative_{number}": column for number, column in enumerate([*held, *new], 1)}
    sides = {name: data.columns[name] for name in ("anchor", "positive")}
    return replace(data, columns=sides | negatives)
