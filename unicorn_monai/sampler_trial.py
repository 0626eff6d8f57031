"""How far a sampler is off, where the right answer is known: one Gaussian and two mixtures of two, one number each.

With a = alphas_cumprod[t], data sum_k w_k N(m_k, s_k^2) are sum_k w_k N(a^(1/2) m_k, v_k) at t, v_k = a s_k^2 + 1 - a,
and the best prediction of x0 follows, component by component, from Bayes' rule:

    E[x0 | x_t] = sum_k r_k (m_k + a^(1/2) s_k^2 / v_k (x_t - a^(1/2) m_k)),   r_k ~ w_k N(x_t; a^(1/2) m_k, v_k)

In one dimension the probability flow keeps the order of points, so it takes each quantile of x_T to the same quantile
of the data. A sampler begins at those of x_T; what the noise schedule leaves of the signal is not counted against it.
"""

from __future__ import annotations

import copy
import hashlib
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from scipy.special import expit, ndtr
from torch import Tensor

# A mean far from 0, which shows steps that do not fit the timesteps; two bumps; a rare bump beside a frequent one.
# (component, distribution, 1)
WEIGHTS = np.array([[0.5, 0.3, 0.9], [0.5, 0.7, 0.1]])[..., None]
MEANS = np.array([[1.5, -1.2, -0.3], [1.5, 0.8, 2.0]])[..., None]
SPREADS = np.array([[0.5, 0.2, 0.3], [0.5, 0.4, 0.3]])[..., None]
POINTS, DRAWS = 100, 50  # quantiles; of each so many draws where a sampler draws

# Spread: as far as sampled latents may be from the training's (`report.checks.LATENT_STD`): with a sampler
# that is further off no network could be right. Distance: the same (a spread that is off by e alone is a distance of
# 0.8 e); it also sees points between the bumps and a wrong share of each. Mean: half of that.
BOUNDS = MEAN_ERROR, SPREAD_ERROR, DISTANCE = 0.05, 0.1, 0.1
_STATE = ("training", "coarse", "num_inference_steps", "counter")  # of a scheduler; decides no sample
_found: dict[tuple[type, int, str], SamplingError] = {}


class SamplingError(NamedTuple):
    """The largest errors over the distributions, in standard deviations of each; NaN is not tolerable."""

    mean: float
    spread: float
    distance: float  # of the samples to the quantiles (Wasserstein-1)

    @property
    def tolerable(self) -> bool:
        """Whether all are within the bounds."""
        return abs(self.mean) <= MEAN_ERROR and abs(self.spread) <= SPREAD_ERROR and self.distance <= DISTANCE

    def __str__(self) -> str:
        return (
            f"standard deviation is off by {abs(self.spread):.0%} (up to {SPREAD_ERROR:.0%} is right), the mean by "
            f"{abs(self.mean):.0%} of it ({MEAN_ERROR:.0%}) and a sample by {self.distance:.0%} ({DISTANCE:.0%})"
        )


def options_of(scheduler: Any) -> dict[str, Any]:
    """What decides a scheduler's samples beside its type and number of steps; its noise levels as their sha256.

    Of one of somebody's own, whose attributes may mean anything, the noise levels only.
    """
    plain = vars(scheduler).items() if _is_known(scheduler) else ()
    options = {name: v for name, v in plain if name not in _STATE and isinstance(v, bool | int | float | str)}
    options["final_alpha"] = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
    return options | {"alphas": hashlib.sha256(scheduler.alphas_cumprod.cpu().numpy().tobytes()).hexdigest()}


def sampling_error(scheduler: Any, num_inference_steps: int) -> SamplingError:
    """Errors of a scheduler of MONAI's kind that is given the exact predictions; it is left as it is.

    MONAI's and ours are tried once for all that decides their samples.
    """
    if not _is_known(scheduler):
        return _tried(copy.deepcopy(scheduler), num_inference_steps)
    key = (type(scheduler), num_inference_steps, repr(options_of(scheduler)))
    if key not in _found:
        _found[key] = _tried(copy.deepcopy(scheduler), num_inference_steps)
    return _found[key]


def _is_known(scheduler: Any) -> bool:
    return type(scheduler).__module__.startswith(("monai.", "unicorn_monai."))


@torch.no_grad()
def _tried(scheduler: Any, num_inference_steps: int) -> SamplingError:
    if isinstance(scheduler, DDPMScheduler | DDIMScheduler):
        scheduler.clip_sample = False  # 1.5 is meant to be reached
    scheduler.set_timesteps(num_inference_steps)
    alphas = scheduler.alphas_cumprod.double()
    options: dict[str, Any] = {}
    right, x = quantiles(1.0), torch.from_numpy(quantiles(float(alphas[-1]))).to(alphas.device)
    if isinstance(scheduler, DDPMScheduler):
        options["generator"] = torch.Generator().manual_seed(0)
        right, x = right.repeat(DRAWS, axis=1), x.repeat_interleave(DRAWS, dim=1)
    for t in scheduler.timesteps.tolist():
        x, _ = scheduler.step(exact_output(x, alphas[t], str(scheduler.prediction_type)), t, x, **options)
    found, spread = np.sort(x.cpu().numpy(), axis=1), right.std(axis=1)  # `right` ascends
    return SamplingError(
        mean=_largest((found - right).mean(axis=1) / spread),
        spread=_largest(found.std(axis=1) / spread - 1),
        distance=_largest(np.abs(found - right).mean(axis=1) / spread),
    )


def exact_output(x: Tensor, alpha: Tensor, prediction_type: str) -> Tensor:
    """The best prediction for ``x``, (distribution, point), at a timestep of ``alpha`` = alphas_cumprod[t]."""
    x0 = torch.from_numpy(exact_x0(x.cpu().numpy(), float(alpha))).to(x.device)
    if prediction_type == "sample":
        return x0
    noise = (x - alpha.sqrt() * x0) / (1 - alpha).sqrt()
    return noise if prediction_type == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * x0


def exact_x0(x: np.ndarray, alpha: float) -> np.ndarray:
    """E[x0 | x_t] for ``x``, (distribution, point)."""
    variance = alpha * SPREADS**2 + 1 - alpha
    away = x - alpha**0.5 * MEANS
    odds = np.log(WEIGHTS) - np.log(variance) / 2 - away**2 / (2 * variance)
    first, second = MEANS + alpha**0.5 * SPREADS**2 / variance * away
    return first + expit(odds[1] - odds[0]) * (second - first)


def quantiles(alpha: float) -> np.ndarray:
    """(i + 1/2) / POINTS quantiles of x_t of every distribution; ``alpha`` = 1 for the data."""
    grid = np.linspace(-6, 6, 2001)
    cdf = (WEIGHTS * ndtr((grid - alpha**0.5 * MEANS) / np.sqrt(alpha * SPREADS**2 + 1 - alpha))).sum(axis=0)
    wanted = (np.arange(POINTS) + 0.5) / POINTS
    return np.stack([np.interp(wanted, row, grid) for row in cdf])


def _largest(errors: np.ndarray) -> float:
    """The one furthest from 0, with its sign; NaN if any is."""
    return float(errors[np.abs(errors).argmax()])  # argmax takes NaN for the largest
