"""Which uncertainties does the unlabelled domain have, and how is one told to a control?

The prior is a Gaussian with the mean and standard deviation of the image uncertainty u (Eq. 4) over the UNLABELLED
images, truncated to [0, 1] (``gaussian``), or their own distribution (``empirical``, in ``joint`` mode). The hint of
the uncertainty's control is (Eq. 5)

    h(u) = (u - offset) / scale,      or      h(u) = sqrt(12) (F(u) - 1/2)      (``quantile``)

with offset 0 and scale 1 in the paper (``paper``). As u lives in a few percent of [0, 1], such a hint is almost
constant and was ignored in short trainings; standardised over both domains (``zscore``) it is followed. F is the
distribution function over both domains: h is then uniform, of zero mean and unit variance. Uncertainties belong to the
segmentation network that gave them, so its sha256 is kept and another network's statistics are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unicorn_monai.system.files import PathLike, write_json
from unicorn_monai.system.records import read_prior

SCALINGS = ("zscore", "paper", "quantile")
DISTRIBUTIONS = ("gaussian", "empirical")
_LEVELS = np.linspace(0, 1, 65)  # of the quantiles that are kept
_STREAM = 0x756E6963  # keeps the draws apart from other uses of the same seed


@dataclass(frozen=True)
class UncertaintyPrior:
    """Distribution of the unlabelled domain's uncertainties, and the scaling of the hint."""

    mean: float  # of u over the unlabelled images, in [0, 1]
    std: float  # of the same
    scaling: str  # of the hint, one of ``SCALINGS``
    offset: float  # subtracted from u
    scale: float  # u - offset is divided by it
    segmentation_sha256: str  # of the weights of the segmentation network that measured u
    distribution: str = "gaussian"  # (truncated) or "empirical"
    quantiles: tuple[float, ...] = ()  # of u over the unlabelled images, for ``empirical``
    both_quantiles: tuple[float, ...] = ()  # of u over both domains, for the scaling ``quantile``
    acquisition: str = "entropy"  # what was measured per pixel (``segmentation/acquisition.py``), "entropy" is Eq. 3
    aggregation: str = "mean"  # how an image's pixels were summed up, "mean" is Eq. 4
    samples: int = 8  # predictions with dropout, for the acquisition ``mc_dropout``
    ensemble: dict[str, str] = field(default_factory=dict)  # its further networks' weights, file -> sha256

    @classmethod
    def fit(
        cls, labeled: Tensor, unlabeled: Tensor, segmentation_sha256: str, scaling: str = "zscore", **settings: Any
    ) -> UncertaintyPrior:
        """Fit to the measured uncertainties of both domains, each (images,) in [0, 1]; ``settings``: further fields."""
        for name, values in {"labelled": labeled, "unlabelled": unlabeled}.items():
            if values.numel() < 2 or not torch.isfinite(values).all() or values.min() < 0 or values.max() > 1:
                raise ValueError(
                    f"Uncertainties of the {name} domain: {values.numel()} values; expected at least 2, finite and in "
                    "[0, 1]. Run the 'uncertainty' configuration of retinal_unet on this data set."
                )
        distribution = settings.get("distribution", "gaussian")
        for name, value, known in (("scaling", scaling, SCALINGS), ("distribution", distribution, DISTRIBUTIONS)):
            if value not in known:
                raise ValueError(f"Unknown {name} '{value}' of the uncertainty; expected one of {list(known)}.")
        both = torch.cat([labeled, unlabeled]).double()
        offset, scale = (both.mean().item(), both.std().item()) if scaling == "zscore" else (0.0, 1.0)
        if scale == 0.0 or (scaling == "quantile" and both.min() == both.max()):
            raise ValueError("All images have the same uncertainty, so it cannot steer anything; check the data sets.")
        if distribution == "empirical":
            settings["quantiles"] = tuple(np.quantile(unlabeled.double().numpy(), _LEVELS).tolist())
        if scaling == "quantile":
            settings["both_quantiles"] = tuple(np.quantile(both.numpy(), _LEVELS).tolist())
        mean, std = unlabeled.double().mean().item(), unlabeled.double().std().item()
        return cls(mean, std, scaling, offset, scale, segmentation_sha256, **settings)

    def farthest(self, uncertainty: float) -> float:
        """The end of the unlabelled images' range, but for some 2 % of them, that is farther from an uncertainty."""
        low, high = self.mean - 2 * self.std, self.mean + 2 * self.std
        if self.distribution == "empirical":
            low, high = self.quantiles[1], self.quantiles[-2]
        ends = (min(max(end, 0.0), 1.0) for end in (low, high))
        return max(ends, key=lambda end: abs(end - uncertainty))

    def hint(self, uncertainty: Tensor) -> Tensor:
        """What the uncertainty's control is shown for an uncertainty: same shape."""
        if self.scaling == "quantile":
            rank = np.interp(uncertainty.cpu().numpy(), self.both_quantiles, _LEVELS)
            return torch.as_tensor(12**0.5 * (rank - 0.5)).to(uncertainty)
        return (uncertainty - self.offset) / self.scale

    def sample(self, seeds: Sequence[int]) -> Tensor:
        """Draw one uncertainty for each seed, (seeds,) in [0, 1], which depends on this seed only.

        The inverse of the distribution function is applied to one uniform number.
        """
        uniform = _uniform(seeds)
        if self.distribution == "empirical":
            return torch.from_numpy(np.interp(uniform.numpy(), _LEVELS, self.quantiles)).float()
        standard = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
        low, high = standard.cdf((torch.tensor([0.0, 1.0]).double() - self.mean) / max(self.std, 1e-12))
        z = standard.icdf((low + uniform * (high - low)).clamp(1e-12, 1 - 1e-12))
        return (self.mean + self.std * z).clamp(0.0, 1.0).float()

    def rejected(self, seeds: Sequence[int]) -> int:
        """How many of these draws the Gaussian without truncation would have put outside [0, 1]."""
        if self.distribution == "empirical" or not len(seeds):
            return 0
        plain = self.mean + self.std * torch.special.ndtri(_uniform(seeds))
        return int(((plain < 0) | (plain > 1)).sum())

    def save(self, path: PathLike) -> None:
        """Write as JSON, atomically; the folder is made."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: PathLike, segmentation_sha256: str | None = None) -> UncertaintyPrior:
        """Read from JSON; with ``segmentation_sha256``, refuse the statistics of another segmentation network."""
        if not Path(path).is_file():
            raise ValueError(f"No uncertainty prior at '{path}'. Run the 'uncertainty' configuration of retinal_unet.")
        try:
            prior = cls(**read_prior(path))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"'{path}' is no uncertainty prior ({error}). Fit the prior again.") from error
        if segmentation_sha256 is not None and prior.segmentation_sha256 != segmentation_sha256:
            raise ValueError(
                f"'{path}' was measured with the segmentation weights {prior.segmentation_sha256[:12]}..., expected "
                f"{segmentation_sha256[:12]}...; uncertainties of two networks are not comparable. Fit the prior again."
            )
        return prior


def _uniform(seeds: Sequence[int]) -> Tensor:
    generators = [torch.Generator().manual_seed(int(seed) ^ _STREAM) for seed in seeds]
    return torch.tensor([torch.rand((), dtype=torch.float64, generator=g).item() for g in generators]).double()
