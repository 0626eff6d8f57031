"""Sheets of samples and reconstructions for the eye, during a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets import AutoencoderKL
from torch import Tensor

from unicorn_monai.images.pictures import evenly
from unicorn_monai.synthesis.generator import Generator
from unicorn_monai.synthesis.requests import Requests


class SampleSheet:
    """Images for a sheet during training, always from the same noise."""

    def __init__(self, generator: Generator, requests: Requests) -> None:
        self.generator, self.requests = generator, requests

    def __call__(self) -> Tensor:
        """(rows, columns, channels, height, width)."""
        networks = self.generator.unet, self.generator.semantic, self.generator.uncertainty
        network_modes = [(n, n.training) for n in networks if n is not None]
        try:
            for network, _ in network_modes:
                network.eval()
            return _as_sheet(self.generator(self.requests[:]))
        finally:
            for network, training in network_modes:
                network.train(training)


class ReconstructionSheet:
    """Images of a data set above their reconstructions.

    Args:
        autoencoder: the network.
        dataset: gives "image".
        count: images, evenly spread over the data set.
    """

    def __init__(self, autoencoder: AutoencoderKL, dataset: Sequence[dict[str, Any]], count: int = 8) -> None:
        self.autoencoder, self.dataset, self.count = autoencoder, dataset, count

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """(2, columns, channels, height, width)."""
        images = torch.stack([self.dataset[i]["image"] for i in evenly(len(self.dataset), self.count)])
        reconstructed = self.autoencoder.reconstruct(images.to(next(self.autoencoder.parameters()).device))
        return torch.stack([images, reconstructed.cpu().float()])


def _as_sheet(images: Tensor, columns: int = 8) -> Tensor:
    columns = min(columns, len(images))
    missing = -len(images) % columns
    return torch.cat([images, images.new_ones(missing, *images.shape[1:])]).unflatten(0, (-1, columns))
