"""Do the probabilities of a segmentation network mean what they say?

    ECE = sum_b n_b / N |accuracy_b - confidence_b|      expected calibration error, Guo et al., ICML 2017
    NLL = - mean of log p_y                              negative log-likelihood, in nats

over the labelled pixels; bin b of 15 holds the n_b pixels whose largest probability lies in ((b - 1) / 15, b / 15],
confidence_b is the mean of these probabilities, accuracy_b the share of the pixels whose most probable label is true.
What is kept is small: three numbers for each bin, two for each image.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from unicorn_monai.images.files import IGNORE_LABEL

BINS = 15


class Calibration:
    """Counts of both measures, gathered over batches of images; pixels labelled 255 do not count."""

    def __init__(self) -> None:
        self.bins = torch.zeros(BINS, 3, dtype=torch.float64)  # [pixels, sum of confidences, hits] of each
        self.losses: list[list[float]] = []  # of each image [sum of -log p_y, labelled pixels]

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Add a batch: logits (images, labels, rows, columns) and true label maps (images, rows, columns), integer."""
        if label.shape != logits[:, 0].shape:
            raise ValueError(
                f"Predictions have shape {tuple(logits[:, 0].shape)}, label maps {tuple(label.shape)}; match them."
            )
        labelled = label != IGNORE_LABEL
        log_p = logits.float().log_softmax(dim=1)
        of_truth = log_p.gather(1, label.where(labelled, 0).long()[:, None])[:, 0].double()
        sums = (-of_truth * labelled).flatten(1).sum(dim=1), labelled.flatten(1).sum(dim=1).double()
        self.losses += torch.stack(sums, dim=1).tolist()
        top, seen = log_p.max(dim=1)
        confidence, hit = top[labelled].double().exp(), (seen == label)[labelled].double()
        at = (torch.ceil(confidence * BINS).long() - 1).clamp(0, BINS - 1)
        each = torch.stack([torch.ones_like(confidence), confidence, hit], dim=1)
        self.bins.index_add_(0, at, each)


def expected_calibration_error(bins: ArrayLike) -> float:
    """ECE, 0 to 1, of the counts of each bin, (bins, 3): [pixels, sum of confidences, hits]; NaN without a pixel."""
    pixels, confidences, hits = np.asarray(bins, dtype=np.float64).T
    total = pixels.sum()
    return float(np.abs(hits - confidences).sum() / total) if total else float("nan")
