"""Synthetic data sets that look exactly like real ones, with the provenance of every item."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from unicorn_monai.data.journal import begun
from unicorn_monai.data.layout import colours_of, layout_of, list_folders, read_header
from unicorn_monai.data.remote import local_side
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.images.files import write_array
from unicorn_monai.images.pictures import tile, to_uint8
from unicorn_monai.images.warping import augmented_spacing
from unicorn_monai.sampler_trial import options_of
from unicorn_monai.synthesis.generator import Generator
from unicorn_monai.synthesis.requests import Request, Requests
from unicorn_monai.synthesis.sheets import as_sheet
from unicorn_monai.system.distributed import among_others, by_torchrun, share
from unicorn_monai.system.files import PathLike, write_json

logger = logging.getLogger("unicorn_monai")


@dataclass
class Synthesizer:
    """Write a labelled synthetic data set, streamed and resumable, in one process or in several.

    Started by ``torchrun`` (or with ``RANK`` and ``WORLD_SIZE`` set in any other way), each process makes every so many
    batches and waits for nobody; the finished data set is that of one process. A batch that was cut off is made again
    as a whole, so an image is the same to the last bit after an interruption.
    """

    generator: Generator
    requests: Requests
    output_dir: PathLike  # a folder or a URL; an interrupted data set is continued, a finished one refused
    label_dir: PathLike | Sequence[PathLike]  # data sets of the label maps: the first gives the label table
    device_name: str = "synthetic"  # device the images look like
    models: dict[str, str] | None = None  # name -> sha256 of the weights, kept as provenance
    batch_size: int = 16  # images made at a time
    resume: bool = False  # leave a finished data set as it is, if made with the same settings, instead of refusing it

    @cached_property
    def header(self) -> dict[str, Any]:
        """What is said of all label maps, such as their names and their size of a pixel."""
        return read_header(list_folders(self.label_dir)[0])

    def run(self) -> None:
        """Make what is missing of this process's share.

        Without a share, as where ``RANK`` and ``WORLD_SIZE`` were left in the environment, it is refused; beside others
        that ``torchrun`` started, it ends without a word.
        """
        own = share()
        starts = range(own[0] * self.batch_size, len(self.requests), own[1] * self.batch_size)
        if own[1] > 1:
            self._tell_share(sum(min(self.batch_size, len(self.requests) - start) for start in starts))
        with DatasetWriter(
            self.output_dir,
            About(name=f"synthetic {self.device_name}", device=self.device_name, **layout_of(self.header)),
            **colours_of(self.header),
            resume=self.resume or own[1] > 1 or begun(local_side(self.output_dir)),
            settings=self.settings(),
            share=own,
            total=len(self.requests),
            synthetic=True,
        ) as writer:
            for start in tqdm(starts, desc="synthesis", disable=True if own[0] else None, leave=False):
                end = min(start + self.batch_size, len(self.requests))
                if all(index in writer for index in range(start, end)):
                    continue
                batch = self.requests[start:end]
                labels = self.generator.labels(batch)
                images = self.generator(batch, labels)
                for i, request in enumerate(batch):
                    if request.index not in writer:
                        self._write(writer, request, images[i], None if labels is None else labels[i, 0])
                writer.commit()

    def _tell_share(self, own: int) -> None:
        total, size = len(self.requests), self.batch_size
        if not own and not by_torchrun():
            raise ValueError(
                f"This is {among_others()}, and there is nothing for it to make: {total} images are "
                f"{-(-total // size)} batch(es) of {size}, each made by one process. Start fewer, or, if this is the "
                "only one, `unset RANK WORLD_SIZE`."
            )
        logger.info(
            f"{among_others()}: makes {own} of {total} images of '{self.output_dir}'; dataset.json is written once all "
            "processes have ended."
        )

    def settings(self) -> dict[str, Any]:
        """What decides the images; a data set begun with other settings is not continued."""
        inferer = self.generator.inferer
        return {
            "requests": self.requests.identity(),
            "spacing_mm": self.header.get("spacing_mm"),
            "models": self.models or {},
            "weight": inferer.uncertainty_weight,
            "guidance": list(inferer.guidance),
            "mode": inferer.mode,
            "steps": self.generator.steps,
            "scheduler": type(inferer.ldm.scheduler).__name__,
            "prediction_type": str(inferer.ldm.scheduler.prediction_type),
            "sampler": options_of(inferer.ldm.scheduler),
            **({"precision": "bfloat16"} if self.generator.autocast["enabled"] else {}),
            **({"compile": True} if inferer.compile else {}),  # both round in another way
        }

    def _write(self, writer: DatasetWriter, request: Request, image: Tensor, label: Tensor | None) -> None:
        spacing = request.spacing_mm or self.header.get("spacing_mm")
        if spacing is not None and request.augment is not None:
            spacing = augmented_spacing(spacing, request.augment)
        own = spacing is not None and (request.augment is not None or request.spacing_mm is not None)
        writer.add(
            request.split,
            to_uint8(image),
            None if label is None else label.numpy().astype(np.uint8),
            subject=request.subject,
            index=request.index,
            entries={"spacing_mm": list(spacing)} if own else {},  # where it is not that of all label maps
            synthetic={
                "seed": request.seed,
                "uncertainty": request.uncertainty,
                "weight": self.generator.inferer.uncertainty_weight,
                "guidance": list(self.generator.inferer.guidance),
                "source_label": Path(request.label).name if request.label else None,
                **({} if request.source is None else {"source_data": request.source}),
                "augment": request.augment,
                **({} if request.prompt is None else {"prompt": request.prompt}),
                "models": self.models or {},
            },
        )


def outcome(output_dir: str) -> str:
    """What a synthesis has led to, for its user: the data set, or this process's share of one that is not complete."""
    if not begun(local_side(output_dir)):
        return f"{output_dir}/dataset.json"
    return (
        f"{output_dir}: the share of {among_others()} is done. The data set is not complete, and has no dataset.json, "
        "before all have made theirs; if there are no others, `unset RANK WORLD_SIZE` and start it again."
    )


@dataclass
class SampleWriter:
    """Write single images, a sheet of all, and what each was made of: the inference of the generative bundles."""

    generator: Generator
    requests: Requests
    output_dir: PathLike  # gets ``0000.png`` ..., ``sheet.png`` and ``samples.json``
    batch_size: int = 16  # images made at a time

    def run(self) -> None:
        """Make and write them."""
        folder = Path(self.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        starts = tqdm(range(0, len(self.requests), self.batch_size), desc="sampling", disable=None, leave=False)
        images = torch.cat([self.generator(self.requests[start : start + self.batch_size]) for start in starts])
        for request, image in zip(self.requests, images, strict=True):
            write_array(folder / f"{request.index:04d}.png", to_uint8(image))
        write_array(folder / "sheet.png", tile(as_sheet(images)))
        write_json(folder / "samples.json", [request.__dict__ for request in self.requests])
