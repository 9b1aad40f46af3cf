"""SimCLR's augmentations on batches of uint8 pictures, on whatever device they lie.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, appendix A. Each picture of
a batch draws its own parameters. Letters: B batch, C channels, H × W as stored, S side of the network's input.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """scale: area of the crop as a share of the picture; ratio: most uneven sides of the crop; the others: probabilities."""

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: float = 4 / 3
    flip: float = 0.5
    jitter: float = 0.8
    grey: float = 0.2
    blur: float = 0.5


BLOCK = 32  # pictures at a time on a CPU, whose caches they fit: up to three times as fast
SIMCLR = Augmentation()
# For labelled pictures, whose pairs differ already; no mirror image, since letters and digits have none.
LIGHT = Augmentation(scale=(0.6, 1.0), ratio=1.15, flip=0.0, jitter=0.0, grey=0.0, blur=0.0)
# For labelled photographs: what metric learning usually does.
PHOTO = Augmentation(scale=(0.4, 1.0), jitter=0.0, grey=0.0, blur=0.0)
# For pictures with captions, which may say left and right, and name what stands at the edge (Radford et al., ICML 2021).
CLIP = Augmentation(scale=(0.9, 1.0), flip=0.0, jitter=0.0, grey=0.0, blur=0.0)
PRESETS = {"simclr": SIMCLR, "light": LIGHT, "photo": PHOTO, "clip": CLIP}


def augment(pictures: Tensor, size: tuple[int, int], how: Augmentation, proportions: Tensor | None = None) -> Tensor:
    """uint8 (B, C, H, W) → float (B, 3, *size) in [0, 1]. proportions: as in `crop_and_flip`."""
    if pictures.device.type != "cpu":
        return _augmented(pictures, size, how, proportions)
    out = torch.empty(len(pictures), 3, *size)
    for start in range(0, len(pictures), BLOCK):
        part = slice(start, start + BLOCK)
        out[part] = _augmented(pictures[part], size, how, None if proportions is None else proportions[part])
    return out


def _augmented(pictures: Tensor, size: tuple[int, int], how: Augmentation, proportions: Tensor | None) -> Tensor:
    x = crop_and_flip(pictures.float() / 255, size, how, proportions).expand(-1, 3, -1, -1)
    if how.jitter:
        x = _sometimes(how.jitter, x, colour_jitter)
    if how.grey and pictures.shape[1] == 3:
        x = _sometimes(how.grey, x, lambda x: luminance(x).expand(-1, 3, -1, -1))
    if how.blur:
        x = _sometimes(how.blur, x, gaussian_blur)
    return x


def crop_and_flip(x: Tensor, size: tuple[int, int], how: Augmentation, proportions: Tensor | None = None) -> Tensor:
    """A random crop of each picture, mirrored with probability `flip`, resized bilinearly: (B, C, H, W) → (B, C, *size).

    proportions: (B,) width over height that each picture had before it was squeezed into H × W; crops have theirs in it. Where a
    crop would be wider or higher than the picture it is as wide or high.
    """
    batch, device = len(x), x.device
    area = torch.empty(batch, device=device).uniform_(*how.scale)
    bound = math.log(how.ratio)
    ratio = torch.empty(batch, device=device).uniform_(-bound, bound).exp()
    if proportions is not None:
        ratio = ratio * (size[1] / size[0]) / proportions  # from true proportions to those of the squeezed picture
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    # In grid coordinates the picture is [-1, 1]; the crop's centre moves as far as its sides allow.
    shift_x = (torch.rand(batch, device=device) * 2 - 1) * (1 - width)
    shift_y = (torch.rand(batch, device=device) * 2 - 1) * (1 - height)
    mirror = 1 - 2 * (torch.rand(batch, device=device) < how.flip).float()
    zero = torch.zeros_like(width)
    rows = [torch.stack([width * mirror, zero, shift_x], 1), torch.stack([zero, height, shift_y], 1)]
    affine = torch.stack(rows, 1)  # (B, 2, 3)
    grid = F.affine_grid(affine, [batch, x.shape[1], *size], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def colour_jitter(x: Tensor, strength: float = 0.4) -> Tensor:
    """Brightness, contrast, saturation by a factor in 1 ± strength, hue turned by up to ± 0.1 of the circle. (B, 3, S, S)."""

    def factor() -> Tensor:
        return torch.empty(len(x), 1, 1, 1, device=x.device).uniform_(1 - strength, 1 + strength)

    x = x * factor()
    x = x.mean((1, 2, 3), keepdim=True).lerp(x, factor())
    x = luminance(x).lerp(x, factor())
    return _turn_hue(x, torch.empty(len(x), device=x.device).uniform_(-0.1, 0.1)).clamp(0, 1)


def luminance(x: Tensor) -> Tensor:
    """(B, 3, H, W) → (B, 1, H, W), Rec. 601 weights."""
    return 0.299 * x[:, 0:1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:3]


def _turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn colours about the grey axis by turn · 360° (Rodrigues' formula), which treats the three channels in a circle alike."""
    angle = (turn * 2 * torch.pi)[:, None, None, None]
    cos, sin = angle.cos(), angle.sin()
    own, rest = (1 + 2 * cos) / 3, (1 - cos) / 3
    # Nothing is copied from the host, so that a CUDA graph can hold it.
    return own * x + (rest - sin * 3**-0.5) * x.roll(-1, 1) + (rest + sin * 3**-0.5) * x.roll(1, 1)


def gaussian_blur(x: Tensor) -> Tensor:
    """Blur each picture with its own sigma in 0.1 … 2 pixels, kernel a tenth of the side, as SimCLR. (B, 3, S, S)."""
    reach = max(1, x.shape[-1] // 20)
    sigma = torch.empty(len(x), 1, device=x.device).uniform_(0.1, 2.0)
    offsets = torch.arange(-reach, reach + 1, device=x.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(x.shape[1], 0)  # (B·C, taps)
    flat = x.reshape(1, -1, *x.shape[2:])
    flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), mode="replicate"), kernel[:, None, None, :], groups=len(kernel))
    flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), mode="replicate"), kernel[:, None, :, None], groups=len(kernel))
    return flat.reshape(x.shape)


def _sometimes(probability: float, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Each picture changed with that probability: on a CPU those alone are computed; a GPU would wait to learn which they are."""
    chosen = torch.rand(len(x), device=x.device) < probability
    if x.device.type != "cpu":
        return torch.where(chosen[:, None, None, None], change(x), x)
    if not chosen.any():
        return x
    changed = x.clone()
    changed[chosen] = change(x[chosen])
    return changed
