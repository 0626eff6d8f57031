"""Strong intensity augmentation: what another device might do to an image, guessed instead of learned.

Speckle, blur, contrast, bias field, noise, grey-value and resolution changes, all random and none calibrated. Used to
show the Semantic-ControlNet of ``compositional`` mode label maps together with images the segmentation network is
uncertain about: trained on one clean device only, it would drag that device's look along. And on the fly in the
training of the segmentation network: what one would try before any synthetic image.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai import transforms
from monai.transforms import Compose, MapTransform, RandomizableTransform
from torch import Tensor

from unicorn_monai.images.random_contrast import RandContrastCurved, RandFromLabelsd
from unicorn_monai.images.target_style import STYLES, RandTargetStyled
from unicorn_monai.images.warping import RandGeometryd


class RandSpeckle(RandomizableTransform):
    """Multiply the linear intensity by Gamma-distributed speckle of mean 1 and contrast 1 / sqrt(L), L in ``looks``.

    Displays of OCT compress the linear intensity, here taken as the fourth power of the grey value.
    """

    def __init__(self, looks: tuple[float, float] = (1.0, 8.0), prob: float = 0.8) -> None:
        super().__init__(prob)
        self.looks = looks

    def __call__(self, image: Tensor) -> Tensor:
        """Image in [0, 1], any shape."""
        self.randomize(None)
        if not self._do_transform:
            return image
        looks = float(np.exp(self.R.uniform(*np.log(self.looks))))
        speckle = torch.from_numpy(self.R.gamma(looks, 1 / looks, image.shape)).to(image)
        return (image.clamp(0, 1) ** 4 * speckle) ** 0.25


def strong_intensity(seed: int | None = None) -> Compose:
    """The augmentation, for images (channels, rows, columns) in [0, 1]; clamp afterwards."""
    transform = Compose(
        [
            transforms.RandBiasField(degree=2, coeff_range=(0.0, 0.2), prob=0.3),
            transforms.RandAdjustContrast(gamma=(0.6, 1.6), prob=0.5),
            transforms.RandGaussianSmooth(sigma_x=(0.25, 1.0), sigma_y=(0.25, 1.0), prob=0.4),
            RandSpeckle(),
            transforms.RandGaussianNoise(std=0.15, prob=0.5),
            transforms.RandHistogramShift(num_control_points=(5, 10), prob=0.3),
            transforms.RandSimulateLowResolution(prob=0.2, zoom_range=(0.6, 1.0), upsample_mode="bilinear"),
        ]
    )
    return transform.set_random_state(seed) if seed is not None else transform


class RandStrongIntensityd(RandomizableTransform, MapTransform):
    """:func:`strong_intensity` anew at every call and for every key: images (channels, rows, columns) in [0, 1]."""

    def __init__(self, keys: Sequence[str]) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, 1.0)
        self.transform = strong_intensity()

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandStrongIntensityd:
        """Seed the transforms inside as well."""
        super().set_random_state(seed, state)
        self.transform.set_random_state(int(self.R.randint(2**31)))
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The images in [0, 1], float32."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = torch.as_tensor(self.transform(result[key])).float().clamp(0, 1)
        return result


GUESSED = {"random_contrast": RandContrastCurved, "synthseg": RandFromLabelsd}  # before the strong augmentation
AUGMENTATIONS = ("none", "geometry", "strong", "strong+geometry", *GUESSED, *STYLES)


def training_augmentation(
    name: str, num_channels: int = 1, targets: Sequence[Mapping[str, Any]] = ()
) -> MapTransform | Compose:
    """The transform that a training's setting names.

    "none"; "geometry"; "strong", of intensities; "strong+geometry", the geometry first; the others do so too, and then
    give the image another contrast or the style of an unlabelled image before the strong augmentation.

    Args:
        name: one of ``AUGMENTATIONS``.
        num_channels: of the images; B-scans (1) may be bent, colour pictures (3) may not.
        targets: items with "image", whose styles are taken.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"Unknown augmentation '{name}'; expected one of {list(AUGMENTATIONS)}.")
    if name == "none":
        return transforms.Identityd(["image"])
    strong = RandStrongIntensityd(["image"])
    if name == "strong":
        return strong
    parts: list[MapTransform] = [RandGeometryd(bends=num_channels == 1)]
    if name == "geometry":
        return parts[0]
    if name in GUESSED:
        parts.append(GUESSED[name]())
    elif name in STYLES:
        parts.append(RandTargetStyled(["image"], name, [str(item["image"]) for item in targets]))
    return Compose([*parts, strong])
