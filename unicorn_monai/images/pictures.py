"""Label maps and images as pictures: label maps in the data set's own colours or in colours of their own; sheets."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unicorn_monai.images.files import IGNORE_LABEL


def palette(header: Mapping[str, Any], channels: int) -> Tensor:
    """Colour of every label of a data set, (labels, channels) in [0, 1]; grey levels for one channel, else 3.

    ``colours`` of the header is a list of [red, green, blue], 0 to 255, one for each label.
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


def evenly(total: int, count: int) -> list[int]:
    """``count`` positions spread evenly over ``total``, first and last among them; all where there are fewer."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()


def tile(images: Tensor, gap: int = 2) -> np.ndarray:
    """A sheet from (rows, columns, channels, height, width): (height, width) or (height, width, 3) uint8."""
    rows = []
    for row in images:
        tiles = [
            np.pad(to_uint8(i), [(0, gap), (0, gap)] + [(0, 0)] * (images.shape[2] != 1), constant_values=255)
            for i in row
        ]
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows, axis=0)[:-gap, :-gap]


def to_uint8(image: Tensor) -> np.ndarray:
    """Image (channels, rows, columns) in [0, 1] -> (rows, columns) or (rows, columns, 3) uint8."""
    array = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return array[0].numpy() if len(array) == 1 else array.permute(1, 2, 0).numpy()
