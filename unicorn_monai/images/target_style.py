"""Augmentation that knows unlabelled images of the other device: their noise, low frequencies or grey values.

    svdna      sum_{i <= k} s_i u_i v_i^T of the image + sum_{i > k} s_i u_i v_i^T of the target, grey values matched
    fda        amplitude of the target within b = floor(beta min(rows, columns)) of frequency 0, phase of the image
    histogram  the grey value of every pixel -> that of the same rank in the target

Nothing is trained, and the label map stays true. Koch et al., Noise transfer for unsupervised domain adaptation of
retinal OCT images, MICCAI 2022; Yang and Soatto, FDA: Fourier domain adaptation for semantic segmentation, CVPR 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor
from torch.nn import functional

from unicorn_monai.images.transforms import read_image

RANKS = (0.04, 0.1)  # SVDNA's 20 to 50 components of images of 496 rows
BETAS = (0.01, 0.09)  # the range of FDA's three models


def noise_of(image: Tensor, target: Tensor, share: float) -> Tensor:
    """SVDNA: what the first components of an image show, with the noise and the grey values of another.

    Args:
        image: (channels, rows, columns) in [0, 1].
        target: the same shape.
        share: of the components, times the smaller side, that the image keeps; at least one.
    """
    k = max(1, round(share * min(image.shape[-2:])))

    def of_rank(x: Tensor) -> Tensor:  # the projection onto the first eigenvectors of x x^T, in half the time of an SVD
        turned = x.shape[-2] > x.shape[-1]
        x = x.mT if turned else x
        first = torch.linalg.eigh(x @ x.mT).eigenvectors[..., -k:]
        kept = first @ (first.mT @ x)
        return kept.mT if turned else kept

    return grey_values_of((of_rank(image) + target - of_rank(target)).clamp(0, 1), target)


def amplitudes_of(image: Tensor, target: Tensor, beta: float) -> Tensor:
    """FDA: the phases of an image, and of its amplitudes the high frequencies.

    Args:
        image: (channels, rows, columns) in [0, 1].
        target: the same shape, lends the amplitudes of low frequencies.
        beta: b = floor(beta min(rows, columns)): the frequencies -b to b of both axes.
    """
    rows, columns = image.shape[-2:]
    b = int(beta * min(rows, columns))
    spectrum, other = torch.fft.fft2(image), torch.fft.fft2(target)
    low = torch.outer(*((torch.fft.fftfreq(n, 1 / n).abs() <= b + 1e-3) for n in (rows, columns)))
    amplitude = torch.where(low, other.abs(), spectrum.abs())
    return torch.fft.ifft2(torch.polar(amplitude, spectrum.angle())).real.clamp(0, 1)


def grey_values_of(image: Tensor, target: Tensor) -> Tensor:
    """Every channel's grey values replaced by those of the same share of smaller ones in the target.

    Args:
        image: (channels, rows, columns).
        target: as many channels, of any size.
    """
    matched = np.empty(image.shape, np.float32).reshape(len(image), -1)
    for out, channel, known in zip(matched, image.flatten(1).numpy(), target.flatten(1).numpy(), strict=True):
        order = channel.argsort()  # NumPy's sorting, faster than PyTorch's on a CPU
        ordered = channel[order]
        first = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))  # of every grey value
        count = np.diff(first, append=len(channel))
        rank = (first + (count - 1) / 2) / max(1, len(channel) - 1) * (len(known) - 1)  # the middle one
        levels = np.interp(rank, np.arange(len(known)), np.sort(known))
        out[order] = levels.repeat(count)
    return torch.from_numpy(matched).reshape(image.shape)


STYLES: dict[str, tuple[Callable[..., Tensor], tuple[float, float] | None]] = {
    "svdna": (noise_of, RANKS),
    "fda": (amplitudes_of, BETAS),
    "histogram": (grey_values_of, None),
}


class RandTargetStyled(RandomizableTransform, MapTransform):
    """An image in the style of a random one of the unlabelled images, anew at every call.

    Args:
        keys: images (channels, rows, columns) in [0, 1].
        style: one of ``STYLES``.
        targets: files of unlabelled images; each is read once and resized to the image.
        prob: how often; both looks are to be known afterwards.
    """

    def __init__(self, keys: Sequence[str], style: str, targets: Sequence[str], prob: float = 0.5) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        if style not in STYLES:
            raise ValueError(f"Unknown style '{style}'; expected one of {list(STYLES)}.")
        if not targets:
            raise ValueError(f"The style '{style}' needs unlabelled images, and there are none. Give their data set.")
        (self.change, self.range), self.targets = STYLES[style], list(targets)
        self.read: dict[tuple[str, int], Tensor] = {}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The images in [0, 1], float32; a range is drawn from uniformly."""
        result = dict(data)
        self.randomize(None)
        if self._do_transform:
            path = self.targets[self.R.randint(len(self.targets))]
            strength = () if self.range is None else (self.R.uniform(*self.range),)
            for key in self.key_iterator(result):
                image = torch.as_tensor(result[key]).float()
                result[key] = self.change(image, self._target(path, image), *strength).clamp(0, 1)
        return result

    def _target(self, path: str, like: Tensor) -> Tensor:
        channels, *size = like.shape
        if (path, channels) not in self.read:
            self.read[path, channels] = read_image(path, channels)
        target = self.read[path, channels].to(like)
        if target.shape[1:] != like.shape[1:]:
            target = functional.interpolate(target[None], tuple(size), mode="bilinear", antialias=True)[0].clamp(0, 1)
        return target
