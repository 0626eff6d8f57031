"""What the training of a segmentation network has beside MONAI's parts: mixed precision, and sheets to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import Tensor, nn

from unicorn_monai.cuda_graphs import TrainingGraphs
from unicorn_monai.distributed import bare
from unicorn_monai.handlers import evenly
from unicorn_monai.palette import paint, palette
from unicorn_monai.training import autocast_settings
from unicorn_monai.uncertainty import normalised_entropy


class SegmentationInferer(SimpleInferer):
    """The network under automatic mixed precision; the loss sees float32.

    Args:
        precision: "float32", or "bfloat16", which needs no scaling of gradients.
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
