"""Fixtures that every test may use."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from monai.networks.nets import AutoencoderKL, ControlNet, DiffusionModelUNet
from torch import Tensor, nn

from tiny_networks import LABELS, build_autoencoder, build_unet, wake
from unicorn_monai.controlnets import controlnet_for

torch.set_num_threads(1)


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
    """A test that shows messages on the console (``log_to_console``, a bundle's ``logging.conf``) does so itself."""
    root = logging.getLogger()
    for handler in [one for one in root.handlers if type(one) is logging.StreamHandler]:  # its stream is closed
        root.removeHandler(handler)
    logger = logging.getLogger("unicorn_monai")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
