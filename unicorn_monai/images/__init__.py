"""One image: its file, its pixels, its geometry, its label map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unicorn_monai.system.lazy import offered

if TYPE_CHECKING:
    from unicorn_monai.images.augmentation import training_augmentation
    from unicorn_monai.images.files import read_array
    from unicorn_monai.images.transforms import FileAxesd, LabelMapd, LoadPixelsd, collate, one_hot, read_image

__all__ = [
    "FileAxesd",
    "LabelMapd",
    "LoadPixelsd",
    "collate",
    "one_hot",
    "read_array",
    "read_image",
    "training_augmentation",
]
_HOMES = {
    "FileAxesd": "images.transforms",
    "LabelMapd": "images.transforms",
    "LoadPixelsd": "images.transforms",
    "collate": "images.transforms",
    "one_hot": "images.transforms",
    "read_array": "images.files",
    "read_image": "images.transforms",
    "training_augmentation": "images.augmentation",
}


def __getattr__(name: str) -> Any:
    return offered(__name__, _HOMES, name)
