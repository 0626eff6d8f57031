"""Sets of images: folders with a `dataset.json`, read, written, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unicorn_monai.system.lazy import offers

if TYPE_CHECKING:
    from unicorn_monai.data.augmented import write_augmented
    from unicorn_monai.data.checks import check, problems
    from unicorn_monai.data.items import datalist, folders_of, image_size, images_only, num_labels
    from unicorn_monai.data.layout import label_names, read_header
    from unicorn_monai.data.writer import DatasetWriter
    from unicorn_monai.images.augmentation import training_augmentation
    from unicorn_monai.images.files import read_array, write_array
    from unicorn_monai.images.transforms import FileAxesd, LabelMapd, LoadPixelsd, collate, read_image

__getattr__, __all__ = offers(__name__, __file__)
