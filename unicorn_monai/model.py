"""The trained method as one callable: label maps and uncertainties in, images out.

    model = UnIACorN.from_run("runs/demo")
    images = model(label_maps, uncertainty=[0.05, 0.22], seeds=[0, 1])

The uncertainty u, in [0, 1], is what the image is to be for a network that was trained on the labelled domain: its mean
normalised entropy (Eq. 4), or, of the mode `joint`, what the acquisition says that separates the devices best.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from unicorn_monai.bundle.installation import drawing
from unicorn_monai.bundle.references import from_bundle
from unicorn_monai.experiment.settings import bundle_places, settings_of
from unicorn_monai.images.files import IGNORE_LABEL
from unicorn_monai.latent_diffusion import LatentDiffusion
from unicorn_monai.synthesis.generator import Generator
from unicorn_monai.synthesis.requests import Request
from unicorn_monai.system.files import PathLike

BATCH = 16  # images made at a time


class UnIACorN:
    """A latent diffusion model with both controls."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    @property
    def ldm(self) -> LatentDiffusion:
        """The latent diffusion model."""
        return self.generator.ldm

    @property
    def image_size(self) -> tuple[int, ...]:
        """(rows, columns) of images and label maps."""
        return self.ldm.image_size

    @classmethod
    def from_run(cls, run: PathLike, device: torch.device | str | None = None) -> UnIACorN:
        """That of a finished run, which samples as the run did in its first mode.

        Args:
            run: its folder.
            device: "cpu", "cuda:0", ...; the first GPU by default.

        Raises:
            ValueError: the run is not finished, or holds bundles that are not this package's.
        """
        folder = Path(run).resolve()
        settings, chosen = settings_of(folder)
        mode, bundles = settings.main, folder / "bundles"
        own = bundle_places(bundles, settings) | settings.sampling(mode)
        own["uncertainty_weight"] = settings.weight_used(mode, chosen)
        return cls.from_bundles(bundles, device, **own)

    @classmethod
    def from_bundles(cls, bundles: PathLike, device: torch.device | str | None = None, **settings: Any) -> UnIACorN:
        """That of trained bundles beside each other, put together by ``configs/inference.json`` of the one that draws.

        Args:
            bundles: folder that holds "joint" (for the ``mode`` "joint") or "synthesis", and what it refers to.
            device: as of :meth:`from_run`.
            **settings: entries of that configuration, e.g. ``guidance=[3.0, 1.0]``.

        Raises:
            ValueError: a bundle or its weights are missing, or do not belong together.
        """
        own = settings | ({} if device is None else {"device": str(device)})
        there = [name for name in ("joint", "synthesis") if (Path(bundles) / name / "configs").is_dir()]
        if "mode" not in settings and len(there) > 1:
            raise ValueError(
                f"'{bundles}' holds the bundles {there}; give the mode that is to draw, e.g. mode='joint'."
            )
        name = drawing(settings["mode"]) if "mode" in settings else (there or ["joint"])[0]
        return cls(from_bundle(Path(bundles) / name, "generator", settings=own))

    def __call__(
        self,
        label_maps: ArrayLike | Tensor,
        uncertainty: float | Sequence[float] | None = None,
        seeds: Sequence[int] | None = None,
        prompts: str | Sequence[str] | None = None,
        weight: float | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Images (n, channels, rows, columns), float32 in [0, 1], on the CPU.

        Args:
            label_maps: (n, rows, columns) whole numbers, the labels of the data set; 255 is left open.
            uncertainty: u of every image, or one for all, in [0, 1], as the run measured it (``acquisition`` of the
                prior); drawn from the prior by default.
            seeds: of the noise, one an image; 0, 1, ... by default.
            prompts: words, for a model that was trained with some; its template's by default.
            weight: of the uncertainty; that of the run by default.
            steps: denoising steps; those of the bundle by default.

        Raises:
            ValueError: numbers of entries, sizes, labels or uncertainties that do not fit, each named with its value.
        """
        maps = self._checked(torch.as_tensor(label_maps))
        n = len(maps)
        seeds = range(n) if seeds is None else seeds
        prior = self.generator.prior
        if uncertainty is None and prior is not None:
            uncertainty = [float(prior.sample([seed])[0]) for seed in seeds]
        wanted = (
            [uncertainty] * n
            if uncertainty is None or isinstance(uncertainty, int | float | np.number)
            else uncertainty
        )
        words = [prompts] * n if prompts is None or isinstance(prompts, str) else prompts
        for name, values in (("seeds", seeds), ("uncertainty", wanted), ("prompts", words)):
            if len(values) != n:
                raise ValueError(f"{name} has {len(values)} entries for {n} label maps; expected one each.")
        if wrong := [u for u in wanted if u is not None and not 0 <= u <= 1]:
            raise ValueError(f"uncertainty is {wrong[0]}; expected u of Eq. 4, from 0 to 1.")
        requests = [
            Request(i, int(seed), uncertainty=u, prompt=self._prompt(told))
            for i, (seed, u, told) in enumerate(zip(seeds, wanted, words, strict=True))
        ]
        batches = [slice(start, start + BATCH) for start in range(0, n, BATCH)]
        return torch.cat([self.generator(requests[batch], maps[batch], weight, steps).cpu() for batch in batches])

    def _checked(self, maps: Tensor) -> Tensor:
        """Label maps (n, 1, rows, columns)."""
        if maps.is_floating_point() or maps.is_complex() or maps.dtype == torch.bool or maps.ndim != 3:
            raise ValueError(
                f"label_maps is {tuple(maps.shape)} of {maps.dtype}; expected whole numbers (n, rows, columns)."
            )
        if tuple(maps.shape[1:]) != self.image_size or len(maps) == 0:
            raise ValueError(
                f"label_maps is {tuple(maps.shape)}; expected (n, {', '.join(map(str, self.image_size))}), the size of "
                "this model's images, and at least one."
            )
        labels, known = maps[maps != IGNORE_LABEL], self.generator.num_labels
        if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < known):
            raise ValueError(
                f"label_maps holds labels from {int(labels.min())} to {int(labels.max())}; expected 0 to {known - 1}, "
                f"and {IGNORE_LABEL} for what is left open."
            )
        return maps[:, None].long()

    def _prompt(self, told: str | None) -> str | None:
        text = self.ldm.text
        if text is None and told is not None:
            raise ValueError(f"prompts is '{told}', but this model was trained without words. Leave them out.")
        return told if told is not None or text is None else text.template({})
