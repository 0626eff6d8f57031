"""Strong intensity augmentation: what another device might do to an image, guessed instead of learned.

Speckle, blur, contrast, bias field, noise, grey-value and resolution changes, all random and none calibrated. The label
map stays true. Used to show the Semantic-ControlNet of ``compositional`` mode label maps together with images the
segmentation network is uncertain about: trained on one clean device only, it would drag that device's look along.
"""

from __future__ import annotations

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandBiasField,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandHistogramShift,
    RandomizableTransform,
    RandSimulateLowResolution,
)
from torch import Tensor

from unicorn_monai.datasets import DatasetWriter, PathLike, datalist, read_array, read_header
from unicorn_monai.transforms import read_image, to_uint8


class RandSpeckle(RandomizableTransform):
    """Multiply the linear intensity by a Gamma-distributed speckle of mean 1: fully developed at one look.

    Displays of OCT compress the linear intensity, here taken as the fourth power of the grey value.

    Args:
        looks: range of the number of looks L; the contrast of the speckle is 1 / sqrt(L).
        prob: how often.
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
            RandBiasField(degree=2, coeff_range=(0.0, 0.2), prob=0.3),
            RandAdjustContrast(gamma=(0.6, 1.6), prob=0.5),
            RandGaussianSmooth(sigma_x=(0.25, 1.0), sigma_y=(0.25, 1.0), prob=0.4),
            RandSpeckle(),
            RandGaussianNoise(std=0.15, prob=0.5),
            RandHistogramShift(num_control_points=(5, 10), prob=0.3),
            RandSimulateLowResolution(prob=0.2, zoom_range=(0.6, 1.0), upsample_mode="bilinear"),
        ]
    )
    return transform.set_random_state(seed) if seed is not None else transform


def write_augmented(dataset_dir: PathLike, output: PathLike, seed: int = 0) -> None:
    """Write a copy of a labelled data set with strongly augmented images; each depends on (seed, index) only.

    Args:
        dataset_dir: a data set with labels.
        output: the new data set.
        seed: of the augmentation.
    """
    header = read_header(dataset_dir)
    channels = 3 if header.get("modality") == "RGB" else 1
    with DatasetWriter(
        output,
        name=f"{header.get('name', 'data')}, strong intensity augmentation",
        device=f"{header.get('device', 'unknown')}, augmented",
        labels={int(value): name for value, name in header["labels"].items()},
        modality=header.get("modality", "OCT"),
        spacing_mm=header.get("spacing_mm"),
        suffix=".png" if channels == 3 else ".nii.gz",
        augmented=True,
    ) as writer:
        for split in ("training", "validation"):
            for item in datalist(dataset_dir, split, ("image", "label")):
                transform = strong_intensity(int(np.random.SeedSequence([seed, len(writer)]).generate_state(1)[0]))
                image = to_uint8(torch.as_tensor(transform(read_image(item["image"], channels))))
                writer.add(split, image, read_array(item["label"]), subject=item["subject"])
