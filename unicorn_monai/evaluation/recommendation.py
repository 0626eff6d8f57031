"""The recommendation of a run: all networks look at the unlabelled images once, one of them is chosen, and told why.

fit_temperatures, fit_lines    labelled validation images: what the confidence of each network is worth
judge                          unlabelled images, once: the criteria of ``verdict.py``, what reverse validation learns
score_on                       labelled validation images, synthetic validation images
recommend                      the entry "recommendation" of results.json
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from monai.networks.utils import eval_mode
from torch import Tensor, nn

from unicorn_monai.evaluation.expected_iou import CALIBRATED, Line, estimate, logits_of
from unicorn_monai.evaluation.reverse_validation import ReverseValidation
from unicorn_monai.evaluation.scoring import confusion_matrix
from unicorn_monai.evaluation.verdict import Verdict, mean_iou_of, other_view, turned_back

JURY, REVERSE, SYNTHETIC = "jury", "reverse", "synthetic"  # criteria beside those that each network has by itself


@torch.no_grad()
def judge(
    networks: Mapping[str, nn.Module],
    batches: Iterable[Tensor],
    num_labels: int,
    temperatures: Mapping[str, float] | None = None,
    seed: int = 0,
) -> tuple[Verdict, ReverseValidation]:
    """The verdict over batches of images (batch, channels, rows, columns) in [0, 1], each read once.

    Args:
        networks: image -> logits, by name, two or more; on the device of the images.
        batches: images without a label; of a batch the softmax of every network is held at a time, twice.
        num_labels: of each network.
        temperatures: T of each network, see ``expected_iou.py``; 1 without.
        seed: of the other views, the same for all networks.
    """
    verdict, reverse = Verdict([*networks], num_labels, temperatures), ReverseValidation([*networks], num_labels, seed)
    generator = torch.Generator().manual_seed(seed)
    with eval_mode(*networks.values()):
        for images in batches:
            view = other_view(images, generator)
            probabilities = {name: logits_of(name, net, images).softmax(dim=1) for name, net in networks.items()}
            views = {name: turned_back(logits_of(name, net, view).softmax(dim=1)) for name, net in networks.items()}
            verdict.update(probabilities, views)
            reverse.update(images, {name: p.argmax(dim=1) for name, p in probabilities.items()})
    return verdict, reverse


@torch.no_grad()
def score_on(
    networks: Mapping[str, nn.Module], batches: Iterable[tuple[Tensor, Tensor]], num_labels: int
) -> dict[str, float]:
    """Mean IoU of each network on labelled images, pooled; such as synthetic ones that no network was trained on.

    ``batches``: images, and label maps (batch, 1, rows, columns) with 255 for pixels that do not count.
    """
    counts = {name: torch.zeros(num_labels, num_labels, dtype=torch.float64) for name in networks}
    with eval_mode(*networks.values()):
        for images, label in batches:
            for name, network in networks.items():
                counts[name] += confusion_matrix(network(images).argmax(dim=1), label, num_labels)
    return {name: float(mean_iou_of(confusion)) for name, confusion in counts.items()}


def recommend(
    verdict: Verdict,
    criterion: str,
    lines: Mapping[str, Line] | None = None,
    jurors: Sequence[str] | None = None,
    subjects: Sequence[str] | None = None,
    more: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """The entry "recommendation" of results.json: the network that a criterion puts first, and what it is expected of.

    Args:
        verdict: over the images.
        criterion: of ``verdict.CRITERIA``, "calibrated", "jury", or of ``more``; the first of several that are as good.
        lines: of each network, see ``expected_iou.py``; its confidence is taken as it is without.
        jurors: the networks that judge the others; all by default.
        subjects: of each image, see `estimate`.
        more: further criteria, {criterion: {name: value}}: ``REVERSE``, ``SYNTHETIC``.
    """
    lines = dict.fromkeys(verdict.names, Line()) if lines is None else lines
    jurors = verdict.names if jurors is None else list(jurors)
    scores = verdict.scores() | {kind: dict(values) for kind, values in (more or {}).items()}
    scores[CALIBRATED] = {name: lines[name](value) for name, value in scores["confidence"].items()}
    scores[JURY] = verdict.jury(scores[CALIBRATED], jurors)
    known = {name: value for name, value in scores.get(criterion, {}).items() if math.isfinite(value)}
    if not known:
        raise ValueError(f"The criterion is '{criterion}'; expected one of {', '.join(scores)}, with finite values.")
    chosen = max(known, key=known.__getitem__)
    found = estimate(verdict, chosen, lines[chosen], subjects)
    return {
        "setup": chosen,
        "criterion": criterion,
        "estimate": found.estimate,
        "low": found.low,
        "high": found.high,
        "images": verdict.images,
        "candidates": verdict.names,
        "jurors": jurors,
        "scores": {kind: _finite(values) for kind, values in scores.items()},
        "estimates": _finite(scores[CALIBRATED]),
        "estimators": found.by,
    }


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
