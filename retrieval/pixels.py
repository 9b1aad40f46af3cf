"""What an encoder's own processor makes of a picture: the size it is brought to, and how its values are scaled.

Processors describe themselves in many ways. So each is asked: it is given a white square on black, and what it makes of that
tells all there is to know of one that resizes, crops and scales.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from torch import Tensor

from retrieval.errors import UserError

SIDE = 1000  # of the picture that is shown; the white square is a fifth of it, in the middle


class Pixels(NamedTuple):
    """What an encoder's processor makes of a picture.

    size: (height, width) of what the encoder sees. mean, std: (1, 3, 1, 1) of [0, 1] values. shorter: the side to which the
    shorter one of a picture is brought before it is cropped to `size`. patch: the side of the patches that the encoder is given
    one after the other, None where it is given pictures.
    """

    size: tuple[int, int]
    mean: Tensor
    std: Tensor
    shorter: int
    patch: int | None = None


def pixels_of(model: SentenceTransformer) -> Pixels:
    """Ask the encoder's processor, so that training sees pictures as the saved encoder will. Raises UserError for an encoder
    whose processor does something else than resize, crop and scale."""
    processor: Any = getattr(image_module(model), "processor", None)
    processor = getattr(processor, "image_processor", processor)
    found = _asked(processor) if "image" in model.modalities and hasattr(processor, "image_mean") else None
    if found is None:
        raise UserError(
            "--model: this encoder takes no images that transformers can prepare; give one, or --model small"
        )
    return found._replace(mean=found.mean.to(model.device), std=found.std.to(model.device))


def least_side(model: SentenceTransformer) -> int | None:
    """The least that a picture's shorter side may have before the encoder's processor makes it smaller: twice what it makes of
    it, so that there is detail enough to choose from. None where that cannot be found out, and pictures are to be whole."""
    try:
        return 2 * pixels_of(model).shorter
    except UserError:
        return None


def image_module(model: SentenceTransformer) -> Any:
    """The module that prepares pictures: the first, or the first of the route that they take."""
    first: Any = model[0]
    routes = getattr(first, "sub_modules", None)
    if routes is None:
        return first
    named = [first.route_mappings.get((None, "image")), "image", first.default_route, *routes]
    modules = [routes[name][0] for name in named if name in routes]
    return next((module for module in modules if "image" in getattr(module, "modalities", ())), first)


def features_of(views: Tensor, pixels: Pixels) -> dict[str, Any]:
    """What the encoder is given for pictures (B, 3, height, width) of [0, 1] values that have its size already."""
    values = (views - pixels.mean) / pixels.std
    if pixels.patch is None:
        return {"pixel_values": values.contiguous(memory_format=torch.channels_last), "modality": "image"}
    side = pixels.patch
    high, wide = (length // side for length in pixels.size)
    apart = values.reshape(-1, 3, high, side, wide, side)
    patches = apart.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    shapes = torch.tensor([[high, wide]] * len(views), device=views.device)
    mask = torch.ones(patches.shape[:2], dtype=torch.int32, device=views.device)
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes, "modality": "image"}


def _asked(processor: Any) -> Pixels | None:
    """What it makes of a white square; None if that is no one picture."""
    shown = np.zeros((SIDE, SIDE, 3), np.uint8)
    middle = slice(2 * SIDE // 5, 3 * SIDE // 5)
    shown[middle, middle] = 255
    features = processor([Image.fromarray(shown)], return_tensors="pt")
    values, patch = features["pixel_values"].double(), None
    if "spatial_shapes" in features:
        patch = int(processor.patch_size)
        high, wide = features["spatial_shapes"][0].tolist()
        apart = values[0, : high * wide].view(high, wide, patch, patch, 3)
        values = apart.permute(4, 0, 2, 1, 3).reshape(1, 3, high * patch, wide * patch)
    if values.ndim != 4 or values.shape[:2] != (1, 3):
        return None
    height, width = values.shape[2:]
    black, white = values[..., :1, :1], values[..., height // 2, None, width // 2, None]
    if not (white > black).all():
        return None
    lit = ((values - black) / (white - black)).mean(1)[
        0
    ]  # resizing keeps the sum of what is white, to a fraction of a pixel
    shorter = max(round(5 * lit[height // 2].sum().item()), round(5 * lit[:, width // 2].sum().item()))
    std = 1 / (white - black)
    return Pixels((height, width), (-black * std).float(), std.float(), shorter, patch)
