"""How good is a network on images without a label? Its expected mean IoU, from how sure it is and what that was worth.

    T_n = argmin over labelled images of  -sum log softmax(logits / T)[y]       temperature scaling, Guo et al. 2017
    belief        expected mean IoU under  q = mean_m p_m        too low where some of the networks are bad
    agreement     ... the most probable label of that            too high where all are wrong alike
    confidence    ... q ~ p_n^(1/T_n)                            too high where T_n is of another device
    calibrated    a_n + b_n confidence_n                         the estimate

a_n, b_n and the standard deviation s_n of what is left are those of the least squares line through (confidence, mean
IoU) of labelled images, as they are and disturbed in five ways (``images/known_shifts.py``): what makes a network's
confidence right on one device leaves it too sure on another (Ovadia et al., NeurIPS 2019), where it falls less than the
mean IoU does; by how much is measured where there are labels, and assumed to hold on the other device. The range of an
estimate goes over the 95 % bootstrap interval of the confidence, 2 s_n wider on both sides. How often all of this was
right: docs/results/benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.networks.utils import eval_mode
from torch import Tensor, nn

from unicorn_monai.evaluation import bootstrap
from unicorn_monai.evaluation.scoring import confusion_matrix
from unicorn_monai.evaluation.verdict import Verdict, expected_confusion, mean_iou_of, tempered
from unicorn_monai.images.files import IGNORE_LABEL
from unicorn_monai.images.known_shifts import Change, disturbed

TEMPERATURES = [2 ** (step / 8) for step in range(-16, 33)]  # 1/4 to 16, each 9 % above the one before
ESTIMATORS = ("belief", "agreement", "confidence")  # beside the calibrated one
CALIBRATED = "calibrated"
SPREAD = 1e-3  # of the confidences, below which a line through them says nothing

Batches = Iterable[tuple[Tensor, Tensor]]  # images, and label maps (batch, 1, rows, columns), 255 where none counts


@torch.no_grad()
def fit_temperatures(networks: Mapping[str, nn.Module], batches: Batches) -> dict[str, float]:
    """T of each network, the best of ``TEMPERATURES``, on labelled images that it was not trained on."""
    losses = {name: torch.zeros(len(TEMPERATURES), dtype=torch.float64) for name in networks}
    with eval_mode(*networks.values()):
        for images, label in batches:
            truth = label[:, 0].long()
            for name, network in networks.items():
                logits = network(images).float()
                each = [
                    nn.functional.cross_entropy(logits / t, truth, ignore_index=IGNORE_LABEL, reduction="sum")
                    for t in TEMPERATURES
                ]
                losses[name] += torch.stack(each).double().cpu()
    if not all(loss.any() for loss in losses.values()):
        raise ValueError("No labelled pixel was given; expected validation images of the labelled domain.")
    return {name: TEMPERATURES[int(loss.argmin())] for name, loss in losses.items()}


class Line(NamedTuple):
    """What confidence was worth: mean IoU = offset + slope confidence, give or take the spread."""

    offset: float = 0.0
    slope: float = 1.0
    spread: float = 0.0

    def __call__(self, confidence: np.ndarray | float) -> np.ndarray:
        """The mean IoU that is expected, in [0, 1]."""
        return np.clip(self.offset + self.slope * np.asarray(confidence), 0, 1)

    @classmethod
    def through(cls, confidence: Sequence[float], truth: Sequence[float]) -> Line:
        """The least squares line; level where the confidence is always the same, or falls where the truth rises."""
        x, y = np.asarray(confidence, dtype=np.float64), np.asarray(truth, dtype=np.float64)
        moves = x.std() > SPREAD
        slope = max(0.0, float(np.mean((x - x.mean()) * (y - y.mean())) / x.var())) if moves else 0.0
        offset = float(y.mean() - slope * x.mean())
        return cls(offset, slope, float(np.std(y - offset - slope * x)))


@torch.no_grad()
def fit_lines(
    networks: Mapping[str, nn.Module],
    labelled: Callable[[], Batches],
    changes: Mapping[str, Change],
    num_labels: int,
    temperatures: Mapping[str, float],
) -> dict[str, Line]:
    """The line of each network over disturbed labelled images that it was not trained on.

    Args:
        networks: image -> logits, by name.
        labelled: gives the labelled images from the start, once for every change.
        changes: see ``images/known_shifts.py``.
        num_labels: of each network.
        temperatures: T of each network.
    """
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in networks}
    for change in changes.values():
        believed, true = ({name: torch.zeros(num_labels, num_labels).double() for name in networks} for _ in range(2))
        with eval_mode(*networks.values()):
            for images, label in labelled():
                images = disturbed(images, change)
                for name, network in networks.items():
                    p = network(images).float().softmax(dim=1)
                    belief = tempered(p, temperatures[name]) * (label != IGNORE_LABEL)
                    believed[name] += expected_confusion(p.argmax(dim=1), belief).sum(dim=0).cpu()
                    true[name] += confusion_matrix(p.argmax(dim=1), label, num_labels).cpu()
        for name, each in points.items():
            occurs = (true[name].sum(dim=0) + true[name].sum(dim=1)) > 0
            each.append((float(mean_iou_of(believed[name] * occurs)), float(mean_iou_of(true[name]))))
    return {name: Line.through(*zip(*each, strict=True)) for name, each in points.items()}


class Expected(NamedTuple):
    """What mean IoU a network is expected to have."""

    estimate: float
    low: float
    high: float
    by: dict[str, float]  # estimator -> its estimate


def estimate(
    verdict: Verdict, name: str, line: Line | None = None, subjects: Sequence[str] | None = None, seed: int = 0
) -> Expected:
    """The expected mean IoU of one of the networks that were judged.

    Args:
        verdict: over the images.
        name: of the network.
        line: of the network; without, its confidence is taken as it is.
        subjects: of each image, in the order of the images; every image is one of its own without.
        seed: of the bootstrap.
    """
    line = Line() if line is None else line
    subjects = [str(i) for i in range(verdict.images)] if subjects is None else subjects
    if len(subjects) != verdict.images:
        raise ValueError(f"Got {len(subjects)} subjects for {verdict.images} images; expected one for each.")
    by = {kind: float(mean_iou_of(verdict.confusions(kind, name).sum(dim=0))) for kind in ESTIMATORS}
    images = [str(i) for i in range(verdict.images)]
    units = bootstrap.by_subject(verdict.confusions("confidence", name).numpy(), subjects, images)
    ends = bootstrap.confidence(units, _mean_iou, seed) or [by["confidence"]] * 2
    found = float(line(by["confidence"]))
    low, high = (float(np.clip(line(end) + side * line.spread, 0, 1)) for end, side in zip(ends, (-2, 2), strict=True))
    return Expected(found, low, high, {CALIBRATED: found, **by})


def _mean_iou(confusion: np.ndarray) -> np.ndarray:
    return mean_iou_of(torch.from_numpy(np.asarray(confusion))).numpy()
