"""Training glue: what MONAI's engines lack for a KL autoencoder, a latent diffusion model and its ControlNets.

A noise predictor is trained on   || eps - f(x_t, t, c) ||^2,   x_t = sqrt(a_t) z + sqrt(1 - a_t) eps   (Eq. 1), or,
where the scheduler's ``prediction_type`` says so, on the velocity v = sqrt(a_t) eps - sqrt(1 - a_t) z (Salimans and Ho
2022), which tells the same but is well conditioned at high noise, so a short training suffices for the large
structures. MONAI's ``SupervisedTrainer`` does it, given the two parts below: a ``prepare_batch`` (latents, noise,
timesteps, conditions) and an inferer (one noise prediction).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sized
from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics import Loss
from monai.engines import IterationEvents, Trainer
from monai.networks.nets import AutoencoderKL
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor, nn
from torch.utils.data import RandomSampler

from unicorn_monai.checkpoints import steps_now
from unicorn_monai.cuda_graphs import TrainingGraphs
from unicorn_monai.distributed import bare, without_lone
from unicorn_monai.failures import NotFinite, of_batch
from unicorn_monai.fusion import control, controlled
from unicorn_monai.losses import spectral_distance
from unicorn_monai.networks import require, to_train
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.transforms import one_hot

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


class AutoencoderTrainer(Trainer):
    """Train a KL autoencoder against a patch discriminator.

    Args:
        device: where to train.
        max_epochs: passes over the data.
        train_data_loader: batches with "image".
        network: ``AutoencoderKL``: image -> (reconstruction, mean, std).
        discriminator: ``PatchDiscriminator``.
        optimizer: of the autoencoder.
        discriminator_optimizer: of the discriminator.
        loss_function: ``unicorn_monai.losses.AutoencoderLoss``.
        adversarial_start: iterations before the discriminator takes part.
        precision: "float32" or "bfloat16".
        cuda_graphs: record the autoencoder's passes on the GPU and replay them (:class:`TrainingGraphs`).
        epoch_length: iterations of an epoch; the data loader's length by default.
        train_handlers: Ignite handlers.
    """

    def __init__(
        self,
        device: torch.device,
        max_epochs: int,
        train_data_loader: Iterable,
        network: nn.Module,
        discriminator: nn.Module,
        optimizer: torch.optim.Optimizer,
        discriminator_optimizer: torch.optim.Optimizer,
        loss_function: nn.Module,
        adversarial_start: int = 0,
        precision: str = "float32",
        cuda_graphs: bool = False,
        epoch_length: int | None = None,
        train_handlers: list | None = None,
    ) -> None:
        if isinstance(train_data_loader, Sized) and len(train_data_loader) == 0:
            loader: Any = train_data_loader
            raise ValueError(no_batch(len(loader.dataset), int(loader.batch_size)))
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=epoch_length,
            handlers=train_handlers,
            decollate=False,
        )
        self.network, self.discriminator = network, discriminator
        self.optimizer, self.discriminator_optimizer = optimizer, discriminator_optimizer
        self.loss_function, self.adversarial_start = loss_function, adversarial_start
        self.autocast = autocast_settings(device, precision)
        self.reconstruct = TrainingGraphs(_reconstruct) if cuda_graphs else _reconstruct

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
            terms["discriminator"] = self.loss_function.discriminator(real, fake)  # type: ignore[operator]
            self.discriminator_optimizer.zero_grad()
            terms["discriminator"].backward()
            self.discriminator_optimizer.step()
        return [{key: value.item() for key, value in terms.items()}]  # a list, as MONAI's decollated outputs are


def no_batch(images: int, batch_size: int) -> str:
    """What is wrong with so few training images, and what to do."""
    return (
        f"The autoencoder's training needs {batch_size} training images (batch_size), there are {images}, and with "
        f"iterations_per_epoch null every epoch is one pass over them. Lower batch_size to {max(1, images)}, or give "
        "iterations_per_epoch a number."
    )


def _reconstruct(image: Tensor, network: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    return network(image)


class ReconstructionInferer:
    """Image -> reconstruction from the mean latent, for validation."""

    def __call__(self, images: Tensor, network: AutoencoderKL) -> Tensor:
        """(batch, channels, *spatial)."""
        return network.reconstruct(images)


def reconstruction_metric(spectral_weight: float = 1.0) -> Loss:
    """Ignite metric: mean absolute error plus the weighted spectral term over the validation set; smaller is better."""

    def error(prediction: Tensor, image: Tensor) -> Tensor:
        return (prediction - image).abs().mean() + spectral_weight * spectral_distance(prediction, image)

    return Loss(error, output_transform=lambda output: (output["pred"], output["image"]))


class ClipGradients:
    """Ignite handler: clip the norm of the gradients before every step of the optimizer.

    A gradient that is not finite ends the training before it gets into the weights.

    Args:
        network: whose gradients.
        max_norm: the largest norm allowed.
    """

    def __init__(self, network: nn.Module, max_norm: float = 1.0) -> None:
        self.network, self.max_norm = network, max_norm

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI ``SupervisedTrainer``."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Clip what the coming step will use."""
        if not steps_now(engine):
            return
        scaler: Any = getattr(engine, "scaler", None)
        if scaler is not None:  # its gradients are thousands of times too large until it steps
            scaler.unscale_(engine.optimizer)  # type: ignore[attr-defined]
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        if scaler is None:  # it leaves out the step of a gradient that is not finite
            require_finite_gradient(norm, engine)


def require_finite_gradient(norm: Tensor, engine: Engine) -> None:
    """End the training, by the name of its batch, where the norm of the gradients is NaN or infinite."""
    if not torch.isfinite(norm):
        where = f"iteration {engine.state.iteration}{of_batch(engine)}"
        raise NotFinite(f"The gradient holds NaN or infinite values at {where}. Lower the learning rate.")


def random_order(dataset: Sized, batch_size: int, iterations: int | None = None) -> RandomSampler:
    """Sampler of a shuffled epoch: every item once, or ``iterations`` batches whatever the size of the data set.

    With a fixed number, trainings on data sets of different sizes take the same number of optimizer steps, and no batch
    is smaller than the others. Without, a last batch of one image is left out (:func:`distributed.without_lone`).
    """
    if iterations is not None:
        return RandomSampler(dataset, num_samples=iterations * batch_size)
    return RandomSampler(dataset, num_samples=without_lone(len(dataset), batch_size))


class WarmupCosine(torch.optim.lr_scheduler.LambdaLR):
    """Learning rate: linear warm-up, then half a cosine to a hundredth of the peak; stepped at every iteration.

    Args:
        optimizer: its learning rate is the peak.
        max_epochs: of the training.
        data_loader: its length is the number of iterations in an epoch.
        warmup: share of all iterations.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, max_epochs: int, data_loader: Any, warmup: float = 0.05
    ) -> None:
        total = max(1, max_epochs * len(data_loader))
        ramp = max(1, round(warmup * total))

        def factor(iteration: int) -> float:
            if iteration < ramp:
                return (iteration + 1) / ramp
            return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (iteration - ramp) / max(1, total - ramp))))

        super().__init__(optimizer, factor)


def loss_metric(loss_function: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """Ignite metric: mean of a loss over the validation set; the evaluator must not decollate."""
    return Loss(loss_function, output_transform=lambda output: (output["pred"], output["label"]))


def autocast_settings(device: torch.device | str, precision: str) -> dict[str, Any]:
    """Arguments of ``torch.autocast`` on a device, switched on by "bfloat16"."""
    enabled = _checked(precision) == "bfloat16"
    return {"device_type": torch.device(device).type, "dtype": torch.bfloat16, "enabled": enabled}


def _checked(precision: str) -> str:
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"Unknown precision '{precision}'; expected 'float32' or 'bfloat16'.")
    return precision
