"""What Pillow reads otherwise than a file stores it, without a word: refused, or read right, before it is used.

- Colours of more than 8 bits keep their high byte (PNG, TIFF, PPM, JPEG 2000): 12 bits in 16 become 16 grey levels.
- A TIFF file that is turned on its side by its EXIF orientation is scrambled if its pixels are stored plainly.
- A JPEG file whose data end early is filled with grey (128), be its header right or made up.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

GREY_OF_MANY_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # modes that keep more than 8 bits
WITH_EXIF = ("JPEG", "PNG", "TIFF", "WEBP")
UPRIGHT = 1  # the EXIF orientation of pixels that are stored as they are shown; 2 to 8 turn or mirror them
BITS_PER_SAMPLE = 258  # a tag of TIFF
CODESTREAM, FIRST_DEPTH = b"\xff\x4f\xff\x51", 42  # of JPEG 2000: its beginning, and where the bits of a channel stand
MOST_PIXELS_PER_BYTE = 512  # of a JPEG file: a black one has 255, since a block of 64 pixels takes two bits
MOST_FILLING = 4096  # bytes between two segments of JPEG
START_OF_SCAN, MOST_SCANS = b"\xff\xda", 100  # of JPEG; a progressive file has about ten
FILLING, LEAST_ROWS = 128, 8  # what the decoder of JPEG fills in, and the height of its blocks


def make_faithful(picture: Any, path: Path) -> None:
    """Refuse a picture, opened by Pillow from ``path``, that would be read otherwise than it is stored.

    It is turned, in place, as its EXIF orientation says. An ``OSError`` where pixels cannot be decoded.
    """
    if picture.format == "JPEG2000":
        with path.open("rb") as file:
            _, _, stream = file.read(4096).partition(CODESTREAM)
        depth = stream[FIRST_DEPTH - len(CODESTREAM) :][:1]
        _require_all_bits(picture, (depth[0] & 0x7F) + 1 if depth else 8)
    elif picture.format == "JPEG":
        size = path.stat().st_size
        if math.prod(picture.size) > MOST_PIXELS_PER_BYTE * size:
            raise ValueError(f"it states {picture.width} x {picture.height} pixels, of which {size} bytes can hold few")
        require_not_filled(np.asarray(picture))
    else:
        require_faithful_page(picture)
    if picture.format != "TIFF" and _orientation(picture, path) != UPRIGHT:  # Pillow turns the pages of TIFF itself
        ImageOps.exif_transpose(picture, in_place=True)


def require_faithful_page(picture: Any) -> None:
    """The same for the page at which a file of several is."""
    if picture.format == "TIFF":
        picture.filename = ""  # else Pillow maps plain pixels into memory; sides of those on their side are exchanged
        _require_all_bits(picture, max(picture.tag_v2.get(BITS_PER_SAMPLE) or (1,)))
    layout = picture.tile[0].args if picture.tile else ""  # as it is stored, e.g. RGB;16B
    if picture.format == "PPM" and isinstance(layout, tuple):
        _require_all_bits(picture, int(layout[-1]).bit_length())  # of the largest value
    if picture.format == "PNG" and ";16" in str(layout):
        _require_all_bits(picture, 16)


def _require_all_bits(picture: Any, bits: int) -> None:
    if bits > 8 and picture.mode not in GREY_OF_MANY_BITS:
        raise ValueError(
            f"it has {bits} bits in each of its channels, of which 8 would be read; expected grey levels of {bits} "
            "bits, or 8 bits. Export it anew as one of these"
        )


def require_quick_jpeg(path: Path) -> None:
    """Refuse a JPEG file of few bytes that takes minutes, before it is opened; files of other kinds pass.

    Pillow passes over filling bytes one by one, and each scan of a progressive file passes over all pixels.
    """
    count, end = 0, b""
    with path.open("rb") as file:
        if file.read(2) != b"\xff\xd8":
            return
        while block := file.read(1 << 20):
            if b"\xff" * MOST_FILLING in block:
                raise ValueError(f"it holds more than {MOST_FILLING} filling bytes in a row; export it anew")
            count += (end + block).count(START_OF_SCAN)
            end = block[-1:]
    if count > MOST_SCANS:
        raise ValueError(f"it holds {count} scans; expected at most {MOST_SCANS}, of which a picture has about ten")


def require_not_filled(pixels: NDArray) -> None:
    """Refuse what the decoder of JPEG had to fill, (rows, columns) or (rows, columns, channels): rows at the bottom."""
    stored = np.flatnonzero((pixels != FILLING).reshape(len(pixels), -1).any(axis=1))
    if stored.size and len(pixels) - 1 - stored[-1] >= LEAST_ROWS:
        raise ValueError(f"its data end at row {stored[-1] + 1} of {len(pixels)}, the rest is filling")


def is_turned(path: Path) -> bool:
    """Whether the EXIF orientation of an image file turns or mirrors its pixels; no other file is turned."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=WITH_EXIF) as picture:
                return _orientation(picture, path) != UPRIGHT
    except UnidentifiedImageError:
        return False


def _orientation(picture: Image.Image, path: Path) -> int:
    if picture.format == "PNG" and "exif" not in str(list(picture.info)) and b"eXIf" not in _chunks(path):
        return UPRIGHT  # Pillow would decode the pixels to look behind them
    try:
        found = picture.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except (OSError, SyntaxError):  # pixels that cannot be decoded
        raise
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(f"its EXIF data cannot be read ({type(error).__name__}); remove them") from error
    return found if found in range(UPRIGHT + 1, 9) else UPRIGHT


def _chunks(path: Path) -> set[bytes]:
    """Names of the chunks of a PNG file."""
    names, place = set(), 8
    with path.open("rb") as file:
        while file.seek(place) and len(head := file.read(8)) == 8:
            names.add(head[4:])
            place += 12 + int.from_bytes(head[:4], "big")
    return names
