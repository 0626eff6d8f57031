"""Dictionary transforms used by the bundle configurations: files to tensors, with messages that name the file."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data.utils import list_data_collate
from monai.transforms import MapTransform
from torch import Tensor

from unicorn_monai.images.files import IGNORE_LABEL, file_axes, read_affine, read_array
from unicorn_monai.system.errors import NotFinite


class LoadPixelsd(MapTransform):
    """Read image and label files of a data set.

    ``image`` becomes float32 (channels, rows, columns) in [0, 1]; ``label`` becomes int64 (1, rows, columns).

    Args:
        keys: which of "image" and "label" to read.
        num_channels: channels an image must have.
        num_labels: label values must lie in 0..num_labels - 1, or be 255 (ignore).
        keep: keep the other entries and add the files' geometry, for a server that answers one request at a time.
        allow_missing_keys: leave out what an item has not, instead of refusing it.
    """

    def __init__(
        self,
        keys: Sequence[str],
        num_channels: int = 1,
        num_labels: int | None = None,
        keep: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_channels, self.num_labels, self.keep = num_channels, num_labels, keep

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The tensors under ``keys`` and their paths under ``<key>_path``.

        Nothing else: the entries of an item may differ between data sets, or be null, which no batch can be made of.
        With ``keep`` everything else too, and ``<key>_meta_dict`` with the affine of the file.
        """
        result: dict[Hashable, Any] = dict(data) if self.keep else {}
        for key in self.key_iterator(dict(data)):
            path = data[key]
            result[f"{key}_path"] = str(path)
            result[key] = self.read_label(path) if key == "label" else read_image(path, self.num_channels)
            if self.keep:
                result[f"{key}_meta_dict"] = {"original_affine": read_affine(path)}
        read = set(self.key_iterator(dict(data)))
        image, label = (tuple(result[key].shape[1:]) if key in read else () for key in ("image", "label"))
        if image and label and image != label:
            raise ValueError(f"Image '{result['image_path']}' is {image}, its label map {label}; expected one size.")
        return result

    def read_label(self, path: str) -> Tensor:
        """One label map as int64 (1, rows, columns)."""
        array = read_array(path)
        if array.ndim != 2:
            raise ValueError(
                f"Label map '{path}' has shape {array.shape}; expected one channel. Convert colours to ids."
            )
        label = torch.from_numpy(array.astype(np.int64))[None]
        valid = label[label != IGNORE_LABEL]
        if self.num_labels is not None and valid.numel() and not 0 <= valid.min() <= valid.max() < self.num_labels:
            raise ValueError(
                f"Label map '{path}' holds values {valid.min()} to {valid.max()}; expected 0 to {self.num_labels - 1} "
                f"or {IGNORE_LABEL} (ignore). Check 'labels' in dataset.json and num_labels of the configuration."
            )
        return label


class LabelMapd(MapTransform):
    """Logits (labels, *spatial) -> the most probable label of every pixel, uint8 (*spatial)."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with the label maps of ``keys``."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = result[key].argmax(dim=0).byte()
        return result


class FileAxesd(MapTransform):
    """A map (rows, columns) -> a numpy volume of one slice (i, j, 1) in the axes of the image file, as viewers want it.

    A volume, since writers keep the spacing and the position of volumes only. ``<ref>_path`` of an item tells the file.
    """

    def __init__(self, keys: Sequence[str], ref: str = "image") -> None:
        super().__init__(keys)
        self.ref = ref

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with the volumes of ``keys``."""
        result = dict(data)
        for key in self.key_iterator(result):
            plane = result[key].cpu().numpy()
            result[key] = np.ascontiguousarray(file_axes(result[f"{self.ref}_path"], plane)[..., None])
        return result


def read_image(path: str, num_channels: int = 1) -> Tensor:
    """One image as float32 (channels, rows, columns) in [0, 1]; integer types are divided by their largest value."""
    array = read_array(path)
    channels = 1 if array.ndim == 2 else array.shape[-1]
    if channels != num_channels:
        raise ValueError(
            f"Image '{path}' has {channels} channel(s); expected {num_channels}. Convert them, or set num_channels."
        )
    if np.issubdtype(array.dtype, np.integer):
        array = array.astype(np.float32) / np.iinfo(array.dtype).max
    image = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if not torch.isfinite(image).all():
        raise NotFinite(f"Image '{path}' holds NaN or infinite pixels. Repair it, or remove it from dataset.json.")
    return image[None] if image.ndim == 2 else image.permute(2, 0, 1).contiguous()


def collate(items: list[dict[Hashable, Any]]) -> Any:
    """A batch of what :class:`LoadPixelsd` gave; images of different sizes are refused by name."""
    sizes = {tuple(item["image"].shape[1:]): item.get("image_path") for item in items}
    if len(sizes) > 1:
        raise ValueError(f"Images differ in size: {sizes}. Expected one size; resample with the `--size` of data_prep.")
    batch = [{key: value for key, value in item.items() if not str(key).endswith("_meta_dict")} for item in items]
    return list_data_collate(batch)  # a file's geometry, which may be absent, is for servers


def one_hot(label: Tensor, num_labels: int) -> Tensor:
    """Label map (batch, 1, *spatial) -> (batch, num_labels, *spatial) float32; ignored pixels (255) are all zero."""
    values = torch.arange(num_labels, device=label.device).reshape(1, -1, *[1] * (label.ndim - 2))
    return (label == values).float()
