"""Online self-training: a network learns from its own moving average on unlabelled images, in one training.

    y'(x)  = argmax_k p_k(x),  p of the averaged network w' <- d w' + (1 - d) w                 guessed labels
    q      = r * share of pixels of x with max_k p_k > tau,   r rising from 0 to 1 in the warm-up
    loss   = L(f(x_s), y_s) + CE(f(M x_s + (1 - M) x_t), M y_s + (1 - M) y', weight M + (1 - M) q)

M is the mask of half of the classes of a labelled image (ClassMix), which is pasted onto an unlabelled one. Labelled
images are drawn by their rare classes, P(c) ~ exp((1 - f_c) / T), f_c the share of the pixels. The averaged network
sees x_t as it is, the other one strongly augmented. The form of DACS (Tranheden et al., WACV 2021) and DAFormer (Hoyer
et al., CVPR 2022), but without its feature distance, which needs a network pre-trained on photographs, and with both
parts of a mixed image augmented before they are mixed, since the labelled one has been already.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, RandomizableTransform
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Sampler

from unicorn_monai.images.augmentation import strong_intensity
from unicorn_monai.images.files import IGNORE_LABEL
from unicorn_monai.images.transforms import LoadPixelsd, read_image
from unicorn_monai.segmentation.training import cross_entropy
from unicorn_monai.system.distributed import without_lone

WEAK = ("none", "geometry")  # augmentations without intensities


def rare_class_probabilities(shares: NDArray[np.floating], temperature: float = 0.1) -> NDArray[np.floating]:
    """P(c) of every class that occurs, (classes,), from its share of all pixels; 0 of one that does not.

    Args:
        shares: f_c, (classes,), of sum 1.
        temperature: T; small ones ask for the rarest class alone. The paper's 0.01 is for 19 classes.
    """
    exponent = np.where(shares > 0, (1 - shares) / temperature, -np.inf)
    weights = np.exp(exponent - exponent.max())
    return weights / weights.sum()


class RareClassSampler(Sampler[int]):
    """Indices of label maps: a class first, by :func:`rare_class_probabilities`, then one of the images that show it.

    Args:
        pixels: (images, classes), pixels of every class in every image.
        count: of indices.
        temperature: T.
    """

    def __init__(self, pixels: NDArray[np.integer], count: int, temperature: float = 0.1) -> None:
        if not pixels.sum():
            raise ValueError("No labelled pixel in any image; expected at least one. Check the label maps.")
        self.shown = [np.flatnonzero(column) for column in pixels.T]
        self.probabilities = rare_class_probabilities(pixels.sum(axis=0) / pixels.sum(), temperature)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng(int(torch.randint(2**62, ()).item()))
        for label in random.choice(len(self.shown), self.count, p=self.probabilities):
            yield int(random.choice(self.shown[label]))


def class_mask(label: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """M of a label map (1, rows, columns): true in half of its classes, rounded up, chosen at random."""
    classes = label.unique()
    classes = classes[classes != IGNORE_LABEL]
    chosen = classes[torch.randperm(len(classes), generator=generator)[: (len(classes) + 1) // 2]]
    return torch.isin(label, chosen)


class RandUnlabeledd(RandomizableTransform, MapTransform):
    """Give a labelled item one of the unlabelled images, anew at every call: "unlabeled", and "seen", augmented.

    Args:
        items: with "image", a file; each is read once.
        num_channels: of the images.
        augmentation: of the labelled images; one that changes grey values does so here.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], num_channels: int = 1, augmentation: str = "none") -> None:
        MapTransform.__init__(self, ("image",))
        RandomizableTransform.__init__(self, 1.0)
        if not items:
            raise ValueError("Self-training needs unlabelled images, and there are none. Give unlabeled_dir.")
        self.files, self.num_channels = [str(item["image"]) for item in items], num_channels
        self.strong = None if augmentation in WEAK else strong_intensity()
        self.read: dict[str, Tensor] = {}

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandUnlabeledd:
        """Seed the transforms inside as well."""
        super().set_random_state(seed, state)
        if self.strong is not None:
            self.strong.set_random_state(int(self.R.randint(2**31)))
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Both (channels, rows, columns) in [0, 1], float32; half of them mirrored, as the labelled ones."""
        path = self.files[self.R.randint(len(self.files))]
        if path not in self.read:
            self.read[path] = read_image(path, self.num_channels)
        image, like = self.read[path], data["image"]
        if image.shape != like.shape:
            raise ValueError(
                f"The unlabelled image '{path}' is {tuple(image.shape[1:])}, a labelled one {tuple(like.shape[1:])}; "
                "expected one size, since parts of one are pasted onto the other. Resample with `--size` of data_prep."
            )
        if self.R.randint(2):
            image = image.flip(-1)
        seen = image if self.strong is None else self.strong(image).clamp(0, 1)
        return {**data, "unlabeled": image, "seen": seen}


class MixedBatches:
    """``prepare_batch`` of a trainer: each labelled batch is followed by one of mixed images with guessed labels.

    Target and weight of every pixel are the two channels of what the loss is given: (2 batch, 2, rows, columns).

    Args:
        averaged: guesses the labels; a handler of the trainer makes it follow the network (``training.EMA``).
        max_epochs: of the training.
        data_loader: has as many batches as an epoch.
        threshold: tau.
        rising: share of the iterations in which r rises.
    """

    def __init__(
        self, averaged: nn.Module, max_epochs: int, data_loader: Sized, threshold: float = 0.9, rising: float = 0.2
    ) -> None:
        self.averaged, self.threshold = averaged.eval().requires_grad_(False), threshold
        self.rising, self.iteration = max(1.0, rising * max_epochs * len(data_loader)), 0

    @torch.no_grad()
    def guesses(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (batch, 1, rows, columns) and weight q (batch,) without the warm-up of unlabelled images."""
        confidence, label = self.averaged(images).softmax(dim=1).max(dim=1, keepdim=True)
        return label, (confidence > self.threshold).flatten(1).float().mean(dim=1)

    def __call__(
        self, batch: dict[str, Tensor], device: torch.device, non_blocking: bool = False, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Images (2 batch, channels, rows, columns) and targets with weights, of items of :class:`RandUnlabeledd`."""
        keys = ("image", "label", "unlabeled", "seen")
        images, labels, unlabeled, seen = (batch[key].to(device, non_blocking=non_blocking) for key in keys)
        guessed, share = self.guesses(unlabeled)
        self.iteration += 1
        weight = (share * min(1.0, self.iteration / self.rising)).reshape(-1, 1, 1, 1)
        mask = torch.stack([class_mask(label) for label in labels])
        mixed, label = torch.where(mask, images, seen), torch.where(mask, labels, guessed)
        weights = torch.cat([torch.ones_like(labels, dtype=torch.float), torch.where(mask, 1.0, weight)])
        return torch.cat([images, mixed]), torch.cat([torch.cat([labels, label]).float(), weights], dim=1)

    def state_dict(self) -> dict[str, int]:
        """How far r has risen."""
        return {"iteration": self.iteration}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.iteration = state["iteration"]


class SelfTrainingLoss(nn.Module):
    """The supervised loss of the labelled half, and the weighted cross-entropy of the mixed one.

    Args:
        supervised: of logits (batch, labels, rows, columns) and label maps (batch, 1, rows, columns).
    """

    def __init__(self, supervised: nn.Module) -> None:
        super().__init__()
        self.supervised = supervised

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Args: logits of both halves, targets of :class:`MixedBatches`. Returns a scalar."""
        half = len(logits) // 2
        labels, weights = targets[:, 0].long(), targets[:, 1]
        mixed = cross_entropy(logits[half:], labels[half:], weights[half:])
        return self.supervised(logits[:half], labels[:half, None]) + mixed


def pixels_of(labels: Iterable[Tensor], num_labels: int) -> NDArray[np.integer]:
    """(images, classes): how many pixels of every class every label map has."""
    return np.stack(
        [torch.bincount(x[x != IGNORE_LABEL].long().flatten(), minlength=num_labels).numpy() for x in labels]
    )


def rare_class_order(
    items: Sequence[Mapping[str, Any]],
    num_labels: int,
    batch_size: int,
    iterations: int | None = None,
    temperature: float = 0.1,
) -> RareClassSampler:
    """``training.random_order``, but by the rare classes of the items' label maps, which are read here."""
    loading = LoadPixelsd(["label"], num_labels=num_labels)
    pixels = pixels_of((loading.read_label(item["label"]) for item in items), num_labels)
    draws = without_lone(len(items), batch_size) if iterations is None else iterations * batch_size
    return RareClassSampler(pixels, draws, temperature)
