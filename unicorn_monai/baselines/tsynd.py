"""TSynD: labelled images made more uncertain by moving their latents (Niemeijer et al. 2024, arXiv 2406.17473).

    z_0 = E(x),   z <- P( z + a |z_0| g / |g| ),   g = gradient of the mean mutual information of f_1 .. f_n at D(z)

P keeps z within |z - z_0| <= r |z_0|, so that the label map still holds: the paper classifies whole images and has no
such bound. It knows nothing of the unlabelled domain; what it makes is what the networks disagree about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn

from unicorn_monai.bundle.references import from_bundle, with_weights
from unicorn_monai.segmentation.acquisition import mutual_information
from unicorn_monai.system.files import PathLike
from unicorn_monai.system.weights import read_metadata


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
    _require_several(networks)
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


class MoreUncertain(Inferer):
    """:func:`more_uncertain` as an inferer, ``(images, autoencoder) -> images``, for a ``Translator``.

    Args:
        retinal_unet: bundle that defines the segmentation networks.
        segmentation_paths: files of their weights, two at least.
        device: of these networks.
        steps: as the next two, see :func:`more_uncertain`.
    """

    def __init__(
        self,
        retinal_unet: PathLike,
        segmentation_paths: Sequence[PathLike],
        device: torch.device | str | None = None,
        steps: int = 10,
        step_size: float = 0.05,
        radius: float = 0.3,
    ) -> None:
        super().__init__()
        _require_several(segmentation_paths)
        self.networks = [with_weights(from_bundle(retinal_unet), path, device) for path in segmentation_paths]
        self.settings: dict[str, Any] = {"steps": steps, "step_size": step_size, "radius": radius}
        self.models = {f"segmentation_{i}": read_metadata(p)["sha256"] for i, p in enumerate(segmentation_paths, 1)}

    @torch.enable_grad()
    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Images (batch, channels, rows, columns) in [0, 1] -> the same, more uncertain."""
        return more_uncertain(network, self.networks, inputs, **self.settings)

    def provenance(self, autoencoder: str) -> dict[str, Any]:
        """What an image is made by, given the sha256 of the autoencoder's weights."""
        return {"method": "tsynd", "models": {"autoencoder": autoencoder, **self.models}, **self.settings}


def _require_several(networks: Sequence[Any]) -> None:
    if len(networks) < 2:
        raise ValueError(f"{len(networks)} segmentation network(s): expected two or more, whose disagreement rises.")


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
