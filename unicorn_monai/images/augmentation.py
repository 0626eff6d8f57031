"""Strong intensity augmentation: what another device might do to an image, guessed instead of learned.

    bias field       x exp(sum_{j <= i <= 2} c_ij P_i(r) P_j(s)),   c ~ U(0, 0.2),   P Legendre, r and s in [-1, 1]
    contrast         x^g between the image's extremes,   g ~ U(0.6, 1.6)
    blur             Gaussian,   s ~ U(0.25, 1) pixels of the rows, of the columns
    speckle          (x^4 G)^(1/4),   G ~ Gamma(L, 1 / L),   L log-uniform in 1 to 8 looks
    noise            x + s N(0, 1),   s ~ U(0, 0.15)
    grey values      a curve through 5 to 10 points, each drawn between its neighbours
    low resolution   every (1 / z)-th pixel, z ~ U(0.6, 1), and linear between them

All random and none calibrated. Used to show the Semantic-ControlNet of ``compositional`` mode label maps together with
images the segmentation network is uncertain about: trained on one clean device only, it would drag that device's look
along. And on the fly in the training of the segmentation network: what one would try before any synthetic image.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai import transforms
from monai.transforms import Compose, MapTransform, RandomizableTransform
from torch import Tensor
from torch.nn import functional

from unicorn_monai.images.random_contrast import RandContrastCurved, RandFromLabelsd, blurred
from unicorn_monai.images.target_style import STYLES, RandTargetStyled
from unicorn_monai.images.warping import RandGeometryd

# Each changes an image (channels, rows, columns), float32; MONAI's transforms of these names do the same for volumes,
# on the GPU and with meta data, which takes about twice the time for an image of 64 x 64.


def bias_field(image: Tensor, random: np.random.Generator) -> Tensor:
    """The same field for all channels."""
    weights = np.zeros((3, 3))
    weights[np.tril_indices(3)] = random.uniform(0.0, 0.2, 6)
    down, across = (np.polynomial.legendre.legvander(np.linspace(-1, 1, size), 2) for size in image.shape[1:])
    return image * torch.from_numpy(down @ weights @ across.T).float().exp()


def contrast(image: Tensor, random: np.random.Generator) -> Tensor:
    """The extremes are those of all channels, and stay."""
    low, high = image.aminmax()
    spread = (high - low).clamp(min=1e-7)
    return ((image - low) / spread) ** random.uniform(0.6, 1.6) * spread + low


def blur(image: Tensor, random: np.random.Generator) -> Tensor:
    """Both axes by themselves."""
    return blurred(image, random.uniform(0.25, 1.0, 2).tolist())


def speckle(image: Tensor, random: np.random.Generator, looks: tuple[float, float] = (1.0, 8.0)) -> Tensor:
    """Multiply the linear intensity by Gamma-distributed speckle of mean 1 and contrast 1 / sqrt(L), L in ``looks``.

    Displays of OCT compress the linear intensity, here taken as the fourth power of the grey value.
    """
    number = float(np.exp(random.uniform(*np.log(looks))))
    drawn = torch.from_numpy(random.standard_gamma(number, image.shape, dtype=np.float32)) / number
    return image.clamp(0, 1) * drawn.sqrt().sqrt()


def noise(image: Tensor, random: np.random.Generator) -> Tensor:
    """Of every channel by itself."""
    spread = random.uniform(0, 0.15)
    return image + spread * torch.from_numpy(random.standard_normal(image.shape, dtype=np.float32))


def grey_values(image: Tensor, random: np.random.Generator) -> Tensor:
    """A continuous curve between the extremes of all channels, which rises everywhere."""
    low, high = (float(value) for value in image.aminmax())
    before = np.linspace(0, 1, random.integers(5, 11))
    after = before.copy()
    for i in range(1, len(after) - 1):
        after[i] = random.uniform(after[i - 1], after[i + 1])
    before, after = (points * (high - low) + low for points in (before, after))
    return image if low == high else torch.from_numpy(np.interp(image.numpy(), before, after)).float()


def low_resolution(image: Tensor, random: np.random.Generator) -> Tensor:
    """At least one pixel is left."""
    share = random.uniform(0.6, 1.0)
    small = [max(1, round(size * share)) for size in image.shape[1:]]
    return functional.interpolate(functional.interpolate(image[None], small), image.shape[1:], mode="bilinear")[0]


STRONG = (  # how often, what
    (0.3, bias_field),
    (0.5, contrast),
    (0.4, blur),
    (0.8, speckle),
    (0.5, noise),
    (0.3, grey_values),
    (0.2, low_resolution),
)


class StrongIntensity(RandomizableTransform):
    """The augmentation, for images (channels, rows, columns) in [0, 1]; clamp afterwards."""

    def __call__(self, image: Tensor) -> Tensor:
        """The image, float32, changed by the parts that chance picks, in their order."""
        random, image = np.random.default_rng(int(self.R.randint(2**31))), torch.as_tensor(image).float()
        for share, change in STRONG:
            if random.random() < share:
                image = change(image, random)
        return image


def strong_intensity(seed: int | None = None) -> StrongIntensity:
    """:class:`StrongIntensity`, seeded."""
    transform = StrongIntensity()
    if seed is not None:
        transform.set_random_state(seed)
    return transform


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
            result[key] = self.transform(result[key]).clamp(0, 1)
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
