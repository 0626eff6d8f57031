"""How much uncertainty, how much label? The control as a function of the fusion weight, and the weight to take.

For every weight w the same requests (label map, uncertainty drawn from the prior, noise) are synthesised; measured are

    W(w)      Wasserstein distance between the measured uncertainties and the requested ones, which follow the prior
    kappa(w)  (IoU(own) - IoU(other)) / (1 - IoU(other)): mean IoU between what a judge sees in the images and their
              own label maps, corrected for chance by those of other requests; 0 = label map ignored, 1 = obeyed

``choose_weight`` takes, of the weights with kappa(w) >= half of the largest kappa, the smallest whose W(w) is within
5 % of the best. No label of the unlabelled domain is needed as long as the judge was trained without them: a network
trained on the labelled domain with strong augmentation, say. The judge gets worse the more the images look like the
other device; that is why kappa has to fall to half, and not a little, before a weight is excluded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr, wasserstein_distance
from torch import Tensor, nn
from tqdm import tqdm

from unicorn_monai.evaluation.scoring import confusion_matrix, scores
from unicorn_monai.images.files import IGNORE_LABEL, write_array
from unicorn_monai.images.pictures import evenly, tile
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.segmentation.acquisition import Measure, make_inferer
from unicorn_monai.synthesis.generator import Generator
from unicorn_monai.synthesis.requests import Request
from unicorn_monai.system.files import PathLike, or_none
from unicorn_monai.system.networks import require_finite
from unicorn_monai.system.weights import sha256

GRIDS: dict[str, tuple[float, ...]] = {
    "joint": (0.5, 0.75, 1.0, 1.25, 1.5),
    "compositional": (0.5, 1.0, 1.5, 2.0, 3.0),
    "paper": (0.0, 0.25, 0.5, 0.75, 1.0),
}
CONSISTENCY = 0.5  # smallest kappa, as a share of the largest
TIE = 1.05  # distances up to this factor above the smallest count as equal; the smallest weight of these is taken
SHOWN = 8  # images in the picture of a weight


class NoWeight(ValueError):
    """At no weight are the label maps obeyed, or nobody can tell."""


def measure_of(
    prior: UncertaintyPrior, network: nn.Module, bundle_root: PathLike, device: torch.device | str | None = None
) -> Callable[[Tensor], Tensor]:
    """Images -> uncertainties (batch,), as those of the prior were measured with the segmentation network.

    ``bundle_root`` is the bundle that defines the further networks of an ensemble, ``device`` where those run.
    """
    for path, expected in prior.ensemble.items():
        found = sha256(path) if Path(path).is_file() else "none: there is no such file"
        if found != expected:
            raise ValueError(
                f"The prior was measured by an ensemble with '{path}' of the sha256 {expected[:12]}..., which now has "
                f"{found[:27]}. Restore the file, or run the 'uncertainty' configuration of retinal_unet again."
            )
    inferer = make_inferer(prior.acquisition, prior.samples, list(prior.ensemble), bundle_root, device)
    measure = Measure(prior.acquisition, prior.aggregation)
    return lambda images: measure(inferer(images, network))


@torch.no_grad()
def control_over_weights(
    generator: Generator,
    requests: Sequence[Request],
    measure: Callable[[Tensor], Tensor],
    judge: nn.Module,
    weights: Sequence[float] | None = None,
    folder: PathLike | None = None,
    batch_size: int = 16,
    oracle: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """The table over the fusion weights, and a picture for each.

    Args:
        generator: with both controls; its mode decides what a weight means.
        requests: at least two, of different label maps, each with an uncertainty drawn from the prior.
        measure: images -> uncertainties (batch,), see :func:`measure_of`.
        judge: segmentation network that sees whether the label maps were obeyed.
        weights: of the uncertainty; those of ``GRIDS`` for the generator's mode by default.
        folder: gets ``weight_<w>.png``: the label maps above the images.
        batch_size: images made at a time.
        oracle: another judge for the report, trained with labels of the unlabelled domain.

    Returns:
        For each weight "weight", "requested_mean", "measured_mean", "measured_std", "spearman" and
        "mean_absolute_error" of requested and measured, "distance" (W), "label_fidelity_mean_iou" (IoU with the own
        label map), "chance_mean_iou", "label_consistency" (kappa), "oracle_mean_iou" (what the oracle sees, None
        without one), "n", and "picture" (file name, None without folder).
    """
    weights = GRIDS[generator.inferer.mode] if weights is None else weights
    labels, requested, table = *_asked(generator, requests, weights), []
    for weight in tqdm(weights, desc="fusion weights", disable=None, leave=False):
        parts, seen, known = [], [], []
        for start in range(0, len(requests), batch_size):
            batch = slice(start, start + batch_size)
            images = generator(requests[batch], labels[batch], float(weight))
            parts.append((images.cpu(), measure(images).cpu()))
            seen.append(require_finite("The output of the judge", judge(images)).argmax(dim=1).cpu())
            known += [] if oracle is None else [oracle(images).argmax(dim=1).cpu()]
        images, measured = (torch.cat(part) for part in zip(*parts, strict=True))
        row: dict[str, Any] = {"weight": float(weight), **agreement(requested, measured.double().numpy())}
        row |= obedience(torch.cat(seen), labels[:, 0], generator.num_labels) | {"n": len(requests), "picture": None}
        row["oracle_mean_iou"] = overlap_of(torch.cat(known), labels[:, 0], generator.num_labels) if known else None
        if folder is not None:
            row["picture"] = f"weight_{weight:g}.png"
            _write_picture(Path(folder) / row["picture"], labels, images, generator.num_labels)
        table.append(row)
    return table


def _asked(generator: Generator, requests: Sequence[Request], weights: Sequence[float]) -> tuple[Tensor, np.ndarray]:
    """Label maps and uncertainties that were asked for, where something can be measured of them."""
    if generator.inferer.semantic is None or generator.inferer.uncertainty is None:
        raise ValueError(
            "The generator lacks a ControlNet; the fusion weight needs the semantic and the uncertainty one."
        )
    wanted = [r.uncertainty for r in requests if r.uncertainty is not None]
    if len(requests) < 2 or len(wanted) < len(requests) or not weights:
        raise ValueError(
            f"Got {len(requests)} requests, {len(wanted)} of them with an uncertainty, and {len(weights)} weights; "
            "expected at least two requests, all with an uncertainty, and at least one weight."
        )
    labels = generator.labels(requests)
    if labels is None:
        raise ValueError("The requests have no label maps; give them some to measure the fidelity to.")
    return labels, np.array(wanted)


def overlap_of(seen: Tensor, labels: Tensor, num_labels: int) -> float:
    """Mean IoU of what a judge sees and of the label maps, each (images, rows, columns)."""
    return scores(confusion_matrix(seen, labels, num_labels))["mean_iou"]


def agreement(requested: np.ndarray, measured: np.ndarray) -> dict[str, float | None]:
    """Requested against measured uncertainties, each (images,); no rank correlation where one of them is constant."""
    constant = np.ptp(requested) == 0 or np.ptp(measured) == 0
    return {
        "requested_mean": float(requested.mean()),
        "measured_mean": float(measured.mean()),
        "measured_std": float(measured.std()),
        "spearman": None if constant else or_none(spearmanr(requested, measured).statistic),
        "mean_absolute_error": float(np.abs(requested - measured).mean()),
        "distance": float(wasserstein_distance(requested, measured)),
    }


def obedience(seen: Tensor, labels: Tensor, num_labels: int) -> dict[str, float]:
    """Mean IoU of what a judge sees with the own label maps and with those of the next request, and kappa."""
    if (labels == labels[:1]).all():
        raise NoWeight("All label maps are the same, so nobody can tell whether they were obeyed; request different.")
    own, other = (overlap_of(seen, maps, num_labels) for maps in (labels, labels.roll(1, dims=0)))
    return {
        "label_fidelity_mean_iou": own,
        "chance_mean_iou": other,
        "label_consistency": max(-1.0, (own - other) / max(1 - other, 1e-9)),
    }


def choose_weight(table: Sequence[dict[str, Any]]) -> tuple[float, str]:
    """The fusion weight to take of a table of :func:`control_over_weights`, and why.

    Uses only what the labels of the unlabelled domain play no part in, as long as the judge was trained without them.
    """
    if not table:
        raise ValueError("No weights to choose from; measure the control over weights first.")
    best = max(row["label_consistency"] for row in table)
    if not best > 0:
        raise NoWeight(
            f"At no weight do the images follow their label maps (largest kappa {best:.2f}); train the "
            "Semantic-ControlNet longer, or give a better judge."
        )
    allowed = [row for row in table if row["label_consistency"] >= CONSISTENCY * best]
    least = min(row["distance"] for row in allowed)
    chosen = min((row for row in allowed if row["distance"] <= TIE * least), key=lambda row: row["weight"])
    reason = (
        f"weight {chosen['weight']:g}: distance of measured and requested uncertainties {chosen['distance']:.4f} "
        f"(smallest {least:.4f}), label consistency {chosen['label_consistency']:.2f} (largest {best:.2f}, at least "
        f"{CONSISTENCY * best:.2f} was asked for; {len(table) - len(allowed)} of {len(table)} weights excluded)"
    )
    return chosen["weight"], reason


def _write_picture(path: Path, labels: Tensor, images: Tensor, num_labels: int) -> None:
    """Label maps above the images made of them."""
    at = evenly(len(images), SHOWN)
    shown = labels[at].where(labels[at] != IGNORE_LABEL, 0).float() / max(1, num_labels - 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_array(path, tile(torch.stack([shown.expand(-1, images.shape[1], -1, -1), images[at]])))
