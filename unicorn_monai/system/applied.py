"""A network that is ready to be used: its weights' file, and how and where it is applied to images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class AppliedNetwork:
    """What it takes to apply a network to a batch.

    Args:
        network: its weights loaded.
        weights: file of these weights; what is stored with them is kept as provenance.
        inferer: ``(images, network) -> output``; MONAI's sliding window where images do not fit into memory.
        device: where to run.
    """

    network: nn.Module
    weights: str | os.PathLike[str]
    inferer: Callable[[Tensor, nn.Module], Tensor]
    device: torch.device | str = "cpu"

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        """Images (channels, rows, columns) of one size -> the network's output of their batch."""
        return self.inferer(torch.stack(list(images)).to(self.device), self.network)
