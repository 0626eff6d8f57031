"""Label maps x sampled uncertainties -> images: all networks of a synthesis as one object."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unicorn_monai.fusion import Weight
from unicorn_monai.images.files import IGNORE_LABEL
from unicorn_monai.images.transforms import LoadPixelsd, one_hot
from unicorn_monai.images.warping import warp
from unicorn_monai.inferers import DualControlNetInferer
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.synthesis.requests import Request
from unicorn_monai.system.errors import named
from unicorn_monai.system.networks import require, require_finite
from unicorn_monai.training.steps import autocast_settings


class Generator:
    """The networks, ready to make images.

    Args:
        inferer: the denoising loop with its networks.
        prior: scales the uncertainty; needed where it steers.
        num_labels: of the label maps.
        num_inference_steps: denoising steps, where a call tells no others.
        precision: "float32", "bfloat16" for automatic mixed precision, or "auto" for that where it is fast.
    """

    def __init__(
        self,
        inferer: DualControlNetInferer,
        prior: UncertaintyPrior | None = None,
        num_labels: int = 1,
        num_inference_steps: int = 50,
        precision: str = "float32",
    ) -> None:
        if inferer.uncertainty is not None and prior is None:
            raise ValueError(
                "There is an Uncertainty-ControlNet, but no prior to scale its hint. Give the one it was trained with."
            )
        self.inferer, self.ldm, self.prior = inferer, inferer.ldm, prior
        self.num_labels, self.steps = num_labels, num_inference_steps
        self.autocast = autocast_settings(self.ldm.device, precision)

    def labels(self, requests: Sequence[Request]) -> Tensor | None:
        """The requested label maps, augmented where asked: (batch, 1, rows, columns) int64; None without any."""
        if self.inferer.semantic is None:
            return None
        load = LoadPixelsd(["label"], num_labels=self.num_labels)
        maps = [(load.read_label(str(r.label)), r.augment) for r in requests]
        return torch.stack([label if seed is None else warp(label, seed, "nearest") for label, seed in maps])

    def __call__(
        self,
        requests: Sequence[Request],
        labels: Tensor | None = None,
        weight: Weight | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Images (batch, channels, rows, columns) in [0, 1], one for each request.

        Args:
            requests: what to make.
            labels: their label maps, (batch, 1, rows, columns), read from their files by default.
            weight: of the uncertainty, in place of the inferer's.
            steps: denoising steps, in place of the generator's.
        """
        with torch.inference_mode(), torch.autocast(**self.autocast):  # a few percent faster than no_grad
            images = self.ldm.decode(self.latents(requests, labels, weight, steps))
        batch = named(r.index for r in requests)
        return require_finite("A synthetic image", images.float(), batch).clamp(0, 1)

    @torch.inference_mode()
    def latents(
        self,
        requests: Sequence[Request],
        labels: Tensor | None = None,
        weight: Weight | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """The same before decoding: scaled latents (batch, channels, *latent)."""
        labels = self.labels(requests) if labels is None else labels
        if labels is None:  # without any the hint still needs the image's size
            labels = torch.full((len(requests), 1, *self.ldm.image_size), IGNORE_LABEL)
        hint = torch.zeros(len(requests))
        if self.inferer.uncertainty is not None and self.prior is not None:
            wanted = [r.uncertainty for r in requests if r.uncertainty is not None]
            message = "No uncertainty to ask the Uncertainty-ControlNet for; give `uncertainties` or a prior."
            require(len(wanted) == len(requests), message)
            hint = self.prior.hint(torch.tensor(wanted))
        device, text = self.ldm.device, self.ldm.text
        context = None if text is None else text([r.prompt or "" for r in requests]).to(device)
        with torch.autocast(**self.autocast):
            return self.inferer.sample_latents(
                label_map=one_hot(labels, self.num_labels).to(device),
                hint=hint.to(device),
                seeds=[r.seed for r in requests],
                num_inference_steps=self.steps if steps is None else steps,
                uncertainty_weight=weight,
                context=context,
            )
