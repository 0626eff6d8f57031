"""A latent diffusion model (Rombach et al. 2022) as one object: what every stage after its training is handed.

    z   = s E(x)                                     x = D(z / s)
    z_t = sqrt(a_t) z + sqrt(1 - a_t) eps            unet(z_t, t) = eps, or v = sqrt(a_t) eps - sqrt(1 - a_t) z

Encoder E and decoder D are the autoencoder's; s brings its latents to a standard deviation of 1. What the U-Net
predicts, noise or velocity, is the ``prediction_type`` of both schedules.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from monai.networks.nets import AutoencoderKL
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor, nn

from unicorn_monai.schedulers import Sampler
from unicorn_monai.system.networks import in_parts


class Text(Protocol):
    """What turns words into the context that a U-Net attends to (:class:`unicorn_monai.diffusion.Text`)."""

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> (prompts, tokens, dimensions)."""

    @property
    def template(self) -> Callable[..., str]:
        """Gives the prompt of an item of a data set."""

    @property
    def subdomains(self) -> Sequence[str]:
        """The prompts of synthetic images name these in turn."""

    @property
    def null(self) -> Tensor:
        """The encoding of the empty prompt, (1, tokens, dimensions)."""


@dataclass(frozen=True)
class StoredAutoencoder:
    """An autoencoder that is loaded only where there are images to encode or decode; a training need not hold it."""

    identity: str  # of its weights, e.g. their sha256
    load: Callable[[], AutoencoderKL]  # gives the network, on the device where it is to run
    num_channels: int = 3  # of the images
    downsampling: int = 8  # image size / latent size


@dataclass(frozen=True)
class LatentDiffusion:
    """Autoencoder, noise predictor, noise schedules and words that belong together."""

    autoencoder: AutoencoderKL | StoredAutoencoder  # frozen
    unet: nn.Module  # the noise predictor, a MONAI ``DiffusionModelUNet``
    scheduler: Sampler  # draws samples; each sampling has a copy of its own
    train_scheduler: Scheduler  # the noise schedule of the training
    scale_factor: float  # s, 1 / standard deviation of the autoencoder's latents
    latent_shape: tuple[int, ...]  # (channels, rows, columns), or (channels, slices, rows, columns) of volumes
    text: Text | None = None  # gives the context, to a U-Net that attends to words
    bundle_root: str | os.PathLike[str] | None = None  # which holds the weights; None for one put together by hand

    def __post_init__(self) -> None:
        object.__setattr__(self, "latent_shape", tuple(self.latent_shape))  # a list in a configuration
        if not self.scale_factor > 0:
            raise ValueError(f"scale_factor is {self.scale_factor}; expected 1 / std of the latents, above 0.")
        channels = getattr(self.unet, "in_channels", self.latent_shape[0])
        if self.latent_shape[0] != channels:
            raise ValueError(f"latent_shape is {self.latent_shape}; expected the {channels} channels of the U-Net.")
        drawn, trained = (str(s.prediction_type) for s in (self.scheduler, self.train_scheduler))
        if drawn != trained:
            raise ValueError(
                f"scheduler has prediction_type '{drawn}', train_scheduler '{trained}'; expected the same: samples are "
                "drawn from what the U-Net has learnt to predict."
            )

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        return next(self.unet.parameters()).device

    @property
    def image_size(self) -> tuple[int, ...]:
        """(rows, columns) of the images."""
        return tuple(side * downsampling(self.autoencoder) for side in self.latent_shape[1:])

    def loaded_autoencoder(self) -> AutoencoderKL:
        """The autoencoder, read now if it is a stored one."""
        return self.autoencoder.load() if isinstance(self.autoencoder, StoredAutoencoder) else self.autoencoder

    def encode(self, images: Tensor) -> Tensor:
        """Images (batch, channels, *image) in [0, 1] -> scaled means of their latents (batch, channels, *latent)."""
        return self.loaded_autoencoder().encode(images)[0] * self.scale_factor

    def decode(self, latents: Tensor, batch_size: int = 16) -> Tensor:
        """Scaled latents -> images, not clamped to [0, 1]; ``batch_size`` at a time, fewer where memory runs out."""
        autoencoder = self.loaded_autoencoder()
        return in_parts(lambda z: autoencoder.decode_stage_2_outputs(z / self.scale_factor), latents, batch_size)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z_t of the training's noise schedule; timesteps (batch,)."""
        return self.train_scheduler.add_noise(latents, noise, timesteps)  # type: ignore[operator]


def downsampling(autoencoder: AutoencoderKL | StoredAutoencoder) -> int:
    """Image size / latent size."""
    if isinstance(autoencoder, StoredAutoencoder):
        return autoencoder.downsampling
    return 2 ** (len(autoencoder.decoder.channels) - 1)  # type: ignore[union-attr, arg-type]


def num_channels(autoencoder: AutoencoderKL | StoredAutoencoder) -> int:
    """Channels of the images."""
    if isinstance(autoencoder, StoredAutoencoder):
        return autoencoder.num_channels
    return autoencoder.encoder.in_channels  # type: ignore[union-attr, return-value]
