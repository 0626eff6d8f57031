"""Label maps x sampled uncertainties -> images: all networks of a synthesis as one object.

A :class:`Request` says what one image is made of (`synthesis/requests.py`). A :class:`Generator` holds the networks. A
`Synthesizer` (`synthesis/writer.py`) streams a labelled data set with them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

import torch
from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn

from unicorn_monai.diffusion.latents import StoredAutoencoder
from unicorn_monai.diffusion.text import PromptEmbeddings
from unicorn_monai.fusion import Weight
from unicorn_monai.images.files import IGNORE_LABEL
from unicorn_monai.images.transforms import LoadPixelsd, one_hot
from unicorn_monai.images.warping import augment_label
from unicorn_monai.inferers import DualControlNetInferer
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.synthesis.requests import Request
from unicorn_monai.system.errors import named
from unicorn_monai.system.networks import compiled, require_finite
from unicorn_monai.training.steps import autocast_settings

logger = logging.getLogger("unicorn_monai")


class Generator:
    """The networks, ready to make images.

    Args:
        inferer: the denoising loop.
        autoencoder: decodes; a ``StoredAutoencoder`` is in memory for as long as it does so.
        unet: noise predictor.
        latent_shape: (channels, *latent).
        num_inference_steps: denoising steps.
        device: where to run.
        semantic: ControlNet of the label map, or None.
        uncertainty: ControlNet of the uncertainty, or None.
        num_labels: of the label maps.
        prior: scales the uncertainty; needed for ``uncertainty``.
        compile: compile the networks of the denoising loop (``networks.compiled``); pays for thousands of images.
        prompts: gives the embeddings of the requests' prompts, to a U-Net that attends to them.
        precision: "float32", or "bfloat16" for automatic mixed precision.
    """

    def __init__(
        self,
        inferer: DualControlNetInferer,
        autoencoder: AutoencoderKL | StoredAutoencoder,
        unet: nn.Module,
        latent_shape: Sequence[int],
        num_inference_steps: int = 50,
        device: torch.device | str = "cpu",
        semantic: nn.Module | None = None,
        uncertainty: nn.Module | None = None,
        num_labels: int = 1,
        prior: UncertaintyPrior | None = None,
        compile: bool = False,
        prompts: PromptEmbeddings | None = None,
        precision: str = "float32",
    ) -> None:
        if uncertainty is not None and prior is None:
            raise ValueError(
                "There is an Uncertainty-ControlNet, but no prior to scale its hint. Give the one it was trained with."
            )
        if compile:
            unet = compiled(unet)
            semantic, uncertainty = (n if n is None else compiled(n) for n in (semantic, uncertainty))
        if inferer.null_context is not None:
            inferer.null_context = inferer.null_context.to(device)
        self.inferer, self.autoencoder, self.unet = inferer, autoencoder, unet
        self.semantic, self.uncertainty = semantic, uncertainty
        self.latent_shape, self.steps, self.device = tuple(latent_shape), num_inference_steps, torch.device(device)
        self.num_labels, self.prior, self.prompts = num_labels, prior, prompts
        self.compile = compile
        self.autocast = autocast_settings(self.device, precision)

    def loaded_autoencoder(self) -> AutoencoderKL:
        """The autoencoder, read now if it is a stored one."""
        return self.autoencoder.load() if isinstance(self.autoencoder, StoredAutoencoder) else self.autoencoder

    def labels(self, requests: Sequence[Request]) -> Tensor | None:
        """The requested label maps, augmented where asked: (batch, 1, rows, columns) int64; None without any."""
        if self.semantic is None:
            return None
        load = LoadPixelsd(["label"], num_labels=self.num_labels)
        maps = [(load.read_label(str(r.label)), r.augment) for r in requests]
        return torch.stack([label if seed is None else augment_label(label, seed) for label, seed in maps])

    @torch.no_grad()
    def __call__(
        self, requests: Sequence[Request], labels: Tensor | None = None, weight: Weight | None = None
    ) -> Tensor:
        """Images (batch, channels, rows, columns) in [0, 1], one for each request."""
        labels = self.labels(requests) if labels is None else labels
        autoencoder = self.loaded_autoencoder()
        if labels is None:  # the hint needs the image's size: the latent's times the autoencoder's factor
            size = [side * downsampling(autoencoder) for side in self.latent_shape[1:]]
            labels = torch.full((len(requests), 1, *size), IGNORE_LABEL)
        hint = torch.zeros(len(requests))
        if self.uncertainty is not None and self.prior is not None:
            wanted = [r.uncertainty for r in requests if r.uncertainty is not None]
            if len(wanted) < len(requests):
                raise ValueError(
                    "No uncertainty to ask the Uncertainty-ControlNet for; give `uncertainties` or a prior."
                )
            hint = self.prior.hint(torch.tensor(wanted))
        context = None if self.prompts is None else self.prompts([r.prompt or "" for r in requests]).to(self.device)
        with torch.inference_mode(), torch.autocast(**self.autocast):  # a few percent faster than no_grad
            images = self.inferer.sample(
                label_map=one_hot(labels, self.num_labels).to(self.device),
                hint=hint.to(self.device),
                autoencoder=autoencoder,
                unet=self.unet,
                semantic=self.semantic,
                uncertainty=self.uncertainty,
                latent_shape=self.latent_shape,
                seeds=[r.seed for r in requests],
                num_inference_steps=self.steps,
                uncertainty_weight=weight,
                context=context,
            )
        batch = named(r.index for r in requests)
        return require_finite("A synthetic image", cast(Tensor, images).float(), batch).clamp(0, 1)


def downsampling(autoencoder: AutoencoderKL) -> int:
    """Image size / latent size of a MONAI ``AutoencoderKL``."""
    return 2 ** (len(autoencoder.decoder.channels) - 1)  # type: ignore[union-attr, arg-type]
