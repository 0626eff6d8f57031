"""Label maps as pictures: in the data set's own colours, else in grey, or in colours evenly round the colour circle."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unicorn_monai.datasets import IGNORE_LABEL


def palette(header: Mapping[str, Any], channels: int) -> Tensor:
    """Colour of every label of a data set, (labels, channels) in [0, 1].

    Args:
        header: of ``dataset.json``; ``colours`` is a list of [red, green, blue], 0 to 255, one for each label.
        channels: 1 or 3, as the images have; grey levels for one.

    Raises:
        ValueError: another number of colours than labels, or values out of range.
    """
    n, own = len(header["labels"]), header.get("colours")
    if channels == 1:
        return torch.linspace(0, 1, n)[:, None]
    if own is None:
        return torch.tensor([colorsys.hsv_to_rgb(k / n, 0.65, 0.9 if k % 2 else 0.65) for k in range(n)])
    if len(own) != n or any(len(c) != 3 or not all(0 <= v <= 255 for v in c) for c in own):
        raise ValueError(f"'colours' of dataset.json is {own}; expected [red, green, blue], 0 to 255, for {n} labels.")
    return torch.tensor(own, dtype=torch.float32) / 255


def paint(labels: Tensor, colours: Tensor) -> Tensor:
    """Label maps (batch, 1, rows, columns) -> pictures (batch, channels, rows, columns); ignored pixels are black."""
    ignored = labels == IGNORE_LABEL
    pictures = colours[labels.where(~ignored, 0)[:, 0]].permute(0, 3, 1, 2)
    return pictures.where(~ignored, 0.0)
