"""Tiny real networks and settings, shared by the tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from monai.networks.nets import AutoencoderKL, ControlNet, DiffusionModelUNet
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn

from unicorn_monai.diffusion.text import PromptTemplate
from unicorn_monai.latent_diffusion import LatentDiffusion, Text
from unicorn_monai.schedulers import DDIM
from unicorn_monai.system.networks import freeze

LABELS = 4
LATENT = 3  # channels of the latents
SCHEDULE = {"schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0195}
COARSE = SCHEDULE | {"coarse": True}  # for few steps, where the images do not matter
ONE_EPOCH = {"max_epochs": 1, "val_interval": 1}
TINY = {  # networks and trainings of seconds, for `bundle.installation.install`
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
    "joint": {"train.json": {**ONE_EPOCH, "iterations_per_epoch": 2, "num_inference_steps": 2}},
    "style_transfer": {
        "inference.json": {"network_def::channels": 4, "network_def::num_blocks": 1, "nce_layers": [0, 2, 3]},
        **{
            f"train_{method}.json": {"iterations_per_epoch": 2, "patch_size": [32, 32], "sample_interval": 1000}
            for method in ("cut", "cyclegan", "cycada", "accut")
        },
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
    train_scheduler = train_scheduler or DDPMScheduler(1000, clip_sample=False, **SCHEDULE)
    predicted = {"prediction_type": str(train_scheduler.prediction_type)}
    return LatentDiffusion(
        build_autoencoder() if autoencoder is None else autoencoder,
        build_unet() if unet is None else unet,
        scheduler or DDIM(1000, **(COARSE | predicted)),
        train_scheduler,
        scale_factor,
        tuple(latent_shape),
        text,
        bundle_root,
    )
