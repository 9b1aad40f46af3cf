"""Vision networks from scratch in sentence-transformers' folder format, with no class of ours inside: transformers' ResNets.

Their stem divides the side by four, so the saved processor enlarges small pictures, by four where the network is a large one:
then the first stage sees as many places as the picture has pixels, as with the stem that the literature gives ResNets for
small pictures. The folder opens with plain `SentenceTransformer` and encodes PIL images.
"""

import tempfile

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from torch import nn
from transformers import ResNetConfig, ResNetModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from retrieval.encoder import Encoder, load_encoder
from retrieval.images import Images
from retrieval.openclip import write_weights

from .pictures import longest_side

DIM = 128  # of the small network's vectors, and its last stage
SCRATCH = {  # transformers' configurations by name
    "small": ResNetConfig(embedding_size=32, hidden_sizes=[32, 64, DIM], depths=[1, 1, 1], layer_type="basic"),
    "resnet18": ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
    ),
    "resnet50": ResNetConfig(
        embedding_size=64, hidden_sizes=[256, 512, 1024, 2048], depths=[3, 4, 6, 3], layer_type="bottleneck"
    ),
}

WIDTHS = {name: list(config.hidden_sizes or [])[-1] for name, config in SCRATCH.items()}


def network(name: str, side: int, device: str | None, seed: int) -> SentenceTransformer:
    """A network of `SCRATCH` with random weights, for pictures whose longer side is `side`: image → unit vector.

    Those of the small one (0.3 million weights) have 128 numbers and come from a linear layer of its own; those of the others are
    the mean of the last stage, 512 and 2048.
    """
    torch.manual_seed(seed)
    size = input_side(side, name)
    backbone = ResNetModel(SCRATCH[name])
    # CLIP's processor is the one that also turns grey and palette pictures into RGB by itself.
    processor = CLIPImageProcessorPil(
        size={"height": size, "width": size},
        resample=2,
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    with tempfile.TemporaryDirectory() as folder:  # Transformer reads a folder only
        write_weights(backbone, folder)
        processor.save_pretrained(folder)
        transformer = Transformer(folder)
    width = WIDTHS[name]
    head = [Dense(width, DIM, activation_function=nn.Identity())] if name == "small" else []
    return SentenceTransformer(modules=[transformer, Pooling(width), *head, Normalize()], device=device)


def start(name: str, pictures: Images, device: str, seed: int) -> Encoder:
    """The encoder of this folder or name, to be trained; one of `SCRATCH` with random weights, for pictures as large as these."""
    if name not in SCRATCH:
        return load_encoder(name, device)
    return Encoder(network(name, longest_side(pictures), device, seed), name)


def input_side(side: int, name: str = "small") -> int:
    """The network's input. The small one's: tiny pictures × 4, small ones × 2, larger ones no larger than 128 (measured in
    docs/log.md); the others' × 4, no larger than 224."""
    if name != "small":
        return min(224, side * 4)
    return side * 4 if side <= 16 else min(128, side * 2)
