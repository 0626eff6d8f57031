"""Styles of unlabelled images agree with their papers' definitions where the result is known."""

import math

import numpy as np
import pytest
import torch

from unicorn_monai.images.files import write_array
from unicorn_monai.images.target_style import STYLES, RandTargetStyled, amplitudes_of, grey_values_of, noise_of


def image(seed: int, channels: int = 1, size: int = 16) -> torch.Tensor:
    return torch.rand(channels, size, size, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- SVDNA


def test_svdna_on_a_matrix_whose_components_are_known():
    """diag(0.8, 0.4) keeps 0.8, diag(0.6, 0.2) lends 0.2; the grey values of the target take the ranks of the sum."""
    mine, theirs = torch.diag(torch.tensor([0.8, 0.4]))[None], torch.diag(torch.tensor([0.6, 0.2]))[None]
    assert torch.allclose(noise_of(mine, theirs, 0.5), torch.tensor([[[0.6, 0.0], [0.0, 0.2]]]), atol=1e-6)


def test_svdna_with_all_components_only_matches_grey_values():
    assert torch.allclose(noise_of(image(0), image(1), 1.0), grey_values_of(image(0), image(1)), atol=1e-4)


def test_svdna_of_an_image_onto_itself_is_the_image():
    assert torch.allclose(noise_of(image(0), image(0), 0.3), image(0), atol=1e-5)


# ---------------------------------------------------------------- FDA


def test_fda_of_frequency_zero_takes_the_mean():
    mine, theirs = image(0) * 0.2 + 0.3, image(1) * 0.2 + 0.5
    assert torch.allclose(amplitudes_of(mine, theirs, 0.0), mine - mine.mean() + theirs.mean(), atol=1e-6)


def test_fda_takes_a_low_cosine_of_the_target_and_leaves_a_high_one():
    """Phases 0 at x = 0: amplitude 0.1 of frequency 1 becomes 0.2, 0.1 of frequency 6 stays."""
    x = 2 * math.pi * torch.arange(16) / 16
    mine = (0.5 + 0.1 * torch.cos(x) + 0.1 * torch.cos(6 * x)).expand(1, 16, 16)
    theirs = (0.5 + 0.2 * torch.cos(x) + 0.2 * torch.cos(6 * x)).expand(1, 16, 16)
    expected = (0.5 + 0.2 * torch.cos(x) + 0.1 * torch.cos(6 * x)).expand(1, 16, 16)
    assert torch.allclose(amplitudes_of(mine, theirs, 2 / 16), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (15, 18)])
def test_fda_keeps_the_phase(size):
    mine, theirs = (torch.rand(1, *size, generator=torch.Generator().manual_seed(s)) * 0.2 + 0.4 for s in (0, 1))
    before, after = (torch.fft.fft2(x.double()) for x in (mine, amplitudes_of(mine, theirs, 0.2)))
    assert torch.allclose(torch.exp(1j * before.angle()), torch.exp(1j * after.angle()), atol=1e-4)


# ---------------------------------------------------------------- histogram


def test_grey_values_of_the_same_rank():
    mine = torch.tensor([[[0.1, 0.4], [0.2, 0.9]]])
    theirs = torch.tensor([[[0.7, 0.5], [0.6, 0.8]]])
    assert torch.equal(grey_values_of(mine, theirs), torch.tensor([[[0.5, 0.7], [0.6, 0.8]]]))


def test_equal_grey_values_stay_equal_and_a_target_of_another_size_will_do():
    matched = grey_values_of(torch.tensor([[[0.0, 0.0], [0.0, 1.0]]]), torch.linspace(0, 1, 7).reshape(1, 1, 7))
    assert torch.allclose(matched, torch.tensor([[[1 / 3, 1 / 3], [1 / 3, 1.0]]]))


def test_channels_are_matched_by_themselves():
    matched = grey_values_of(image(0, 3), image(1, 3))
    for channel in range(3):
        assert torch.equal(matched[channel].flatten().sort().values, image(1, 3)[channel].flatten().sort().values)


# ---------------------------------------------------------------- the transform


@pytest.fixture
def targets(tmp_path):
    random = np.random.default_rng(0)
    for i in range(3):
        write_array(tmp_path / f"{i}.png", random.integers(0, 120, (20, 20), dtype=np.uint8))
    return [str(tmp_path / f"{i}.png") for i in range(3)]


@pytest.mark.parametrize("style", STYLES)
def test_an_image_takes_a_style_and_its_label_map_stays(style, targets):
    item = {"image": image(5), "label": torch.arange(256).reshape(1, 16, 16)}
    transform = RandTargetStyled(["image"], style, targets, prob=1.0).set_random_state(0)
    found = [transform(item) for _ in range(5)]
    assert all(torch.equal(x["label"], item["label"]) for x in found)
    assert all(x["image"].shape == (1, 16, 16) and 0 <= x["image"].min() <= x["image"].max() <= 1 for x in found)
    assert len({x["image"].numpy().tobytes() for x in found}) > 1
    again = RandTargetStyled(["image"], style, targets, prob=1.0).set_random_state(0)
    assert torch.equal(again(item)["image"], found[0]["image"])


def test_no_probability_leaves_the_image(targets):
    item = {"image": image(5)}
    assert torch.equal(RandTargetStyled(["image"], "fda", targets, prob=0.0)(item)["image"], item["image"])


@pytest.mark.parametrize(("style", "files", "words"), [("wct", ["a"], "Unknown style 'wct'"), ("fda", [], "none")])
def test_a_wrong_style_and_no_images_are_refused(style, files, words):
    with pytest.raises(ValueError, match=words):
        RandTargetStyled(["image"], style, files)
