"""Scores of a segmentation: intersection over union and Dice from the confusion matrix pooled over a test set.

    IoU_k = TP_k / (TP_k + FP_k + FN_k),      Dice_k = 2 TP_k / (2 TP_k + FP_k + FN_k)

Pixels labelled 255 do not count. A label that neither occurs nor is predicted has no IoU (NaN) and does not enter the
mean. ``mean_iou`` is over all labels, ``mean_iou_layers`` leaves out the first and the last (vitreous, choroid).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor, nn

from unicorn_monai.bundle import definition, from_bundle
from unicorn_monai.datasets import IGNORE_LABEL, PathLike, datalist
from unicorn_monai.networks import require_finite
from unicorn_monai.transforms import LoadPixelsd, read_image


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
            raise ValueError(
                "The network's output holds NaN or infinite values; its weights or the images are damaged."
            )
        self.confusion += confusion_matrix(logits.argmax(dim=1), label, self.num_labels)

    @sync_all_reduce("confusion:SUM")
    def compute(self) -> Any:
        """The score."""
        return self.confusion.tolist() if self.key == "confusion" else scores(self.confusion)[self.key]


@torch.no_grad()
def predict(
    network: nn.Module, paths: Sequence[str], device: torch.device, num_channels: int, batch: int = 32
) -> Tensor:
    """Logits of a segmentation network for image files: (images, labels, rows, columns), on the CPU."""
    parts = []
    for start in range(0, len(paths), batch):
        images = torch.stack([read_image(path, num_channels) for path in paths[start : start + batch]])
        parts.append(network(images.to(device)).float().cpu())
    return require_finite("The output of the segmentation network", torch.cat(parts))


def score_images(
    bundle_root: PathLike, weights: PathLike, dataset_dir: PathLike, split: str, seed: int, device: torch.device
) -> dict[str, Any]:
    """Scores of a segmentation network on one split, with a 95 % interval of the mean IoU.

    The interval is the percentile bootstrap over SUBJECTS (2,000 resamples): B-scans of one eye are not independent.

    Args:
        bundle_root: the retinal_unet bundle that defines the network.
        weights: its weights.
        dataset_dir: data set with labels.
        split: usually "test".
        seed: of the resampling.
        device: where to run.
    """
    items = datalist(dataset_dir, split, ("image", "label"))
    network = from_bundle(bundle_root, weights=str(Path(weights).resolve()), device=device)
    num_labels, num_channels = definition(bundle_root, "num_labels"), definition(bundle_root, "num_channels")
    load = LoadPixelsd(["label"], num_labels=num_labels)
    prediction = predict(network, [item["image"] for item in items], device, num_channels).argmax(dim=1)
    subjects: dict[str, Tensor] = {}
    for item, map_ in zip(items, prediction, strict=True):
        counts = confusion_matrix(map_, load.read_label(item["label"])[0], num_labels)
        subjects[item["subject"]] = subjects.get(item["subject"], torch.zeros_like(counts)) + counts
    matrices = torch.stack(list(subjects.values())).numpy()
    draws = np.random.default_rng(seed).integers(0, len(matrices), (2000, len(matrices)))
    means = [scores(matrices[draw].sum(0))["mean_iou"] for draw in draws]
    return scores(matrices.sum(0)) | {
        "ci95": [float(q) for q in np.percentile(means, [2.5, 97.5])] if len(matrices) > 1 else None,
        "n_test": len(items),
        "n_subjects": len(matrices),
    }
