"""Two clouds of features, told apart as far as they can be."""

import numpy as np
import pytest

from unicorn_monai.quality.look import Look


def cloud(centre: float, count: int, seed: int) -> np.ndarray:
    """Features of which the first tells the device, on a scale of its own, and one is constant."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((count, 4))
    values[:, 0] = 100 * (values[:, 0] + centre)
    values[:, 3] = 7.0
    return values


def test_clouds_far_apart_are_told_apart_and_mixtures_are_counted():
    look = Look.fit(cloud(-4, 60, 0), cloud(4, 20, 1))
    assert look.accuracy(cloud(-4, 50, 2), cloud(4, 50, 3)) == 1.0
    mixed = np.concatenate([cloud(-4, 30, 4), cloud(4, 10, 5)])
    assert look.in_look(mixed) == pytest.approx(0.25)


def test_the_same_cloud_twice_cannot_be_told():
    look = Look.fit(cloud(0, 100, 0), cloud(0, 100, 1))
    assert abs(look.accuracy(cloud(0, 500, 2), cloud(0, 500, 3)) - 0.5) < 0.06


def test_the_larger_device_is_not_preferred():
    """At the same distance half of the images in the middle are of either look."""
    look = Look.fit(cloud(-1, 2000, 0), cloud(1, 50, 1))
    assert abs(look.in_look(cloud(0, 2000, 2)) - 0.5) < 0.12


def test_one_image_of_a_device_and_no_image_to_judge_are_refused():
    with pytest.raises(ValueError, match="Got 1 unlabelled image"):
        Look.fit(cloud(0, 5, 0), cloud(0, 1, 1))
    with pytest.raises(ValueError, match="Got no image"):
        Look.fit(cloud(-1, 5, 0), cloud(1, 5, 1)).in_look(cloud(0, 0, 2))
