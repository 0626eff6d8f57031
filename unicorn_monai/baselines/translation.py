"""Labelled images -> the same images in another look (of the other domain; TSynD): a labelled data set like any other.

The label map is the source image's, which is true as far as the translation leaves the anatomy alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from unicorn_monai.baselines.tsynd import MoreUncertain
from unicorn_monai.data.items import datalist
from unicorn_monai.data.journal import begun
from unicorn_monai.data.layout import colours_of, layout_of, read_header
from unicorn_monai.data.writer import About, DatasetWriter, require_same_origin
from unicorn_monai.images.files import read_array
from unicorn_monai.images.pictures import to_uint8
from unicorn_monai.images.transforms import read_image
from unicorn_monai.system.files import PathLike
from unicorn_monai.system.networks import AppliedNetwork, require_finite
from unicorn_monai.system.weights import read_metadata

logger = logging.getLogger("unicorn_monai")


class Translator:
    """Write the translated data set, streamed; an interrupted one is continued.

    Method and sha256 of the network's weights are kept as provenance, with TSynD those of all its networks and its
    settings. A finished data set is refused or, with ``resume`` and if it was made with the same weights, left as it
    is. ``device_name`` is the device the images look like.
    """

    def __init__(
        self,
        network: AppliedNetwork,
        dataset_dir: PathLike,
        output_dir: PathLike,
        split: str | Sequence[str] = ("training", "validation"),
        device_name: str = "synthetic",
        num_channels: int = 1,
        batch_size: int = 16,
        resume: bool = False,
    ) -> None:
        self.network, self.resume = network, resume
        splits = [split] if isinstance(split, str) else list(split)
        self.items = [(s, item) for s in splits for item in datalist(dataset_dir, s, ("image", "label"))]
        self.dataset_dir, self.output_dir = dataset_dir, Path(output_dir)
        self.device_name, self.num_channels, self.batch_size = device_name, num_channels, batch_size
        metadata = read_metadata(network.weights)
        if isinstance(network.inferer, MoreUncertain):
            self.provenance = network.inferer.provenance(metadata["sha256"])
        else:
            self.provenance = {"method": metadata.get("method"), "models": {"generator": metadata["sha256"]}}

    @torch.no_grad()
    def run(self) -> None:
        """Translate what is missing."""
        header = read_header(self.dataset_dir)
        with DatasetWriter(
            self.output_dir,
            About(
                name=f"synthetic {self.device_name}, {self.provenance['method']}",
                device=self.device_name,
                **layout_of(header),
            ),
            **colours_of(header),
            resume=begun(self.output_dir, finished_too=self.resume),
            synthetic=True,
        ) as writer:
            require_same_origin(writer, "synthetic", self.provenance)
            missing, began = [i for i in range(len(self.items)) if i not in writer], time.monotonic()
            for start in tqdm(range(0, len(missing), self.batch_size), desc="translation", disable=None, leave=False):
                batch = missing[start : start + self.batch_size]
                images = [read_image(self.items[i][1]["image"], self.num_channels) for i in batch]
                for i, image in zip(batch, self.translate(images), strict=True):
                    self._write(writer, i, image)
            if missing:
                each = (time.monotonic() - began) / len(missing)
                logger.info(f"{self.provenance['method']}: {len(missing)} images, {each:.3f} seconds each")

    def translate(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Images (channels, rows, columns) in [0, 1] of any sizes -> the same in the other look."""
        result: list[Tensor] = []
        one_size = len({image.shape for image in images}) == 1
        for batch in [images] if one_size else [[image] for image in images]:
            result += list(require_finite("A translated image", self.network(batch)).float().clamp(0, 1).cpu())
        return result

    def _write(self, writer: DatasetWriter, index: int, image: Tensor) -> None:
        split, item = self.items[index]
        sources = {f"source_{key}": Path(item[key]).name for key in ("image", "label")}
        about: dict[str, Any] = {"synthetic": self.provenance | sources, "subject": str(item.get("subject", ""))}
        about |= {key: item[key] for key in ("spacing_mm",) if key in item}
        writer.add(split, to_uint8(image), read_array(item["label"]), index=index, **about)
