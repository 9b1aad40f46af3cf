"""What an encoder's own processor makes of a picture: the size it is brought to, and how its values are scaled.

Processors describe themselves in many ways. So each is asked: it is given a white square on black, and what it makes of that
tells all there is to know of one that resizes, crops and scales.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from retrieval.errors import UserError
from retrieval.routes import reader

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# What any image processor does to the pixels.
_SETTINGS = (
    *("do_convert_rgb", "do_resize", "size", "resample", "default_to_square", "do_center_crop", "crop_size"),
    *("do_pad", "pad_size", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)
SIDE = 1000  # of the picture that is shown; the white square is a fifth of it, in the middle


class Pixels(NamedTuple):
    """What an encoder's processor makes of a picture.

    size: (height, width) of what the encoder sees. mean, std: (1, 3, 1, 1) of [0, 1] values. shorter: the side to which the
    shorter one of a picture is brought before it is cropped to `size`. patch: the side of the patches that the encoder is given
    one after the other, None where it is given pictures. keeps_proportions: a picture comes to that size by being cut, not squeezed.
    """

    size: tuple[int, int]
    mean: Tensor
    std: Tensor
    shorter: int
    keeps_proportions: bool
    patch: int | None = None


def pixels_of(model: "SentenceTransformer") -> Pixels:
    """Ask the encoder's processor, so that training sees pictures as the saved encoder will. Raises UserError for an encoder
    whose processor does something else than resize, crop and scale."""
    processor: Any = getattr(reader(model, "image"), "processor", None)
    processor = getattr(processor, "image_processor", processor)
    found = _asked(processor) if "image" in model.modalities and callable(processor) else None
    if found is None:
        raise UserError(
            "--model: this encoder takes no images that transformers can prepare; give one, or --model small"
        )
    return found._replace(mean=found.mean.to(model.device), std=found.std.to(model.device))


def by_pillow(model: "SentenceTransformer") -> None:
    """Let the encoder's processor resize by Pillow, also where torchvision is installed: transformers would then take that, whose
    pixels differ in the last digit, and so the vectors of one encoder on two machines."""
    import transformers

    module: Any = reader(model, "image")
    processor: Any = getattr(module, "processor", None)
    inner = getattr(processor, "image_processor", processor)
    pillow = getattr(transformers, f"{type(inner).__name__}Pil", None)
    if pillow is None:
        return
    made = pillow.from_dict(inner.to_dict())
    if inner is processor:
        module.processor = made
    else:
        processor.image_processor = made


def settings_of(processor: Any) -> list[str]:
    """The settings that an image processor's pixels depend on: those of all, and those of its kind alone, as ConvNeXt's crop_pct."""
    from transformers.processing_utils import ImagesKwargs

    kind = getattr(processor, "valid_kwargs", ImagesKwargs)
    return [*_SETTINGS, *sorted(set(kind.__annotations__) - set(ImagesKwargs.__annotations__))]


def least_side(model: "SentenceTransformer") -> int | None:
    """The least that a picture's shorter side may have before the encoder's processor makes it smaller: twice what it makes of
    it, so that there is detail enough to choose from. None where that cannot be found out, and pictures are to be whole."""
    try:
        return 2 * pixels_of(model).shorter
    except UserError:
        return None


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
    """What it makes of a white square on black, in a picture that is square and in one that is twice as wide; None if that is no
    one picture."""
    seen, wide = (_seen(processor, width) for width in (SIDE, 2 * SIDE))
    if seen is None or wide is None:
        return None
    (high, across), (high_then, across_then) = seen.lit, wide.lit
    std = 1 / (seen.white - seen.black)
    # Cut, the square stays one; squeezed, it is half as wide as it is high.
    keeps = across_then / across > 0.75 * high_then / high
    mean, shorter = -seen.black * std, max(round(5 * high), round(5 * across))
    return Pixels(seen.size, mean.float(), std.float(), shorter, keeps, seen.patch)


class Seen(NamedTuple):
    """lit: how many pixels high and wide the square is; black, white: (1, 3, 1, 1) values; size and patch as in `Pixels`."""

    size: tuple[int, int]
    lit: tuple[float, float]
    black: Tensor
    white: Tensor
    patch: int | None


def _seen(processor: Any, width: int) -> Seen | None:
    shown = np.zeros((SIDE, width, 3), np.uint8)
    square = SIDE // 5
    shown[2 * square : 3 * square, (width - square) // 2 : (width + square) // 2] = 255
    features = processor([Image.fromarray(shown)], return_tensors="pt")
    values, patch = features["pixel_values"].double(), None
    if "spatial_shapes" in features:
        patch = int(processor.patch_size)
        high, wide = features["spatial_shapes"][0].tolist()
        apart = values[0, : high * wide].view(high, wide, patch, patch, 3)
        values = apart.permute(4, 0, 2, 1, 3).reshape(1, 3, high * patch, wide * patch)
    if values.ndim != 4 or values.shape[:2] != (1, 3):
        return None
    height, across = values.shape[2:]
    black, white = values[..., :1, :1], values[..., height // 2, None, across // 2, None]
    if not (white > black).all():
        return None
    lit = ((values - black) / (white - black)).mean(1)[0]
    # Resizing keeps the sum of what is white, to a fraction of a pixel.
    return Seen(
        (height, across), (lit[:, across // 2].sum().item(), lit[height // 2].sum().item()), black, white, patch
    )
