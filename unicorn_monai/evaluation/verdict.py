"""Which of several networks is the best on images without a label, and how good is it?

    M_n[k, j] = sum of q_j over the pixels where network n sees k      expected confusion, q a belief about the truth
    IoU_n     = mean over k of  M[k, k] / (row k + column k - M[k, k])

Ranking, larger is better; p_n the softmax of network n, p' the same under another view of the image:

    agreement     IoU_n with q the most probable label of mean_m p_m       ensemble-based validation, Hu et al. 2023
    belief        IoU_n with q = mean_m p_m
    consistency   IoU_n with q the most probable label of p'_n
    information   H(mean of p_n over all pixels) - mean of H(p_n)           InfoMax: sure, and not always of the same
    density       mean entropy of the soft neighbourhoods of pixels         Saito et al., ICCV 2021

Estimate of the mean IoU of the one that is chosen: its ``belief``; and its own, with q = p_n at a temperature fitted on
labelled images. Nothing here has seen a label of these images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

NEIGHBOURS, SHARPNESS = 256, 0.05  # pixels of an image whose neighbourhoods are compared; temperature of their likeness
CRITERIA = ("agreement", "belief", "consistency", "information", "density")


def expected_confusion(seen: Tensor, belief: Tensor) -> Tensor:
    """M of label maps (batch, rows, columns) under a belief (batch, labels, rows, columns): (labels, labels)."""
    labels = belief.shape[1]
    flat = belief.movedim(1, -1).reshape(-1, labels).double()
    return torch.zeros(labels, labels, dtype=torch.float64).index_add(0, seen.flatten().long(), flat)


def mean_iou_of(confusion: Tensor) -> float:
    """Mean IoU over the labels that occur, of a confusion matrix (..., labels, labels)."""
    both = confusion.diagonal(dim1=-2, dim2=-1)
    union = confusion.sum(dim=-1) + confusion.sum(dim=-2) - both
    return float((both / union.clamp(min=1e-12))[union > 0.5].mean())


def one_hot_of(probability: Tensor) -> Tensor:
    """The most probable label of each pixel as a belief."""
    return torch.zeros_like(probability).scatter(1, probability.argmax(dim=1, keepdim=True), 1.0)


def neighbourhood_density(probability: Tensor, seed: int = 0) -> float:
    """Mean entropy of the softmax of cosine similarities between pixels of an image, (batch, labels, rows, columns).

    Large where pixels have many pixels like them: sure of few, well separated labels.
    """
    flat = probability.flatten(2).movedim(1, 2)
    chosen = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed))[:NEIGHBOURS]
    unit = torch.nn.functional.normalize(flat[:, chosen].float(), dim=-1)
    likeness = unit @ unit.transpose(1, 2) / SHARPNESS
    likeness.diagonal(dim1=1, dim2=2).fill_(-math.inf)
    near = likeness.softmax(dim=-1)
    return float(torch.special.entr(near).sum(dim=-1).mean())


class Verdict:
    """The criteria of several networks, gathered over batches of the same images."""

    def __init__(self, names: Sequence[str], num_labels: int) -> None:
        if len(names) < 2:
            raise ValueError(f"{list(names)}: expected two networks or more; one has nothing to be compared with.")
        self.names, self.images, self.pixels = list(names), 0, 0
        zeros = torch.zeros(num_labels, num_labels, dtype=torch.float64)
        self.confusions = {kind: {name: zeros.clone() for name in names} for kind in CRITERIA[:3]}
        self.marginal = {name: torch.zeros(num_labels, dtype=torch.float64) for name in names}
        self.entropy, self.density = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)

    def update(self, probabilities: Mapping[str, Tensor], other_views: Mapping[str, Tensor]) -> None:
        """Add a batch: each network's softmax (batch, labels, rows, columns), and that of another view, turned back."""
        mean = torch.stack([probabilities[name].float() for name in self.names]).mean(dim=0)
        beliefs = {"agreement": one_hot_of(mean), "belief": mean}
        self.images, self.pixels = self.images + len(mean), self.pixels + mean[:, 0].numel()
        for name in self.names:
            p = probabilities[name].float()
            seen, views = p.argmax(dim=1), beliefs | {"consistency": one_hot_of(other_views[name].float())}
            for kind, belief in views.items():
                self.confusions[kind][name] += expected_confusion(seen, belief)
            self.marginal[name] += p.double().sum(dim=(0, 2, 3))
            self.entropy[name] += float(torch.special.entr(p.double()).sum())
            self.density[name] += neighbourhood_density(p) * len(p)

    def scores(self) -> dict[str, dict[str, float]]:
        """Every criterion of every network: {criterion: {name: value}}, larger is better."""
        if not self.images:
            raise ValueError("No image was given; expected at least one unlabelled image.")
        found = {kind: {name: mean_iou_of(m) for name, m in each.items()} for kind, each in self.confusions.items()}
        found["information"] = {
            name: float(torch.special.entr(self.marginal[name] / self.pixels).sum()) - self.entropy[name] / self.pixels
            for name in self.names
        }
        return found | {"density": {name: value / self.images for name, value in self.density.items()}}


def regret(chosen: str, truth: Mapping[str, float]) -> float:
    """How much worse the chosen network is than the best one, in the true score."""
    return max(truth.values()) - truth[chosen]
