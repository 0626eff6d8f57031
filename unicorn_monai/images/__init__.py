"""One image: its file, its pixels, its geometry, its label map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unicorn_monai.system.lazy import offers

if TYPE_CHECKING:
    from unicorn_monai.images.augmentation import training_augmentation
    from unicorn_monai.images.files import read_array
    from unicorn_monai.images.transforms import FileAxesd, LabelMapd, LoadPixelsd, collate, one_hot, read_image

__getattr__, __all__ = offers(__name__, __file__)
