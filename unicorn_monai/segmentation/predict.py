"""Label maps that a trained segmentation network predicts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unicorn_monai.images.transforms import read_image
from unicorn_monai.system.networks import require_finite


@torch.no_grad()
def predict_labels(network: nn.Module, paths: Sequence[str], device: torch.device, num_channels: int) -> Tensor:
    """Label maps of a segmentation network for image files: (images, rows, columns) uint8, a tenth of the memory."""
    parts = []
    for start in range(0, len(paths), 16):
        images = torch.stack([read_image(path, num_channels) for path in paths[start : start + 16]])
        logits = require_finite("The output of the segmentation network", network(images.to(device)).float().cpu())
        parts.append(logits.argmax(dim=1).to(torch.uint8))
    return torch.cat(parts)
