"""Fixtures that every test may use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import AutoencoderKL, ControlNet, DiffusionModelUNet
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn

from tiny_networks import COARSE, LABELS, LATENT, SCHEDULE, build_autoencoder, build_unet, wake
from unicorn_monai.controlnets import controlnet_for
from unicorn_monai.diffusion.text import PromptTemplate
from unicorn_monai.latent_diffusion import LatentDiffusion, Text
from unicorn_monai.schedulers import DDIM

torch.set_num_threads(1)


class Words:
    """Text of which only the encoding of the empty prompt matters, unless told what encodes the others."""

    def __init__(
        self,
        null: Tensor,
        encode: Callable[[Sequence[str]], Tensor] | None = None,
        template: Callable[..., str] | None = None,
        subdomains: Sequence[str] = (),
    ) -> None:
        self.null, self.encode, self.subdomains = null, encode, subdomains
        self.template: Callable[..., str] = template or PromptTemplate()

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        return self.null.expand(len(prompts), -1, -1) if self.encode is None else self.encode(prompts)


def build_ldm(
    unet: nn.Module | None = None,
    autoencoder: AutoencoderKL | None = None,
    scheduler: Any = None,
    train_scheduler: DDPMScheduler | None = None,
    scale_factor: float = 1.0,
    latent_shape: Sequence[int] = (LATENT, 4, 4),
    text: Text | None = None,
    bundle_root: Path | None = None,
) -> LatentDiffusion:
    """A latent diffusion model put together by hand; parts that are not given have random weights."""
    return LatentDiffusion(
        build_autoencoder() if autoencoder is None else autoencoder,
        build_unet() if unet is None else unet,
        scheduler or DDIM(1000, **COARSE),
        train_scheduler or DDPMScheduler(1000, clip_sample=False, **SCHEDULE),
        scale_factor,
        tuple(latent_shape),
        text,
        bundle_root,
    )


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture
def unet() -> DiffusionModelUNet:
    return build_unet()


@pytest.fixture
def autoencoder() -> AutoencoderKL:
    return build_autoencoder()


@pytest.fixture
def semantic(unet: DiffusionModelUNet) -> ControlNet:
    return wake(controlnet_for(unet, LABELS, (4, 8, 8)))


@pytest.fixture
def uncertainty(unet: DiffusionModelUNet) -> ControlNet:
    return wake(controlnet_for(unet, 1, (4, 8, 8)))


@pytest.fixture
def label_maps() -> Callable[..., Tensor]:
    """One-hot label maps: ``label_maps(batch, *size)``; layers of rows, of different depth in each image."""

    def make(batch: int = 2, *size: int) -> Tensor:
        size = size or (16, 16)
        depth = torch.arange(size[0]).reshape(-1, *[1] * (len(size) - 1)).expand(size)
        labels = torch.stack([((depth + 2 * i) * LABELS // size[0]).clamp(max=LABELS - 1) for i in range(batch)])
        return nn.functional.one_hot(labels, LABELS).movedim(-1, 1).float()

    return make


@pytest.fixture(autouse=True)
def _messages_reach_pytest(monkeypatch):
    """A test that shows messages on the console (``log_to_console``) does so for itself only."""
    logger = logging.getLogger("unicorn_monai")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
