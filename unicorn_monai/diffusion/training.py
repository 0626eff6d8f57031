"""Training glue: what MONAI's engines lack for a KL autoencoder, a latent diffusion model and its ControlNets.

A noise predictor is trained on   || eps - f(x_t, t, c) ||^2,   x_t = sqrt(a_t) z + sqrt(1 - a_t) eps   (Eq. 1), or,
where the scheduler's ``prediction_type`` says so, on the velocity v = sqrt(a_t) eps - sqrt(1 - a_t) z (Salimans and Ho
2022), which tells the same but is well conditioned at high noise, so a short training suffices for the large
structures. MONAI's ``SupervisedTrainer`` does it, given the two parts below: a ``prepare_batch`` (latents, noise,
timesteps, conditions) and an inferer (one noise prediction).
"""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor, nn

from unicorn_monai.fusion import control, controlled
from unicorn_monai.images.transforms import one_hot
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.system.cuda_graphs import TrainingGraphs
from unicorn_monai.system.networks import require, to_train
from unicorn_monai.training.steps import _checked

_NO_NULL = "prompt_dropout is {}, but there is no null_context to take a prompt's place. Give it, or set it to 0."


class LatentPrepareBatch:
    """From a batch of a ``LatentDataset`` to (latents, noise, (), {timesteps, noise, conditions}).

    Args:
        scale_factor: the latents are multiplied by it.
        num_train_timesteps: T; timesteps are uniform in 0..T-1.
        num_labels: one-hot the label maps under "semantic".
        prior: turns the uncertainties into hints under "uncertainty", constant images at image resolution.
        image_size: (rows, columns) of the hint.
        fixed: the same noise and timesteps for a batch at every call, so that validation losses can be compared.
        scheduler: its ``prediction_type`` decides the target, noise or velocity; the noise without one.
        timestep_shift: s > 1 trains more at high noise, where the layout is decided: t / T = s r / (1 + (s - 1) r) with
            r uniform (Esser et al. 2024, Eq. 23); 1 is uniform.
        null_context: embedding of the empty prompt, (1, tokens, dimensions), which takes the place of dropped prompts.
        prompt_dropout: share of the prompts dropped, if there are any; by default half of them for the
            Uncertainty-ControlNet (hints without label maps), whose part the words would play otherwise, else none.
    """

    def __init__(
        self,
        scale_factor: float,
        num_train_timesteps: int = 1000,
        num_labels: int | None = None,
        prior: UncertaintyPrior | None = None,
        image_size: tuple[int, int] | None = None,
        fixed: bool = False,
        scheduler: Scheduler | None = None,
        timestep_shift: float = 1.0,
        null_context: Tensor | None = None,
        prompt_dropout: float | None = None,
    ) -> None:
        require(timestep_shift > 0, f"timestep_shift is {timestep_shift}; expected above 0, 1 for uniform timesteps.")
        self.scheduler, self.timestep_shift = scheduler, timestep_shift
        self.scale_factor, self.num_train_timesteps = scale_factor, num_train_timesteps
        self.num_labels, self.prior, self.image_size, self.fixed = num_labels, prior, image_size, fixed
        share = (0.5 if prior is not None and num_labels is None else 0.0) if prompt_dropout is None else prompt_dropout
        require(0 <= share <= 1, f"prompt_dropout is {share}; expected a share in [0, 1].")
        require(not prompt_dropout or null_context is not None, _NO_NULL.format(prompt_dropout))
        self.null_context, self.prompt_dropout = null_context, share

    def __call__(
        self, batchdata: dict[str, Tensor], device: torch.device | None = None, non_blocking: bool = False, **_: Any
    ) -> tuple[Tensor, Tensor, tuple, dict[str, Tensor]]:
        """See the class; everything is on ``device``."""
        mean, std = batchdata["mean"], batchdata["std"]
        batch = len(mean)
        generator = torch.Generator().manual_seed(int(batchdata["index"][0])) if self.fixed else None
        z = mean + std * torch.randn(mean.shape, generator=generator)
        noise = torch.randn(mean.shape, generator=generator)
        if self.fixed:  # evenly spread: the loss depends on t far more than on anything else
            timesteps = ((torch.arange(batch) + 0.5) * self.num_train_timesteps / batch).long()
        else:
            r, s = torch.rand(batch), self.timestep_shift
            shifted = s * r / (1 + (s - 1) * r)  # rounding may give 1
            timesteps = (shifted * self.num_train_timesteps).long().clamp(max=self.num_train_timesteps - 1)
        extra = {"noise": noise, "timesteps": timesteps}
        if self.num_labels is not None:
            extra["semantic"] = one_hot(batchdata["label"], self.num_labels)
        if self.prior is not None:
            hint = self.prior.hint(batchdata["uncertainty"]).reshape(-1, 1, 1, 1)
            extra["uncertainty"] = hint.expand(-1, 1, *(self.image_size or batchdata["label"].shape[-2:]))
        if "context" in batchdata:
            extra["context"] = self.drop_prompts(batchdata["context"], generator)
        extra = {key: value.to(device, non_blocking=non_blocking) for key, value in extra.items()}
        latents = (z * self.scale_factor).to(device, non_blocking=non_blocking)
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
        if self.scheduler is None or self.scheduler.prediction_type == "epsilon":
            return noise
        if self.scheduler.prediction_type == "v_prediction":
            return self.scheduler.get_velocity(latents, noise, timesteps)
        raise ValueError(
            f"prediction_type is '{self.scheduler.prediction_type}'; expected 'epsilon' or 'v_prediction' for training."
        )


class NoisePredictionInferer:
    """Predict the noise in a noised latent with the network being trained.

    Args:
        scheduler: gives x_t.
        precision: "float32", or "bfloat16" for automatic mixed precision.
        cuda_graphs: record both passes on the GPU and replay them (:class:`TrainingGraphs`).
    """

    def __init__(self, scheduler: Scheduler, precision: str = "float32", cuda_graphs: bool = False) -> None:
        self.scheduler, self.precision = scheduler, _checked(precision)
        self.run = TrainingGraphs(self.predict) if cuda_graphs else self.predict

    def __call__(
        self, latents: Tensor, network: nn.Module, noise: Tensor, timesteps: Tensor, **conditions: Any
    ) -> Tensor:
        """Noise prediction, float32, of the latents' shape."""
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        with torch.autocast(latents.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            prediction = self.run(noisy, network, timesteps, conditions)
        return prediction.float()

    def predict(self, noisy: Tensor, network: nn.Module, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        """The U-Net by itself."""
        return network(noisy, timesteps, context=conditions.get("context"))


class ControlNetInferer(NoisePredictionInferer):
    """Predict the noise with a frozen U-Net and the ControlNet being trained, Eqs. (2) and (5).

    Args:
        scheduler: gives x_t.
        unet: frozen.
        condition: which condition the ControlNet sees, "semantic" or "uncertainty".
        base: a frozen ControlNet whose residuals are added: the compositional form, where the Semantic-ControlNet
            learns what the label map adds to the uncertainty.
        base_condition: which condition ``base`` sees.
        precision: "float32" or "bfloat16".
        cuda_graphs: as there.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        unet: nn.Module,
        condition: str,
        base: nn.Module | None = None,
        base_condition: str = "uncertainty",
        precision: str = "float32",
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__(scheduler, precision, cuda_graphs)
        for network in (unet, base):  # frozen, but part of every step
            if network is not None:
                to_train(network, next(network.parameters()).device)
        self.unet, self.condition, self.base, self.base_condition = unet, condition, base, base_condition

    def predict(self, noisy: Tensor, network: nn.Module, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        """U-Net plus the ControlNet's residuals (plus the frozen one's)."""
        context = conditions.get("context")
        controls = control(network, 1.0, conditions[self.condition], noisy, timesteps, context)
        if self.base is not None:
            with torch.no_grad():
                controls += control(self.base, 1.0, conditions[self.base_condition], noisy, timesteps, context)
        return controlled(self.unet, controls, noisy, timesteps, context)


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error in float32, whatever precision the network ran in."""
    return torch.nn.functional.mse_loss(prediction.float(), target.float())
