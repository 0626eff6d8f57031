"""Which of several networks is the best on images without a label?

    M_n[k, j] = sum of q_j over the pixels where network n sees k      expected confusion, q a belief about the truth
    IoU_n     = mean over k of  M[k, k] / (row k + column k - M[k, k])

Ranking, larger is better; p_n the softmax of network n, p' the same under another view of the image, turned back:

    agreement     IoU_n with q the most probable label of mean_m p_m       ensemble-based validation, Hu et al. 2023
    belief        IoU_n with q = mean_m p_m
    consistency   IoU_n with q the most probable label of p'_n
    confidence    IoU_n with q ~ p_n^(1/T_n), T_n fitted where labels are   temperature scaling, Guo et al. 2017
    information   H(mean of p_n over all pixels) - mean of H(p_n)           InfoMax: sure, and not always of the same
    density       mean entropy of the soft neighbourhoods of pixels         Saito et al., ICCV 2021
    jury          sum_m w_m IoU_n(q_m) / sum_m w_m,  w_m = exp(c_m / 0.05)  peers, each as heard as it is worth

The jury of a network are the others, q_m their confidence and c_m what it says they are worth (``expected_iou.py``).
A network that was taught by guesses on these images is sure of them whatever they are worth: it is judged, and is no
juror. Two more criteria need labelled images of another kind: reverse validation (``reverse_validation.py``), and the
score on held-out synthetic images, which favours networks trained on their like. How good the chosen one is:
``expected_iou.py``; all of it in one pass: ``recommendation.py``. Nothing here has seen a label of these images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unicorn_monai.images.augmentation import strong_intensity

NEIGHBOURS, SHARPNESS = 256, 0.05  # pixels of an image whose neighbourhoods are compared; temperature of their likeness
HEARD = 0.05  # a juror that is worth this much more mean IoU is heard e times as much
BELIEFS = ("agreement", "belief", "consistency", "confidence")
CRITERIA = (*BELIEFS, "information", "density")


def expected_confusion(seen: Tensor, belief: Tensor) -> Tensor:
    """M of label maps (batch, rows, columns) under a belief (batch, labels, rows, columns): (batch, labels, labels).

    With several beliefs, (batch, beliefs, labels, rows, columns), it is (batch, beliefs, labels, labels).
    """
    labels = belief.shape[-3]
    sees = torch.nn.functional.one_hot(seen.long(), labels).flatten(1, 2).mT.double()
    return (sees if belief.ndim == 4 else sees[:, None]) @ belief.flatten(-2).mT.double()


def mean_iou_of(confusion: Tensor) -> Tensor:
    """Mean IoU over the labels that occur, of confusion matrices (..., labels, labels): (...); NaN without a pixel."""
    both = confusion.diagonal(dim1=-2, dim2=-1)
    union = confusion.sum(dim=-1) + confusion.sum(dim=-2) - both
    return torch.where(union > 0.5, both / union, math.nan).nanmean(dim=-1)


def one_hot_of(probability: Tensor) -> Tensor:
    """The most probable label of each pixel as a belief."""
    return torch.zeros_like(probability).scatter(1, probability.argmax(dim=1, keepdim=True), 1.0)


def tempered(probability: Tensor, temperature: float) -> Tensor:
    """p^(1/T) with sum 1: the softmax of logits over T. Above 1 it is less sure."""
    return (probability.clamp(min=1e-30).log() / temperature).softmax(dim=1)


def neighbourhood_density(probability: Tensor, seed: int = 0) -> float:
    """Mean entropy of the softmax of cosine similarities between pixels of an image, (batch, labels, rows, columns).

    Large where pixels have many pixels like them: sure of few, well separated labels.
    """
    flat = probability.flatten(2).movedim(1, 2)
    chosen = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed))[:NEIGHBOURS]
    unit = torch.nn.functional.normalize(flat[:, chosen.to(flat.device)].float(), dim=-1)
    likeness = unit @ unit.transpose(1, 2) / SHARPNESS
    likeness.diagonal(dim1=1, dim2=2).fill_(-math.inf)
    near = likeness.softmax(dim=-1)
    return float(torch.special.entr(near).sum(dim=-1).mean())


def other_view(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images (batch, channels, rows, columns) in [0, 1] mirrored, each with other intensities (`strong_intensity`).

    `turned_back` brings what a network says of it to the pixels of the images.
    """
    change = strong_intensity(int(torch.randint(2**31, (), generator=generator)))
    changed = [torch.as_tensor(change(image)).float().clamp(0, 1) for image in images.flip(-1).cpu()]
    return torch.stack(changed).to(images.device)


def turned_back(probability: Tensor) -> Tensor:
    """What was said of `other_view`, (batch, labels, rows, columns), in the pixels of the images."""
    return probability.flip(-1)


class Verdict:
    """The criteria of several networks, gathered over batches of the same images.

    Args:
        names: of the networks, two or more.
        num_labels: of each.
        temperatures: T of each network, see ``expected_iou.py``; 1 where none is given.
    """

    def __init__(self, names: Sequence[str], num_labels: int, temperatures: Mapping[str, float] | None = None) -> None:
        if len(names) < 2:
            raise ValueError(f"{list(names)}: expected two networks or more; one has nothing to be compared with.")
        self.names, self.images, self.pixels = list(names), 0, 0
        self.temperatures = dict.fromkeys(names, 1.0) | dict(temperatures or {})
        self.parts: dict[str, dict[str, list[Tensor]]] = {kind: {name: [] for name in names} for kind in BELIEFS}
        self.marginal = {name: torch.zeros(num_labels, dtype=torch.float64) for name in names}
        self.entropy, self.density = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        empty = torch.zeros(len(self.names), num_labels, num_labels, dtype=torch.float64)
        self.opinions = {name: empty.clone() for name in names}  # of all networks about each: M under what they believe
        self.seen = torch.zeros(num_labels, dtype=torch.bool)  # somewhere, by a network; others do not count

    def update(self, probabilities: Mapping[str, Tensor], other_views: Mapping[str, Tensor]) -> None:
        """Add a batch: each network's softmax (batch, labels, rows, columns), and that of another view, turned back."""
        mean = torch.stack([probabilities[name].float() for name in self.names]).mean(dim=0)
        beliefs = {"agreement": one_hot_of(mean), "belief": mean}
        own = {name: tempered(probabilities[name].float(), self.temperatures[name]) for name in self.names}
        everybody = torch.stack([*own.values()], dim=1)
        self.images, self.pixels = self.images + len(mean), self.pixels + mean[:, 0].numel()
        for name in self.names:
            p = probabilities[name].float()
            its = {"consistency": one_hot_of(other_views[name]), "confidence": own[name]}
            seen = p.argmax(dim=1)
            self.seen[seen.unique().cpu()] = True
            self.opinions[name] += expected_confusion(seen, everybody).sum(dim=0).cpu()
            for kind, belief in (beliefs | its).items():
                self.parts[kind][name].append(expected_confusion(seen, belief).float().cpu())
            self.marginal[name] += p.double().sum(dim=(0, 2, 3)).cpu()
            self.entropy[name] += float(torch.special.entr(p.double()).sum())
            self.density[name] += neighbourhood_density(p) * len(p)

    def confusions(self, kind: str, name: str) -> Tensor:
        """The expected confusion of every image, (images, labels, labels), of a network; ``kind`` of ``BELIEFS``."""
        if not self.images:
            raise ValueError("No image was given; expected at least one unlabelled image.")
        return torch.cat(self.parts[kind][name]).double() * self.seen

    def jury(self, worth: Mapping[str, float], jurors: Sequence[str]) -> dict[str, float]:
        """What the jurors think of each network, themselves not; NaN where there is no other juror.

        ``worth`` is the mean IoU that each juror is expected to have.
        """
        found, best = {}, max((worth[name] for name in jurors), default=0.0)
        heard = torch.tensor([math.exp((worth[m] - best) / HEARD) if m in jurors else 0.0 for m in self.names]).double()
        for name in self.names:
            others = heard * torch.tensor([other != name for other in self.names])
            found[name] = float((others * mean_iou_of(self.opinions[name] * self.seen)).sum() / others.sum())
        return found

    def scores(self) -> dict[str, dict[str, float]]:
        """Every criterion of every network but the jury's: {criterion: {name: value}}, larger is better."""
        found = {
            kind: {name: float(mean_iou_of(self.confusions(kind, name).sum(dim=0))) for name in self.names}
            for kind in BELIEFS
        }
        found["information"] = {
            name: float(torch.special.entr(self.marginal[name] / self.pixels).sum()) - self.entropy[name] / self.pixels
            for name in self.names
        }
        return found | {"density": {name: value / self.images for name, value in self.density.items()}}
