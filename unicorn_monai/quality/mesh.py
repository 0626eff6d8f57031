"""Is there a mesh over the images? Power at single frequencies, against real images and against its neighbours.

    P(f)   mean over images and channels of |DFT of the image minus its mean|^2, at frequency f along an axis, summed
           over those along the other axis below 1 / (2 s)
    q(f)   P(f) / P(f) of real images, a mean over a few neighbours
    mesh   the largest of  q(f) / geometric mean of q at w to 2 w - 1 frequencies below and above f,   f >= 1 / (2 s)

s is the side of the square that one place of the latents stands for, w a sixteenth of all frequencies. A decoder writes
the frequencies of its latents' grid where its up-sampling is not anti-aliased (Durall et al., CVPR 2020; Karras et al.,
NeurIPS 2021), and bands beside them where it makes texture of too little noise. Images that are smoother or rougher
than the real ones, by any power of the frequency, have 1; so have those of a camera with a grid of its own, since the
real images have it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

FEWEST = 200  # frequencies of all images along the other axis; of fewer, white noise alone has lines


def spectra(batches: Iterable[Tensor], side: int) -> list[Tensor]:
    """P along the rows' and the columns' axis of images (batch, channels, rows, columns), each (frequencies,).

    Along each axis a Hann window keeps the borders of the image, where it does not go on, out of all frequencies. An
    axis of fewer than four squares of ``side`` pixels has none, nor have so few images that chance writes lines.
    """
    total, count = torch.zeros((), dtype=torch.float64), 0
    for images in batches:
        x = images.double().cpu()
        x = x - x.mean(dim=(-2, -1), keepdim=True)
        for axis in (-2, -1):
            window = torch.hann_window(x.shape[axis], periodic=False, dtype=torch.float64)
            x = x * (window[:, None] if axis == -2 else window)
        power = torch.fft.fft2(x).abs().square().flatten(0, -3)
        total, count = total + power.sum(dim=0), count + len(power)
    if not count:
        raise ValueError("No image was given; expected at least one.")
    found = []
    for along in (total / count, (total / count).T):
        size, other = along.shape
        low = torch.arange(other).minimum(other - torch.arange(other)) < other / (2 * side)
        if side > 1 and size >= max(4 * side, 16) and count * int(low.sum()) >= FEWEST:
            found.append(along[:, low].sum(dim=1))
    return found


def strongest_line(images: Sequence[Tensor], real: Sequence[Tensor], side: int) -> float:
    """The mesh over images, 1 for none, by their :func:`spectra` and those of real ones; NaN where either has none."""
    found = [float("nan")] if len(images) != len(real) or not images else []
    for own, theirs in zip(images, real, strict=False):
        size, w = len(own), len(own) // 16
        q = own / theirs.clamp(min=1e-30)
        near = range(-(size // 64), size // 64 + 1)
        beside = [sign * k for k in range(w, 2 * w) for sign in (-1, 1)]
        q = torch.stack([q.roll(k) for k in near]).mean(dim=0).clamp(min=1e-30)
        lines = q.log() - torch.stack([q.roll(k) for k in beside]).log().mean(dim=0)
        found.append(float(lines[max(size // (2 * side), 2 * w) : size // 2 + 1].max().exp()))
    return max(found)
