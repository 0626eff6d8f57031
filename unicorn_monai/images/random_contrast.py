"""Augmentation that guesses any contrast: random curves of the grey values, and images drawn from label maps alone.

    curve      B(t) = sum_i binom(3, i) t^i (1 - t)^(3 - i) p_i,   p_0 = (0, 0), p_3 = (1, 1), or both ends inverted
    label map  x ~ N(m_k, s_k^2) at a pixel of label k,   m_k ~ U(0, 1), s_k ~ U(0, 0.14), then blurred

Curves as in Models Genesis (Zhou et al., Medical Image Analysis 2021) and SLAug (Su et al., AAAI 2023); images from
label maps as in SynthSeg (Billot et al., Medical Image Analysis 2023; their 35 of 255 is 0.14).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import GaussianSmooth, MapTransform, RandomizableTransform
from torch import Tensor

SPREAD, BLUR = 0.14, (0.25, 1.0)  # of the grey values within a label; of the image, standard deviation in pixels


def bezier(inner: np.ndarray, inverted: bool) -> tuple[np.ndarray, np.ndarray]:
    """The curve of two inner control points, (2, 2) of (x, y) in [0, 1], as (x, y); x rises, y rises or falls."""
    points = np.vstack([[0, 0], np.sort(inner, axis=0), [1, 1]])
    t = np.linspace(0, 1, 256)[:, None]
    x, y = ((1 - t) ** 3 * points[0] + 3 * t * (1 - t) ** 2 * points[1] + 3 * t**2 * (1 - t) * points[2] + t**3).T
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
        labels, place = np.unique(label.numpy()[0], return_inverse=True)
        place = place.reshape(label.shape[1:])
        mean, spread = (self.R.uniform(0, most, (channels, len(labels))) for most in (1.0, SPREAD))
        noise = self.R.standard_normal((channels, *label.shape[1:]))
        image = torch.from_numpy(mean[:, place] + spread[:, place] * noise).float()
        return torch.as_tensor(GaussianSmooth(float(self.R.uniform(*BLUR)))(image)).clamp(0, 1)
