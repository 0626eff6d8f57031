"""The losses at their limits, where their values are known."""

import pytest
import torch
from monai.losses import JukeboxLoss
from torch.distributions import Normal
from torch.distributions import kl_divergence as divergence
from torch.nn import functional

from unicorn_monai.diffusion.autoencoder import AutoencoderLoss, kl_divergence, spectral_distance
from unicorn_monai.images.speckle import high_pass, high_pass_std, speckle_contrast
from unicorn_monai.segmentation.training import SegmentationLoss
from unicorn_monai.training import mean_squared_error

LABELS = 3


@pytest.fixture
def label():
    return torch.arange(LABELS).repeat_interleave(4).reshape(1, 1, LABELS, 4).repeat(2, 1, 1, 1)


def sure(label):
    """Logits of a network that is sure of ``label``."""
    return 50 * functional.one_hot(label[:, 0].clamp(max=LABELS - 1), LABELS).movedim(-1, 1).float()


@pytest.mark.parametrize("ce_weight", [0.0, 1.0])
def test_a_perfect_segmentation_costs_nothing(label, ce_weight):
    assert SegmentationLoss(ce_weight)(sure(label), label).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("ce_weight", [0.0, 1.0])
def test_a_wrong_segmentation_costs_more_than_an_undecided_one(label, ce_weight):
    loss = SegmentationLoss(ce_weight)
    wrong, undecided = sure((label + 1) % LABELS), torch.zeros(2, LABELS, LABELS, 4)
    assert loss(wrong, label) > loss(undecided, label) > loss(sure(label), label)


@pytest.mark.parametrize("ce_weight", [0.0, 1.0])
def test_ignored_pixels_do_not_matter(label, ce_weight):
    ignored = label.clone()
    ignored[:, :, :, 2:] = 255
    logits, other = torch.randn(2, 2, LABELS, LABELS, 4)
    other[..., :2] = logits[..., :2]
    loss = SegmentationLoss(ce_weight)
    assert loss(logits, ignored).item() == pytest.approx(loss(other, ignored).item())
    cut = loss(logits[..., :2], label[..., :2])
    assert loss(logits, ignored).item() == pytest.approx(cut.item(), rel=1e-4)


def test_ignored_pixels_get_no_gradient(label):
    label[:, :, 0] = 255
    logits = torch.randn(2, LABELS, LABELS, 4, requires_grad=True)
    SegmentationLoss(1.0)(logits, label).backward()
    assert logits.grad[:, :, 0].abs().max() == 0
    assert logits.grad[:, :, 1:].abs().max() > 0


def test_a_batch_without_any_label_is_no_catastrophe():
    loss = SegmentationLoss(1.0)(torch.randn(1, LABELS, 4, 4), torch.full((1, 1, 4, 4), 255))
    assert torch.isfinite(loss)


def test_latents_that_are_a_standard_normal_diverge_from_it_by_nothing():
    assert kl_divergence(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)).item() == 0


def test_the_divergence_is_the_one_of_the_textbook():
    mean, std = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4) + 0.1
    wanted = divergence(Normal(mean, std), Normal(0.0, 1.0)).flatten(1).sum(dim=1).mean()
    assert kl_divergence(mean, std).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_constant_image_has_no_speckle():
    image = torch.full((2, 1, 20, 20), 0.6)
    assert high_pass(image).abs().max().item() == pytest.approx(0, abs=1e-6)
    assert high_pass_std(image).max().item() == pytest.approx(0, abs=1e-6)
    assert speckle_contrast(image).max().item() == pytest.approx(0, abs=1.1e-3)


def test_the_contrast_of_speckle_grows_with_it_and_not_with_the_brightness():
    noise = torch.randn(1, 1, 40, 40)
    contrast = speckle_contrast(0.1 * noise)
    torch.testing.assert_close(speckle_contrast(0.1 * noise + 0.5), contrast, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(speckle_contrast(0.2 * noise), 2 * contrast, rtol=1e-2, atol=1e-4)
    assert high_pass_std(0.2 * noise).item() == pytest.approx(2 * high_pass_std(0.1 * noise).item())


def test_the_loss_of_the_autoencoder_is_the_weighted_sum_of_its_terms():
    weights = {"kl": 0.01, "spectral": 0.3, "speckle": 0.7, "adversarial": 0.2, "perceptual": 0.4}
    loss = AutoencoderLoss(
        **{f"{name}_weight": weight for name, weight in weights.items()}, perceptual=torch.nn.MSELoss()
    )
    image, reconstruction = torch.rand(2, 2, 1, 16, 16)
    mean, std = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    terms = loss(reconstruction, image, mean, std, fake_scores=torch.randn(2, 1, 4, 4))
    assert terms["l1"].item() == pytest.approx((image - reconstruction).abs().mean().item())
    wanted = terms["l1"] + sum(weight * terms[name] for name, weight in weights.items())
    assert terms["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert "adversarial" not in loss(reconstruction, image, mean, std, fake_scores=None)


def test_the_spectral_distance_is_that_of_monai_around_a_common_mean():
    image, other = torch.rand(2, 3, 3, 16, 12)
    mean = other.mean(dim=(2, 3), keepdim=True)
    expected = JukeboxLoss(spatial_dims=2, reduction="mean")(image - mean, other - mean)
    torch.testing.assert_close(spectral_distance(image, other), expected)


def test_the_spectral_distance_of_grey_images_is_that_of_monai_while_their_means_have_one_sign():
    image, other = torch.rand(2, 3, 1, 16, 12)
    expected = JukeboxLoss(spatial_dims=2, reduction="mean")(image, other)
    torch.testing.assert_close(spectral_distance(image, other), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_spectral_distance_of_two_means_is_that_of_their_values(channels):
    image, offset = torch.rand(2, channels, 8, 8), torch.linspace(-1.2, 0.6, channels).reshape(1, -1, 1, 1)
    found = spectral_distance(image + offset, image)
    torch.testing.assert_close(found, offset.square().mean(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(spectral_distance(image, image + offset), found)
    assert spectral_distance(image, image).item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("grey", [0.1, 0.8, 1.0])
@pytest.mark.parametrize("start", [-1.5, -0.25, -0.01, 0.0, 1.9])
def test_the_spectral_distance_draws_a_reconstruction_towards_the_right_mean(grey, start):
    image = (grey + 0.05 * torch.randn(2, 1, 16, 16)).clamp(0, 1)
    reconstruction = torch.full_like(image, start).requires_grad_(True)
    (gradient,) = torch.autograd.grad(spectral_distance(reconstruction, image), reconstruction)
    assert gradient.sum().sign() == (reconstruction - image).mean().sign()


BRIGHT = {
    "cells": (0.8 + 0.1 * torch.randn(2, 3, 16, 16)).clamp(0, 1),
    "a page": (torch.rand(2, 1, 16, 16) > 0.1).float(),
    "black and white": (torch.rand(2, 1, 16, 16) > 0.5).float(),
    "lamps": (torch.rand(2, 1, 16, 16) > 0.95).float(),
}


@pytest.mark.parametrize("image", BRIGHT.values(), ids=BRIGHT)
@pytest.mark.parametrize("share", [-1.0, -0.3, -0.01])
def test_no_network_is_held_at_the_negative_of_an_image(image, share):
    """From a negative around the right mean, absolute difference and spectral term lead back to the image."""
    mean, scale = image.mean(dim=(2, 3), keepdim=True), torch.tensor(share, requires_grad=True)
    reconstruction = mean + scale * (image - mean)
    loss = (reconstruction - image).abs().mean() + spectral_distance(reconstruction, image)
    assert torch.autograd.grad(loss, scale)[0] < 1e-6
    assert spectral_distance(-image, image) > 3.9 * mean.square().mean()


FLAT = {
    "black": torch.zeros(2, 1, 16, 16),
    "grey": torch.full((2, 1, 16, 16), 0.25),
    "one image": torch.zeros(2, 1, 16, 16),
}
FLAT["one image"][0] = torch.rand(1, 16, 16)


@pytest.mark.parametrize("flat", FLAT.values(), ids=FLAT)
def test_a_reconstruction_of_one_grey_value_has_a_gradient(flat):
    reconstruction, image = flat.clone().requires_grad_(True), torch.rand(2, 1, 16, 16)
    latents = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    AutoencoderLoss()(reconstruction, image, *latents, None)["loss"].backward()
    assert reconstruction.grad is not None
    assert torch.isfinite(reconstruction.grad).all()
    assert reconstruction.grad.any()


def test_a_perfect_reconstruction_costs_its_divergence_only():
    image = torch.rand(2, 1, 16, 16)
    terms = AutoencoderLoss(kl_weight=1.0)(image, image, torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4), None)
    assert terms["loss"].item() == pytest.approx(0, abs=1e-5)


def test_the_discriminator_wants_ones_for_real_images_and_zeros_for_others():
    loss, ones, zeros = AutoencoderLoss(), torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    assert loss.discriminator(ones, zeros).item() == pytest.approx(0)
    assert loss.discriminator(zeros, ones).item() == pytest.approx(1)
    assert loss.adversarial(ones, target_is_real=True, for_discriminator=False).item() == pytest.approx(0)


def test_the_squared_error_is_computed_in_single_precision():
    error = mean_squared_error(torch.full((4,), 1.0, dtype=torch.bfloat16), torch.zeros(4))
    assert error.dtype == torch.float32
    assert error.item() == 1
