"""Does one image hold the very speckle of another? Correlation of what is left when label map and layer are known.

    r(x) = image(x) - mean of the image around x within the label of x        0 at the edges of labels

    s(q, t) = max over shifts and mirroring of  sum_x r_q(x) r_t(x + shift) / (|r_q| |r_t|)

Images made from a training image's label map share its anatomy by construction, so every comparison of grey values
calls them copies. Speckle is drawn anew in an honest image: s is then that of two strangers, and near 1 in a copy, also
in one with other contrast, noise or blur.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from unicorn_monai.images.files import IGNORE_LABEL

SHIFT = 8  # largest shift, pixels


def speckle_residual(image: NDArray, label: NDArray) -> NDArray[np.float32]:
    """Image (rows, columns) minus its local mean within each label, scaled to unit length (zero if nothing is left)."""
    if image.shape != label.shape or image.ndim != 2:
        raise ValueError(f"Image has shape {image.shape}, its label map {label.shape}; expected one 2D shape.")
    image, residual = image.astype(np.float32), np.zeros(image.shape, np.float32)
    side = max(5, len(image) // 16 | 1)  # of the square the mean is taken over, pixels
    border = 2 * max(1, len(image) // 128) + 1  # across a label's edge, where nothing counts
    for value, box in enumerate(ndimage.find_objects(label.astype(np.int32) + 1)):
        if box is None or value == IGNORE_LABEL:
            continue
        inside = (label[box] == value).astype(np.float32)
        part = image[box]
        weight = ndimage.uniform_filter(inside, side, mode="constant")
        mean = ndimage.uniform_filter(part * inside, side, mode="constant") / np.maximum(weight, 1e-6)
        residual[box] += (part - mean) * inside
    residual[ndimage.maximum_filter(label, border) != ndimage.minimum_filter(label, border)] = 0
    length = float(np.linalg.norm(residual))
    return (residual / length if length > 1e-6 else 0 * residual).astype(np.float32)


def fingerprint(residuals: Tensor) -> Tensor:
    """What of a residual does not depend on shift and mirroring, to find candidates by: amplitudes of its spectrum.

    (images, rows, columns) -> (images, D): |F| at the lower half of the frequencies of both axes, the mean of those
    that mirroring exchanges.
    """
    rows, columns = residuals.shape[1:]
    down, across = rows // 4, columns // 4
    amplitude = torch.fft.rfft2(residuals.float()).abs()[:, :, 1 : across + 1]
    positive, negative = amplitude[:, 1 : down + 1], amplitude[:, -down:].flip(1)
    return torch.cat([amplitude[:, :1], (positive + negative) / 2], dim=1).flatten(1)


class Aligned:
    """Correlation of residuals of one size over all shifts of up to ``SHIFT`` pixels, as is and mirrored.

    The cross-correlation is a product of Fourier transforms, of which only the few wanted shifts are transformed back.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.reach = min(SHIFT, rows // 4, columns // 4)
        shifts = torch.arange(-self.reach, self.reach + 1, dtype=torch.float64)
        down = torch.outer(shifts, torch.arange(rows, dtype=torch.float64)) / rows
        across = torch.outer(torch.arange(columns // 2 + 1, dtype=torch.float64), shifts) / columns
        twice = torch.full((columns // 2 + 1, 1), 2.0, dtype=torch.float64)  # the half that rfft leaves out
        twice[0] = 1.0
        if columns % 2 == 0:
            twice[-1] = 1.0
        self.down = torch.exp(2j * torch.pi * down).to(torch.complex64) / rows
        self.across = (twice * torch.exp(2j * torch.pi * across)).to(torch.complex64) / columns

    def __call__(self, query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best alignment of one residual (rows, columns) with each of several, all of unit length.

        Returns:
            similarity (candidates,) in [-1, 1]; (candidates, 2) rows and columns by which the query, mirrored where
            ``mirrored`` (candidates,), is to be moved to lie on the candidate.
        """
        transformed = torch.fft.rfft2(torch.stack([query, query.flip(-1)]).float()).conj()
        product = transformed[:, None] * torch.fft.rfft2(candidates.float())
        correlation = (self.down @ product @ self.across).real.flatten(2)  # (as is / mirrored, candidates, shifts)
        similarity, at = correlation.max(dim=2)
        similarity, mirrored = similarity.max(dim=0)
        at = at.gather(0, mirrored[None])[0]
        side = 2 * self.reach + 1
        shift = torch.stack([at // side - self.reach, at % side - self.reach], dim=1)
        return similarity, shift, mirrored.bool()
