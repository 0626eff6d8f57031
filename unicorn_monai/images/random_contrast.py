"""Augmentation that guesses any contrast: random curves of the grey values, and images drawn from label maps alone.

    curve      B(t) = sum_i binom(3, i) t^i (1 - t)^(3 - i) p_i,   p_0 = (0, 0), p_3 = (1, 1), or both ends inverted
    label map  x ~ N(m_k, s_k^2) at a pixel of label k,   m_k ~ U(0, 1), s_k ~ U(0, 0.14), then blurred

Curves as in Models Genesis (Zhou et al., Medical Image Analysis 2021) and SLAug (Su et al., AAAI 2023); images from
label maps as in SynthSeg (Billot et al., Medical Image Analysis 2023; their 35 of 255 is 0.14).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.networks.layers.convutils import gaussian_1d
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor
from torch.nn import functional

SPREAD, BLUR = 0.14, (0.25, 1.0)  # of the grey values within a label; of the image, standard deviation in pixels
MOST_LABELS = 256
_T = np.linspace(0, 1, 256)
_BERNSTEIN = np.stack([(1 - _T) ** 3, 3 * _T * (1 - _T) ** 2, 3 * _T**2 * (1 - _T), _T**3], axis=1)


def blurred(image: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Gaussian blur of an image (channels, rows, columns), standard deviations in pixels of the rows and the columns.

    As MONAI's ``GaussianSmooth``, with its kernels, without its conversions.
    """
    rows, columns = (gaussian_1d(torch.tensor(sigma)) for sigma in sigmas)
    image = functional.conv2d(image[:, None], rows[None, None, :, None], padding=(len(rows) // 2, 0))
    return functional.conv2d(image, columns[None, None, None], padding=(0, len(columns) // 2))[:, 0]


def bezier(inner: np.ndarray, inverted: bool) -> tuple[np.ndarray, np.ndarray]:
    """The curve of two inner control points, (2, 2) of (x, y) in [0, 1], as (x, y); x rises, y rises or falls."""
    points = np.vstack([[0, 0], np.sort(inner, axis=0), [1, 1]])
    x, y = (_BERNSTEIN @ points).T
    return x, 1 - y if inverted else y


class RandContrastCurved(RandomizableTransform, MapTransform):
    """Every channel of "image" through a random monotone curve, half of them inverted, anew at every call.

    Args:
        prob: how often.
    """

    def __init__(self, prob: float = 0.8) -> None:
        MapTransform.__init__(self, ["image"])
        RandomizableTransform.__init__(self, prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The image (channels, rows, columns) in [0, 1], float32."""
        result = dict(data)
        self.randomize(None)
        if self._do_transform:
            image = torch.as_tensor(result["image"]).float()
            curves = [bezier(self.R.uniform(size=(2, 2)), bool(self.R.randint(2))) for _ in image]
            changed = [np.interp(channel, *curve) for channel, curve in zip(image.numpy(), curves, strict=True)]
            result["image"] = torch.from_numpy(np.stack(changed)).float()
        return result


class RandFromLabelsd(RandomizableTransform, MapTransform):
    """In place of "image" one that is drawn from "label" alone; pixels to ignore are a label of their own.

    Args:
        prob: how often; the real images are training images too.
    """

    def __init__(self, prob: float = 0.5) -> None:
        MapTransform.__init__(self, ["image", "label"])
        RandomizableTransform.__init__(self, prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The image (channels, rows, columns) in [0, 1], float32."""
        result = dict(data)
        self.randomize(None)
        if self._do_transform:
            result["image"] = self.drawn(torch.as_tensor(result["label"]), len(result["image"]))
        return result

    def drawn(self, label: Tensor, channels: int) -> Tensor:
        """An image of a label map (1, rows, columns)."""
        random = np.random.default_rng(int(self.R.randint(2**31)))  # faster than `R`
        mean, spread = (random.uniform(0, most, (channels, MOST_LABELS)).astype(np.float32) for most in (1.0, SPREAD))
        noise, place = random.standard_normal((channels, *label.shape[1:]), dtype=np.float32), label.numpy()[0]
        image = torch.from_numpy(mean[:, place] + spread[:, place] * noise)
        return blurred(image, [random.uniform(*BLUR)] * 2).clamp(0, 1)
