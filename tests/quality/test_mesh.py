"""A mesh is found wherever it is; noise, contrast and smooth pictures are none."""

import math

import pytest
import torch
from torch.nn import functional

from unicorn_monai.quality.mesh import periodicities


def noise(seed: int = 0, size: int = 64) -> torch.Tensor:
    return torch.randn(32, 1, size, size, generator=torch.Generator().manual_seed(seed))


def grid(side: int, size: int = 64) -> torch.Tensor:
    """Brighter lines at the borders of squares of this side, along both axes."""
    line = (torch.arange(size) % side == 0).float()
    return (line[:, None] + line).reshape(1, 1, size, size)


def periodicity(batches, side: int) -> float:
    """Of the strongest line."""
    return float(periodicities(batches, side).max())


@pytest.mark.parametrize("side", [2, 4, 8])
def test_noise_has_none_whatever_its_contrast(side):
    plain = periodicity([noise()], side)
    assert 0.5 < plain < 1.6
    assert periodicity([0.01 * noise() + 0.3], side) == pytest.approx(plain)
    assert periodicity(noise().split(5), side) == pytest.approx(plain), "in batches"


@pytest.mark.parametrize("side", [4, 8])
def test_a_mesh_below_the_noise_is_found_at_its_own_side_only(side):
    found = periodicity([noise() + 0.3 * grid(side)], side)
    assert found > 1.8
    assert periodicity([noise() + 0.3 * grid(side).transpose(-1, -2)], side) == pytest.approx(found, rel=0.3)
    assert periodicity([noise() + 0.3 * grid(12 if side == 8 else 6)], side) < 1.6


def test_nearest_neighbour_up_sampling_is_told_from_a_smooth_one():
    small = noise(size=16)
    blocks = functional.interpolate(small, scale_factor=4, mode="nearest")
    smooth = functional.interpolate(small, scale_factor=4, mode="bicubic", align_corners=False)
    assert periodicity([blocks + 0.05 * noise(1)], 4) < periodicity([smooth + 0.05 * noise(1) + 0.2 * grid(4)], 4)


def test_too_few_squares_say_nothing():
    assert math.isnan(periodicity([noise(size=8)], 4))
    assert math.isnan(periodicity([noise()], 1))
    with pytest.raises(ValueError, match="No image was given"):
        periodicities([], 4)


def test_so_few_images_that_chance_writes_lines_say_nothing():
    assert math.isnan(periodicity([noise()[:4]], 8))
    assert not math.isnan(periodicity([noise()[:16]], 4))


def test_a_line_is_compared_with_the_same_line_of_other_images():
    """A camera may have a grid along one axis; another, along the other, is no less seen for it."""
    rows = (torch.arange(64) % 4 == 0).float().reshape(1, 1, -1, 1)
    columns = rows.transpose(-1, -2)
    theirs, ours = periodicities([noise() + rows], 4), periodicities([noise(1) + columns], 4)
    assert float(ours.max() / theirs.max()) == pytest.approx(1, rel=0.3)
    assert float((ours / theirs).max()) > 3
