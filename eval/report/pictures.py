"""What the page carries in compressed form: maps of up to 100,000 points with what each is, and small pictures."""

import base64
import colorsys
import gzip
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval.images import Images
from retrieval.neighbors import Ints

from .figures import COLOURS

STEPS = 4095  # of a coordinate
TEXTS = 2_300_000  # bytes, compressed, of what the points are
LENGTHS = (140, 100, 70, 50, 35, 25, 16)
TILES, TILE = 1024, 32  # pictures on the map's sheet, and the pixels of a side
THUMBNAIL = 64


def pack_map(
    maps: Sequence[NDArray[np.float64]],
    ranks: Ints,
    names: Sequence[str],
    told: Sequence[str],
    pictures: Images | None,
    rows: Ints,
) -> dict[str, Any]:
    """Points (n, 2) of each side, the class (n,) of each by its rank, names of classes, words and pictures for each point.

    Words are cut as short as it takes to keep the page below 5 MB; of pictures there are 1,024.
    """
    packed: dict[str, Any] = {
        "count": len(ranks),
        "names": list(names),
        "colours": [colour(rank) for rank in range(max(1, len(names)))],
        "points": [_packed(np.round(points * STEPS).astype("<u2").tobytes()) for points in maps],
        "classes": _packed(ranks.astype("<u4").tobytes()),
        "texts": None,
        "sheet": None,
    }
    for length in LENGTHS:
        texts = _packed("\n".join(text.replace("\n", " ")[:length] for text in told).encode(errors="replace"))
        if len(texts) <= TEXTS * 4 / 3:
            packed["texts"] = texts
            break
    if pictures is not None:
        packed["sheet"] = _sheet(pictures, rows)
    return packed


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


def _sheet(pictures: Images, rows: Ints) -> dict[str, Any]:
    """Pictures of some of the points, evenly spread, on one sheet."""
    shown = np.unique(np.linspace(0, len(rows) - 1, min(TILES, len(rows))).astype(int))
    across = math.ceil(math.sqrt(len(shown)))
    sheet = Image.new("RGB", (across * TILE, math.ceil(len(shown) / across) * TILE))
    for at, point in enumerate(shown.tolist()):
        small = pictures[int(rows[point])].convert("RGB").resize((TILE, TILE))
        sheet.paste(small, (at % across * TILE, at // across * TILE))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=60)
    source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"source": source, "across": across, "side": TILE, "points": shown.tolist()}


def thumbnail(picture: Image.Image) -> str:
    """A small copy as a data: address."""
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def colour(rank: int) -> str:
    """Of a class by its rank in size: ten that are easily told apart, then hues by the golden angle."""
    if rank < len(COLOURS):
        return COLOURS[rank]
    light = (0.45, 0.6)[rank % 2]
    r, g, b = colorsys.hls_to_rgb(rank * 0.618034 % 1, light, 0.55)
    return f"#{round(r * 255):02x}{round(g * 255):02x}{round(b * 255):02x}"
