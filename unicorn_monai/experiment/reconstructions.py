"""Are the autoencoder's images usable? Measured right after its training, before anything is trained on them.

    error    |s(x') - s(x)|^2 / |s(x) - mean s(x)|^2      x validation images, x' their reconstructions, s(x) the means
                                                          of 4 x 4 squares; sums over squares, channels and images
    texture  std(h(x')) / std(h(x))                       h an image minus its local mean (``images.speckle.high_pass``)
    grid     steps(x') / steps(x)                         steps: mean squared difference of neighbours on both sides of
                                                          the latents' squares, over that of neighbours within them

The trivial answer, each image's mean, has an error of 1, and black pictures one far above. The structure counts as kept
where the error is at most that of a coarse picture, the means of 8 x 8 squares (or a tenth, for images without detail).
The squares leave out the speckle, which a good reconstruction draws anew; that it is there at all the texture tells. An
autoencoder that was trained for too short a time shows blocks, which the grid tells. These bounds part usable images
from others; whether they are good, ``image_checks`` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unicorn_monai.images.speckle import high_pass_std
from unicorn_monai.images.transforms import read_image
from unicorn_monai.report.checks import usable_checks
from unicorn_monai.report.results import Results

SQUARE = 4  # pixels, the side of a square; a coarse picture has squares of twice that
ERROR = 0.1  # allowed at any rate
IMAGES = 200  # of each domain, evenly spread over the validation images


@torch.no_grad()
def kept(
    originals: list[str], reconstruct: Callable[[Tensor], Tensor], channels: int, side: int = SQUARE
) -> dict[str, list[float]]:
    """What reconstructions keep of images.

    Args:
        originals: files of the images.
        reconstruct: (1, channels, rows, columns) -> the same, any range; grey values outside 0 to 1 are cut off.
        channels: of the images.
        side: of the square that one place of the latents stands for, pixels.

    Returns:
        "error" [of the reconstructions, the largest allowed]; "high_pass_std", "grid" and "mean" grey value [of the
        originals, of the reconstructions].
    """
    sums, steps = torch.zeros(7, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    for path in originals:
        image = read_image(path, channels)[None]
        again = reconstruct(image).float().cpu().clamp(0, 1)
        squares, found = (functional.avg_pool2d(x, SQUARE, ceil_mode=True) for x in (image, again))
        coarse = functional.avg_pool2d(squares, 2, ceil_mode=True)
        coarse = functional.interpolate(coarse, scale_factor=2)[..., : squares.shape[-2], : squares.shape[-1]]
        flat = squares.mean(dim=(2, 3), keepdim=True)
        distances = [(squares - other).square().mean() for other in (flat, found, coarse)]
        texture = [high_pass_std(x).mean() for x in (image, again)]
        sums += torch.stack([*distances, *texture, image.mean(), again.mean()]).double()
        steps += torch.stack([_steps(x, side) for x in (image, again)]).double()
    variance, error, coarse_error, *rest = (sums / max(1, len(originals))).tolist()
    variance = max(variance, 1e-12)
    allowed = max(ERROR, coarse_error / variance)
    grid = [(across / max(1e-12, within)).item() for across, within in steps]
    return {"error": [error / variance, allowed], "high_pass_std": rest[:2], "grid": grid, "mean": rest[2:]}


def _steps(image: Tensor, side: int) -> Tensor:
    """Mean squared differences of neighbours: (across the borders of squares of this side, within the squares)."""
    found = torch.zeros(2)
    for axis in (-2, -1) if side > 1 else ():
        squared = image.diff(dim=axis).square().movedim(axis, 0).flatten(1).mean(dim=1)
        border = torch.arange(1, len(squared) + 1) % side == 0
        found += torch.stack([squared[border].mean(), squared[~border].mean()])
    return found


def lost(measured: dict[str, Any]) -> str:
    """What is not kept, as a sentence; empty where everything is."""
    checks = usable_checks(Results.of({"reconstructions": measured}))
    found = [f"{what}; found {value}" for what, value, good in checks if good is False]
    return f"The autoencoder does not keep the images: {'. '.join(found)}." if found else ""
