"""Random curves are monotone and onto, images from label maps follow the label map and nothing else."""

import numpy as np
import pytest
import torch

from unicorn_monai.images.random_contrast import RandContrastCurved, RandFromLabelsd, bezier


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("inverted", [False, True])
def test_a_curve_is_monotone_and_goes_from_end_to_end(seed, inverted):
    x, y = bezier(np.random.default_rng(seed).uniform(size=(2, 2)), inverted)
    assert np.all(np.diff(x) >= 0)
    assert np.all(np.diff(y) <= 0 if inverted else np.diff(y) >= 0)
    assert (x[0], x[-1]) == (0, 1)
    assert (y[0], y[-1]) == ((1, 0) if inverted else (0, 1))


def test_control_points_on_the_diagonal_change_nothing():
    x, y = bezier(np.array([[1 / 3, 1 / 3], [2 / 3, 2 / 3]]), False)
    assert np.allclose(x, y)


def test_the_order_of_grey_values_is_kept_or_turned_round():
    image = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0))
    transform = RandContrastCurved(prob=1.0).set_random_state(0)
    signs = set()
    for _ in range(20):
        changed = transform({"image": image})["image"]
        order = np.corrcoef(*(x.flatten().argsort().argsort().numpy() for x in (image, changed)))[0, 1]
        assert abs(order) > 0.999
        assert 0 <= changed.min() <= changed.max() <= 1
        signs.add(np.sign(order))
    assert signs == {-1, 1}


def test_channels_get_curves_of_their_own():
    grey = torch.rand(1, 16, 16).expand(3, -1, -1)
    changed = RandContrastCurved(prob=1.0).set_random_state(1)({"image": grey})["image"]
    assert not torch.equal(changed[0], changed[1])


def test_an_image_from_labels_depends_on_the_label_map_only():
    label = torch.tensor([0, 1, 2, 255]).repeat_interleave(16).reshape(1, 1, 64).expand(1, 64, 64)
    items = [{"image": torch.full((3, 64, 64), grey), "label": label} for grey in (0.0, 1.0)]
    drawn = [RandFromLabelsd(prob=1.0).set_random_state(4)(item)["image"] for item in items]
    assert torch.equal(drawn[0], drawn[1])
    assert drawn[0].shape == (3, 64, 64)
    within = drawn[0].reshape(3, 64, 4, 16)[..., 4:-4]  # away from the borders, which the blur mixes
    means, spreads = within.mean(dim=(1, 3)), within.std(dim=(1, 3))
    assert spreads.max() < 0.15
    assert means.std(dim=1).min() > 0.05  # labels differ


def test_no_probability_leaves_the_image():
    item = {"image": torch.rand(1, 8, 8), "label": torch.zeros(1, 8, 8, dtype=torch.long)}
    for transform in (RandContrastCurved(prob=0.0), RandFromLabelsd(prob=0.0)):
        assert torch.equal(transform(item)["image"], item["image"])
