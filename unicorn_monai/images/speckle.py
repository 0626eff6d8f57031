"""Speckle as numbers: the high-pass image, its standard deviation, and its local contrast."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def high_pass_std(image: Tensor) -> Tensor:
    """Standard deviation of each image minus its 5 x 5 local mean: how much speckle there is, (batch,)."""
    return high_pass(image).flatten(1).std(dim=1)


def high_pass(image: Tensor) -> Tensor:
    """Image minus its 5 x 5 local mean, the same shape."""
    return image - functional.avg_pool2d(image, 5, stride=1, padding=2, count_include_pad=False)


def speckle_contrast(image: Tensor) -> Tensor:
    """Standard deviation of the high-pass image in 7 x 7 windows, one at every second pixel of both axes."""
    return (functional.avg_pool2d(high_pass(image).square(), 7, stride=2) + 1e-6).sqrt()
