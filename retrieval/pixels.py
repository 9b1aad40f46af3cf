"""What an encoder's own processor makes of a picture: the size it is brought to, and how its values are scaled."""

from typing import Any, NamedTuple

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from retrieval.errors import UserError


class Pixels(NamedTuple):
    """What an encoder's processor makes of a picture: size (height, width), and mean and std (1, 3, 1, 1) of [0, 1] values.

    keeps_proportions: the picture is brought to that size by cutting off, not by squeezing it.
    """

    size: tuple[int, int]
    mean: Tensor
    std: Tensor
    keeps_proportions: bool


def pixels_of(model: SentenceTransformer) -> Pixels:
    """Read the processor's settings, so that training sees pictures as the saved encoder will."""
    processor: Any = getattr(model[0], "processor", None)
    processor = getattr(processor, "image_processor", processor)
    if "image" not in model.modalities or not hasattr(processor, "image_mean"):
        raise UserError(
            "--model: this encoder takes no images that transformers can prepare; give one, or --model small"
        )
    box = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    edge = box.get("shortest_edge")
    size = (edge, edge) if edge else (box["height"], box["width"])
    device = model.device
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (processor.image_mean, processor.image_std))
    return Pixels(size, mean, std, keeps_proportions="shortest_edge" in processor.size)
