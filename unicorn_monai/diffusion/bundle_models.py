"""Networks of other bundles, ready to be used together: what belongs to what is checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from unicorn_monai.bundle.chain import check_chain, check_joint
from unicorn_monai.bundle.installation import load_config
from unicorn_monai.bundle.references import from_bundle, weights_metadata
from unicorn_monai.controlnets import copy_encoder
from unicorn_monai.diffusion.latents import Uncertainties
from unicorn_monai.inferers import DualControlNetInferer
from unicorn_monai.joint import JointNetwork
from unicorn_monai.latent_diffusion import LatentDiffusion
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.schedulers import Sampler
from unicorn_monai.system.files import PathLike
from unicorn_monai.system.networks import to_train
from unicorn_monai.system.weights import load_weights


def load_latent_diffusion(
    bundle_root: PathLike,
    device: torch.device | str | None = None,
    scheduler: Sampler | None = None,
    image_size: Sequence[int] | None = None,
    stored: bool = False,
) -> LatentDiffusion:
    """The trained model, ``ldm`` of a bundle's ``inference.json``; weights that do not belong together are refused.

    ``scheduler`` draws the samples in place of the bundle's; ``image_size`` (rows, columns) is for a model of any size,
    others have that of their training. ``stored`` keeps the autoencoder out of memory while it is not needed, where
    there is a ``stored_autoencoder``.
    """
    config = load_config(bundle_root)
    if device is not None:
        config["device"] = str(device)
    if image_size is not None:
        config["image_size"] = list(image_size)
    if stored and "stored_autoencoder" in config:
        config["ldm"] |= {"autoencoder": "@stored_autoencoder"}
    parser = ConfigParser(config)
    train_scheduler, scale_factor = (parser.get_parsed_content(id) for id in ("train_scheduler", "scale_factor"))
    check_chain(bundle_root, scheduler=train_scheduler, scale_factor=scale_factor)
    ldm: LatentDiffusion = parser.get_parsed_content("ldm")
    return ldm if scheduler is None else replace(ldm, scheduler=scheduler)


def load_joint(
    bundle_root: PathLike,
    latent_diffusion: PathLike,
    network: JointNetwork,
    device: torch.device | str | None = None,
    scheduler: Sampler | None = None,
    prior: UncertaintyPrior | None = None,
) -> LatentDiffusion:
    """The latent diffusion model of a joint one: its U-Net on the autoencoder of another bundle, if they fit."""
    place = {} if device is None else {"device": str(device)}
    parts = {key: from_bundle(latent_diffusion, key, settings=place) for key in ("train_scheduler", "text")}
    scheduler = from_bundle(latent_diffusion, "scheduler") if scheduler is None else scheduler
    check_joint(bundle_root, latent_diffusion, parts["train_scheduler"], prior)
    autoencoder = from_bundle(latent_diffusion, "autoencoder_def", "autoencoder.pt", device)
    told = {key: weights_metadata(bundle_root, "model.pt", key) for key in ("scale_factor", "latent_shape")}
    return LatentDiffusion(autoencoder, network.unet, scheduler, bundle_root=latent_diffusion, **parts, **told)


def joint_inferer(ldm: LatentDiffusion, network: JointNetwork, **settings: Any) -> DualControlNetInferer:
    """What draws with both controls of a joint network; ``settings`` as of a :class:`DualControlNetInferer`."""
    return DualControlNetInferer(ldm, network.semantic, network.uncertainty, **settings)


def base_controlnet(mode: str, bundle_root: PathLike, ldm: LatentDiffusion) -> nn.Module | None:
    """The frozen Uncertainty-ControlNet that another is trained on top of; none in ``paper`` mode."""
    if mode == "paper":
        return None
    settings = {"latent_diffusion": str(ldm.bundle_root)}
    return from_bundle(bundle_root, "network_def", "model.pt", ldm.device, settings=settings)


def start_controlnet(
    bundle_root: PathLike, ldm: LatentDiffusion, initial_weights: PathLike | None, num_labels: int | None = None
) -> nn.Module:
    """Where the training of a ControlNet starts: at the U-Net's encoder, or at the weights of a training before."""
    settings = {"latent_diffusion": str(ldm.bundle_root)} | ({} if num_labels is None else {"num_labels": num_labels})
    controlnet = from_bundle(bundle_root, settings=settings)
    copy_encoder(controlnet, ldm.unet)  # type: ignore[arg-type]
    if initial_weights is not None:
        load_weights(controlnet, initial_weights)
    return to_train(controlnet, ldm.device)


def network_to_train(bundle_root: PathLike, id: str, device: torch.device | str) -> nn.Module:
    """A fresh network that a bundle defines, where its training has it."""
    return to_train(from_bundle(bundle_root, id), device)


def load_prior(path: PathLike, retinal_unet: PathLike) -> UncertaintyPrior:
    """The prior that a segmentation network's ``uncertainty`` has fitted; another network's is refused."""
    return UncertaintyPrior.load(path, weights_metadata(retinal_unet, "model.pt", "sha256"))


def load_uncertainties(path: PathLike, retinal_unet: PathLike) -> Uncertainties:
    """What a segmentation network's ``uncertainty`` has measured; another network's is refused."""
    return Uncertainties(path, weights_metadata(retinal_unet, "model.pt", "sha256"))
