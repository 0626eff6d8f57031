"""What a trained segmentation network says about image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from unicorn_monai.images.transforms import read_image
from unicorn_monai.system.networks import require_finite

BATCH = 16  # images at a time


def image_batches(paths: Sequence[str], num_channels: int, device: torch.device, size: int = BATCH) -> Iterator[Tensor]:
    """Images of files, a batch at a time: (up to ``size``, channels, rows, columns) float in [0, 1]."""
    for start in range(0, len(paths), size):
        yield torch.stack([read_image(path, num_channels) for path in paths[start : start + size]]).to(device)


@torch.no_grad()
def predict_logits(
    network: nn.Module, paths: Sequence[str], device: torch.device, num_channels: int
) -> Iterator[Tensor]:
    """Logits of a segmentation network for image files, a batch at a time: (up to 16, labels, rows, columns) float."""
    for images in image_batches(paths, num_channels, device):
        yield require_finite("The output of the segmentation network", network(images).float().cpu())


def predict_labels(network: nn.Module, paths: Sequence[str], device: torch.device, num_channels: int) -> Tensor:
    """Label maps of a segmentation network for image files: (images, rows, columns) uint8, a tenth of the memory."""
    batches = predict_logits(network, paths, device, num_channels)
    return torch.cat([logits.argmax(dim=1).to(torch.uint8) for logits in batches])
