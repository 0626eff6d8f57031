"""Training glue: what MONAI's engines lack for a latent diffusion model and its controls.

A noise predictor is trained on   || eps - f(x_t, t, c) ||^2,   x_t = sqrt(a_t) z + sqrt(1 - a_t) eps   (Eq. 1), or,
where the scheduler's ``prediction_type`` says so, on the velocity v = sqrt(a_t) eps - sqrt(1 - a_t) z (Salimans and Ho
2022), which tells the same but is well conditioned at high noise, so a short training suffices for the large
structures. MONAI's ``SupervisedTrainer`` does it, given the two parts below: a ``prepare_batch`` (latents, noise,
timesteps, conditions) and an inferer (one noise prediction).
"""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from unicorn_monai.diffusion.task import DiffusionTask
from unicorn_monai.fusion import control, controlled
from unicorn_monai.images.transforms import one_hot
from unicorn_monai.latent_diffusion import downsampling
from unicorn_monai.system.cuda_graphs import TrainingGraphs
from unicorn_monai.system.networks import require, to_train
from unicorn_monai.training.steps import autocast_settings

_NO_NULL = "prompt_dropout is {}, but there are no words, so no empty prompt to take a prompt's place. Set it to 0."


class LatentPrepareBatch:
    """From a batch of a ``LatentDataset`` to (latents, target, (), {noise, timesteps, conditions}).

    The latents are scaled; label maps are one-hot under "semantic", uncertainties are hints under "uncertainty",
    constant images at image resolution. ``fixed`` is the same noise and timesteps for a batch at every call, so that
    validation losses can be compared.
    """

    def __init__(self, task: DiffusionTask, fixed: bool = False) -> None:
        self.task, self.fixed, self.ldm = task, fixed, task.ldm
        share, told = task.prompt_dropout, task.settings.prompt_dropout
        require(0 <= share <= 1, f"prompt_dropout is {share}; expected a share in [0, 1].")
        require(not told or task.ldm.text is not None, _NO_NULL.format(told))
        self.prompt_dropout = share
        self.null_context = None if task.ldm.text is None else task.ldm.text.null

    def __call__(
        self, batchdata: dict[str, Tensor], device: torch.device | None = None, non_blocking: bool = False, **_: Any
    ) -> tuple[Tensor, Tensor, tuple, dict[str, Tensor]]:
        """See the class; everything is on ``device``."""
        mean, std = batchdata["mean"], batchdata["std"]
        batch, total = len(mean), self.ldm.train_scheduler.num_train_timesteps
        generator = torch.Generator().manual_seed(int(batchdata["index"][0])) if self.fixed else None
        z = mean + std * torch.randn(mean.shape, generator=generator)
        noise = torch.randn(mean.shape, generator=generator)
        if self.fixed:  # evenly spread: the loss depends on t far more than on anything else
            timesteps = ((torch.arange(batch) + 0.5) * total / batch).long()
        else:
            r, s = torch.rand(batch), self.task.settings.timestep_shift
            shifted = s * r / (1 + (s - 1) * r)  # rounding may give 1
            timesteps = (shifted * total).long().clamp(max=total - 1)
        extra = {"noise": noise, "timesteps": timesteps}
        if self.task.num_labels is not None:
            extra["semantic"] = one_hot(batchdata["label"], self.task.num_labels)
        if self.task.prior is not None:
            size = [side * downsampling(self.ldm.autoencoder) for side in mean.shape[2:]]
            hint = self.task.prior.hint(batchdata["uncertainty"]).reshape(-1, *[1] * (mean.ndim - 1))
            if self.task.hint_noise and not self.fixed:
                hint = hint + self.task.hint_noise * torch.randn(hint.shape)
            extra["uncertainty"] = hint.expand(-1, 1, *size)
        if any(self.task.left_out) and not self.fixed:
            for name, share in zip(("semantic_seen", "uncertainty_seen"), self.task.left_out, strict=True):
                extra[name] = (torch.rand(batch) >= share).float()
        if "context" in batchdata:
            extra["context"] = self.drop_prompts(batchdata["context"], generator)
        extra = {key: value.to(device, non_blocking=non_blocking) for key, value in extra.items()}
        latents = (z * self.ldm.scale_factor).to(device, non_blocking=non_blocking)
        return latents, self.target(latents, extra["noise"], extra["timesteps"]), (), extra

    def drop_prompts(self, context: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Put the empty prompt in the place of some."""
        if self.prompt_dropout == 0:
            return context
        if self.null_context is None:
            raise ValueError(_NO_NULL.format(self.prompt_dropout))
        dropped = torch.rand(len(context), generator=generator) < self.prompt_dropout
        return torch.where(dropped.reshape(-1, 1, 1), self.null_context.to(context), context)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network is to predict."""
        scheduler: Any = self.ldm.train_scheduler
        if scheduler.prediction_type == "epsilon":
            return noise
        if scheduler.prediction_type == "v_prediction":
            return scheduler.get_velocity(latents, noise, timesteps)
        raise ValueError(
            f"prediction_type is '{scheduler.prediction_type}'; expected 'epsilon' or 'v_prediction' for training."
        )


class NoisePredictionInferer(Inferer):
    """Predict the noise in a noised latent with the network being trained; CUDA graphs are for its steps alone."""

    def __init__(self, task: DiffusionTask, validating: bool = False) -> None:
        self.task, self.precision = task, task.settings.precision
        graphs = task.settings.cuda_graphs and not validating
        self.run = TrainingGraphs(self.predict) if graphs else self.predict

    def __call__(  # type: ignore[override]
        self, latents: Tensor, network: nn.Module, noise: Tensor, timesteps: Tensor, **conditions: Any
    ) -> Tensor:
        """Noise prediction, float32, of the latents' shape."""
        noisy = self.task.ldm.add_noise(latents, noise, timesteps)
        with torch.autocast(**autocast_settings(latents.device, self.precision)):
            prediction = self.run(noisy, network, timesteps, conditions)
        return prediction.float()

    def predict(self, noisy: Tensor, network: nn.Module, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        """The U-Net by itself."""
        return network(noisy, timesteps, context=conditions.get("context"))


class JointInferer(NoisePredictionInferer):
    """Predict the noise with a :class:`JointNetwork`; label map and uncertainty of some images are left out."""

    def predict(self, noisy: Tensor, network: nn.Module, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        """U-Net and both controls."""
        seen = tuple(conditions.get(f"{name}_seen", 1.0) for name in ("semantic", "uncertainty"))
        label_map, hint = conditions["semantic"], conditions["uncertainty"]
        return network(noisy, timesteps, label_map, hint, seen, conditions.get("context"))


class ControlNetInferer(NoisePredictionInferer):
    """Predict the noise with a frozen U-Net and the ControlNet being trained, Eqs. (2) and (5).

    On top of a frozen ControlNet (``task.base``) its residuals are added: the compositional form, where the
    Semantic-ControlNet learns what the label map adds to the uncertainty.
    """

    def __init__(self, task: DiffusionTask, validating: bool = False) -> None:
        super().__init__(task, validating)
        for network in (task.ldm.unet, task.base):  # frozen, but part of every step
            if network is not None:
                to_train(network, next(network.parameters()).device)

    def predict(self, noisy: Tensor, network: nn.Module, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        """U-Net plus the ControlNet's residuals (plus the frozen one's)."""
        context = conditions.get("context")
        controls = control(network, 1.0, conditions[str(self.task.condition)], noisy, timesteps, context)
        if self.task.base is not None:
            with torch.no_grad():
                controls += control(self.task.base, 1.0, conditions["uncertainty"], noisy, timesteps, context)
        return controlled(self.task.ldm.unet, controls, noisy, timesteps, context)
