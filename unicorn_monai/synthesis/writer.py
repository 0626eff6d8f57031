"""Synthetic data sets that look exactly like real ones, with the provenance of every item.

Every requested image is made once, by whichever process.
"""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from unicorn_monai.data.journal import begun
from unicorn_monai.data.layout import read_header
from unicorn_monai.data.remote import local_side
from unicorn_monai.data.taken_over import colours_of, layout_of
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.images.files import write_array
from unicorn_monai.images.pictures import tile, to_uint8
from unicorn_monai.images.warping import augmented_spacing
from unicorn_monai.synthesis.generator import Generator
from unicorn_monai.synthesis.requests import Request, Requests
from unicorn_monai.synthesis.sheets import _as_sheet
from unicorn_monai.system.distributed import among_others, by_torchrun, share
from unicorn_monai.system.files import PathLike, write_json

logger = logging.getLogger("unicorn_monai")


class Synthesizer:
    """Write a labelled synthetic data set, streamed and resumable, in one process or in several.

    Started by ``torchrun`` (or with ``RANK`` and ``WORLD_SIZE`` set in any other way), each process makes every so many
    batches and waits for nobody; the finished data set is that of one process. What a batch consists of is fixed, so
    an image is the same to the last bit after an interruption: a batch that was cut off is made again as a whole.

    Args:
        generator: makes the images.
        requests: what to make.
        output_dir: the data set, a folder or a URL; an interrupted one is continued, a finished one refused.
        label_dir: data set of the label maps: gives the label table.
        device_name: device the images look like.
        models: name -> sha256 of the weights, kept as provenance.
        batch_size: images made at a time.
        resume: leave a finished data set as it is, if it was made with the same settings, instead of refusing it.
    """

    def __init__(
        self,
        generator: Generator,
        requests: Requests,
        output_dir: PathLike,
        label_dir: PathLike,
        device_name: str = "synthetic",
        models: dict[str, str] | None = None,
        batch_size: int = 16,
        resume: bool = False,
    ) -> None:
        self.generator, self.requests, self.batch_size, self.resume = generator, requests, batch_size, resume
        self.output_dir, self.label_dir, self.device_name = output_dir, label_dir, device_name
        self.models, self.weight = models or {}, generator.inferer.uncertainty_weight

    @cached_property
    def header(self) -> dict[str, Any]:
        """What is said of all label maps, such as their names and their size of a pixel."""
        return read_header(self.label_dir)

    def run(self) -> None:
        """Make what is missing of this process's share.

        Raises:
            ValueError: there is no share for it, as where ``RANK`` and ``WORLD_SIZE`` were left in the environment;
                beside others that ``torchrun`` started, it then ends without a word.
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
            hidden = None if own[0] == 0 else True
            for start in tqdm(starts, desc="synthesis", disable=hidden, leave=False):
                end = min(start + self.batch_size, len(self.requests))
                if all(index in writer for index in range(start, end)):
                    continue
                batch = self.requests[start:end]
                labels = self.generator.labels(batch)
                images = self.generator(batch, labels)
                for i, request in enumerate(batch):
                    if request.index not in writer:
                        spacing = self.spacing_mm(request)
                        self._write(writer, request, images[i], None if labels is None else labels[i, 0], **spacing)
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
            "models": self.models,
            "weight": self.weight,
            "guidance": list(inferer.guidance),
            "mode": inferer.mode,
            "steps": self.generator.steps,
            "scheduler": type(inferer.ldm.scheduler).__name__,
            "prediction_type": str(inferer.ldm.scheduler.prediction_type),
            **({"precision": "bfloat16"} if self.generator.autocast["enabled"] else {}),
            **({"compile": True} if inferer.compile else {}),  # both round in another way
        }

    def spacing_mm(self, request: Request) -> dict[str, list[float]]:
        """The item's own size of a pixel, where it is not that of all label maps."""
        stored = request.spacing_mm or self.header.get("spacing_mm")
        if stored is None or (request.augment is None and request.spacing_mm is None):
            return {}
        return {"spacing_mm": list(stored if request.augment is None else augmented_spacing(stored, request.augment))}

    def _write(
        self, writer: DatasetWriter, request: Request, image: Tensor, label: Tensor | None, **own: list[float]
    ) -> None:
        writer.add(
            request.split,
            to_uint8(image),
            None if label is None else label.numpy().astype(np.uint8),
            subject=request.subject,
            index=request.index,
            entries=own,
            synthetic={
                "seed": request.seed,
                "uncertainty": request.uncertainty,
                "weight": self.weight,
                "guidance": list(self.generator.inferer.guidance),
                "source_label": Path(request.label).name if request.label else None,
                "augment": request.augment,
                **({} if request.prompt is None else {"prompt": request.prompt}),
                "models": self.models,
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


class SampleWriter:
    """Write single images, a sheet of all, and what each was made of: the inference of the generative bundles.

    Args:
        generator: makes the images.
        requests: what to make.
        output_dir: gets ``0000.png`` ..., ``sheet.png`` and ``samples.json``.
        batch_size: images made at a time.
    """

    def __init__(self, generator: Generator, requests: Requests, output_dir: PathLike, batch_size: int = 16) -> None:
        self.generator, self.requests, self.output_dir = generator, requests, Path(output_dir)
        self.batch_size = batch_size

    def run(self) -> None:
        """Make and write them."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        images = [
            self.generator(self.requests[start : start + self.batch_size])
            for start in tqdm(range(0, len(self.requests), self.batch_size), desc="sampling", disable=None, leave=False)
        ]
        for request, image in zip(self.requests, torch.cat(images), strict=True):
            write_array(self.output_dir / f"{request.index:04d}.png", to_uint8(image))
        write_array(self.output_dir / "sheet.png", tile(_as_sheet(torch.cat(images))))
        write_json(self.output_dir / "samples.json", [request.__dict__ for request in self.requests])
