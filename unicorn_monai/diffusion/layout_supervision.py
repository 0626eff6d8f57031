"""Adversarial layout supervision of the Semantic-ControlNet (Li et al. 2024, ALDM): an option of its training.

A segmentation network with one label more, "fake", is the discriminator D: of every pixel of a real image it is to say
the label, of every pixel of a generated one that it is fake. The ControlNet is to make it say the label:

    x0     = (x_t - sigma_t eps(x_t)) / alpha_t                       what the prediction says about the clean latent
    L_D    = CE(D(image), label) + w_fake CE(D(decode(x0)), fake)
    L      = || eps - eps(x_t) ||^2 + w_layout CE(D(decode(x0)), label)

Unrolled over K steps, CE is the mean over the K predictions that a deterministic sampler makes from x_t on. The
gradient goes through the first; the others, without gradient, give the pixels their weights, so that memory does not
grow with K. Written from the paper, but real images are decoded latents here: the decoder's traces tell nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.engines import IterationEvents
from torch import Tensor, nn
from torch.nn import functional

from unicorn_monai.bundle.references import arguments, definition
from unicorn_monai.diffusion.task import DiffusionTask
from unicorn_monai.diffusion.training import ControlNetInferer
from unicorn_monai.images.files import IGNORE_LABEL
from unicorn_monai.schedulers import x0_and_noise
from unicorn_monai.system.distributed import average_gradients, bare
from unicorn_monai.system.files import PathLike
from unicorn_monai.system.networks import require
from unicorn_monai.training.steps import autocast_settings


@dataclass(frozen=True)
class Layout:
    """How the layout is asked for."""

    weight: float = 0.1  # w_layout
    fake_weight: float = 0.01  # w_fake
    start: int = 0  # iterations without the layout term; the discriminator learns from the first one
    ramp: int = 0  # iterations over which the term rises to its full weight
    unroll: int = 1  # K
    stride: int = 40  # timesteps between unrolled predictions
    balanced: bool = True  # labels weigh the inverse of their frequency in the batch

    def __post_init__(self) -> None:
        k, stride, start, ramp = self.unroll, self.stride, self.start, self.ramp
        weights = self.weight, self.fake_weight
        require(min(k, stride) >= 1, f"unroll is {k}, stride {stride}; expected at least 1 each.")
        require(min(weights) >= 0, f"The weights are {weights[0]} and {weights[1]}; expected at least 0.")
        require(min(start, ramp) >= 0, f"start is {start}, ramp {ramp}; expected numbers of iterations.")

    def weight_at(self, iteration: int) -> float:
        """w_layout in an iteration, the first of which is 1."""
        risen = 1.0 if self.ramp == 0 else min(1.0, max(0.0, (iteration - self.start) / self.ramp))
        return self.weight * risen if iteration > self.start else 0.0


class LayoutSupervision(ControlNetInferer):
    """A ``ControlNetInferer`` for training that, attached as an Ignite handler, also asks for the layout.

    It adds to the loss of MONAI's ``SupervisedTrainer`` before its backward pass, and trains the discriminator, images
    -> logits (batch, labels + 1, rows, columns) at any resolution, after every iteration. ``engine.state.metrics`` gets
    "layout_loss" and "discriminator_loss".
    """

    def __init__(
        self,
        task: DiffusionTask,
        discriminator: nn.Module,
        discriminator_optimizer: torch.optim.Optimizer,
        layout: Layout | None = None,
    ) -> None:
        remedy = "layout supervision decides anew at every step what to compute, which no graph can. Set it to false."
        require(not task.settings.cuda_graphs, f"cuda_graphs is on, but {remedy}")
        super().__init__(task)
        self.autoencoder, self.layout = task.ldm.loaded_autoencoder(), layout or Layout()
        self.discriminator, self.optimizer = discriminator, discriminator_optimizer
        self.saved = {"discriminator": discriminator, "discriminator_optimizer": discriminator_optimizer}
        self._asked: tuple[Tensor, Tensor, dict[str, Tensor]]  # x_t, t, conditions of the prediction
        self._made: tuple[Tensor, Tensor, Tensor]  # image that the prediction stands for, its label map, real latents

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI ``SupervisedTrainer`` of which this is the inferer."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._add_layout)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._train_discriminator)

    def predict(self, noisy: Tensor, network: nn.Module, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        """As ``ControlNetInferer``; what it was asked is kept for the layout term."""
        self._asked = noisy, timesteps, conditions
        return super().predict(noisy, network, timesteps, conditions)

    def _add_layout(self, engine: Engine) -> None:
        output: Any = engine.state.output
        noisy, timesteps, conditions = self._asked
        label = label_of(conditions["semantic"])
        weight = self.layout.weight_at(engine.state.iteration)
        x0, noise = x0_and_noise(self.task.ldm.train_scheduler, output["pred"], noisy, timesteps)
        with torch.set_grad_enabled(weight > 0):
            image = self._decode(x0)
        self._made = image.detach(), label, output["image"]
        if weight == 0:
            return
        self.discriminator.eval().requires_grad_(False)
        first = self._entropy(image, label)
        after = self._unroll(bare(engine.network), x0.detach(), noise.detach(), label)  # type: ignore[attr-defined]
        lost = torch.stack([first.detach(), *after]).mean(0) / first.detach().clamp(min=1e-6)
        layout = layout_mean(lost * first, label, self.layout.balanced)
        output["loss"] = output["loss"] + weight * layout
        engine.state.metrics["layout_loss"] = layout.item()

    @torch.no_grad()
    def _unroll(self, network: nn.Module, x0: Tensor, noise: Tensor, label: Tensor) -> list[Tensor]:
        """Cross-entropy (batch, rows, columns) of each of the K - 1 predictions that follow the first."""
        entropies, (_, timesteps, conditions) = [], self._asked
        for _ in range(self.layout.unroll - 1):
            timesteps = (timesteps - self.layout.stride).clamp(min=0)
            noisy = self.task.ldm.train_scheduler.add_noise(x0, noise, timesteps)  # DDIM's step to these timesteps
            with torch.autocast(**autocast_settings(x0.device, self.precision)):
                prediction = super().predict(noisy, network, timesteps, conditions)
            x0, noise = x0_and_noise(self.task.ldm.train_scheduler, prediction.float(), noisy, timesteps)
            entropies.append(self._entropy(self._decode(x0), label))
        return entropies

    def _train_discriminator(self, engine: Engine) -> None:
        fake, label, latents = self._made
        with torch.no_grad():
            real = self._decode(latents)
        self.discriminator.train().requires_grad_(True)
        loss = layout_mean(self._entropy(real, label), label, self.layout.balanced)
        every = torch.full_like(label, self._asked[2]["semantic"].shape[1])
        loss = loss + self.layout.fake_weight * self._entropy(fake, every).mean()
        self.optimizer.zero_grad()
        loss.backward()
        average_gradients(self.discriminator)
        self.optimizer.step()
        engine.state.metrics["discriminator_loss"] = loss.item()

    def _decode(self, latents: Tensor) -> Tensor:
        with torch.autocast(**autocast_settings(latents.device, self.precision)):
            return self.autoencoder.decode_stage_2_outputs(latents / self.task.ldm.scale_factor).float()

    def _entropy(self, image: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy of every pixel, (batch, rows, columns); 0 where the label is to be ignored."""
        with torch.autocast(**autocast_settings(image.device, self.precision)):
            logits = self.discriminator(image).float()
        logits = functional.interpolate(logits, label.shape[-2:], mode="bilinear", align_corners=False)
        return functional.cross_entropy(logits, label, reduction="none", ignore_index=IGNORE_LABEL)


def label_of(one_hot: Tensor) -> Tensor:
    """Label map (batch, rows, columns) of a one-hot one; where no label is set, 255 (ignore)."""
    return torch.where(one_hot.sum(1) > 0, one_hot.argmax(1), IGNORE_LABEL)


def layout_mean(entropy: Tensor, label: Tensor, balanced: bool = True) -> Tensor:
    """Mean over the labelled pixels; balanced, the mean over the labels of the mean over each one's pixels."""
    entropy, label = entropy[label != IGNORE_LABEL], label[label != IGNORE_LABEL]
    if not balanced or len(label) == 0:
        return entropy.sum() / max(1, len(label))
    counts = torch.bincount(label)
    return (entropy / counts[label]).sum() / (counts > 0).sum()


def discriminator_for(bundle_root: PathLike, num_labels: int, id: str = "network_def") -> nn.Module:
    """The architecture of a segmentation network with one label more."""
    segmentation = arguments(bundle_root, id) | {"_target_": definition(bundle_root, id)["_target_"]}
    labels = [key for key in ("out_channels", "num_labels") if key in segmentation]  # of MONAI's networks, of SegFormer
    found = f"'{id}' of '{bundle_root}' has the arguments {sorted(segmentation)}"
    require(len(labels) == 1, f"{found}; expected out_channels or num_labels.")
    return ConfigParser({"network": segmentation | {labels[0]: num_labels + 1}}).get_parsed_content("network")
