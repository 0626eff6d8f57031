"""TSynD: labelled images made more uncertain by moving their latents (Niemeijer et al. 2024, arXiv 2406.17473).

    z_0 = E(x),   z <- P( z + a |z_0| g / |g| ),   g = gradient of the mean mutual information of f_1 .. f_n at D(z)

P keeps z within |z - z_0| <= r |z_0|, so that the label map still holds: the paper classifies whole images and has no
such bound. It knows nothing of the unlabelled domain; what it makes is what the networks disagree about.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn

from unicorn_monai.segmentation.acquisition import mutual_information


def disagreement(networks: Sequence[nn.Module], images: Tensor) -> Tensor:
    """Mean mutual information of several networks' predictions for each image: (batch,), in [0, 1]."""
    return mutual_information(torch.stack([network(images) for network in networks], dim=1)).flatten(1).mean(dim=1)


def more_uncertain(
    autoencoder: AutoencoderKL,
    networks: Sequence[nn.Module],
    images: Tensor,
    steps: int = 10,
    step_size: float = 0.05,
    radius: float = 0.3,
) -> Tensor:
    """Images (batch, channels, rows, columns) in [0, 1] -> the same, of higher :func:`disagreement`, in [0, 1].

    Args:
        autoencoder: E and D, frozen.
        networks: f_1 .. f_n, two at least, frozen.
        images: to start from.
        steps: of gradient ascent.
        step_size: a.
        radius: r.
    """
    if len(networks) < 2:
        raise ValueError(f"{len(networks)} network(s): expected two or more, whose disagreement is raised.")
    with torch.no_grad():
        start = autoencoder.encode(images)[0]
    length, latent = _norm(start), start
    for _ in range(steps):
        latent = latent.detach().requires_grad_(True)
        value = disagreement(networks, autoencoder.decode(latent).clamp(0, 1)).sum()
        (gradient,) = torch.autograd.grad(value, latent)
        moved = latent.detach() + step_size * length * gradient / _norm(gradient).clamp(min=1e-12) - start
        latent = start + moved * (radius * length / _norm(moved).clamp(min=1e-12)).clamp(max=1)
    with torch.no_grad():
        return autoencoder.decode(latent).clamp(0, 1)


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
