"""Disturbed labelled images: right shapes and ranges, other looks, the same ones again for the same seed."""

import numpy as np
import pytest
import torch
from PIL import Image

from unicorn_monai.images.known_shifts import disturbances, disturbed


def unlabelled(folder, channels=1):
    """Files of bright noise, one with rows and columns of other numbers."""
    random = np.random.default_rng(0)
    for i, size in enumerate([(12, 20), *[(16, 16)] * 15]):
        picture = random.integers(150, 250, size if channels == 1 else (*size, channels), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.png")
    return sorted(map(str, folder.glob("*.png")))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_change_keeps_shape_and_range_and_all_but_the_first_change_something(tmp_path, channels):
    images = torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5
    changes = disturbances(unlabelled(tmp_path, channels))
    assert [*changes] == ["none", "strong", "random_contrast", "svdna", "fda", "histogram"]
    for name, change in changes.items():
        found = disturbed(images, change)
        assert (found.shape, found.dtype) == (images.shape, torch.float32), name
        assert 0 <= found.min() <= found.max() <= 1, name
        assert torch.equal(found, images) == (name == "none"), name
    for name in ("svdna", "histogram"):
        assert disturbed(images, changes[name]).mean() > 0.7, "as bright as the unlabelled images"


def test_every_image_and_every_call_is_changed_by_itself(tmp_path):
    images = 0.4 + 0.1 * torch.rand(1, 1, 16, 16).expand(2, -1, -1, -1)
    for name, change in [*disturbances(unlabelled(tmp_path)).items()][1:]:
        first, again = disturbed(images, change), disturbed(images, change)
        assert not torch.equal(first, again), name
        assert not torch.equal(first[0], first[1]), name


def test_the_same_seed_draws_the_same(tmp_path):
    images = torch.rand(3, 1, 16, 16)
    first, again, other = (disturbances(unlabelled(tmp_path), seed) for seed in (1, 1, 2))
    for name in [*first][1:]:
        changed = disturbed(images, first[name])
        assert torch.equal(changed, disturbed(images, again[name])), name
        assert not torch.equal(changed, disturbed(images, other[name])), name
