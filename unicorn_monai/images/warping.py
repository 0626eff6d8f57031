"""Changed geometry: mirror, shift, scale and, of all layers of a B-scan alike, smooth bending.

    y' = y / depth + down + sum_k h_k cos(k pi x / 2 + p_k),      x' = x width + aside,      x, y in [-1, 1]

Two devices differ in depth range, field of view and in how the eye sits before them; the label maps of one do not cover
the other's. No layer becomes thicker than the others. Used on label maps before an image is made for them, and on
images together with their label maps in the training of a segmentation network.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Geometry:
    """What is changed; lengths in halves of the height and the width."""

    bends: tuple[tuple[float, float], ...]  # (height, phase) of cosines of rising frequency over the width
    depth: float  # how many times as high everything becomes
    down: float  # where the middle row comes from
    width: float  # how much of the width is shown; negative mirrors it
    aside: float  # where the middle column comes from


def geometry(seed: int) -> Geometry:
    """The change that a seed stands for."""
    random = np.random.default_rng(seed)
    bends = tuple((random.normal(0, 0.04 / k), random.uniform(0, 2 * np.pi)) for k in (1, 2, 3))
    depth, down = random.uniform(0.85, 1.3), random.uniform(-0.12, 0.12)
    width = random.uniform(0.8, 1.0) * random.choice([-1.0, 1.0])
    return Geometry(bends, depth, down, width, aside=random.uniform(-0.1, 0.1))


def rigid(seed: int) -> Geometry:
    """The change that a seed stands for where nothing may be bent or stretched: mirror, shift and scale."""
    random = np.random.default_rng(seed)
    scale, down, aside = random.uniform(0.8, 1.3), *random.uniform(-0.12, 0.12, 2)
    return Geometry((), scale, down, random.choice([-1.0, 1.0]) / scale, aside)


def warp(image: Tensor, seed: int, mode: str) -> Tensor:
    """Change an image or a label map, (channels, rows, columns); rows and columns from outside repeat its border.

    ``mode``: of the interpolation, "nearest" for label maps, "bilinear" for images.
    """
    return _sampled(image, _grid(geometry(seed), *image.shape[1:]), mode)


def _grid(change: Geometry, rows: int, columns: int) -> Tensor:
    """Where every pixel comes from: (1, rows, columns, 2), as (x, y)."""
    x, grid = np.linspace(-1, 1, columns), np.empty((1, rows, columns, 2), np.float32)
    bend = sum((height * np.cos(k * np.pi * x / 2 + p) for k, (height, p) in enumerate(change.bends, start=1)), 0 * x)
    grid[..., 0] = x * change.width + change.aside
    grid[..., 1] = np.linspace(-1, 1, rows)[:, None] / change.depth + change.down + bend
    return torch.from_numpy(grid)


def _sampled(image: Tensor, grid: Tensor, mode: str) -> Tensor:
    warped = functional.grid_sample(image[None].float(), grid, mode=mode, padding_mode="border", align_corners=True)
    return warped[0].to(image.dtype)


def augmented_spacing(spacing_mm: Sequence[float], seed: int) -> tuple[float, float]:
    """(axial, lateral) size of a pixel of a changed label map, mm: what fills more pixels is seen in smaller ones."""
    change = geometry(seed)
    return round(spacing_mm[0] / change.depth, 8), round(spacing_mm[1] * abs(change.width), 8)


class RandGeometryd(RandomizableTransform, MapTransform):
    """Change "image" and "label", (channels, rows, columns), alike, anew at every call; see :func:`warp`."""

    def __init__(self, prob: float = 0.8, bends: bool = True) -> None:
        MapTransform.__init__(self, ("image", "label"))
        RandomizableTransform.__init__(self, prob)
        self.bends = bends

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """All of one item by the same change."""
        result = dict(data)
        self.randomize(None)
        if self._do_transform:
            seed, shape = int(self.R.randint(2**31)), result["image"].shape
            grid = _grid(geometry(seed) if self.bends else rigid(seed), *shape[1:])
            for key, mode in self.key_iterator(result, ("bilinear", "nearest")):
                result[key] = _sampled(torch.as_tensor(result[key]), grid, mode)
        return result
