"""Reading pictures: what people have, in memory or decoded when their turn comes.

folders.py tables.py cells.py shards.py arrays.py, class folders, rows, Arrow and Parquet, tars, .npz and IDX → read.py → items.py
picture.py decode.py, what is not decoded yet, and its pixels
pairs.py, pictures beside texts or other pictures
same.py, which stand in two sets
"""

from .decode import as_rgb, as_seen, decode
from .folders import ENDINGS
from .items import Bytes, Images
from .pairs import Pairs, read_pairs
from .picture import Cell, Picture, Span, content
from .read import is_image_data, picture_at, read_images
from .same import stand_in

__all__ = [
    "ENDINGS",
    "Bytes",
    "Cell",
    "Images",
    "Pairs",
    "Picture",
    "Span",
    "as_rgb",
    "as_seen",
    "content",
    "decode",
    "is_image_data",
    "picture_at",
    "read_images",
    "read_pairs",
    "stand_in",
]
