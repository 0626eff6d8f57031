"""Pseudo-labels: confident predictions of a segmentation network, written as a data set.

label(pixel) = argmax_k p_k  where  max_k p_k >= threshold,  else 255 (ignored by loss and scores)

True labels of the images, where there are any, are not read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from unicorn_monai.data.items import datalist
from unicorn_monai.data.journal import begun
from unicorn_monai.data.layout import label_names, layout_of, read_header
from unicorn_monai.data.writer import About, DatasetWriter, require_same_origin
from unicorn_monai.images.files import IGNORE_LABEL
from unicorn_monai.images.pictures import to_uint8
from unicorn_monai.images.transforms import read_image
from unicorn_monai.system.files import PathLike
from unicorn_monai.system.networks import AppliedNetwork, require_finite
from unicorn_monai.system.weights import read_metadata

logger = logging.getLogger("unicorn_monai")


def pseudo_label(logits: Tensor, threshold: float) -> Tensor:
    """Confident labels, 255 elsewhere: logits (batch, labels, *spatial) -> (batch, *spatial) uint8."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; expected a probability, 0 to 1. 0.9 is usual.")
    confidence, label = require_finite("The output of the segmentation network", logits.float()).softmax(1).max(1)
    return torch.where(confidence >= threshold, label, IGNORE_LABEL).to(torch.uint8)


class PseudoLabeller:
    """Write a copy of a data set with pseudo-labels in place of labels; what is finished already is left alone.

    Args:
        network: the segmentation network, images -> logits; the sha256 of its weights is kept as provenance.
        dataset_dir: data set of the unlabelled domain.
        output_dir: the new data set.
        labeled_dir: data set of the labelled domain, whose labels the network knows; by default they are those of
            ``dataset_dir``, if it has any.
        threshold: the largest probability must reach it; in [0, 1].
        split: splits to label.
        num_channels: of the images.
        batch_size: images at a time.
    """

    def __init__(
        self,
        network: AppliedNetwork,
        dataset_dir: PathLike,
        output_dir: PathLike,
        labeled_dir: PathLike | None = None,
        threshold: float = 0.9,
        split: str | Sequence[str] = ("training", "validation"),
        num_channels: int = 1,
        batch_size: int = 16,
    ) -> None:
        pseudo_label(torch.zeros(1, 2, 1), threshold)  # refuses what is no probability
        splits = [split] if isinstance(split, str) else list(split)
        self.items = [(s, item) for s in splits for item in datalist(dataset_dir, s)]
        self.network = network
        self.dataset_dir, self.output_dir = dataset_dir, Path(output_dir)
        self.names = label_names(dataset_dir if labeled_dir is None else labeled_dir)
        if not self.names:
            raise ValueError(
                f"'{labeled_dir or dataset_dir}' names no labels, since none of its images has a label map. Give "
                "labeled_dir, the data set that the segmentation network was trained on."
            )
        self.threshold, self.num_channels, self.batch_size = threshold, num_channels, batch_size
        self.origin = {"threshold": threshold, "segmentation_sha256": read_metadata(network.weights)["sha256"]}

    @torch.no_grad()
    def run(self) -> None:
        """Label what is missing."""
        header = read_header(self.dataset_dir)
        with DatasetWriter(
            self.output_dir,
            About(
                name=f"{header.get('name', 'data')}, pseudo-labels",
                device=header.get("device", "unknown"),
                **layout_of(header) | {"labels": dict(enumerate(self.names))},
            ),
            resume=begun(self.output_dir, finished_too=True),
            pseudo_labels=True,
        ) as writer:
            require_same_origin(writer, "pseudo_label", self.origin)
            missing = [i for i in range(len(self.items)) if i not in writer]
            for start in tqdm(range(0, len(missing), self.batch_size), desc="pseudo-labels", disable=None, leave=False):
                self._label(writer, missing[start : start + self.batch_size])
            shares = [item["pseudo_label"]["confident"] for _, item in writer.rows()]
            logger.info(f"pseudo-labels: {np.mean(shares):.1%} of the pixels of {len(shares)} images are confident")
            if not any(shares):
                raise ValueError(
                    f"No pixel of {len(shares)} images has a label of probability {self.threshold} or more. Lower the "
                    f"threshold (with another output_dir than '{self.output_dir}'), or train the network longer."
                )

    def _label(self, writer: DatasetWriter, batch: list[int]) -> None:
        images = [read_image(self.items[i][1]["image"], self.num_channels) for i in batch]
        if len({image.shape for image in images}) > 1:
            raise ValueError(f"Images of '{self.dataset_dir}' differ in size. Resample with the `--size` of data_prep.")
        logits = self.network(images)
        for i, image, label in zip(batch, images, pseudo_label(logits, self.threshold).cpu().numpy(), strict=True):
            split, item = self.items[i]
            confident = round(float((label != IGNORE_LABEL).mean()), 4)
            extra = {key: item[key] for key in ("spacing_mm", "sub_domain", "prompt") if key in item}
            origin = {"confident": confident, **self.origin, "source_image": Path(item["image"]).name}
            subject = str(item.get("subject", ""))
            writer.add(split, to_uint8(image), label, subject=subject, index=i, pseudo_label=origin, **extra)
