"""Samplers whose steps and timesteps agree, behind MONAI's scheduler interface.

MONAI's ``DDIMScheduler`` visits ``linspace(T - 1, 0, n)`` but steps as if the next timestep were ``t - T // n``: that
leaves noise in the image where n does not divide T (300 of 1000 steps: 6 % too much spread), and shifts the mean at few
steps (10 steps: by 17 % of the standard deviation). It has no solver of higher order. The schedulers here step to the
timestep that really comes next, at any 1 <= n <= T; how many steps they need is tried (``sampler_trial.py``), and
``tests/test_schedulers.py`` pins the mean and standard deviation that they reproduce on a Gaussian.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, PNDMScheduler
from torch import Tensor

from unicorn_monai.sampler_trial import sampling_error

logger = logging.getLogger("unicorn_monai")

Sampler = DDPMScheduler | DDIMScheduler | PNDMScheduler  # MONAI's base class has neither set_timesteps nor step
_FEW = (*range(1, 21), 25, 30, 40, 50, 100, 200, 250, 500)  # numbers of steps that are offered instead of wrong ones


class DDIM(DDIMScheduler):
    """Denoising diffusion implicit models (Song et al. 2021, Eq. 12) at any number of steps; deterministic.

    Args:
        num_train_timesteps: T.
        clip_sample: clamp the predicted x0; latents are not confined to [-1, 1].
        timestep_spacing: "linspace", or "leading": multiples of T // n, as Stable Diffusion is sampled.
        coarse: let numbers of steps through at which the sampler is wrong, with a warning: images to try the machinery.
        **kwargs: as ``monai.networks.schedulers.DDIMScheduler`` (schedule, beta_start, beta_end, prediction_type, ...).
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        clip_sample: bool = False,
        timestep_spacing: str = "linspace",
        coarse: bool = False,
        **kwargs,
    ) -> None:
        if timestep_spacing not in ("linspace", "leading"):
            raise ValueError(f"Unknown timestep_spacing '{timestep_spacing}'; expected 'linspace' or 'leading'.")
        self.timestep_spacing, self.coarse = timestep_spacing, coarse
        super().__init__(num_train_timesteps=num_train_timesteps, clip_sample=clip_sample, **kwargs)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the ``timesteps``, the last one first."""
        super().set_timesteps(num_inference_steps, device)
        if self.timestep_spacing == "leading":
            ratio = self.num_train_timesteps // num_inference_steps
            multiples = torch.arange(num_inference_steps - 1, -1, -1, device=device) * ratio
            self.timesteps = multiples + min(self.steps_offset, self.num_train_timesteps - 1 - int(multiples[0]))

    def step(self, model_output: Tensor, timestep: int, sample: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """From ``sample`` at ``timestep`` to the next entry of ``timesteps``: (next sample, predicted x0)."""
        alpha_next = self._next_alpha(timestep)
        x0, noise = self._x0_and_noise(model_output, sample, timestep)
        return alpha_next.sqrt() * x0 + (1 - alpha_next).sqrt() * noise, x0

    def _next_alpha(self, timestep: int) -> Tensor:
        following = self.timesteps[self.timesteps < int(timestep)]
        return self.alphas_cumprod[int(following[0])] if len(following) else self.final_alpha_cumprod

    def _x0_and_noise(self, output: Tensor, sample: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
        x0, noise = x0_and_noise(self, output, sample, torch.as_tensor(int(timestep)))
        return (x0.clamp(*self.clip_sample_values) if self.clip_sample else x0), noise


class DPMSolverPlusPlus(DDIM):
    """DPM-Solver++(2M), the data-prediction multistep solver of Lu et al. 2022 (Algorithm 2).

    With alpha, sigma the signal and noise scale, lambda = log(alpha / sigma) and h = lambda' - lambda to the next step:

        D  = x0 + (x0 - x0_before) / (2 r),   r = h_before / h
        x' = sigma' / sigma x - alpha' (exp(-h) - 1) D

    The first step has no predecessor and the last goes to sigma' = 0: both are of first order (D = x0), which is DDIM.
    The timesteps are uniform in lambda, as in the paper: with those of DDIM, uniform in t, the extrapolation to the
    long last steps overshoots (10 to 20 steps on a Gaussian: 15 to 18 % too much spread, against 2 % or less).
    """

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the timesteps, uniform in lambda, and forget the previous run."""
        super().set_timesteps(num_inference_steps, device)
        self._before: tuple[Tensor, Tensor] | None = None  # (predicted x0, lambda) of the step before
        log_snr = self.alphas_cumprod.double().logit().cpu() / 2
        wanted = torch.linspace(log_snr[-1], log_snr[self.steps_offset], num_inference_steps, dtype=torch.float64)
        nearest = (log_snr - wanted[:, None]).abs().argmin(dim=1)
        # Near t = 0 lambda moves fast and several entries share a timestep: push them apart, then back below T.
        left = torch.arange(num_inference_steps - 1, -1, -1)
        apart = (nearest - left).flip(0).cummax(0).values.flip(0) + left
        highest = self.num_train_timesteps - 1 - torch.arange(num_inference_steps)
        self.timesteps = torch.minimum(apart, highest).to(device)

    def step(self, model_output: Tensor, timestep: int, sample: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """From ``sample`` at ``timestep`` to the next entry of ``timesteps``: (next sample, predicted x0)."""
        x0, _ = self._x0_and_noise(model_output, sample, timestep)
        return self._extrapolate(x0, timestep, sample), x0

    def _extrapolate(self, x0: Tensor, timestep: int, sample: Tensor) -> Tensor:
        """The next sample, from this step's predicted x0 and the one before."""
        alpha, alpha_next = self.alphas_cumprod[int(timestep)], self._next_alpha(timestep)
        if alpha_next >= 1:
            return x0
        log_snr = alpha.logit() / 2
        h = alpha_next.logit() / 2 - log_snr
        estimate = x0
        if self._before is not None:
            x0_before, log_snr_before = self._before
            estimate = x0 + (x0 - x0_before) * (0.5 * h / (log_snr - log_snr_before))
        self._before = (x0, log_snr)
        ratio = ((1 - alpha_next) / (1 - alpha)).sqrt()
        return ratio * sample - alpha_next.sqrt() * torch.expm1(-h) * estimate


class UniPC(DPMSolverPlusPlus):
    """UniPC of order 2 (Zhao et al. 2023, Algorithms 1 and 2 with B2): what DPM-Solver++(2M) predicts is corrected.

    For the coming step the network is asked at the predicted x' anyway. Its answer x0' is a third node of the step that
    led there, which is taken once more, exact now for an x0 that is quadratic in lambda:

        x' = sigma' / sigma x - alpha' (exp(-h) - 1) (x0 + a (x0 - x0_before) / r + b (x0' - x0))
        a = (2 c - 1) / (h (1 + r)),   b = c - a,   c = 1 / (1 - exp(-h)) - 1 / h

    The first step has no predecessor: a = 0, b = 1/2. The last one ends at the predicted x0, with nothing to correct.
    """

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the timesteps, uniform in lambda, and forget the previous run."""
        super().set_timesteps(num_inference_steps, device)
        self._start: tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None] | None = None

    def step(self, model_output: Tensor, timestep: int, sample: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Correct ``sample``, then go on to the next entry of ``timesteps``: (next sample, predicted x0)."""
        alpha = self.alphas_cumprod[int(timestep)]
        x0, _ = self._x0_and_noise(model_output, sample, timestep)
        if self._start is not None:
            sample = self._correct(x0, alpha, *self._start)
        self._start = sample, alpha, x0, self._before
        return self._extrapolate(x0, timestep, sample), x0

    @staticmethod
    def _correct(
        x0_next: Tensor, alpha_next: Tensor, sample: Tensor, alpha: Tensor, x0: Tensor, before: tuple | None
    ) -> Tensor:
        """The step from ``sample`` at ``alpha`` to ``alpha_next`` again, with the x0 predicted there."""
        log_snr, log_snr_next = alpha.double().logit() / 2, alpha_next.double().logit() / 2
        h = log_snr_next - log_snr
        estimate, b = x0, 0.5
        if before is not None:
            x0_before, log_snr_before = before
            r = (log_snr - log_snr_before) / h
            c = -1 / torch.expm1(-h) - 1 / h  # a small difference of large numbers: in double precision
            a = (2 * c - 1) / (h * (1 + r))
            estimate, b = x0 + (x0 - x0_before) * float(a / r), float(c - a)
        ratio = ((1 - alpha_next) / (1 - alpha)).sqrt()
        return ratio * sample - alpha_next.sqrt() * float(torch.expm1(-h)) * (estimate + (x0_next - x0) * b)


def x0_and_noise(scheduler: Any, output: Tensor, sample: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
    """What a network's output says about the clean latent and about the noise of x_t; t one for all or one per image.

    The ``prediction_type`` of the scheduler tells what the output is, "epsilon", "v_prediction" or "sample".
    """
    alpha = scheduler.alphas_cumprod[timestep.to(scheduler.alphas_cumprod.device)]
    if timestep.ndim:
        alpha = alpha.to(sample.device).reshape(-1, *[1] * (sample.ndim - 1))
    signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
    if scheduler.prediction_type == "epsilon":
        return (sample - sigma * output) / signal, output
    if scheduler.prediction_type == "v_prediction":
        return signal * sample - sigma * output, signal * output + sigma * sample
    return output, (sample - signal * output) / sigma


def prepare_timesteps(scheduler: Sampler, num_inference_steps: int) -> list[int]:
    """Set the number of steps and return the timesteps, refusing what would sample a wrong distribution.

    Every scheduler is tried (``sampler_trial.py``), ours, MONAI's and anybody's. One of ours that is told ``coarse`` is
    let through with a warning.

    Raises:
        ValueError: ``num_inference_steps`` outside 1..T, or what the scheduler cannot do right.
    """
    name = type(scheduler).__name__
    if not isinstance(scheduler, Sampler):
        raise ValueError(f"The scheduler is {name}; expected DDPM, DDIM or PNDM of MONAI, or one of {__name__}.")
    total = scheduler.num_train_timesteps
    if not 1 <= num_inference_steps <= total:
        raise ValueError(f"num_inference_steps is {num_inference_steps}; expected 1 to {total} (num_train_timesteps).")
    if isinstance(scheduler, DDPMScheduler) and num_inference_steps != total:
        raise ValueError(
            f"DDPMScheduler with {num_inference_steps} of {total} steps yields noise, not images. "
            f"Use {total} steps, or unicorn_monai.schedulers.UniPC for fewer."
        )
    if type(scheduler) is DDIMScheduler and total % num_inference_steps:
        raise ValueError(
            f"MONAI's DDIMScheduler is wrong for {num_inference_steps} steps, which do not divide {total}. "
            "Use unicorn_monai.schedulers.DDIM."
        )
    if isinstance(scheduler, PNDMScheduler) and not scheduler.skip_prk_steps:
        raise ValueError("PNDMScheduler has skip_prk_steps False, which yields wrong images; expected True.")
    if getattr(scheduler, "clip_sample", False):
        raise ValueError(f"{name} has clip_sample true; expected false: latents, unlike images, leave [-1, 1].")
    scheduler.set_timesteps(num_inference_steps)
    timesteps = [int(t) for t in scheduler.timesteps]
    if max(timesteps) >= total:
        raise ValueError(
            f"{name} with {num_inference_steps} steps and steps_offset {scheduler.steps_offset} begins at timestep "
            f"{max(timesteps)}; the last one is {total - 1}. Take fewer steps or steps_offset 0."
        )
    error = sampling_error(scheduler, num_inference_steps)
    if not error.tolerable:
        fault = f"{name} with {num_inference_steps} steps is wrong: with exact predictions of known data the {error}."
        if not getattr(scheduler, "coarse", False):
            raise ValueError(f"{fault} {_remedy(scheduler, num_inference_steps)}")
        _tell(f"{fault} Such images try the machinery only ('coarse' is true).")
    return timesteps


def _remedy(scheduler: Sampler, num_inference_steps: int) -> str:
    """The smallest larger numbers of steps at which this scheduler and UniPC are right."""
    total = scheduler.num_train_timesteps
    best = UniPC(total)
    best.alphas_cumprod, best.prediction_type = scheduler.alphas_cumprod, scheduler.prediction_type

    def smallest(candidate: Sampler, least: int) -> int | None:
        divisors = type(candidate) is DDIMScheduler
        numbers = (n for n in _FEW if least <= n <= total and not (divisors and total % n))
        return next((n for n in numbers if sampling_error(candidate, n).tolerable), None)

    own = smallest(scheduler, num_inference_steps + 1)
    other = None if isinstance(scheduler, UniPC) else smallest(best, 1)
    only = " steps" if type(scheduler) is DDIMScheduler else " steps or more"  # not every larger number divides T
    advice = [f"{own}{only}"] if own else []
    advice += [f"unicorn_monai.schedulers.UniPC with {other} or more"] if other else []
    return f"Take {', or '.join(advice) or f'all {total} steps'}."


@functools.cache
def _tell(warning: str) -> None:  # once for every text: each batch of images prepares its timesteps
    logger.warning(warning)


def seeded_step(
    scheduler: Sampler, output: Tensor, timestep: int, sample: Tensor, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor | None]:
    """One step, where a stochastic scheduler draws from each image's own generator: (next sample, predicted x0).

    The generators are the CPU's, so that an image is the same on any device and in any batch.
    """
    if not isinstance(scheduler, DDPMScheduler):
        return scheduler.step(output, timestep, sample)
    images = zip(output.cpu().split(1), sample.cpu().split(1), generators, strict=True)
    parts = [scheduler.step(noise, timestep, x, generator=generator) for noise, x, generator in images]
    return torch.cat([x for x, _ in parts]).to(sample.device), torch.cat([x0 for _, x0 in parts]).to(sample.device)
