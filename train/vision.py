"""Vision networks in sentence-transformers' folder format, with no class of ours inside.

The small one is transformers' ResNet with three basic stages. Its stem divides the side by four, so the saved processor
enlarges small pictures: the folder opens with plain `SentenceTransformer` and encodes PIL images.
"""

import tempfile

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from torch import nn
from transformers import ResNetConfig, ResNetModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

DIM = 128
WIDTHS = (32, 64, 128)  # channels of the three stages


def small_network(side: int, device: str | None, seed: int) -> SentenceTransformer:
    """A ResNet of 0.3 million weights from scratch, for pictures whose longer side is `side`: image → unit vector of 128."""
    torch.manual_seed(seed)
    size = input_side(side)
    backbone = ResNetModel(
        ResNetConfig(num_channels=3, embedding_size=32, hidden_sizes=list(WIDTHS), depths=[1, 1, 1], layer_type="basic")
    )
    # CLIP's processor is the one that also turns grey and palette pictures into RGB by itself.
    processor = CLIPImageProcessorPil(
        size={"height": size, "width": size},
        resample=2,
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    with tempfile.TemporaryDirectory() as folder:  # Transformer reads a folder only
        backbone.save_pretrained(folder)
        processor.save_pretrained(folder)
        transformer = Transformer(folder)
    head = Dense(WIDTHS[-1], DIM, activation_function=nn.Identity())
    return SentenceTransformer(modules=[transformer, Pooling(WIDTHS[-1]), head, Normalize()], device=device)


def input_side(side: int) -> int:
    """The network's input: tiny pictures × 4, small ones × 2, larger ones no larger than 128 (measured in docs/log.md)."""
    return side * 4 if side <= 16 else min(128, side * 2)
