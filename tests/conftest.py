"""Tiny real networks and data sets, shared by the tests."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from monai.networks.nets import AutoencoderKL, ControlNet, DiffusionModelUNet
from torch import Tensor, nn

from unicorn_monai.networks import controlnet_for, freeze

torch.set_num_threads(1)

LABELS = 4
LATENT = 3  # channels of the latents
SCHEDULE = {"schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0195}
COARSE = SCHEDULE | {"coarse": True}  # for few steps, where the images do not matter
ONE_EPOCH = {"max_epochs": 1, "val_interval": 1}
TINY = {  # networks and trainings of seconds, for `bundle.install`
    "retinal_unet": {
        "inference.json": {"network_def::channels": [8, 16], "network_def::strides": [2]},
        "train.json": ONE_EPOCH,
    },
    "latent_diffusion": {
        "inference.json": {
            "autoencoder_def::channels": [8, 8, 8],
            "network_def::channels": [16, 16, 16],
            "network_def::num_head_channels": 16,
            "num_inference_steps": 2,
            "coarse_sampling": True,
        },
        "train_autoencoder.json": {**ONE_EPOCH, "iterations_per_epoch": 6, "patch_size": [32, 32]},
        "train_diffusion.json": {**ONE_EPOCH, "iterations_per_epoch": 2, "num_inference_steps": 2},
    },
    "uncertainty_controlnet": {"train.json": {**ONE_EPOCH, "iterations_per_epoch": 2, "num_inference_steps": 2}},
    "semantic_controlnet": {"train.json": {**ONE_EPOCH, "iterations_per_epoch": 2, "num_inference_steps": 2}},
    "style_transfer": {
        "inference.json": {"network_def::channels": 4, "network_def::num_blocks": 1, "nce_layers": [0, 2, 3]},
        "train_cut.json": {"iterations_per_epoch": 2, "patch_size": [32, 32], "sample_interval": 1000},
        "train_cyclegan.json": {"iterations_per_epoch": 2, "patch_size": [32, 32], "sample_interval": 1000},
    },
}


def unet_definition(spatial_dims: int = 2) -> dict:
    """The U-Net as a bundle defines it."""
    return {
        "_target_": "DiffusionModelUNet",
        "spatial_dims": spatial_dims,
        "in_channels": LATENT,
        "out_channels": LATENT,
        "num_res_blocks": 1,
        "channels": [8, 16],
        "attention_levels": [False, True],
        "norm_num_groups": 4,
        "num_head_channels": 8,
    }


def build_unet(spatial_dims: int = 2, **changes) -> DiffusionModelUNet:
    """A U-Net with random weights; MONAI zeroes its last convolution, which would hide everything before it."""
    arguments = {key: value for key, value in unet_definition(spatial_dims).items() if key != "_target_"}
    unet = DiffusionModelUNet(**(arguments | changes))
    nn.init.normal_(unet.out[2].conv.weight, std=0.1)
    return freeze(unet)


def build_autoencoder(spatial_dims: int = 2) -> AutoencoderKL:
    """An autoencoder of factor 4 for one-channel images."""
    return freeze(
        AutoencoderKL(
            spatial_dims=spatial_dims,
            in_channels=1,
            out_channels=1,
            num_res_blocks=1,
            channels=(4, 4, 8),
            attention_levels=(False, False, False),
            latent_channels=LATENT,
            norm_num_groups=4,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
    )


def wake(controlnet: ControlNet, std: float = 0.3) -> ControlNet:
    """Give random weights to the convolutions that start at zero, as if the ControlNet had been trained."""
    for module in [
        controlnet.controlnet_cond_embedding.conv_out,
        *controlnet.controlnet_down_blocks,
        controlnet.controlnet_mid_block,
    ]:
        for weight in module.parameters():
            nn.init.normal_(weight, std=std)
    return freeze(controlnet)


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
