"""Latents move towards disagreement, and not further than they may."""

import pytest
import torch
from torch import nn

from tiny_networks import build_autoencoder
from unicorn_monai.baselines.tsynd import disagreement, more_uncertain


@pytest.fixture
def parts():
    torch.manual_seed(0)
    networks = [nn.Conv2d(1, 3, 3, padding=1).eval().requires_grad_(False) for _ in range(3)]
    return build_autoencoder().eval().requires_grad_(False), networks, torch.rand(2, 1, 16, 16)


def test_networks_that_agree_do_not_disagree(parts):
    _, networks, images = parts
    assert torch.allclose(disagreement([networks[0]] * 3, images), torch.zeros(2), atol=1e-6)
    assert (disagreement(networks, images) > 1e-3).all()


def test_every_image_becomes_more_uncertain(parts):
    autoencoder, networks, images = parts
    with torch.no_grad():
        before = disagreement(networks, autoencoder.decode(autoencoder.encode(images)[0]).clamp(0, 1))
    after = disagreement(networks, more_uncertain(autoencoder, networks, images))
    assert (after > before).all()


@pytest.mark.parametrize("options", [{"steps": 0}, {"radius": 0.0}, {"step_size": 0.0}])
def test_without_a_step_it_is_the_reconstruction(parts, options):
    autoencoder, networks, images = parts
    with torch.no_grad():
        same = autoencoder.decode(autoencoder.encode(images)[0]).clamp(0, 1)
    assert torch.allclose(more_uncertain(autoencoder, networks, images, **options), same, atol=1e-6)


def test_latents_stay_within_the_radius(parts):
    class Identity(nn.Module):
        def encode(self, x):
            return x, None

        def decode(self, z):
            return z

    _, networks, images = parts
    images = 0.25 + 0.5 * images
    moved = more_uncertain(Identity(), networks, images, steps=30, step_size=0.1, radius=0.05) - images
    assert (moved.flatten(1).norm(dim=1) <= 0.05001 * images.flatten(1).norm(dim=1)).all()


def test_one_network_has_nobody_to_disagree_with(parts):
    with pytest.raises(ValueError, match="two or more"):
        more_uncertain(parts[0], parts[1][:1], parts[2])
