"""Is there a mesh over the images? Power at the frequencies of the latents' grid, against that of its neighbours.

    P(f)         mean over images and channels of |DFT of the image minus its mean|^2
    grid         f = j / s along an axis, j = 1 .. s / 2, any frequency along the other below 1 / (2 s)
    periodicity  of every line of the grid  P(on it) / mean P(2 and 3 frequencies beside it)

s is the side of the square that one place of the latents stands for. Up-sampling that is not anti-aliased writes these
frequencies (Durall et al., CVPR 2020; Karras et al., NeurIPS 2021), which nature has no reason to prefer: 1 for images
without, whatever their contrast. Real images are the reference, since a camera or a scanner may have a grid of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

FEWEST = 200  # below, a line of white noise is by chance half as strong again as its neighbours
BESIDE = (-3, -2, 2, 3)  # frequencies; the nearest ones share the power of a line that is no whole number of pixels


def power(batches: Iterable[Tensor]) -> Tensor:
    """The mean power spectrum of images (batch, channels, rows, columns): (rows, columns), float64.

    Along each axis a Hann window keeps the borders of the image, where it does not go on, out of all frequencies.
    """
    total, count = torch.zeros((), dtype=torch.float64), 0
    for images in batches:
        x = images.double().cpu()
        x = x - x.mean(dim=(-2, -1), keepdim=True)
        for axis in (-2, -1):
            window = torch.hann_window(x.shape[axis], periodic=False, dtype=torch.float64)
            x = x * (window[:, None] if axis == -2 else window)
        spectrum = torch.fft.fft2(x).abs().square().flatten(0, -3)
        total, count = total + spectrum.sum(dim=0), count + len(spectrum)
    if not count:
        raise ValueError("No image was given; expected at least one.")
    return total / count


def periodicities(batches: Iterable[Tensor], side: int) -> Tensor:
    """How much more power the lines of the grid of squares of ``side`` pixels have than what lies beside, (lines,).

    Images of fewer than four squares along an axis say nothing, nor do those of a ``side`` of 1, nor so few that chance
    writes lines (``FEWEST`` frequencies of all images together): NaN.
    """
    counted = list[int]()
    spectrum, found = power(_counted(batches, counted)), list[float]()
    for along in (spectrum, spectrum.T):
        size, other = along.shape
        if side < 2 or size < 4 * side:
            continue
        low = torch.arange(other).minimum(other - torch.arange(other)) < other / (2 * side)
        if sum(counted) * int(low.sum()) < FEWEST:
            continue
        line = along[:, low].sum(dim=1)
        for j in range(1, side // 2 + 1):
            at = round(j * size / side)
            beside = line[[(at + k) % size for k in BESIDE]].mean()
            found.append(float(line[at % size] / beside.clamp(min=1e-30)))
    return torch.tensor(found or [float("nan")], dtype=torch.float64)


def _counted(batches: Iterable[Tensor], sizes: list[int]) -> Iterator[Tensor]:
    for images in batches:
        sizes.append(len(images))
        yield images
