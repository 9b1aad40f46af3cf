"""A linear head over a frozen encoder: seconds of training on embeddings that are computed once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import Tensor, nn

from retrieval.store import Floats
from retrieval.tokens import prompt_of

from .batches import MISSING, Pairs, Plan, Rows
from .curve import Curve, record
from .loss import OWN_RATE, ContrastiveLoss, LossConfig
from .matryoshka import nested
from .related import Related, identities

LABELS_RATE, PAIRS_RATE = 1e-3, 1e-4  # measured in docs/log.md


@dataclass(frozen=True)
class Frozen:
    """Training data as a head sees them: unit vectors (u, d), and which of them stands in each row of each column, (c, n): of one
    column of items, or of anchors, positives and negatives, of which a row may lack some (MISSING).

    items: (c, n) alike for equal items, where an item has another vector as an anchor than elsewhere; else the vectors tell.
    """

    vectors: Tensor
    columns: Rows
    items: Rows | None = None

    def of_pairs(self, pairs: Pairs) -> Tensor:
        """(2, B, d): of anchors, and of positives."""
        anchors, positives = pairs
        codes = np.stack([self.columns[0, anchors], self.columns[min(1, len(self.columns) - 1), positives]])
        return self.vectors[torch.from_numpy(codes)]

    def of_negatives(self, anchors: Rows) -> Tensor:
        """(K, d): of the explicit negatives that stand in the anchors' rows, column after column."""
        codes = self.columns[2:, anchors]
        return self.vectors[torch.from_numpy(codes[codes != MISSING])]


def learning_rate(plan: Plan) -> float:
    """Of a head, unless another is asked for: a pair says less of the others than a class, and at the rate of labels is learnt by heart."""
    return PAIRS_RATE if plan.labels is None else LABELS_RATE


def distinct(columns: Sequence[Sequence[str]]) -> tuple[list[str], Rows]:
    """The different texts of columns of n rows each, and which of them stands in each row of each column, (c, n); MISSING for ""."""
    texts = [text for column in columns for text in column]
    different = sorted(set(texts) - {""})
    number = {text: code for code, text in enumerate(different)} | {"": MISSING}
    return different, np.array([number[text] for text in texts], np.int64).reshape(len(columns), -1)


def freeze(
    model: SentenceTransformer,
    columns: Sequence[Sequence[str]],
    encode: Callable[[list[str], str], Floats],
    progress: Callable[[int], None] = lambda texts: None,
) -> Frozen:
    """Columns of texts under the encoder as it is, by `encode` (texts, role); equal texts are one item. A single column is of documents,
    as `embed` takes them. `progress` is told the texts that stood there before."""
    apart = len(columns) > 1 and prompt_of(model, "query") != prompt_of(model, "document")
    sides = [("query", columns[:1]), ("document", columns[1:])] if apart else [("document", columns)]
    vectors: list[Tensor] = []
    codes: list[Rows] = []
    for role, side in sides:
        texts, found = distinct(side)
        before = sum(map(len, vectors))
        codes.append(np.where(found == MISSING, MISSING, found + before))
        vectors.append(torch.from_numpy(encode(texts, role)))
        progress(found.size - len(texts))
    return Frozen(torch.cat(vectors), np.concatenate(codes), distinct(columns)[1] if apart else None)


def train_head(
    frozen: Frozen,
    batches: Iterator[Pairs],
    loss_config: LossConfig,
    *,
    labels: Rows | None = None,
    steps: int,
    lr: float,
    dims: tuple[int, ...] = (),
    guide: Frozen | None = None,
    progress: Callable[[Curve], None] = lambda curve: None,
) -> tuple[nn.Linear, Curve]:
    """Train y = Wx + b, from W = 1, b = 0, with Adam on cosines of y. labels: (n,) classes. dims: as `nested` has them. guide: the
    data under the encoder that judges what is a false negative.

    Batches name rows: of anchors and, in the second column where there is one, positives. Equal items are no negatives, nor are
    those of pairs that share an item.
    """
    vectors, columns = frozen.vectors, frozen.columns
    items = columns if frozen.items is None else frozen.items
    positive = min(1, len(columns) - 1)
    dim = vectors.shape[1]
    head = nn.Linear(dim, dim)
    with torch.no_grad():
        head.weight.copy_(torch.eye(dim))
        head.bias.zero_()
    related = None if len(columns) == 1 or labels is not None else Related(items[:2])
    loss_of = ContrastiveLoss(loss_config)
    optimizer = torch.optim.Adam(
        [{"params": head.parameters(), "lr": lr}, {"params": loss_of.parameters(), "lr": OWN_RATE}]
    )
    curve: Curve = []
    for _, pairs in zip(range(steps), batches, strict=False):
        a, p = pairs
        loss_of.progress = len(curve) / steps
        codes = np.stack([items[0, a], items[positive, p]])
        groups, known = codes, dict[int, int]()
        if related is not None:
            negatives = items[2:, a]
            groups, known = identities(codes, negatives[negatives != MISSING], related)
        loss = nested(
            loss_of,
            dims,
            *head(frozen.of_pairs(pairs)),
            labels=torch.from_numpy(labels[a]) if labels is not None else None,
            items=torch.from_numpy(groups.flatten()),
            codes=torch.from_numpy(codes.flatten()),
            guide=None if guide is None else guide.of_pairs(pairs),
            **_negatives(head, frozen, a, items[2:, a], known, guide),
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        record(curve, loss, loss_of.diagnostics)
        progress(curve)
    return head, curve


def _negatives(
    head: nn.Linear, frozen: Frozen, anchors: Rows, items: Rows, known: dict[int, int], guide: Frozen | None
) -> dict[str, Tensor]:
    """What the loss is told of a batch's explicit negatives. items: (columns, B); known: under what the batch's own items count."""
    if not len(items):
        return {}
    there = items != MISSING
    return ({} if guide is None else {"guide_negative": guide.of_negatives(anchors)}) | {
        "negative": head(frozen.of_negatives(anchors)),
        "negative_items": torch.tensor([known.get(item, item) for item in items[there].tolist()], dtype=torch.int64),
        "negative_pairs": torch.from_numpy(np.nonzero(there)[1]),
    }


def project(head: nn.Linear, vectors: Tensor) -> Floats:
    """What an encoder with this head makes of items whose frozen embeddings are `vectors` (n, d): unit vectors (n, d)."""
    with torch.inference_mode():
        return nn.functional.normalize(head(vectors), dim=1).numpy()


def append_head(model: SentenceTransformer, head: nn.Linear) -> None:
    """Make the trained head the encoder's last step: … → Normalize → Dense → Normalize, all sentence-transformers' own. Where the
    encoder's vectors are cut, which it does after all its steps, a step before the head cuts them."""
    cut, model.truncate_dim = model.truncate_dim, None
    whole, model.truncate_dim = model.get_embedding_dimension() or head.in_features, cut
    if whole > head.in_features:
        _append_linear(model, torch.eye(head.in_features, whole), torch.zeros(head.in_features))
    elif not isinstance(list(model)[-1], Normalize):
        model.append(Normalize())
    _append_linear(model, head.weight.detach().clone(), head.bias.detach().clone())


def _append_linear(model: SentenceTransformer, weight: Tensor, bias: Tensor) -> None:
    out, into = weight.shape
    dense = Dense(into, out, activation_function=nn.Identity(), init_weight=weight, init_bias=bias)
    model.append(dense.to(model.device))
    model.append(Normalize())
