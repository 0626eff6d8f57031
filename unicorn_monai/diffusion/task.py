"""What the training of a noise predictor is: a latent diffusion model, what the network sees beside x_t, its settings.

    U-Net        || eps - unet(z_t, t) ||^2                                                   (1)
    ControlNet   || eps - unet(z_t, t, controlnet(z_t, t, c)) ||^2                            (2), (5)

    joint        || eps - f(z_t, t, c, u) ||^2,   c left out of 15 % of the images, u of 10 %

or the same on the velocity, as the noise schedule says; c is the label map or the uncertainty's hint u. On top of
another ControlNet (compositional) its residuals are added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from unicorn_monai.bundle.references import metadata_of
from unicorn_monai.bundle.settings import check_settings
from unicorn_monai.diffusion.latents import LatentDataset, Uncertainties
from unicorn_monai.inferers import DualControlNetInferer
from unicorn_monai.joint import JointNetwork
from unicorn_monai.latent_diffusion import LatentDiffusion
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.schedulers import prepare_timesteps
from unicorn_monai.system.files import PathLike
from unicorn_monai.system.networks import require
from unicorn_monai.training.settings import DiffusionSettings

CONDITIONS = {"semantic": "Semantic-ControlNet", "uncertainty": "Uncertainty-ControlNet"}


class DiffusionTask:
    """The training of the U-Net of a latent diffusion model; the ``unet`` of ``ldm`` is its moving average."""

    name, samples = "diffusion model", "diffusion"  # on the progress bar, and the folder of the sheets
    condition: str | None = None
    num_labels: int | None = None
    prior: UncertaintyPrior | None = None
    base: nn.Module | None = None
    left_out: tuple[float, float] = (0.0, 0.0)  # shares of the images: of the label map, of the uncertainty
    newest = False  # whether the newest weights are published, whatever the validation loss
    hint_noise = 0.0  # standard deviation of what is added to the hints in training

    def __init__(self, ldm: LatentDiffusion, settings: DiffusionSettings) -> None:
        prepare_timesteps(ldm.scheduler, settings.num_inference_steps)  # refuses what the scheduler cannot do
        self.ldm, self.settings = ldm, settings

    @property
    def prompt_dropout(self) -> float:
        """Share of the prompts that the empty one takes the place of in training."""
        told = self.settings.prompt_dropout
        return (0.5 if self.condition == "uncertainty" else 0.0) if told is None else told

    def belongs_to(self) -> dict[str, Any]:
        """What is stored with the weights: how the latents were made and scaled that they were trained on."""
        return {
            "scale_factor": self.ldm.scale_factor,
            "latent_shape": list(self.ldm.latent_shape),
            "prediction_type": str(self.ldm.train_scheduler.prediction_type),
            "autoencoder_sha256": metadata_of(bundle_of(self.ldm), "autoencoder.pt")["sha256"],
        }

    def inferer(self, network: nn.Module) -> DualControlNetInferer:
        """What draws samples with the network that is trained."""
        return DualControlNetInferer(replace(self.ldm, unet=network))


class ControlNetTask(DiffusionTask):
    """The training of one of the two ControlNets, with the U-Net frozen.

    Args:
        ldm: what it controls.
        condition: what it sees, "semantic" (label maps) or "uncertainty" (hints).
        settings: of the training.
        num_labels: of the label maps; needed for "semantic".
        prior: makes the hints; needed for "uncertainty", and with a ``base``.
        uncertainties: those of the training images, where there are hints.
        base: a frozen Uncertainty-ControlNet that a Semantic-ControlNet learns on top of (compositional).
        trained_on: what is stored with the weights: which others they were made for.
    """

    samples = "samples"

    def __init__(
        self,
        ldm: LatentDiffusion,
        condition: str,
        settings: DiffusionSettings,
        num_labels: int | None = None,
        prior: UncertaintyPrior | None = None,
        uncertainties: Uncertainties | None = None,
        base: nn.Module | None = None,
        trained_on: Mapping[str, Any] | None = None,
    ) -> None:
        require(condition in CONDITIONS, f"Unknown condition '{condition}'; expected one of {list(CONDITIONS)}.")
        task = f"A ControlNet of the condition '{condition}'"
        if condition == "semantic":
            require(num_labels is not None, f"{task} needs num_labels, that of the label maps.")
            require(base is None or prior is not None, f"{task} with a base needs a prior for its hints.")
        else:
            require(prior is not None, f"{task} needs a prior for its hints.")
        super().__init__(ldm, settings)
        self.name, self.condition, self.num_labels, self.prior = CONDITIONS[condition], condition, num_labels, prior
        self.uncertainties, self.base, self.trained_on = uncertainties, base, dict(trained_on or {})

    def belongs_to(self) -> dict[str, Any]:
        """What is stored with the weights: which others they were made for."""
        return self.trained_on

    def inferer(self, network: nn.Module) -> DualControlNetInferer:
        """What draws samples with the ControlNet that is trained, on top of the frozen one."""
        guidance = self.settings.guidance
        if self.condition == "uncertainty":
            return DualControlNetInferer(self.ldm, None, network, 1.0, "paper", guidance)
        return DualControlNetInferer(self.ldm, network, self.base, 1.0, "compositional", guidance)


class JointTask(DiffusionTask):
    """The training of a U-Net and both controls at once; a :class:`JointNetwork` is trained.

    Args:
        ldm: its ``unet`` is that of the moving average.
        settings: of the training.
        num_labels: of the label maps.
        prior: makes the hints.
        uncertainties: those of the training images.
        trained_on: what is stored with the weights beside what a U-Net's have: the hint that they were trained for.
        left_out: shares of the images whose label map, and whose uncertainty, is left out.
        hint_noise: standard deviation of what is added to the hints: what is asked for lies between images.
    """

    name, samples, condition = "joint model", "samples", "joint"
    newest = True  # images get better long after the loss does not, and some of its label maps are guesses

    def __init__(
        self,
        ldm: LatentDiffusion,
        settings: DiffusionSettings,
        num_labels: int,
        prior: UncertaintyPrior,
        uncertainties: Uncertainties | None = None,
        trained_on: Mapping[str, Any] | None = None,
        left_out: Sequence[float] = (0.15, 0.1),
        hint_noise: float = 0.02,
    ) -> None:
        super().__init__(ldm, settings)
        check_settings(left_out=left_out, hint_noise=hint_noise)
        require(
            prior.scaling != "paper" or hint_noise == 0,
            f"The prior's scaling is 'paper', which leaves u as it is, and hint_noise {hint_noise} would drown it; "
            "expected zscore or quantile, or a hint_noise of 0.",
        )
        if uncertainties is not None:
            uncertainties.require_measure_of(prior)
        self.num_labels, self.prior, self.uncertainties = num_labels, prior, uncertainties
        self.trained_on, self.hint_noise = dict(trained_on or {}), hint_noise
        self.left_out = (left_out[0], left_out[1])

    def belongs_to(self) -> dict[str, Any]:
        """What is stored with the weights: what a U-Net's have, and the hint."""
        return super().belongs_to() | self.trained_on

    def inferer(self, network: JointNetwork) -> DualControlNetInferer:  # type: ignore[override]
        """What draws samples with the network that is trained."""
        ldm, guidance = replace(self.ldm, unet=network.unet), self.settings.guidance
        return DualControlNetInferer(ldm, network.semantic, network.uncertainty, 1.0, "joint", guidance)


def task_latents(task: ControlNetTask, dataset_dir: PathLike | Sequence[PathLike], split: str) -> LatentDataset:
    """The latents of a split with what a ControlNet's training sees, mirrored at random in "training"."""
    folder, mirror = bundle_of(task.ldm) / "models" / "latents", split == "training"
    seen = task.ldm.text, task.num_labels, task.uncertainties
    return LatentDataset(dataset_dir, split, task.ldm.autoencoder, folder, *seen, mirror=mirror)


def bundle_of(ldm: LatentDiffusion) -> Path:
    """The bundle of a model, which keeps its weights and latents."""
    if ldm.bundle_root is None:
        raise ValueError("The latent diffusion model has no bundle, so its latents have no place to be kept.")
    return Path(ldm.bundle_root)
