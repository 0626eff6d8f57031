"""Batch normalisation adapted to the unlabelled domain: its means and variances there, all else as it was (AdaBN).

    y = g (x - m) / sqrt(v + e) + b,      m = mean_i m_i,   v = mean_i v_i   over the batches i of unlabelled images

g and b are the trained network's. Li et al., Revisiting batch normalization for practical domain adaptation, 2017.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unicorn_monai.images.transforms import collate
from unicorn_monai.system.files import PathLike
from unicorn_monai.system.weights import RESERVED, read_metadata, save_weights

JUDGED = ("mean_iou", "epoch")  # what is told of trained weights and not true of these


def adapt_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Estimate the means and variances of all batch normalisations anew, as averages over batches of images.

    Every layer's come from images that the layers before normalise by those of the batch, as in training; dropout
    stays off. A network without batch normalisation is refused.
    """
    layers = [part for part in network.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    if not layers:
        raise ValueError(
            f"The network ({type(network).__name__}) has no batch normalisation with running means and variances; "
            "expected some, since nothing else is adapted. Train one with network_def::norm 'batch'."
        )
    momenta = [layer.momentum for layer in layers]
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # PyTorch's word for the average over all batches
        layer.train()
    with torch.no_grad():
        for batch in batches:
            network(batch)
    network.eval()
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


class StatisticsAdapter:
    """Adapt a network to the images of a data set and write its weights, with what they come from.

    Args:
        network: images (batch, channels, rows, columns) -> logits, with the weights.
        weights: their file; its sha256 is kept as ``adapted_from``.
        dataset: gives "image".
        output: file of the new weights.
        batch_size: images at a time, at most; all batches are as large, but for one image.
        seed: of the order of the images, so that no batch holds the scans of one subject alone.
        device: of the network.
    """

    def __init__(
        self,
        network: nn.Module,
        weights: PathLike,
        dataset: Sequence[dict[Hashable, Any]],
        output: PathLike,
        batch_size: int = 16,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.network, self.weights, self.dataset, self.output = network, weights, dataset, output
        self.batch_size, self.seed, self.device = batch_size, seed, torch.device(device)

    def _batches(self) -> Iterable[Tensor]:
        order = np.random.default_rng(self.seed).permutation(len(self.dataset))
        for chosen in np.array_split(order, -(-len(order) // self.batch_size)):
            yield collate([self.dataset[int(i)] for i in chosen])["image"].to(self.device)

    def run(self) -> None:
        """Adapt and write."""
        before = read_metadata(self.weights)
        kept = {key: value for key, value in before.items() if key not in (*RESERVED, *JUDGED)}
        adapt_statistics(self.network, self._batches())
        own = {"method": "batch_norm", "adapted_from": before["sha256"], "images": len(self.dataset)}
        save_weights(self.network, self.output, **kept | own)
