"""Colour pictures of scenes: read upright, cut to the wanted shape, of a size that every network here takes.

Autoencoder and diffusion U-Net halve the sides three times each, so sides are multiples of 64. What does not have the
wanted ratio of sides is cut around its middle, not squeezed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from data_prep.label_images import require_same_shape
from data_prep.options import Options, Size
from unicorn_monai.images.files import open_picture

MULTIPLE = 64


@dataclass(kw_only=True)
class ColourOptions(Options):
    """The command line of sources of pictures: sides are multiples of 64, which networks need."""

    size: Size = (512, 512)
    squeeze: Annotated[bool, Parameter(help="squeeze pictures to --size instead of cutting them")] = False

    def check(self) -> None:
        """As for every source, and the multiples."""
        super().check()
        if wrong := [side for side in self.shape if side % MULTIPLE]:
            near = " ".join(str(max(MULTIPLE, round(side / MULTIPLE) * MULTIPLE)) for side in self.shape)
            found = f"{wrong[0]} is no multiple of {MULTIPLE}, which networks need"
            raise ValueError(f"--size {self.shape}: {found}; use --size {near}.")


def read_colours(path: Path) -> NDArray[np.uint8]:
    """A picture as (rows, columns, 3), unless it is grey, transparent, or of more than 8 bits."""
    try:
        with open_picture(path) as picture:
            if picture.mode == "RGBA" and np.asarray(picture)[..., 3].min() < 255:
                raise ValueError("image: found transparent pixels; expected an opaque picture. Flatten it")
            if picture.mode in ("RGB", "RGBA", "P", "CMYK", "YCbCr"):
                return np.asarray(picture.convert("RGB"))
            raise ValueError(f"image: found mode '{picture.mode}'; expected colours of 8 bits. Convert it to RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"image: found no readable picture ({error}); export it anew") from error


def cut(array: NDArray, size: tuple[int, int]) -> NDArray:
    """The middle of an image, as large as fits, with the ratio of sides of ``size``."""
    rows, columns = array.shape[:2]
    high, wide = min(rows, round(columns * size[0] / size[1])), min(columns, round(rows * size[1] / size[0]))
    top, left = (rows - high) // 2, (columns - wide) // 2
    return array[top : top + high, left : left + wide]


def fitted(image: NDArray[np.uint8], label: NDArray | None, options: ColourOptions) -> tuple[NDArray, NDArray | None]:
    """Picture and label map, of one size, cut to the wanted ratio of sides, unless they are to be squeezed."""
    if label is not None:
        require_same_shape(label, image.shape)
    if options.squeeze:
        return image, label
    return cut(image, options.shape), None if label is None else cut(label, options.shape)
