"""Sets of images: folders with a `dataset.json`, read, written, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unicorn_monai.system.lazy import offered

if TYPE_CHECKING:
    from unicorn_monai.data.augmented import write_augmented
    from unicorn_monai.data.checks import check, problems
    from unicorn_monai.data.items import datalist, folders_of, image_size, images_only, num_labels
    from unicorn_monai.data.layout import label_names, read_header
    from unicorn_monai.data.writer import DatasetWriter
    from unicorn_monai.images.augmentation import training_augmentation
    from unicorn_monai.images.files import read_array, write_array
    from unicorn_monai.images.transforms import FileAxesd, LabelMapd, LoadPixelsd, collate, read_image

__all__ = [
    "DatasetWriter",
    "FileAxesd",
    "LabelMapd",
    "LoadPixelsd",
    "check",
    "collate",
    "datalist",
    "folders_of",
    "image_size",
    "images_only",
    "label_names",
    "num_labels",
    "problems",
    "read_array",
    "read_header",
    "read_image",
    "training_augmentation",
    "write_array",
    "write_augmented",
]
_HOMES = {
    "DatasetWriter": "data.writer",
    "FileAxesd": "images.transforms",
    "LabelMapd": "images.transforms",
    "LoadPixelsd": "images.transforms",
    "check": "data.checks",
    "collate": "images.transforms",
    "datalist": "data.items",
    "folders_of": "data.items",
    "image_size": "data.items",
    "images_only": "data.items",
    "label_names": "data.layout",
    "num_labels": "data.items",
    "problems": "data.checks",
    "read_array": "images.files",
    "read_header": "data.layout",
    "read_image": "images.transforms",
    "training_augmentation": "images.augmentation",
    "write_array": "images.files",
    "write_augmented": "data.augmented",
}


def __getattr__(name: str) -> Any:
    return offered(__name__, _HOMES, name)
