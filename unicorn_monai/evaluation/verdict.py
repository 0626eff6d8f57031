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
    jury          sum_j w_j IoU_n(q_j) / sum_j w_j,  w_j = exp(c_j / 0.05), j != n, where  c_n >= max_j c_j - 0.1

c is what confidence says that a network is worth (``expected_iou.py``): by it a juror is heard, and who lies 0.1 below
the best juror is not considered. For nobody is a juror of itself, which costs the best the best of its jurors: one that
stands out would lose to the second. A network that was taught by guesses on these images is sure of them whatever they
are worth: it is judged, and is no juror; who taught it may be one, and is pleased with its pupil.

Two criteria more need labelled images of another kind: reverse validation (``reverse_validation.py``), and the score on
held-out synthetic images, which favours networks trained on their like. How good the chosen one is:
``expected_iou.py``; all of it in one pass: ``recommendation.py``. Nothing here has seen a label of these images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unicorn_monai.images.augmentation import strong_intensity
from unicorn_monai.images.known_shifts import disturbed

NEIGHBOURS, SHARPNESS = 256, 0.05  # pixels of an image whose neighbourhoods are compared; temperature of their likeness
HEARD = 0.05  # a juror that is worth this much more mean IoU is heard e times as much
CONSIDERED = 0.1  # twice what an estimate is to be right to
BELIEFS = ("agreement", "belief", "consistency", "confidence")
CRITERIA = (*BELIEFS, "information", "density")


def expected_confusion(seen: Tensor, belief: Tensor) -> Tensor:
    """M of label maps (batch, rows, columns) under a belief (batch, labels, rows, columns): (batch, labels, labels)."""
    batch, labels = belief.shape[:2]
    sees = torch.nn.functional.one_hot(seen.long(), labels).reshape(batch, -1, labels).double()
    return sees.transpose(1, 2) @ belief.flatten(2).transpose(1, 2).double()


def mutual_confusion(seen: Sequence[Tensor], beliefs: Sequence[Tensor]) -> Tensor:
    """M of every network's label maps under every network's belief, over a batch: (networks, networks, labels, labels).

    One image at a time: all of a batch would be twice as many gigabytes as there are images of 1000 x 1000.
    """
    n, labels = len(beliefs), beliefs[0].shape[1]
    found = torch.zeros(n * labels, n * labels, dtype=torch.float64)
    for i in range(len(beliefs[0])):
        sees = torch.cat([torch.nn.functional.one_hot(s[i].long().flatten(), labels) for s in seen], dim=1)
        believes = torch.cat([belief[i].flatten(1) for belief in beliefs])
        found += (sees.T.float() @ believes.T.float()).double().cpu()
    return found.unflatten(0, (n, labels)).unflatten(2, (n, labels)).movedim(1, 2)


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
    return disturbed(images.flip(-1), strong_intensity(int(torch.randint(2**31, (), generator=generator))))


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
        both = len(self.names), len(self.names)  # each network's label maps under what each believes
        self.opinions = torch.zeros(*both, num_labels, num_labels, dtype=torch.float64)
        self.seen = torch.zeros(num_labels, dtype=torch.bool)  # somewhere, by a network; others do not count

    def update(self, probabilities: Mapping[str, Tensor], other_views: Mapping[str, Tensor]) -> None:
        """Add a batch: each network's softmax (batch, labels, rows, columns), and that of another view, turned back."""
        mean = torch.stack([probabilities[name].float() for name in self.names]).mean(dim=0)
        beliefs = {"agreement": one_hot_of(mean), "belief": mean}
        own = {name: tempered(probabilities[name].float(), self.temperatures[name]) for name in self.names}
        seen = {name: probabilities[name].argmax(dim=1) for name in self.names}
        self.opinions += mutual_confusion([*seen.values()], [*own.values()])
        self.images, self.pixels = self.images + len(mean), self.pixels + mean[:, 0].numel()
        for name in self.names:
            p = probabilities[name].float()
            its = {"consistency": one_hot_of(other_views[name]), "confidence": own[name]}
            self.seen[seen[name].unique().cpu()] = True
            for kind, belief in (beliefs | its).items():
                self.parts[kind][name].append(expected_confusion(seen[name], belief).float().cpu())
            self.marginal[name] += p.double().sum(dim=(0, 2, 3)).cpu()
            self.entropy[name] += float(torch.special.entr(p.double()).sum())
            self.density[name] += neighbourhood_density(p) * len(p)

    def confusions(self, kind: str, name: str) -> Tensor:
        """The expected confusion of every image, (images, labels, labels), of a network; ``kind`` of ``BELIEFS``."""
        if not self.images:
            raise ValueError("No image was given; expected at least one unlabelled image.")
        return torch.cat(self.parts[kind][name]).double() * self.seen

    def jury(self, worth: Mapping[str, float], jurors: Sequence[str]) -> dict[str, float]:
        """What the jurors think of each network; NaN of one that is not considered, or that nobody is left to judge.

        ``worth`` is the mean IoU that each network is expected to have.
        """
        if strangers := sorted(set(jurors) - set(self.names)):
            raise ValueError(f"The jurors {strangers} were not looked at; expected some of {self.names}.")
        best = max((worth[name] for name in jurors), default=0.0)
        heard = torch.tensor([math.exp((worth[m] - best) / HEARD) if m in jurors else 0.0 for m in self.names]).double()
        views, found = mean_iou_of(self.opinions * self.seen), dict.fromkeys(self.names, math.nan)  # (judged, juror)
        for i, name in enumerate(self.names):
            weight = heard.clone()
            weight[i] = 0.0
            sits = weight > 0
            if sits.any() and worth[name] >= best - CONSIDERED:
                found[name] = float((weight * views[i])[sits].sum() / weight.sum())
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
