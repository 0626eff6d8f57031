"""What Pillow reads otherwise than a file stores it, without a word: refused before the pixels are used.

- Colours of more than 8 bits keep their high byte (PNG, TIFF, PPM, JPEG 2000): 12 bits in 16 become 16 grey levels.
- A JPEG file whose data end early is filled with grey (128), be its header right or made up.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GREY_OF_MANY_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # modes that keep more than 8 bits
BITS_PER_SAMPLE = 258  # a tag of TIFF
CODESTREAM, FIRST_DEPTH = b"\xff\x4f\xff\x51", 42  # of JPEG 2000: its beginning, and where the bits of a channel stand
MOST_PIXELS_PER_BYTE = 512  # of a JPEG file: a black one has 255, since a block of 64 pixels takes two bits
FILLING, LEAST_ROWS = 128, 8  # what the decoder of JPEG fills in, and the height of its blocks


def require_faithful(picture: Any, path: Path) -> None:
    """Refuse a picture that would be read otherwise than it is stored.

    Args:
        picture: opened by Pillow, at the page wanted.
        path: its file.

    Raises:
        ValueError: naming what was found; OSError where pixels cannot be decoded.
    """
    bits = _stored_bits(picture, path)
    if bits > 8 and picture.mode not in GREY_OF_MANY_BITS:
        raise ValueError(
            f"it has {bits} bits in each of its channels, of which 8 would be read; expected grey levels of {bits} "
            "bits, or 8 bits. Export it anew as one of these"
        )
    if picture.format == "JPEG":
        _require_whole(picture, path.stat().st_size)


def _stored_bits(picture: Any, path: Path) -> int:
    """Bits per channel as the file states them; 8 for formats that have no more."""
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(BITS_PER_SAMPLE) or (1,))
    if picture.format == "JPEG2000":
        with path.open("rb") as file:
            _, _, stream = file.read(4096).partition(CODESTREAM)
        depth = stream[FIRST_DEPTH - len(CODESTREAM) :][:1]
        return (depth[0] & 0x7F) + 1 if depth else 8
    layout = picture.tile[0].args if picture.tile else ""  # as it is stored, e.g. RGB;16B
    if picture.format == "PPM" and isinstance(layout, tuple):
        return int(layout[-1]).bit_length()  # the largest value
    return 16 if picture.format == "PNG" and ";16" in str(layout) else 8


def _require_whole(picture: Image.Image, size: int) -> None:
    pixels = math.prod(picture.size)
    if pixels > MOST_PIXELS_PER_BYTE * size:
        raise ValueError(f"it states {picture.width} x {picture.height} pixels, of which {size} bytes can hold few")
    require_not_filled(np.asarray(picture))


def require_not_filled(pixels: NDArray) -> None:
    """Refuse what the decoder of JPEG had to fill, (rows, columns) or (rows, columns, channels).

    Raises:
        ValueError: whole rows of filling at the bottom.
    """
    stored = np.flatnonzero((pixels != FILLING).reshape(len(pixels), -1).any(axis=1))
    if stored.size and len(pixels) - 1 - stored[-1] >= LEAST_ROWS:
        raise ValueError(f"its data end at row {stored[-1] + 1} of {len(pixels)}, the rest is filling")
