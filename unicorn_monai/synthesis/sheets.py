"""Sheets of samples for the eye, during a training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unicorn_monai.diffusion.task import DiffusionTask
from unicorn_monai.synthesis.generator import Generator
from unicorn_monai.synthesis.requests import Requests
from unicorn_monai.system.files import PathLike
from unicorn_monai.training.handlers import SampleImages

RISING = (0.02, 0.05, 0.08, 0.11, 0.14, 0.17, 0.2, 0.23)  # uncertainties of a sheet of samples


@dataclass
class SampleSheet:
    """Images for a sheet during training, always from the same noise."""

    generator: Generator
    requests: Requests

    def __call__(self) -> Tensor:
        """(rows, columns, channels, height, width)."""
        inferer = self.generator.inferer
        networks = inferer.ldm.unet, inferer.semantic, inferer.uncertainty
        network_modes = [(n, n.training) for n in networks if n is not None]
        try:
            for network, _ in network_modes:
                network.eval()
            return as_sheet(self.generator(self.requests[:]))
        finally:
            for network, training in network_modes:
                network.train(training)


def samples_of(task: DiffusionTask, network: nn.Module, label_dir: PathLike | None = None) -> SampleImages:
    """The sheets of samples of a training, drawn with its averaged network.

    They show eight validation label maps of ``label_dir``, or rising uncertainties, or have no condition.
    """
    settings, text = task.settings, task.ldm.text
    uncertainty = RISING if task.condition == "uncertainty" else task.prior
    requests = Requests(
        len(RISING),
        settings.seed,
        label_dir,
        "training" if label_dir is None else "validation",
        uncertainty,
        template=None if text is None else text.template,
        subdomains=None if text is None else text.subdomains,
    )
    generator = Generator(task.inferer(network), task.prior, task.num_labels or 1, settings.num_inference_steps)
    folder = Path(settings.output_dir) / task.samples
    return SampleImages(SampleSheet(generator, requests), folder, settings.sample_interval)


def as_sheet(images: Tensor) -> Tensor:
    """Images in rows of up to eight, (rows, columns, channels, height, width); white where there are none."""
    columns = min(8, len(images))
    missing = -len(images) % columns
    return torch.cat([images, images.new_ones(missing, *images.shape[1:])]).unflatten(0, (-1, columns))
