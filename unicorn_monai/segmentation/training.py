"""What the training of a segmentation network has beside MONAI's parts: loss, mixed precision, sheets to look at.

    loss = Dice(softmax(z), y) + ce_weight * CE(z, y)

over the pixels with a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.inferers import SimpleInferer
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional

from unicorn_monai.images.files import IGNORE_LABEL
from unicorn_monai.images.pictures import evenly, paint, palette
from unicorn_monai.images.transforms import one_hot
from unicorn_monai.system.cuda_graphs import TrainingGraphs
from unicorn_monai.system.distributed import bare
from unicorn_monai.training.steps import autocast_settings
from unicorn_monai.uncertainty import normalised_entropy


class SegmentationInferer(SimpleInferer):
    """The network under automatic mixed precision; the loss sees float32.

    Args:
        precision: "float32", or "bfloat16", which needs no scaling of gradients, or "auto", that where it is fast.
        cuda_graphs: record both passes on the GPU and replay them (:class:`TrainingGraphs`).
    """

    def __init__(self, precision: str = "float32", cuda_graphs: bool = False) -> None:
        super().__init__()
        self.precision = precision
        self.run = TrainingGraphs(super().__call__) if cuda_graphs else super().__call__
        autocast_settings("cpu", precision)  # refuses another one now, not in the first iteration

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Logits (batch, labels, *spatial), float32."""
        with torch.autocast(**autocast_settings(inputs.device, self.precision)):
            return self.run(inputs, network, *args, **kwargs).float()


class SegmentationSheet:
    """Images of a data set above their label maps, what the network makes of them, and its normalised entropy.

    Args:
        network: images (batch, channels, rows, columns) -> logits.
        dataset: gives "image" (1 or 3 channels, [0, 1]) and "label" of one size.
        num_labels: of the label maps.
        count: images, evenly spread over the data set.
    """

    def __init__(self, network: nn.Module, dataset: Sequence[dict[str, Any]], num_labels: int, count: int = 8) -> None:
        self.network, self.dataset, self.num_labels, self.count = network, dataset, num_labels, count

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """(4, columns, 3, height, width) in [0, 1]; white is an entropy of 1."""
        network = bare(self.network)  # of several processes only this one comes here
        items = [self.dataset[i] for i in evenly(len(self.dataset), self.count)]
        images, labels = (torch.stack([item[key] for item in items]) for key in ("image", "label"))
        training = network.training
        try:
            logits = network.eval()(images.to(next(network.parameters()).device)).float().cpu()
        finally:
            network.train(training)
        colours = palette({"labels": range(self.num_labels)}, 3)
        maps = [paint(m.long(), colours) for m in (labels, logits.argmax(dim=1, keepdim=True))]
        grey = [picture.expand(-1, 3, -1, -1) for picture in (images.float(), normalised_entropy(logits))]
        return torch.stack([grey[0], *maps, grey[1]])


def cross_entropy(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over the labelled pixels, 0 without any; where a weight is given, times that of each.

    Args:
        logits: (batch, labels, *spatial).
        label: (batch, *spatial) of integers, 255 to ignore.
        weight: (batch, *spatial).
    """
    how = "sum" if weight is None else "none"
    entropy = functional.cross_entropy(logits, label.long(), ignore_index=IGNORE_LABEL, reduction=how)
    total = entropy if weight is None else (entropy * weight).sum()
    return total / (label != IGNORE_LABEL).sum().clamp(min=1)


class SegmentationLoss(nn.Module):
    """Dice loss (the paper's), optionally with cross-entropy; pixels labelled 255 do not count."""

    def __init__(self, ce_weight: float = 0.0) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.dice = DiceLoss(batch=True)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Args: logits (batch, labels, *spatial), label (batch, 1, *spatial) of integers. Returns a scalar."""
        probability = logits.softmax(dim=1) * (label != IGNORE_LABEL)
        loss = self.dice(probability, one_hot(label, logits.shape[1]))
        if self.ce_weight:
            loss = loss + self.ce_weight * cross_entropy(logits, label.squeeze(1))
        return loss
