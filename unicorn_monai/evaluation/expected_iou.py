"""How good is a network on images without a label? Its expected mean IoU, from what the networks believe themselves.

    T_n = argmin over labelled images of  -sum log softmax(logits / T)[y]       temperature scaling, Guo et al. 2017
    belief        expected mean IoU under  q = mean_m p_m        too low where some of the networks are bad
    agreement     ... the most probable label of that            too high where all are wrong alike
    confidence    ... q ~ p_n^(1/T_n)                            too high where T_n is of another device

One of them is the estimate. Its interval goes from the lowest to the highest end of their 95 % bootstrap intervals over
subjects: the spread of the images, and that of the ways to estimate. It is no confidence interval of the truth: what
all networks get wrong alike shows in none of them, and what makes a network's confidence right on one device leaves
it too sure on another (Ovadia et al., NeurIPS 2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.networks.utils import eval_mode
from torch import Tensor, nn

from unicorn_monai.evaluation import bootstrap
from unicorn_monai.evaluation.verdict import Verdict, mean_iou_of
from unicorn_monai.images.files import IGNORE_LABEL

TEMPERATURES = [2 ** (step / 8) for step in range(-16, 33)]  # 1/4 to 16, each 9 % above the one before
ESTIMATORS = ("belief", "agreement", "confidence")


@torch.no_grad()
def fit_temperatures(networks: Mapping[str, nn.Module], batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """T of each network, the best of ``TEMPERATURES``, on labelled images that it was not trained on.

    ``batches``: images, and label maps (batch, 1, rows, columns) with 255 for pixels that do not count.
    """
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


class Expected(NamedTuple):
    """What mean IoU a network is expected to have."""

    estimate: float
    low: float
    high: float
    by: dict[str, float]  # estimator -> its estimate


def estimate(
    verdict: Verdict, name: str, subjects: Sequence[str] | None = None, main: str = "belief", seed: int = 0
) -> Expected:
    """The expected mean IoU of one of the networks that were judged.

    Args:
        verdict: over the images.
        name: of the network.
        subjects: of each image, in the order of the images; every image is one of its own without.
        main: which of ``ESTIMATORS`` is the estimate.
        seed: of the bootstrap.
    """
    subjects = [str(i) for i in range(verdict.images)] if subjects is None else subjects
    if len(subjects) != verdict.images:
        raise ValueError(f"Got {len(subjects)} subjects for {verdict.images} images; expected one for each.")
    by, ends, images = {}, [], [str(i) for i in range(verdict.images)]
    for kind in ESTIMATORS:
        units = bootstrap.by_subject(verdict.confusions(kind, name).numpy(), subjects, images)
        by[kind] = float(_mean_iou(units.counts.sum(axis=0)))
        ends += [by[kind], *(bootstrap.confidence(units, _mean_iou, seed) or ())]
    return Expected(by[main], min(ends), max(ends), by)


def _mean_iou(confusion: np.ndarray) -> np.ndarray:
    return mean_iou_of(torch.from_numpy(np.asarray(confusion))).numpy()
