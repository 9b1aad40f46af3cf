"""The contrastive loss under sentence-transformers' contract, plain or with cached gradients."""

import sys
from collections.abc import Callable, Iterable

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from torch import Tensor, nn

from .curve import Curve, looked_at, record
from .loss import ContrastiveLoss, LossConfig
from .matryoshka import nested

Batch = dict[str, Tensor]


class SentenceLoss(CachedLossMixin, nn.Module):
    """`ContrastiveLoss` of an encoder's embeddings, for `SentenceTransformerTrainer`; records a curve.

    batches: how many there will be, for schedules. cached: every chunk of texts is encoded twice, first without and then with a
    graph (GradCache, Gao et al. 2021); value and gradients stay the same, and memory is that of one chunk. The loss itself takes
    all embeddings at once: its own blocks need no more than O(batch · dim).
    `model` is a load-bearing name: under DDP the trainer swaps the wrapped model in under it.
    """

    mini_batch_size = sys.maxsize  # of a chunk, which the collator has cut already

    def __init__(
        self,
        model: SentenceTransformer,
        config: LossConfig,
        batches: int,
        *,
        dims: tuple[int, ...] = (),
        cached: bool = False,
        progress: Callable[[Curve], None] = lambda curve: None,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = ContrastiveLoss(config)
        self.batches, self.dims, self.progress = batches, dims, progress
        self.uses_gradient_cache = cached
        self.curve: Curve = []
        self._own: list[tuple[Tensor, Tensor]] = []

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Batch) -> Tensor:
        """The loss of a batch as `Collator` makes it: chunks of features, and what stands where in them."""
        chunks = list(sentence_features)
        if not self.uses_gradient_cache:
            return self.of_texts([self._embedded(chunk) for chunk in chunks], labels)
        loss: Tensor = self.forward_cached(chunks, labels)  # type: ignore[arg-type]
        for parameter, gradient in self._own:  # so that whatever scales the loss scales these gradients too
            loss = loss + ((parameter - parameter.detach()) * gradient).sum()
        self._own = []
        return loss

    def _embedded(self, chunk: dict[str, Tensor]) -> Tensor:
        """A chunk's vectors, which of settled texts are there already."""
        return chunk["sentence_embedding"] if "sentence_embedding" in chunk else self.model(chunk)["sentence_embedding"]

    def calculate_loss(  # type: ignore[override]
        self, reps: list[list[Tensor]], labels: Batch, *, with_backward: bool = False
    ) -> Tensor:
        parts = [part for chunk in reps for part in chunk]
        loss = self.of_texts(parts, labels)
        if not with_backward:
            return loss
        own = list(self.loss.parameters())
        gradients = torch.autograd.grad(loss, [*parts, *own])
        for part, gradient in zip(parts, gradients, strict=False):
            part.grad = gradient
        self._own = list(zip(own, gradients[len(parts) :], strict=True))
        return loss.detach()

    def of_texts(self, chunks: list[Tensor], batch: Batch) -> Tensor:
        """The loss of embedded chunks; a step of the curve."""
        pairs = len(batch["items"]) // 2
        texts = torch.cat(chunks)[batch["order"]]
        known = {name: value for name, value in batch.items() if name != "order"}
        if "negative_items" in batch:
            known["negative"] = texts[2 * pairs :]
        self.loss.progress = len(self.curve) / self.batches
        self.loss.diagnose = looked_at(len(self.curve), texts.device)
        loss = nested(self.loss, self.dims, texts[:pairs], texts[pairs : 2 * pairs], **known)
        record(self.curve, loss, self.loss.diagnostics)
        self.progress(self.curve)
        return loss

    def state(self) -> dict[str, Tensor]:
        """What later batches depend on, besides the encoder: a learned temperature, remembered embeddings."""
        memory = self.loss.memory.get_extra_state() if self.loss.memory is not None else {}
        return {name: value.detach().contiguous() for name, value in self.loss.named_parameters()} | memory

    def restore(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.loss.named_parameters():
                value.copy_(state[name])
        if self.loss.memory is not None:
            self.loss.memory.set_extra_state(state)

    def get_config_dict(self) -> dict[str, object]:
        return {"loss": self.loss.config.name}

    @property
    def citation(self) -> str:
        return (
            "@inproceedings{robinson2021contrastive, title={Contrastive Learning with Hard Negative Samples}, "
            "author={Robinson, Joshua and Chuang, Ching-Yao and Sra, Suvrit and Jegelka, Stefanie}, booktitle={ICLR}, year={2021}}"
        )
