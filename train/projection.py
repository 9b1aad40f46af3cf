"""A head that training looks through and that is taken off in the end (SimCLR's g; Chen et al., ICML 2020, section 4.2)."""

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import nn


def add_projection(model: SentenceTransformer, dim: int) -> None:
    """… → Dense, ReLU → Dense of `dim` → Normalize: two layers before the last step, which is made Normalize if it is not."""
    if not isinstance(list(model)[-1], Normalize):
        model.append(Normalize())
    width = model.get_embedding_dimension() or 0
    layers = Dense(width, width, activation_function=nn.ReLU()), Dense(width, dim, activation_function=nn.Identity())
    for layer in layers:
        model.insert(len(model) - 1, layer.to(model.device))


def remove_projection(model: SentenceTransformer) -> None:
    """Take the two layers off again."""
    for _ in range(2):
        del model[len(model) - 2]


def without_projection(model: SentenceTransformer) -> SentenceTransformer:
    """An encoder of the same weights without the two layers."""
    modules = list(model)
    return SentenceTransformer(modules=[*modules[:-3], modules[-1]], device=str(model.device))
