"""A linear head over a frozen encoder: seconds of training on embeddings that are computed once."""

from collections.abc import Callable, Iterator

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import Tensor, nn

from retrieval.encode import Encoding

from .batches import Pairs, Rows
from .curve import Curve, record
from .loss import ContrastiveLoss, LossConfig

LEARNING_RATE = 1e-3


def train_head(
    vectors: Tensor,
    batches: Iterator[Pairs],
    loss_config: LossConfig,
    *,
    positives: Tensor | None = None,
    negatives: list[Tensor] | None = None,
    labels: Rows | None = None,
    items: Rows | None = None,
    steps: int,
    lr: float,
    progress: Callable[[Curve], None],
) -> tuple[nn.Linear, Curve]:
    """Train y = Wx + b, from W = 1, b = 0, with Adam on cosines of y.

    vectors: (n, d) frozen embeddings of the anchors' column; positives: (n, d) of the other column where the data are
    pairs, else both sides are drawn from `vectors`; negatives: (n, d) each. labels: (n,) classes; items: (2, n) identities.
    """
    dim = vectors.shape[1]
    head = nn.Linear(dim, dim)
    with torch.no_grad():
        head.weight.copy_(torch.eye(dim))
        head.bias.zero_()
    others = vectors if positives is None else positives
    explicit = negatives or []
    loss_of = ContrastiveLoss(loss_config)
    optimizer = torch.optim.Adam([*head.parameters(), *loss_of.parameters()], lr=lr)
    curve: Curve = []
    for _, (a, p) in zip(range(steps), batches, strict=False):
        loss_of.progress = len(curve) / steps
        loss = loss_of(
            head(vectors[a]),
            head(others[p]),
            head(torch.cat([column[a] for column in explicit])) if explicit else None,
            labels=torch.from_numpy(labels[a]) if labels is not None else None,
            items=torch.cat([torch.from_numpy(items[0][a]), torch.from_numpy(items[1][p])])
            if items is not None
            else None,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        record(curve, loss, loss_of.diagnostics)
        progress(curve)
    return head, curve


def frozen_embeddings(model: SentenceTransformer, texts: list[str], progress: Callable[[int], None]) -> Tensor:
    """Unit embeddings (n, d) of the texts under the encoder as it is."""
    return torch.from_numpy(Encoding(model).encode(texts, progress))


def append_head(model: SentenceTransformer, head: nn.Linear) -> None:
    """Make the trained head the encoder's last step: … → Normalize → Dense → Normalize, all sentence-transformers' own."""
    if not isinstance(list(model)[-1], Normalize):
        model.append(Normalize())
    dense = Dense(
        head.in_features,
        head.out_features,
        activation_function=nn.Identity(),
        init_weight=head.weight.detach().clone(),
        init_bias=head.bias.detach().clone(),
    )
    model.append(dense.to(model.device))
    model.append(Normalize())
