"""Which network's labels teach the most? A small model learns what a network sees, and is scored where truth is known.

    phi(pixel)        grey values around it at four scales, its row and column, and random features of these
    mu_k, S, pi_k     means, common covariance and shares of phi over the pixels that network n calls k
    g_k(phi)          mu_k' S^-1 phi - mu_k' S^-1 mu_k / 2 + log pi_k
    reverse_n         mean IoU of argmax_k g_k on labelled images

Reverse validation (Zhong et al., ECML 2010), reverse classification accuracy (Valindria et al., IEEE TMI 2017): a
network that sees nonsense teaches nonsense. Both train a model for every candidate; here it is linear discriminant
analysis of random features (Rahimi and Recht, NeurIPS 2008), which needs sums alone, gathered while the candidates
look at the images, and no training. The labelled images are of another device, and every image is scaled to mean 0
and variance 1 for that: it ranks candidates, it estimates no score.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from unicorn_monai.evaluation.scoring import confusion_matrix
from unicorn_monai.evaluation.verdict import mean_iou_of

WINDOWS = (3, 7, 15)  # pixels; means of squares around a pixel
RANDOM = 64  # random features
PIXELS = 1024  # of an image, drawn at random
RIDGE = 1e-3  # of the covariance, in units of its mean variance


def features_of(images: Tensor) -> Tensor:
    """The phi of every pixel of images (batch, channels, rows, columns): (batch, pixels, features), float64."""
    batch, _, rows, columns = images.shape
    x = images.double()
    x = (x - x.mean(dim=(2, 3), keepdim=True)) / x.std(dim=(2, 3), keepdim=True).clamp(min=1e-6)
    around = [functional.avg_pool2d(x, side, 1, side // 2, count_include_pad=False) for side in WINDOWS]
    y, z = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
    place = torch.stack([y, z]).to(x).expand(batch, -1, -1, -1)
    plain = torch.cat([x, *around, place], dim=1).flatten(2).transpose(1, 2)
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(plain.shape[-1], RANDOM, generator=random, dtype=torch.float64) / plain.shape[-1] ** 0.5
    offset = torch.randn(RANDOM, generator=random, dtype=torch.float64)
    return torch.cat([plain, (plain @ weight.to(x) + offset.to(x)).relu()], dim=-1)


class ReverseValidation:
    """The models of several networks, learned over batches of unlabelled images, then scored on labelled ones."""

    def __init__(self, names: Sequence[str], num_labels: int, seed: int = 0) -> None:
        self.num_labels, self.generator = num_labels, torch.Generator().manual_seed(seed)
        self.pixels, self.squares = 0, torch.zeros((), dtype=torch.float64)
        self.sums = {name: torch.zeros((), dtype=torch.float64) for name in names}
        self.counts = {name: torch.zeros(num_labels, dtype=torch.float64) for name in names}

    def update(self, images: Tensor, seen: Mapping[str, Tensor]) -> None:
        """Add a batch (batch, channels, rows, columns) and what each network sees in it, (batch, rows, columns)."""
        phi = features_of(images.cpu())
        chosen = torch.randperm(phi.shape[1], generator=self.generator)[:PIXELS]
        phi = phi[:, chosen].flatten(0, 1)
        self.squares, self.pixels = self.squares + phi.T @ phi, self.pixels + len(phi)
        for name in self.sums:
            label = seen[name].cpu().flatten(1)[:, chosen].flatten().long()
            one = functional.one_hot(label, self.num_labels).double()
            self.sums[name] = self.sums[name] + one.T @ phi
            self.counts[name] += one.sum(dim=0)

    def discriminant(self, name: str) -> tuple[Tensor, Tensor]:
        """Weights (labels, features) and offsets (labels,) of g; minus infinity for a label that was never seen."""
        if not self.pixels:
            raise ValueError("No image was given; expected at least one unlabelled image.")
        count, mean = self.counts[name], self.sums[name] / self.counts[name].clamp(min=1)[:, None]
        within = (self.squares - mean.T @ (count[:, None] * mean)) / self.pixels
        within = within + RIDGE * within.diagonal().mean().clamp(min=1e-9) * torch.eye(len(within)).double()
        weight = torch.linalg.solve(within, mean.T).T
        return weight, (count / self.pixels).log() - (weight * mean).sum(dim=1) / 2

    def scores(self, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Mean IoU of each network's model on labelled images: pairs of images and label maps, 255 to ignore."""
        models = {name: self.discriminant(name) for name in self.sums}
        found = {name: torch.zeros(self.num_labels, self.num_labels, dtype=torch.float64) for name in models}
        for images, label in batches:
            phi = features_of(images.cpu())
            for name, (weight, offset) in models.items():
                seen = (phi @ weight.T + offset).argmax(dim=-1)
                found[name] += confusion_matrix(seen, label.cpu(), self.num_labels)
        return {name: float(mean_iou_of(confusion)) for name, confusion in found.items()}
