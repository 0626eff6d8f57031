"""Losses: Dice with ignored pixels for the segmentation U-Net, and the parts of the autoencoder's objective.

    segmentation:  Dice(softmax(z), y) + ce_weight * CE(z, y)               over pixels with a label
    autoencoder:   |x - x'| + kl_weight * KL(q(z|x) || N(0, 1)) + spectral_weight * S(x', x) + speckle_weight * C(x', x)
                   + adversarial_weight * A(x') [+ perceptual_weight * P(x', x)]
    discriminator: least squares, D(x) -> 1, D(x') -> 0

S compares the amplitudes of the Fourier transforms around a common mean: it asks for the right texture without a
downloaded perceptual network. C compares the local contrast of the speckle, |c(x) - c(x')| with c the standard
deviation of the high-pass image in 7 x 7 windows: absolute differences alone are smallest for an image without speckle.
P is a perceptual network, where one is given.
"""

from __future__ import annotations

import torch
from monai.losses import DiceLoss, PatchAdversarialLoss
from torch import Tensor, nn
from torch.nn import functional

from unicorn_monai.datasets import IGNORE_LABEL
from unicorn_monai.networks import freeze
from unicorn_monai.transforms import one_hot


class SegmentationLoss(nn.Module):
    """Dice loss (the paper's), optionally with cross-entropy; pixels labelled 255 do not count.

    Args:
        ce_weight: weight of the cross-entropy; 0 is the paper's loss.
    """

    def __init__(self, ce_weight: float = 0.0) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.dice = DiceLoss(batch=True)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Args: logits (batch, labels, *spatial), label (batch, 1, *spatial) of integers. Returns a scalar."""
        probability = logits.softmax(dim=1) * (label != IGNORE_LABEL)
        loss = self.dice(probability, one_hot(label, logits.shape[1]))
        if self.ce_weight:
            entropy = functional.cross_entropy(
                logits, label.squeeze(1).long(), ignore_index=IGNORE_LABEL, reduction="sum"
            )  # a mean over no labelled pixel would be NaN
            loss = loss + self.ce_weight * entropy / (label != IGNORE_LABEL).sum().clamp(min=1)
        return loss


class AutoencoderLoss(nn.Module):
    """The generator's objective of a KL autoencoder.

    Args:
        kl_weight: weight of the Kullback-Leibler term; small, it only keeps the latents near a standard normal.
        spectral_weight: weight of the spectral term.
        speckle_weight: weight of the speckle contrast term.
        adversarial_weight: weight of the patch-adversarial term.
        perceptual: an optional further term, e.g. ``monai.losses.PerceptualLoss`` where its weights are at hand; its
            own weights stay as they are.
        perceptual_weight: weight of that term.
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
        self.kl_weight, self.spectral_weight, self.adversarial_weight = kl_weight, spectral_weight, adversarial_weight
        self.speckle_weight = speckle_weight
        self.perceptual = None if perceptual is None else freeze(perceptual)
        self.perceptual_weight = perceptual_weight
        self.adversarial = PatchAdversarialLoss(criterion="least_squares")

    def forward(
        self, reconstruction: Tensor, image: Tensor, mean: Tensor, std: Tensor, fake_scores: Tensor | None
    ) -> dict[str, Tensor]:
        """All terms, unweighted, and their weighted sum under "loss".

        Args:
            reconstruction: (batch, channels, *spatial).
            image: the same.
            mean: of the latents (batch, latent channels, *latent).
            std: of the latents, the same shape.
            fake_scores: what the discriminator says of the reconstruction; None before it takes part.
        """
        terms = {
            "l1": (reconstruction - image).abs().mean(),
            "kl": kl_divergence(mean, std),
            "spectral": spectral_distance(reconstruction, image),
            "speckle": (speckle_contrast(reconstruction) - speckle_contrast(image)).abs().mean(),
        }
        loss = terms["l1"] + self.kl_weight * terms["kl"] + self.spectral_weight * terms["spectral"]
        loss = loss + self.speckle_weight * terms["speckle"]
        if fake_scores is not None:
            terms["adversarial"] = self.adversarial(fake_scores, target_is_real=True, for_discriminator=False)
            loss = loss + self.adversarial_weight * terms["adversarial"]
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(reconstruction, image)
            loss = loss + self.perceptual_weight * terms["perceptual"]
        return terms | {"loss": loss}

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
    outweighs all others, so that a network which starts at a negative mean would be held there (2 (m - |m'|) against
    the 1 of the absolute difference, from a mean m of 0.5 on). What is left cannot do so at a weight of 1: of grey
    values in [0, 1], twice the variance is at most the mean absolute deviation. Where an amplitude is 0, as those of a
    patch of one grey value are, the gradient is 0 (``monai.losses.JukeboxLoss`` gives NaN).
    """
    dims, mean = tuple(range(1, image.ndim)), other.mean(dim=tuple(range(2, other.ndim)), keepdim=True)
    amplitudes = [torch.fft.fftn(x - mean, dim=dims, norm="ortho").abs() for x in (image, other)]
    return functional.mse_loss(*amplitudes)


def high_pass_std(image: Tensor) -> Tensor:
    """Standard deviation of each image minus its 5 x 5 local mean: how much speckle there is, (batch,)."""
    return high_pass(image).flatten(1).std(dim=1)


def high_pass(image: Tensor) -> Tensor:
    """Image minus its 5 x 5 local mean, the same shape."""
    return image - functional.avg_pool2d(image, 5, stride=1, padding=2, count_include_pad=False)


def speckle_contrast(image: Tensor) -> Tensor:
    """Standard deviation of the high-pass image in 7 x 7 windows, one at every second pixel of both axes."""
    return (functional.avg_pool2d(high_pass(image).square(), 7, stride=2) + 1e-6).sqrt()


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error in float32, whatever precision the network ran in."""
    return torch.nn.functional.mse_loss(prediction.float(), target.float())
