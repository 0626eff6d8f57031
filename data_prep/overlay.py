"""Draw the label maps of a data set over its images, to be looked at before anything is trained on them.

    python -m data_prep.overlay DATASET PICTURE.png --count 6

Above each image as it is, below with the borders between labels; what is ignored (255) is tinted.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray
from PIL import Image

from data_prep.options import command
from unicorn_monai.data import datalist, read_array, read_header
from unicorn_monai.data.layout import SPLITS
from unicorn_monai.images.surfaces import IGNORE
from unicorn_monai.system.console import Whole
from unicorn_monai.system.terminal import say

COLOURS = np.array(  # of the borders, from the top; told apart with any colour vision (Okabe and Ito)
    [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)]
)
TINT = np.array((90, 40, 140))
GAP = 4


def draw(image: NDArray[np.uint8], label: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """One image, (rows, columns) or (rows, columns, 3) uint8, with its label borders, as (rows, columns, 3)."""
    canvas = np.array(image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2))
    if label is None:
        return canvas
    ignored = label == IGNORE
    canvas[ignored] = (canvas[ignored] // 2 + TINT // 2).astype(np.uint8)
    upper, lower = label[:-1], label[1:]
    edge = (upper != lower) & (upper != IGNORE) & (lower != IGNORE)
    canvas[1:][edge] = COLOURS[(lower[edge].astype(int) - 1) % len(COLOURS)]
    return canvas


def montage(items: Sequence[dict], height: int = 256) -> Image.Image:
    """Images above, overlays below, side by side, each of the height wanted."""
    columns = []
    for item in items:
        image = read_array(item["image"])
        label = read_array(item["label"]).astype(np.uint8) if "label" in item else None
        size = (max(round(image.shape[1] * (height / image.shape[0])), 1), height)
        drawn = (Image.fromarray(draw(image, part)) for part in (None, label))
        columns.append([picture.resize(size, Image.Resampling.NEAREST) for picture in drawn])
    width = sum(pair[0].width + GAP for pair in columns) - GAP
    sheet = Image.new("RGB", (width, 2 * height + GAP), "white")
    left = 0
    for pair in columns:
        for k, part in enumerate(pair):
            sheet.paste(part, (left, k * (height + GAP)))
        left += pair[0].width + GAP
    return sheet


def few_colours(sheet: Image.Image) -> Image.Image:
    """The same picture with 32 levels of grey and a palette, a third of the size; the colours of borders stay."""
    pixels = np.asarray(sheet)
    grey = (pixels == pixels[..., :1]).all(axis=2)
    coarse = np.where(grey[..., None], pixels & 0xF8, pixels)
    colours, index = np.unique(coarse.reshape(-1, 3), axis=0, return_inverse=True)
    if len(colours) > 256:  # tinted greys, colour images
        return sheet
    picture = Image.fromarray(index.reshape(pixels.shape[:2]).astype(np.uint8), "P")
    picture.putpalette(colours.astype(np.uint8).tobytes())
    return picture


@command
def main(
    dataset: Annotated[Path, Parameter(help="data set folder")],
    picture: Annotated[Path, Parameter(help="PNG to write")],
    *,
    count: Annotated[Whole, Parameter(help="images, evenly spread over the data set; 1 or more")] = 6,
    height: Annotated[Whole, Parameter(help="height of each, pixels; 16 or more")] = 256,
) -> int:
    """Draw and save the picture."""
    if count < 1 or height < 16:
        raise ValueError(f"--count {count}, --height {height}: expected at least 1 and 16")
    header = read_header(dataset)
    items = [item for split in SPLITS if header.get(split) for item in datalist(dataset, split)]
    chosen = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    picture.parent.mkdir(parents=True, exist_ok=True)
    few_colours(montage([items[k] for k in chosen], height)).save(picture, optimize=True)
    say(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
