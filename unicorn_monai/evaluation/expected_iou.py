"""How good is a network on images without a label? Its expected mean IoU, from how sure it is and what that was worth.

    T_n = argmin over labelled images of  -sum log softmax(logits / T)[y]       temperature scaling, Guo et al. 2017
    belief        expected mean IoU under  q = mean_m p_m        too low where some of the networks are bad
    agreement     ... the most probable label of that            wrong where most are wrong alike
    confidence    ... q ~ p_n^(1/T_n)                            too high where T_n is of another device
    calibrated    y_n + b_n (confidence_n - x_n)                 the estimate

x_n and y_n are the means, over six sets of labelled images, of the network's confidence and of its mean IoU: the images
as they are, and disturbed in five ways (``images/known_shifts.py``). b_n is the slope of the least squares line through
the six, drawn towards 1 where the confidences hardly differ, and 1 to 6. What makes a network's confidence right on one
device leaves it too sure on another (Ovadia et al., NeurIPS 2019), where it falls less than the mean IoU does; by how
much is measured where there are labels, and assumed to hold on the other device (as Guillory et al., ICCV 2021, do for
accuracy). The range of an estimate goes over the 95 % bootstrap interval of the confidence, and twice as far beyond as
the line misses a further point of its own kind. How often all of this was right: docs/results/benchmark.
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
from unicorn_monai.system.networks import require_finite

TEMPERATURES = [2 ** (step / 8) for step in range(-16, 33)]  # 1/4 to 16, each 9 % above the one before
ESTIMATORS = ("belief", "agreement", "confidence")  # beside the calibrated one
CALIBRATED = "calibrated"
SPREAD = 5e-3  # of the confidences, at which the slope is half theirs and half 1
SLOPES = (1.0, 6.0)  # on the benchmark's first shifts 1.2 to 5.8

Batches = Iterable[tuple[Tensor, Tensor]]  # images, and label maps (batch, 1, rows, columns), 255 where none counts


def logits_of(name: str, network: nn.Module, images: Tensor) -> Tensor:
    """What a network says of images, (batch, labels, rows, columns) float32; one whose weights are damaged is named."""
    return require_finite(f"The output of the network '{name}'", network(images).float())


@torch.no_grad()
def fit_temperatures(networks: Mapping[str, nn.Module], batches: Batches) -> dict[str, float]:
    """T of each network, the best of ``TEMPERATURES``, on labelled images that it was not trained on."""
    losses = {name: torch.zeros(len(TEMPERATURES), dtype=torch.float64) for name in networks}
    with eval_mode(*networks.values()):
        for images, label in batches:
            truth = label[:, 0].long()
            for name, network in networks.items():
                logits = logits_of(name, network, images)
                each = [
                    nn.functional.cross_entropy(logits / t, truth, ignore_index=IGNORE_LABEL, reduction="sum")
                    for t in TEMPERATURES
                ]
                losses[name] += torch.stack(each).double().cpu()
    if not all(loss.any() for loss in losses.values()):
        raise ValueError("No labelled pixel was given; expected validation images of the labelled domain.")
    return {name: TEMPERATURES[int(loss.argmin())] for name, loss in losses.items()}


class Line(NamedTuple):
    """What confidence was worth: mean IoU = mean_iou + slope (confidence - mean_confidence)."""

    mean_confidence: float = 0.0
    mean_iou: float = 0.0
    slope: float = 1.0
    spread: float = 0.0  # standard deviation of the points around the line, of the points less two
    leverage: float = 0.0  # 1 / sum of squared distances of the confidences from their mean
    points: int = 0

    def __call__(self, confidence: float) -> float:
        """The mean IoU that is expected, in [0, 1]."""
        return float(np.clip(self.mean_iou + self.slope * (confidence - self.mean_confidence), 0, 1))

    def margin(self, confidence: float) -> float:
        """Standard deviation of a further point around the line; the larger, the farther it is from the others."""
        beyond = (confidence - self.mean_confidence) ** 2 * self.leverage
        return self.spread * float(np.sqrt(1 + 1 / max(1, self.points) + beyond))

    @classmethod
    def through(cls, confidence: Sequence[float], truth: Sequence[float]) -> Line:
        """The line of points."""
        x, y = np.asarray(confidence, dtype=np.float64), np.asarray(truth, dtype=np.float64)
        if not len(x) or not (np.isfinite(x) & np.isfinite(y)).all():
            raise ValueError(f"Got the confidences {x.tolist()}; expected one or more, finite, of labelled images.")
        centred, prior = x - x.mean(), len(x) * SPREAD**2
        squares = float(centred @ centred)
        slope = float(np.clip((centred @ (y - y.mean()) + prior) / (squares + prior), *SLOPES))
        left = y - y.mean() - slope * centred
        spread = float(np.sqrt(left @ left / max(1, len(x) - 2)))
        return cls(float(x.mean()), float(y.mean()), slope, spread, 1 / (squares + prior), len(x))


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
    if not changes:
        raise ValueError("No change was given; expected those of `disturbances`.")
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in networks}
    for change in changes.values():
        believed, true = ({name: torch.zeros(num_labels, num_labels).double() for name in networks} for _ in range(2))
        with eval_mode(*networks.values()):
            for images, label in labelled():
                images = disturbed(images, change)
                for name, network in networks.items():
                    p = logits_of(name, network, images).softmax(dim=1)
                    belief = tempered(p, temperatures[name]) * (label != IGNORE_LABEL)
                    believed[name] += expected_confusion(p.argmax(dim=1), belief).sum(dim=0).cpu()
                    true[name] += confusion_matrix(p.argmax(dim=1), label, num_labels).cpu()
        seen = sum(one.sum(dim=1) for one in believed.values()) > 0  # by any network, as in the verdict
        for name, each in points.items():
            each.append((float(mean_iou_of(believed[name] * seen)), float(mean_iou_of(true[name]))))
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
    line = Line() if line is None else line  # of slope 1 through the origin
    subjects = [str(i) for i in range(verdict.images)] if subjects is None else subjects
    if len(subjects) != verdict.images:
        raise ValueError(f"Got {len(subjects)} subjects for {verdict.images} images; expected one for each.")
    by = {kind: float(mean_iou_of(verdict.confusions(kind, name).sum(dim=0))) for kind in ESTIMATORS}
    images = [str(i) for i in range(verdict.images)]
    units = bootstrap.by_subject(verdict.confusions("confidence", name).numpy(), subjects, images)
    ends = [by["confidence"], *(bootstrap.confidence(units, _mean_iou, seed) or ())]
    found = line(by["confidence"])
    low, high = (line(end(ends)) for end in (min, max))
    low, high = max(0.0, low - 2 * line.margin(min(ends))), min(1.0, high + 2 * line.margin(max(ends)))
    return Expected(found, low, high, {CALIBRATED: found, **by})


def _mean_iou(confusion: np.ndarray) -> np.ndarray:
    return mean_iou_of(torch.from_numpy(np.asarray(confusion))).numpy()
