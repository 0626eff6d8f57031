"""Which uncertainties does the unlabelled domain have, and how is one told to a ControlNet?

The prior is a Gaussian with the mean and standard deviation of the image uncertainty u (Eq. 4) over the UNLABELLED
images, truncated to [0, 1]. The hint of the Uncertainty-ControlNet is (Eq. 5)

    h(u) = (u - offset) / scale

with offset 0 and scale 1 in the paper. As u lives in a few percent of [0, 1], such a hint is almost constant and was
ignored in our trials; standardised over both domains (``zscore``) it is followed. Uncertainties belong to the
segmentation network that gave them, so its sha256 is kept and another network's statistics are refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from unicorn_monai.datasets import PathLike, write_json

SCALINGS = ("zscore", "paper")
_STREAM = 0x756E6963  # keeps the draws apart from other uses of the same seed


@dataclass(frozen=True)
class UncertaintyPrior:
    """Truncated Gaussian of the unlabelled domain's uncertainties, and the scaling of the hint.

    Args:
        mean: mean of u over the unlabelled images, in [0, 1].
        std: standard deviation of the same.
        scaling: name of the scaling of the hint, "zscore" or "paper".
        offset: subtracted from u.
        scale: u - offset is divided by it.
        segmentation_sha256: sha256 of the weights of the segmentation network that measured u.
    """

    mean: float
    std: float
    scaling: str
    offset: float
    scale: float
    segmentation_sha256: str

    @classmethod
    def fit(
        cls, labeled: Tensor, unlabeled: Tensor, segmentation_sha256: str, scaling: str = "zscore"
    ) -> UncertaintyPrior:
        """Fit to the measured uncertainties of both domains, each (images,) in [0, 1]."""
        for name, values in {"labelled": labeled, "unlabelled": unlabeled}.items():
            if values.numel() < 2 or not torch.isfinite(values).all() or values.min() < 0 or values.max() > 1:
                raise ValueError(
                    f"Uncertainties of the {name} domain: {values.numel()} values; expected at least 2, finite and in "
                    "[0, 1]. Run the 'uncertainty' configuration of retinal_unet on this data set."
                )
        if scaling not in SCALINGS:
            raise ValueError(f"Unknown scaling '{scaling}' of the hint; expected one of {list(SCALINGS)}.")
        both = torch.cat([labeled, unlabeled]).double()
        offset, scale = (both.mean().item(), both.std().item()) if scaling == "zscore" else (0.0, 1.0)
        if scale == 0.0:
            raise ValueError("All images have the same uncertainty, so it cannot steer anything; check the data sets.")
        unlabeled = unlabeled.double()
        return cls(unlabeled.mean().item(), unlabeled.std().item(), scaling, offset, scale, segmentation_sha256)

    def hint(self, uncertainty: Tensor) -> Tensor:
        """What the Uncertainty-ControlNet is shown for an uncertainty: same shape, (u - offset) / scale."""
        return (uncertainty - self.offset) / self.scale

    def sample(self, seeds: Sequence[int]) -> Tensor:
        """Draw one uncertainty for each seed, in [0, 1]: shape (len(seeds),).

        The truncated Gaussian is drawn by the inverse of its distribution function, so each draw costs one uniform
        number and depends on its own seed only. Its stream is not the one of the latent's noise with the same seed.
        """
        generators = [torch.Generator().manual_seed(int(seed) ^ _STREAM) for seed in seeds]
        uniform = torch.tensor([torch.rand((), dtype=torch.float64, generator=g).item() for g in generators]).double()
        standard = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
        low, high = standard.cdf((torch.tensor([0.0, 1.0]).double() - self.mean) / max(self.std, 1e-12))
        z = standard.icdf((low + uniform * (high - low)).clamp(1e-12, 1 - 1e-12))
        return (self.mean + self.std * z).clamp(0.0, 1.0).float()

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
            prior = cls(**json.loads(Path(path).read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"'{path}' is no uncertainty prior ({error}). Fit the prior again.") from error
        if segmentation_sha256 is not None and prior.segmentation_sha256 != segmentation_sha256:
            raise ValueError(
                f"'{path}' was measured with the segmentation weights {prior.segmentation_sha256[:12]}..., expected "
                f"{segmentation_sha256[:12]}...; uncertainties of two networks are not comparable. Fit the prior again."
            )
        return prior
