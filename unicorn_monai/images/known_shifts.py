"""Labelled images, disturbed in known ways: what a network makes of images that it was not trained for, measured.

    as they are      strong      random contrast      SVDNA, FDA, histogram: in the style of the unlabelled images

``augmentation.py``, ``random_contrast.py`` and ``target_style.py`` define them. The labels stay right, since no pixel
moves. None of it is the other device; together they are shifts from none to severe, and on a set of shifts what a
network believes of itself can be held against what it is worth (Deng and Zheng, CVPR 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from monai.transforms import RandomizableTransform
from torch import Tensor

from unicorn_monai.images.augmentation import strong_intensity
from unicorn_monai.images.pictures import evenly
from unicorn_monai.images.random_contrast import RandContrastCurved
from unicorn_monai.images.target_style import STYLES, RandTargetStyled

TARGETS = 64  # unlabelled images that lend their style; each is kept in memory, once for each style

Change = Callable[[Tensor], Tensor]  # of an image (channels, rows, columns) in [0, 1]


def disturbances(unlabelled: Sequence[str], seed: int = 0) -> dict[str, Change]:
    """The changes by name, the first of which changes nothing; each draws anew at every call.

    ``unlabelled``: files of images of the other device, one or more; up to ``TARGETS`` of them are kept, evenly spread.
    """
    targets = [unlabelled[i] for i in evenly(len(unlabelled), min(TARGETS, len(unlabelled)))]
    drawn: dict[str, RandomizableTransform] = {"random_contrast": RandContrastCurved(prob=1.0)}
    drawn |= {style: RandTargetStyled(["image"], style, targets, prob=1.0) for style in STYLES}
    for i, transform in enumerate(drawn.values()):
        transform.set_random_state(seed + i)
    changed = {name: partial(_of_image, transform) for name, transform in drawn.items()}
    return {"none": torch.Tensor.float, "strong": strong_intensity(seed), **changed}


def disturbed(images: Tensor, change: Change) -> Tensor:
    """Images (batch, channels, rows, columns), each changed by itself, in [0, 1] and on their device."""
    return torch.stack([torch.as_tensor(change(image)).float().clamp(0, 1) for image in images.cpu()]).to(images.device)


def _of_image(transform: Callable[[dict[str, Tensor]], dict[str, Tensor]], image: Tensor) -> Tensor:
    return transform({"image": image})["image"]
