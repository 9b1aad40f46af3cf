"""The contrastive loss under sentence-transformers' contract, plain or with cached gradients."""

from collections.abc import Callable, Iterable

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from torch import Tensor, nn

from .curve import Curve, record
from .loss import ContrastiveLoss, LossConfig


class SentenceLoss(CachedLossMixin, nn.Module):
    """`ContrastiveLoss` of an encoder's embeddings, for `SentenceTransformerTrainer`; records a curve.

    mini_batch_size: None, or how many texts are in the encoder at a time. Then every text is encoded twice, first without and
    then with a graph (GradCache, Gao et al. 2021), value and gradients stay the same, and memory is that of a mini-batch. The
    loss itself takes all embeddings at once: its own blocks need no more than O(batch · dim).
    `model` is a load-bearing name: under DDP the trainer swaps the wrapped model in under it.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        config: LossConfig,
        steps: int,
        mini_batch_size: int | None = None,
        progress: Callable[[Curve], None] = lambda curve: None,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = ContrastiveLoss(config)
        self.steps = steps
        self.mini_batch_size = mini_batch_size or 0
        self.uses_gradient_cache = mini_batch_size is not None
        self.curve: Curve = []
        self.progress = progress

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """One column of 2B rows (anchors, then positives), or columns anchor, positive, negatives… of B rows each.

        labels: (rows, 3), of each row its class, and the identities of its anchor's and its positive's text.
        """
        if self.uses_gradient_cache:
            return self.forward_cached(sentence_features, labels)
        return self.of_columns([self.model(features)["sentence_embedding"] for features in sentence_features], labels)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        assert labels is not None
        loss = self.of_columns([torch.cat(parts) for parts in reps], labels)
        if with_backward:
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach() if with_backward else loss

    def of_columns(self, columns: list[Tensor], labels: Tensor) -> Tensor:
        """The loss of embedded columns; a step of the curve."""
        if len(columns) == 1:
            anchor, positive = columns[0].chunk(2)
            classes, items = labels[: len(anchor), 0], labels[:, 1]
        else:
            anchor, positive = columns[:2]
            classes, items = None, torch.cat([labels[:, 1], labels[:, 2]])
        negative = torch.cat(columns[2:]) if len(columns) > 2 else None
        self.loss.progress = len(self.curve) / self.steps
        loss: Tensor = self.loss(anchor, positive, negative, labels=classes, items=items)
        record(self.curve, loss, self.loss.diagnostics)
        self.progress(self.curve)
        return loss

    def get_config_dict(self) -> dict[str, object]:
        return {"loss": self.loss.config.name}

    @property
    def citation(self) -> str:
        return (
            "@inproceedings{robinson2021contrastive, title={Contrastive Learning with Hard Negative Samples}, "
            "author={Robinson, Joshua and Chuang, Ching-Yao and Sra, Suvrit and Jegelka, Stefanie}, booktitle={ICLR}, year={2021}}"
        )
