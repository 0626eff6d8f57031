"""Label maps that a trained segmentation network predicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from unicorn_monai.images.transforms import read_image
from unicorn_monai.system.networks import require_finite


@torch.no_grad()
def predict_labels(
    network: nn.Module, paths: Sequence[str], device: torch.device, num_channels: int, batch: int = 16
) -> Tensor:
    """Label maps of a segmentation network for image files: (images, rows, columns) uint8, a tenth of the memory."""
    parts = _predictions(network, paths, device, num_channels, batch)
    return torch.cat([part.argmax(dim=1).to(torch.uint8) for part in parts])


def _predictions(
    network: nn.Module, paths: Sequence[str], device: torch.device, num_channels: int, batch: int
) -> Iterator[Tensor]:
    for start in range(0, len(paths), batch):
        images = torch.stack([read_image(path, num_channels) for path in paths[start : start + batch]])
        yield require_finite("The output of the segmentation network", network(images.to(device)).float().cpu())
