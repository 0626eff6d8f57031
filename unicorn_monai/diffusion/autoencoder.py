"""The KL autoencoder: its narrow start, the parts of its objective, its training.

    autoencoder:   |x - x'| + kl_weight * KL(q(z|x) || N(0, 1)) + spectral_weight * S(x', x) + speckle_weight * C(x', x)
                   + adversarial_weight * A(x') [+ perceptual_weight * P(x', x)]
    discriminator: least squares, D(x) -> 1, D(x') -> 0

S compares the amplitudes of the Fourier transforms around a common mean: it asks for the right texture without a
downloaded perceptual network. C compares the local contrast of the speckle, |c(x) - c(x')| with c the standard
deviation of the high-pass image in 7 x 7 windows: absolute differences alone are smallest for an image without speckle.
P is a perceptual network, where one is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics import Loss
from monai.engines import Trainer
from monai.losses import PatchAdversarialLoss
from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from unicorn_monai.images.pictures import evenly
from unicorn_monai.images.speckle import speckle_contrast
from unicorn_monai.system.cuda_graphs import TrainingGraphs
from unicorn_monai.system.distributed import bare
from unicorn_monai.system.networks import freeze
from unicorn_monai.training.batches import no_batch
from unicorn_monai.training.settings import AutoencoderSettings
from unicorn_monai.training.steps import autocast_settings, require_finite_gradient


class AutoencoderLoss(nn.Module):
    """The generator's objective of a KL autoencoder, see the file's header for its terms.

    A small ``kl_weight`` only keeps the latents near a standard normal. ``perceptual``, e.g.
    ``monai.losses.PerceptualLoss`` where its weights are at hand, is kept as it is.
    """

    def __init__(
        self,
        kl_weight: float = 1e-6,
        spectral_weight: float = 1.0,
        speckle_weight: float = 1.0,
        adversarial_weight: float = 0.1,
        perceptual: nn.Module | None = None,
        perceptual_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.weights = {"kl": kl_weight, "spectral": spectral_weight, "speckle": speckle_weight}
        self.weights |= {"adversarial": adversarial_weight, "perceptual": perceptual_weight}
        self.perceptual = None if perceptual is None else freeze(perceptual)
        self.adversarial = PatchAdversarialLoss(criterion="least_squares")

    def forward(
        self, reconstruction: Tensor, image: Tensor, mean: Tensor, std: Tensor, fake_scores: Tensor | None
    ) -> dict[str, Tensor]:
        """All terms, unweighted, and their weighted sum under "loss".

        ``mean`` and ``std`` are those of the latents; ``fake_scores``, what the discriminator says of the
        reconstruction, is None before it takes part.
        """
        terms = {
            "l1": (reconstruction - image).abs().mean(),
            "kl": kl_divergence(mean, std),
            "spectral": spectral_distance(reconstruction, image),
            "speckle": (speckle_contrast(reconstruction) - speckle_contrast(image)).abs().mean(),
        }
        if fake_scores is not None:
            terms["adversarial"] = self.adversarial(fake_scores, target_is_real=True, for_discriminator=False)
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(reconstruction, image)
        weighted = (self.weights[name] * term for name, term in terms.items() if name != "l1")
        return terms | {"loss": sum(weighted, start=terms["l1"])}

    def discriminator(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """The discriminator's objective."""
        real = self.adversarial(real_scores, target_is_real=True, for_discriminator=True)
        fake = self.adversarial(fake_scores, target_is_real=False, for_discriminator=True)
        return 0.5 * (real + fake)


def kl_divergence(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)), summed over each latent and averaged over the batch: a scalar."""
    divergence = 0.5 * (mean.square() + std.square() - 2 * std.clamp_min(1e-12).log() - 1)
    return divergence.flatten(1).sum(dim=1).mean()


def spectral_distance(image: Tensor, other: Tensor) -> Tensor:
    """Mean squared difference of the Fourier amplitudes around a common mean: a scalar.

    That of Dhariwal et al. (2020, Section 3.3), after each channel's mean of ``other`` was taken out of both images. So
    the frequency 0 is compared with its sign: |F| is the same for x and -x, and of a bright image the amplitude there
    outweighs all others, so that a network which starts at a negative mean would be held there. Where an amplitude is
    0, as those of a patch of one grey value are, the gradient is 0 (``monai.losses.JukeboxLoss`` gives NaN).
    """
    dims, mean = tuple(range(1, image.ndim)), other.mean(dim=tuple(range(2, other.ndim)), keepdim=True)
    amplitudes = [torch.fft.fftn(x - mean, dim=dims, norm="ortho").abs() for x in (image, other)]
    return functional.mse_loss(*amplitudes)


def narrow_posterior(autoencoder: nn.Module, log_variance: float = -6.0) -> nn.Module:
    """Let a fresh KL autoencoder start with little noise on its latents.

    It starts with a standard deviation of 1, as much as the latents themselves vary, and a weak KL term takes thousands
    of iterations to narrow that; until then the decoder learns to blur.
    """
    nn.init.zeros_(autoencoder.quant_conv_log_sigma.conv.weight)  # type: ignore[union-attr, arg-type]
    nn.init.constant_(autoencoder.quant_conv_log_sigma.conv.bias, log_variance)  # type: ignore[union-attr, arg-type]
    return autoencoder


@dataclass(frozen=True)
class Adversary:
    """What an autoencoder is trained against: a ``PatchDiscriminator``, and the objective of both."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    loss: AutoencoderLoss


class AutoencoderTrainer(Trainer):
    """Train a KL autoencoder, image -> (reconstruction, mean, std), on batches with "image" against a discriminator."""

    def __init__(
        self,
        settings: AutoencoderSettings,
        train_data_loader: Any,
        network: nn.Module,
        adversary: Adversary,
        optimizer: torch.optim.Optimizer,
        train_handlers: list | None = None,
    ) -> None:
        if hasattr(train_data_loader, "__len__") and len(train_data_loader) == 0:
            raise ValueError(no_batch(len(train_data_loader.dataset), int(train_data_loader.batch_size)))
        super().__init__(
            settings.device, settings.max_epochs, train_data_loader, handlers=train_handlers, decollate=False
        )
        self.network, self.discriminator = network, adversary.network
        self.optimizer, self.discriminator_optimizer = optimizer, adversary.optimizer
        self.loss_function = adversary.loss
        self.adversarial_start = settings.adversarial_start if settings.adversarial_weight else math.inf
        self.autocast = autocast_settings(settings.device, settings.precision)
        self.reconstruct = TrainingGraphs(_reconstruct) if settings.cuda_graphs else _reconstruct

    def _iteration(self, engine: Engine, batchdata: dict[str, Tensor]) -> list[dict[str, float]]:  # type: ignore[override]
        image = batchdata["image"].to(self.state.device)
        adversarial = self.state.iteration > self.adversarial_start
        self.network.train()
        self.discriminator.train().requires_grad_(False)
        with torch.autocast(**self.autocast):
            reconstruction, mean, std = self.reconstruct(image, self.network)
            scores = bare(self.discriminator)(reconstruction)[-1].float() if adversarial else None
        terms = self.loss_function(reconstruction.float(), image, mean.float(), std.float(), scores)
        self.optimizer.zero_grad()
        terms["loss"].backward()
        require_finite_gradient(torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0), engine)
        self.optimizer.step()

        if adversarial:
            self.discriminator.requires_grad_(True)
            with torch.autocast(**self.autocast):
                both = torch.cat([image, reconstruction.detach().to(image)])
                real, fake = self.discriminator(both)[-1].float().chunk(2)
            terms["discriminator"] = self.loss_function.discriminator(real, fake)
            self.discriminator_optimizer.zero_grad()
            terms["discriminator"].backward()
            self.discriminator_optimizer.step()
        return [{key: value.item() for key, value in terms.items()}]  # a list, as MONAI's decollated outputs are


def _reconstruct(image: Tensor, network: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    return network(image)


class ReconstructionSheet:
    """``count`` images of a data set, evenly spread over it, above their reconstructions."""

    def __init__(self, autoencoder: AutoencoderKL, dataset: Sequence[dict[str, Any]], count: int = 8) -> None:
        self.autoencoder, self.dataset, self.count = autoencoder, dataset, count

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """(2, columns, channels, height, width)."""
        images = torch.stack([self.dataset[i]["image"] for i in evenly(len(self.dataset), self.count)])
        reconstructed = self.autoencoder.reconstruct(images.to(next(self.autoencoder.parameters()).device))
        return torch.stack([images, reconstructed.cpu().float()])


def reconstruction_metric(spectral_weight: float = 1.0) -> Loss:
    """Ignite metric: mean absolute error plus the weighted spectral term over the validation set; smaller is better."""

    def error(prediction: Tensor, image: Tensor) -> Tensor:
        return (prediction - image).abs().mean() + spectral_weight * spectral_distance(prediction, image)

    return Loss(error, output_transform=lambda output: (output["pred"], output["image"]))
