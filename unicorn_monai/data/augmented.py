"""A data set once more, with strongly augmented copies of its training images."""

from __future__ import annotations

import numpy as np
import torch

from unicorn_monai.data.items import datalist
from unicorn_monai.data.journal import begun
from unicorn_monai.data.layout import colours_of, layout_of, read_header
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.images import read_array, read_image
from unicorn_monai.images.augmentation import strong_intensity
from unicorn_monai.images.pictures import to_uint8
from unicorn_monai.system.files import PathLike


def write_augmented(dataset_dir: PathLike, output: PathLike, seed: int = 0) -> None:
    """Write a copy of a labelled data set with strongly augmented images; each depends on (seed, index) only.

    An interrupted copy is continued, a finished one left as it is.
    """
    header = read_header(dataset_dir)
    channels = 3 if header.get("modality") == "RGB" else 1
    with DatasetWriter(
        output,
        About(
            name=f"{header.get('name', 'data')}, strong intensity augmentation",
            device=f"{header.get('device', 'unknown')}, augmented",
            **layout_of(header),
        ),
        **colours_of(header),
        resume=begun(output, finished_too=True),
        settings={"seed": seed},
        augmented=True,
    ) as writer:
        items = [(s, i) for s in ("training", "validation") for i in datalist(dataset_dir, s, ("image", "label"))]
        for index, (split, item) in enumerate(items):
            if index not in writer:
                transform = strong_intensity(int(np.random.SeedSequence([seed, index]).generate_state(1)[0]))
                image = to_uint8(torch.as_tensor(transform(read_image(item["image"], channels))))
                told = {key: item[key] for key in ("sub_domain", "prompt") if key in item}
                writer.add(split, image, read_array(item["label"]), subject=item["subject"], index=index, **told)
