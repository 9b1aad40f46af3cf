"""Pictures as training reads them: squares of bytes, held on the device where they fit, augmented there in batches."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from retrieval.cpus import usable_cpus
from retrieval.data import text_codes
from retrieval.images import Images
from retrieval.pixels import Pixels, features_of
from retrieval.tokens import Features

from .augment import Augmentation, augment
from .batches import Rows

MEMORY_LIMIT = 8 << 30  # bytes of pictures held in a CPU's memory
GPU_SHARE = 0.25  # of a GPU's free memory
FINER = 8 / 7  # side of a stored picture over the network's: crops are enlarged less, as is usual (256 for 224)


@dataclass(frozen=True)
class Pictures:
    """Pictures (n) that are trained on. pixels: what the encoder makes of each; how: their augmentation.

    held: uint8 (n, 1 or 3, h, w) on the training device and (n,) widths over heights; None where they are decoded as they come.
    codes: (n,) equal for equal pictures.
    """

    images: Images
    pixels: Pixels
    how: Augmentation
    held: tuple[Tensor, Tensor] | None
    codes: Rows

    def features(self, rows: Rows) -> Features:
        """What a loader gives of some pictures: the rows alone, where they are held, or their bytes."""
        if self.held is not None:
            return {"rows": torch.from_numpy(rows)}
        squares, proportions = decoded(self.images, rows, side_of(self.pixels))
        return {"squares": squares, "proportions": proportions}

    def views(self, features: Features) -> Features:
        """What the encoder takes: augmented pictures (b, 3, H, W), on whatever device `features` lie."""
        if self.held is not None:
            features = dict(
                zip(("squares", "proportions"), (each[features["rows"]] for each in self.held), strict=True)
            )
        with torch.autocast(features["squares"].device.type, enabled=False):
            proportions = features["proportions"] if self.pixels.keeps_proportions else None  # else squeezed is right
            views = augment(features["squares"], self.pixels.size, self.how, proportions)
            return features_of(views, self.pixels)


def pictures_of(images: Images, pixels: Pixels, how: Augmentation) -> Pictures:
    """Pictures ready to train on: those in memory as arrays, and files decoded once, if that fits."""
    device = pixels.mean.device
    if not isinstance(images.source, list):
        array = torch.from_numpy(np.ascontiguousarray(images.source))
        squares = array[:, None] if array.ndim == 3 else array.permute(0, 3, 1, 2).contiguous()
        proportions = torch.full((len(array),), array.shape[2] / array.shape[1])
        squares = _shrunk(squares, side_of(pixels))
    else:
        height, width = side_of(pixels)
        if len(images) * 3 * height * width > _room(device):
            return Pictures(images, pixels, how, None, codes_of(images))
        squares, proportions = decoded(images, np.arange(len(images)), (height, width))
    return Pictures(images, pixels, how, (squares.to(device), proportions.to(device)), codes_of(images))


def codes_of(images: Images) -> Rows:
    """(n,) equal where a file stands twice; pictures in an array are all different."""
    if isinstance(images.source, list):
        return text_codes(map(str, images.source))
    return np.arange(len(images))


def side_of(pixels: Pixels) -> tuple[int, int]:
    """Height and width of a stored picture."""
    height, width = pixels.size
    return round(height * FINER), round(width * FINER)


def decoded(images: Images, rows: Rows, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Files as uint8 (b, 3, h, w), made to fit whatever their proportions, and these, (b,): width over height.

    A crop in a picture's true proportions is thus cut from the squeezed one (`augment.crop_and_flip`).
    """
    found = torch.empty(len(rows), 3, *size, dtype=torch.uint8)
    proportions = torch.empty(len(rows))

    shorter = 2 * min(size)
    images = replace(images, at_least=shorter)

    def put(place: int) -> None:
        picture = images[int(rows[place])]
        proportions[place] = picture.width / picture.height
        squeezed = picture.resize(size[::-1], Image.Resampling.BILINEAR)
        found[place] = torch.from_numpy(np.array(squeezed)).permute(2, 0, 1)

    with ThreadPoolExecutor(usable_cpus()) as pool:  # Pillow lets other threads run while it decodes
        for _ in pool.map(put, range(len(rows))):
            pass
    return found, proportions


def _shrunk(squares: Tensor, size: tuple[int, int]) -> Tensor:
    """No larger than files are held: augmentation samples pixels, and of a large picture would miss those between."""
    height, width = (min(sides) for sides in zip(squares.shape[2:], size, strict=True))
    if (height, width) == squares.shape[2:]:
        return squares
    return F.interpolate(squares, (height, width), mode="bilinear", antialias=True)


def _room(device: torch.device) -> int:
    if device.type != "cuda":
        return MEMORY_LIMIT
    free, _ = torch.cuda.mem_get_info(device)
    return int(GPU_SHARE * free)


def longest_side(images: Images) -> int:
    """The longest side among the first hundred pictures, from which a network from scratch takes its input size."""
    if not isinstance(images.source, list):
        return int(max(images.source.shape[1:3]))
    return max(max(images[row].size) for row in range(min(100, len(images))))
