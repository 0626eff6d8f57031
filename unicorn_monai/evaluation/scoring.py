"""Scores of a segmentation on a test set: overlap, calibration, distance of the surfaces, columns out of order.

    IoU_k = TP_k / (TP_k + FP_k + FN_k),      Dice_k = 2 TP_k / (2 TP_k + FP_k + FN_k)

``iou`` is that of the confusion matrix pooled over the test set (the headline), ``per_image`` the mean over images.
``mean_iou`` is over all labels, ``mean_iou_layers`` leaves out the first and the last (vitreous, choroid) where there
are more than these two. Pixels labelled 255 do not count. Absent labels:

- pooled: a label that neither occurs nor is predicted in the whole test set has no score and does not enter a mean;
- per image: a label that neither occurs nor is predicted in an image has no score there (``excluded`` counts these
  pairs); one that is predicted but does not occur scores 0.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from numpy.typing import NDArray
from torch import Tensor

from unicorn_monai.bundle.references import definition, from_bundle
from unicorn_monai.data.items import datalist, require_same_labels
from unicorn_monai.data.layout import label_names, list_folders, read_header
from unicorn_monai.evaluation import bootstrap
from unicorn_monai.evaluation.boundaries import boundary_errors, broken_columns
from unicorn_monai.evaluation.calibration import Calibration, expected_calibration_error
from unicorn_monai.images.files import IGNORE_LABEL
from unicorn_monai.images.transforms import LoadPixelsd
from unicorn_monai.segmentation.predict import predict_logits
from unicorn_monai.system.errors import NotFinite
from unicorn_monai.system.files import PathLike, or_none, read_json, write_json

logger = logging.getLogger("unicorn_monai")

Array = NDArray[np.floating]


def confusion_matrix(prediction: Tensor, label: Tensor, num_labels: int) -> Tensor:
    """Counts of (true label, predicted label): (num_labels, num_labels) int64; both inputs integer, of equal shape."""
    if prediction.numel() != label.numel():
        raise ValueError(f"Prediction has shape {tuple(prediction.shape)}, label map {tuple(label.shape)}; match them.")
    prediction, label = prediction.flatten().long(), label.flatten().long()
    valid = label != IGNORE_LABEL
    prediction, label = prediction[valid], label[valid]
    for name, values in (("prediction", prediction), ("label map", label)):
        if values.numel() and not 0 <= values.min() <= values.max() < num_labels:
            raise ValueError(
                f"The {name} holds values {values.min()} to {values.max()}; expected 0 to {num_labels - 1}"
                f"{'' if name == 'prediction' else f' or {IGNORE_LABEL} (ignore)'}. Check the number of labels."
            )
    counts = torch.bincount(label * num_labels + prediction, minlength=num_labels**2)
    return counts.reshape(num_labels, num_labels).cpu()


def marginals(confusion: Array) -> Array:
    """(..., true, predicted) -> (..., 3, labels): pixels hit, true and predicted of each label."""
    hit = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.stack([hit, confusion.sum(axis=-1), confusion.sum(axis=-2)], axis=-2)


def overlap(confusion: Array) -> dict[str, Array]:
    """IoU, Dice and their means of confusion matrices (..., true, predicted): (..., labels) and (...); NaN = absent."""
    return _overlap(marginals(confusion))


def mean_iou(counts: Array) -> Array:
    """Mean IoU of :func:`marginals` (..., 3, labels), as a function for ``bootstrap``: (...)."""
    return _overlap(counts)["mean_iou"]


def _overlap(counts: Array) -> dict[str, Array]:
    hit, true, seen = np.moveaxis(counts, -2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, dice = hit / (true + seen - hit), 2 * hit / (true + seen)
        layers = iou[..., 1:-1] if iou.shape[-1] > 2 else iou
        return {
            "iou": iou,
            "dice": dice,
            "mean_iou": _mean(iou),
            "mean_iou_layers": _mean(layers),
            "mean_dice": _mean(dice),
        }


def _mean(values: Array, axis: int = -1) -> Array:
    """Mean of what is not NaN; NaN where there is nothing."""
    return np.nansum(values, axis=axis) / np.isfinite(values).sum(axis=axis)


def statistic(key: str) -> bootstrap.Statistic:
    """One of the means of :func:`overlap` as a function of confusion matrices, for ``bootstrap``."""
    return lambda confusion: overlap(confusion)[key]


def scores(confusion: Tensor | NDArray) -> dict[str, Any]:
    """:func:`overlap` of a pooled confusion matrix (true, predicted), as lists and numbers."""
    matrix = np.asarray(confusion, dtype=np.float64)
    if matrix.sum() == 0:
        raise ValueError("No labelled pixel to score: every label is 255 (ignore), or the test set is empty.")
    return {key: value.tolist() for key, value in overlap(matrix).items()}


def per_image(confusion: Array) -> dict[str, Any]:
    """Mean over images of the IoU, from one confusion matrix per image: (images, true, predicted).

    Returns:
        "iou" per label (mean over the images that have it, None if none has), "mean_iou" and "mean_iou_layers" (mean
        over images of the image's mean over its labels), "excluded": pairs of image and label without a score.
    """
    found = overlap(confusion)
    with np.errstate(invalid="ignore"):
        return {
            "iou": or_none(_mean(found["iou"], axis=0)),
            "mean_iou": or_none(float(_mean(found["mean_iou"]))),
            "mean_iou_layers": or_none(float(_mean(found["mean_iou_layers"]))),
            "excluded": int(np.isnan(found["iou"]).sum()),
        }


class PooledIoU(Metric):
    """Ignite metric: mean IoU of the pooled confusion matrix; the evaluator must not decollate.

    Or ``key``, another entry of :func:`scores`, or "confusion" for the matrix itself.
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
            raise NotFinite("The network's output holds NaN or infinite values; its weights or the images are damaged.")
        self.confusion += confusion_matrix(logits.argmax(dim=1), label, self.num_labels)

    @sync_all_reduce("confusion:SUM")
    def compute(self) -> Any:
        """The score."""
        return self.confusion.tolist() if self.key == "confusion" else scores(self.confusion)[self.key]


@dataclass(frozen=True)
class Counts:
    """What is counted in the images of a test set; every score, interval and difference is computed from it.

    There is no ``boundary`` and no ``boundary_p95`` where the data set gives no spacing, and no ``columns`` either
    where labels are no layers; neither ``bins`` nor ``losses`` where only label maps were given, as in older records.
    """

    images: list[str]  # files
    subjects: list[str]  # of each image
    confusion: list[list[list[int]]]  # for each image (true label, predicted label)
    boundary: list[list[list[float]]] | None = None  # per image and surface [sum of |errors| in um, number of columns]
    boundary_p95: list[float | None] | None = None  # per surface the 95th percentile of |errors| of all columns, um
    columns: list[list[int]] | None = None  # per image [those with a missing or crossing layer, annotated ones]
    bins: list[list[float]] | None = None  # of the test set, per bin of confidence [pixels, sum of confidences, hits]
    losses: list[list[float]] | None = None  # per image [sum of -log p of the true label, labelled pixels]

    def of_subjects(self, name: str = "confusion") -> bootstrap.Units:
        """What was counted per subject, or per block of images where subjects are few: input of ``bootstrap``."""
        return bootstrap.by_subject(np.asarray(getattr(self, name), dtype=np.float64), self.subjects, self.images)

    def only(self, table: Mapping[str, str], name: str) -> Counts:
        """The overlap in the images that a table, file -> sub-domain, says are of one; nothing else is kept."""
        here = [i for i, image in enumerate(self.images) if table[image] == name]
        names, whose, confusion = self.images, self.subjects, self.confusion
        return Counts([names[i] for i in here], [whose[i] for i in here], [confusion[i] for i in here])

    def save(self, path: PathLike) -> None:
        """Write as JSON, atomically; the folder is made."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: PathLike) -> Counts:
        """Read what :meth:`save` wrote."""
        try:
            return cls(**read_json(path))
        except TypeError as error:
            raise ValueError(f"'{path}' holds no counts of an evaluation ({error}). Score the network again.") from None


def count(
    items: Sequence[dict[str, Any]],
    prediction: Tensor,
    num_labels: int,
    layered: bool = True,
    truth: Tensor | None = None,
) -> Counts:
    """Compare predicted label maps (images, rows, columns) with those of a data set.

    Items have "image", "label", "subject" and, for micrometres, "spacing_mm" (axial, lateral). ``layered``: labels are
    layers from top to bottom, so that there are surfaces. ``truth``: the label maps, where they were read before.
    """
    if not items or len(items) != len(prediction):
        raise ValueError(f"Got {len(prediction)} predictions for {len(items)} images; expected one for each, some.")
    without = [item["image"] for item in items if not item.get("subject")]
    if without:
        raise ValueError(f"'{without[0]}' has no 'subject' in dataset.json; intervals are over subjects. Name them.")
    truth = true_labels(items, num_labels) if truth is None else truth
    confusion = [confusion_matrix(p, t, num_labels).tolist() for p, t in zip(prediction, truth, strict=True)]
    names = [str(item["image"]) for item in items], [str(item["subject"]) for item in items], confusion
    if not layered or num_labels < 2:
        return Counts(*names)
    maps = prediction.numpy().astype(np.int16), truth.numpy().astype(np.int16)
    broken, annotated = broken_columns(*maps, num_labels)
    columns = np.stack([broken.sum(axis=-1), annotated.sum(axis=-1)], axis=-1).tolist()
    axial_um = [1000 * float(item["spacing_mm"][0]) for item in items if item.get("spacing_mm")]
    if len(axial_um) < len(items):
        return Counts(*names, columns=columns)
    error = boundary_errors(*maps, num_labels) * np.array(axial_um)[:, None, None]
    sums = np.stack([np.nansum(error, axis=-1), np.isfinite(error).sum(axis=-1)], axis=-1)
    finite = [error[:, k][np.isfinite(error[:, k])] for k in range(num_labels - 1)]
    p95 = [float(np.percentile(values, 95)) if values.size else None for values in finite]
    return Counts(*names, sums.tolist(), p95, columns)


def true_labels(items: Sequence[dict[str, Any]], num_labels: int) -> Tensor:
    """The label maps of items, (images, rows, columns), integer; those with another label are refused."""
    load = LoadPixelsd(["label"], num_labels=num_labels)
    return torch.cat([load.read_label(item["label"]) for item in items])


def summarise(counts: Counts, seed: int) -> dict[str, Any]:
    """All scores of a test set, None where there is nothing to compute, with 95 % intervals.

    Returns:
        "iou", "dice", "mean_iou", "mean_iou_layers", "mean_dice" (pooled), "ece", "nll" (see ``calibration.py``),
        "ci95" of the mean IoU, "ci_unit" (what all intervals are over, "subjects" or "image blocks"), "intervals" of
        the other means and of "nll", "per_image", "boundary", "broken_columns", "absent" (labels without a pixel in the
        test set: they have a score of 0 where they are predicted, else none), "n_test", "n_subjects".
    """
    units = counts.of_subjects()
    pooled = units.counts.sum(axis=0)
    result = {key: or_none(value) for key, value in scores(pooled).items()}
    means = ("mean_iou", "mean_iou_layers", "mean_dice")
    intervals = {key: bootstrap.confidence(units, statistic(key), seed) for key in means}
    return result | {
        "ece": None if counts.bins is None else or_none(expected_calibration_error(counts.bins)),
        "nll": None if counts.losses is None else or_none(float(ratio(np.sum(counts.losses, axis=0)))),
        "ci95": intervals.pop("mean_iou"),
        "ci_unit": units.unit,
        "intervals": intervals | _loss_interval(counts, seed),
        "per_image": per_image(np.asarray(counts.confusion, dtype=np.float64)),
        "boundary": _boundary(counts, seed),
        "broken_columns": _broken(counts, seed),
        "absent": np.flatnonzero(pooled.sum(axis=1) == 0).tolist(),
        "n_test": len(counts.images),
        "n_subjects": units.subjects,
    }


def _loss_interval(counts: Counts, seed: int) -> dict[str, list[float] | None]:
    known = counts.losses is not None
    return {"nll": bootstrap.confidence(counts.of_subjects("losses"), ratio, seed) if known else None}


def _boundary(counts: Counts, seed: int) -> dict[str, Any] | None:
    """Errors of each surface in micrometres, the mean over the surfaces and its interval."""
    if counts.boundary is None or counts.boundary_p95 is None:
        return None
    units = counts.of_subjects("boundary")
    pooled = units.counts.sum(axis=0)
    known = [p for p in counts.boundary_p95 if p is not None]
    return {
        "mean_um": or_none(ratio(pooled)),
        "p95_um": counts.boundary_p95,
        "all_mean_um": or_none(mean_ratio(pooled)),
        "all_p95_um": float(np.mean(known)) if known else None,
        "ci95": bootstrap.confidence(units, mean_ratio, seed),
        "ci_unit": units.unit,
    }


def _broken(counts: Counts, seed: int) -> dict[str, Any] | None:
    """Share of the annotated columns with a missing or crossing layer, and its interval."""
    if counts.columns is None:
        return None
    units = counts.of_subjects("columns")
    ends = bootstrap.confidence(units, ratio, seed)
    return {"share": or_none(ratio(units.counts.sum(axis=0))), "ci95": ends, "ci_unit": units.unit}


def ratio(pairs: Array) -> Array:
    """(..., 2) -> sum / number: (...); NaN without any."""
    with np.errstate(invalid="ignore"):
        return pairs[..., 0] / pairs[..., 1]


def mean_ratio(pairs: Array) -> Array:
    """(..., surfaces, 2) -> mean over the surfaces of sum / number: every surface weighs the same."""
    with np.errstate(invalid="ignore"):
        return _mean(ratio(pairs))


def scored_items(
    dataset_dir: PathLike | Sequence[PathLike], split: str | Sequence[str], tell: bool = True
) -> list[dict[str, Any]]:
    """:func:`datalist` of the images that have a label map; how many have none is logged if ``tell``."""
    require_same_labels(list_folders(dataset_dir))
    items = datalist(dataset_dir, split)
    found = [item for item in items if "label" in item]
    if not found:
        raise ValueError(
            f"None of the {len(items)} images of '{split}' of '{dataset_dir}' has a label map, so nothing can be "
            "scored. Use a data set with labels here."
        )
    if tell and len(found) < len(items):
        lacking = len(items) - len(found)
        logger.warning(f"{lacking} of {len(items)} images of '{split}' have no label map and are not scored.")
    return found


class Scorer:
    """A segmentation network, read once, whose predictions are counted on splits of data sets.

    ``bundle_root`` is the retinal_unet bundle that defines the network.
    """

    def __init__(self, bundle_root: PathLike, weights: PathLike, device: torch.device) -> None:
        self.network = from_bundle(bundle_root, weights=str(Path(weights).resolve()), device=device)
        self.num_labels, self.num_channels = (definition(bundle_root, k) for k in ("num_labels", "num_channels"))
        self.device = device

    def counts(self, dataset_dir: PathLike, split: str) -> Counts:
        """Compare with the label maps of one split, in one pass over its images that have some."""
        header = read_header(dataset_dir)
        spacing = {"spacing_mm": header.get("spacing_mm")}
        items = [spacing | item for item in scored_items(dataset_dir, split, tell=False)]
        if len(label_names(dataset_dir)) != self.num_labels:
            raise ValueError(
                f"'{dataset_dir}' has {len(label_names(dataset_dir))} labels, the network {self.num_labels}; expected "
                "the same."
            )
        paths, truth = [str(item["image"]) for item in items], true_labels(items, self.num_labels)
        calibration, predicted = Calibration(), list[Tensor]()
        for logits in predict_logits(self.network, paths, self.device, self.num_channels):
            first = sum(map(len, predicted))
            calibration.update(logits, truth[first : first + len(logits)])
            predicted.append(logits.argmax(dim=1).to(torch.uint8))
        layered = header.get("modality", "OCT") == "OCT"
        counted = count(items, torch.cat(predicted), self.num_labels, layered, truth)
        return replace(counted, bins=calibration.bins.tolist(), losses=calibration.losses)


def score_images(
    bundle_root: PathLike,
    weights: PathLike,
    dataset_dir: PathLike,
    split: str,
    seed: int,
    device: torch.device,
    record: PathLike | None = None,
) -> dict[str, Any]:
    """Scores of a segmentation network on one split; see :func:`summarise`.

    ``record`` is a file for the :class:`Counts`, from which set-ups and seeds are compared.
    """
    counts = Scorer(bundle_root, weights, device).counts(dataset_dir, split)
    if record is not None:
        counts.save(record)
    return summarise(counts, seed)
