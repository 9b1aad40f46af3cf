"""From a picture's bytes to RGB pixels: upright, on white, and no larger than an encoder has a use for."""

import io
import threading
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from retrieval.errors import UserError

from .picture import Picture, content

# Where values of more than a byte are taken to begin and end: 16 bits; shares of one, bytes, 16 bits.
SPANS = {"u": [(0, 65535)], "i": [(0, 65535)], "f": [(0, 1), (0, 255), (0, 65535)]}
JPEG = ("JPEG", "MPO")  # MPO: what phones write, JPEGs one after the other
_FILTERS = threading.Lock()


def decode(picture: Picture, at_least: int | None = None) -> Image.Image:
    """One picture as RGB, turned upright by its EXIF orientation, what is transparent on white, the first of moving ones.

    at_least: pixels. A JPEG is decoded at the smallest of its scales (whole, half, a quarter, an eighth) at which neither
    side is shorter, which takes less time and memory. Raises UserError naming the picture.
    """
    try:
        with _opened(picture) as opened:
            if at_least is not None:
                opened.draft(None, (at_least, at_least))
            return as_seen(opened)
    except FileNotFoundError:
        raise UserError(f"{picture}: no such file; bring it back") from None
    except PermissionError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{picture}: more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller") from None
    except UnidentifiedImageError:
        empty = "" if content(picture) else ": it is empty"
        raise UserError(f"{picture}: is not an image of a kind that Pillow knows{empty}; replace it") from None
    except Exception:  # each format's decoder fails in its own ways on what is cut off or otherwise broken
        raise UserError(f"{picture}: begins as an image and does not decode to its end; replace it") from None


def _opened(picture: Picture) -> Image.Image:
    """With its header read; one too large to be harmless is an error. Filters of warnings are the whole process's."""
    source = picture if isinstance(picture, Path) else io.BytesIO(content(picture))
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(source)


def as_seen(opened: Image.Image) -> Image.Image:
    """A picture that Pillow has opened, upright and as RGB."""
    no_adobe = opened.format in JPEG and opened.mode == "CMYK" and "adobe" not in opened.info
    upright = ImageOps.exif_transpose(opened)
    # Pillow takes all for Adobe's, and inverts.
    return as_rgb(ImageChops.invert(upright) if no_adobe else upright)


def as_rgb(picture: Image.Image) -> Image.Image:
    """Any mode as RGB: what is transparent on white, values of more than a byte scaled rather than cut off."""
    if picture.mode[0] in "IF":
        return Image.fromarray(_as_bytes(np.asarray(picture))).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    clear = picture.convert("RGBA")
    white = Image.new("RGBA", clear.size, "white")
    white.alpha_composite(clear)
    return white.convert("RGB")


def _as_bytes(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey values (height, width) of 16 or 32 bits from 0 to 255, from the first of SPANS that holds them all, else from
    the least to the largest."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("values that are no numbers")
    start, stop = next((s for s in SPANS[values.dtype.kind] if s[0] <= low and high <= s[1]), (low, high))
    return np.round((values.astype(np.float64) - start) * (255 / (stop - start))).astype(np.uint8)
