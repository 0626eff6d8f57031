"""Uncertainties of a data set's images, as `segmentation.recorders` writes them."""

from __future__ import annotations

import json

import numpy as np
import torch
from torch import Tensor

from unicorn_monai.system.files import PathLike
from unicorn_monai.system.intake import lies_there, read_text


def read_uncertainties(path: PathLike, items: list[dict], segmentation_sha256: str | None = None) -> Tensor:
    """The uncertainties of ``items``, (items,) float32; those of another segmentation network are refused."""
    if not lies_there(path):
        raise ValueError(f"No uncertainties at '{path}'. Run the 'uncertainty' configuration of retinal_unet first.")
    try:
        content = json.loads(read_text(path))
        table, found = content["images"], str(content["segmentation_sha256"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"'{path}' holds no uncertainties ({error!r}). Measure them again.") from error
    if segmentation_sha256 is not None and found != segmentation_sha256:
        raise ValueError(
            f"'{path}' was measured with the segmentation weights {found[:12]}..., expected "
            f"{segmentation_sha256[:12]}...; uncertainties of two networks are not comparable. Run the 'uncertainty' "
            "configuration of retinal_unet again."
        )
    if missing := [item["image"] for item in items if item["image"] not in table]:
        raise ValueError(
            f"'{path}' lacks {len(missing)} of {len(items)} images, first '{missing[0]}'. It was measured on another "
            "data set; run the 'uncertainty' configuration of retinal_unet on this one."
        )
    return torch.from_numpy(np.array([table[item["image"]] for item in items], dtype=np.float32))
