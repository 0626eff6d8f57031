"""Scores of a segmentation: intersection over union and Dice from the confusion matrix pooled over a test set.

    IoU_k = TP_k / (TP_k + FP_k + FN_k),      Dice_k = 2 TP_k / (2 TP_k + FP_k + FN_k)

Pixels labelled 255 do not count. A label that neither occurs nor is predicted has no IoU (NaN) and does not enter the
mean. ``mean_iou`` is over all labels, ``mean_iou_layers`` leaves out the first and the last (vitreous, choroid).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

from unicorn_monai.datasets import IGNORE_LABEL


def confusion_matrix(prediction: Tensor, label: Tensor, num_labels: int) -> Tensor:
    """Counts of (true label, predicted label): (num_labels, num_labels) int64; both inputs integer, of equal shape."""
    prediction, label = prediction.flatten().long(), label.flatten().long()
    valid = label != IGNORE_LABEL
    counts = torch.bincount(label[valid] * num_labels + prediction[valid], minlength=num_labels**2)
    return counts.reshape(num_labels, num_labels).cpu()


def scores(confusion: Tensor | np.ndarray) -> dict[str, Any]:
    """IoU and Dice from a pooled confusion matrix (true, predicted).

    Returns:
        "iou" and "dice" per label (NaN where the label is absent), "mean_iou", "mean_iou_layers", "mean_dice".
    """
    matrix = np.asarray(confusion, dtype=np.float64)
    if matrix.sum() == 0:
        raise ValueError("No labelled pixel to score: every label is 255 (ignore), or the test set is empty.")
    hit, union = np.diag(matrix), matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, dice = hit / union, 2 * hit / (union + hit)
    layers = iou[1:-1] if len(iou) > 3 else iou
    return {
        "iou": iou.tolist(),
        "dice": dice.tolist(),
        "mean_iou": float(np.nanmean(iou)),
        "mean_iou_layers": float(np.nanmean(layers)) if np.isfinite(layers).any() else float("nan"),
        "mean_dice": float(np.nanmean(dice)),
    }


class PooledIoU(Metric):
    """Ignite metric: mean IoU of the pooled confusion matrix; the evaluator must not decollate.

    Args:
        num_labels: number of labels.
        key: which entry of :func:`scores` to give, or "confusion" for the matrix itself.
    """

    def __init__(self, num_labels: int, key: str = "mean_iou") -> None:
        self.num_labels, self.key = num_labels, key
        super().__init__(output_transform=lambda output: (output["pred"], output["label"]))

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget everything."""
        self.confusion = torch.zeros(self.num_labels, self.num_labels, dtype=torch.int64)

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Args: logits (batch, labels, *spatial) and label (batch, 1, *spatial)."""
        logits, label = output
        if not torch.isfinite(logits).all():
            raise ValueError("The network's output holds NaN or infinite values; its weights or the images are damaged.")
        self.confusion += confusion_matrix(logits.argmax(dim=1), label, self.num_labels)

    @sync_all_reduce("confusion:SUM")
    def compute(self) -> Any:
        """The score."""
        return self.confusion.tolist() if self.key == "confusion" else scores(self.confusion)[self.key]
