"""A mesh is found wherever it is; noise, contrast, blur and the grid of a camera are none."""

import math

import pytest
import torch
from torch.nn import functional

from unicorn_monai.quality.mesh import spectra, strongest_line


def noise(seed: int = 0, size: int = 64, count: int = 48) -> torch.Tensor:
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


def grid(side: int, size: int = 64) -> torch.Tensor:
    """Brighter lines at the borders of squares of this side, along both axes."""
    line = (torch.arange(size) % side == 0).float()
    return (line[:, None] + line).reshape(1, 1, size, size)


def mesh(images: torch.Tensor, real: torch.Tensor | None = None, side: int = 4) -> float:
    """Against white noise."""
    return strongest_line(spectra([images], side), spectra([noise(9) if real is None else real], side), side)


@pytest.mark.parametrize("side", [2, 4, 8])
def test_noise_has_none_whatever_its_contrast(side):
    plain = mesh(noise(), side=side)
    assert 1 <= plain < 1.35
    assert mesh(0.01 * noise() + 0.3, side=side) == pytest.approx(plain)
    parts = strongest_line(spectra(noise().split(5), side), spectra([noise(9)], side), side)
    assert parts == pytest.approx(plain), "in batches"


@pytest.mark.parametrize("side", [3, 4, 5, 8])
def test_a_mesh_below_the_noise_is_found_whatever_its_pitch(side):
    """A decoder that has too little noise for its texture repeats a pattern that is not that of its latents' grid."""
    assert mesh(noise() + (0.5 if side < 8 else 0.8) * grid(side)) > 1.8
    assert mesh(noise() + (0.5 if side < 8 else 0.8) * grid(side).transpose(-1, -2)) > 1.8


@pytest.mark.parametrize("sigma", [0.3, 0.5, 0.6])
def test_smoother_and_rougher_images_have_none(sigma):
    x = torch.arange(-4.0, 5)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = (kernel[:, None] * kernel / kernel.sum() ** 2)[None, None]
    smooth = functional.conv2d(noise(size=72), kernel)
    assert mesh(smooth) < 1.5
    assert mesh(noise(), functional.conv2d(noise(9, size=72), kernel)) < 1.5


def test_nearest_neighbour_up_sampling_of_noise_is_a_mesh_beside_a_smooth_one():
    small = noise(size=16)
    blocks = functional.interpolate(small, scale_factor=4, mode="nearest") + 0.2 * noise(1)
    smooth = functional.interpolate(small, scale_factor=4, mode="bicubic", align_corners=False) + 0.2 * noise(1)
    assert mesh(blocks, smooth) > 3


def test_the_grid_of_the_camera_is_none():
    assert mesh(noise() + grid(4), noise(9) + grid(4)) < 1.35
    rows = (torch.arange(64) % 4 == 0).float().reshape(1, 1, -1, 1)
    assert mesh(noise() + rows, noise(9) + rows.transpose(-1, -2)) > 3, "along the other axis it is"


def test_too_few_squares_and_so_few_images_that_chance_writes_lines_say_nothing():
    assert math.isnan(mesh(noise(size=8), noise(size=8)))
    assert math.isnan(mesh(noise(), side=1))
    assert math.isnan(mesh(noise(count=8)))
    with pytest.raises(ValueError, match="No image was given"):
        spectra([], 4)
