"""Label maps x sampled uncertainties -> images: what is asked for, the generator, and the data set on disk.

A :class:`Request` says what one image is made of (`requested.py`). A :class:`Generator` holds the networks. A
:class:`Synthesizer` streams a labelled data set that looks exactly like a real one, with the provenance of every item.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn
from tqdm import tqdm

from unicorn_monai.datasets import (
    IGNORE_LABEL,
    DatasetWriter,
    PathLike,
    begun,
    read_header,
    write_array,
    write_json,
)
from unicorn_monai.distributed import among_others, by_torchrun, share
from unicorn_monai.failures import named
from unicorn_monai.fusion import Weight
from unicorn_monai.geometry import augment_label, augmented_spacing
from unicorn_monai.handlers import evenly, tile
from unicorn_monai.inferers import DualControlNetInferer
from unicorn_monai.latents import StoredAutoencoder
from unicorn_monai.networks import compiled, require_finite
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.prompts import PromptEmbeddings
from unicorn_monai.requested import (
    Request,
    Requests,
    derive_seed,
    with_uncertainty,
)
from unicorn_monai.storage import local_side
from unicorn_monai.taken_over import layout_of
from unicorn_monai.training import autocast_settings
from unicorn_monai.transforms import LoadPixelsd, one_hot, to_uint8

__all__ = [
    "Generator",
    "ReconstructionSheet",
    "Request",
    "Requests",
    "SampleSheet",
    "SampleWriter",
    "Synthesizer",
    "augment_label",
    "derive_seed",
    "downsampling",
    "with_uncertainty",
]


logger = logging.getLogger("unicorn_monai")


class Generator:
    """The networks, ready to make images.

    Args:
        inferer: the denoising loop.
        autoencoder: decodes; a ``StoredAutoencoder`` is in memory for as long as it does so.
        unet: noise predictor.
        latent_shape: (channels, *latent).
        num_inference_steps: denoising steps.
        device: where to run.
        semantic: ControlNet of the label map, or None.
        uncertainty: ControlNet of the uncertainty, or None.
        num_labels: of the label maps.
        prior: scales the uncertainty; needed for ``uncertainty``.
        compile: compile the networks of the denoising loop (``networks.compiled``); pays for thousands of images.
        prompts: gives the embeddings of the requests' prompts, to a U-Net that attends to them.
        precision: "float32", or "bfloat16" for automatic mixed precision.
    """

    def __init__(
        self,
        inferer: DualControlNetInferer,
        autoencoder: AutoencoderKL | StoredAutoencoder,
        unet: nn.Module,
        latent_shape: Sequence[int],
        num_inference_steps: int = 50,
        device: torch.device | str = "cpu",
        semantic: nn.Module | None = None,
        uncertainty: nn.Module | None = None,
        num_labels: int = 1,
        prior: UncertaintyPrior | None = None,
        compile: bool = False,
        prompts: PromptEmbeddings | None = None,
        precision: str = "float32",
    ) -> None:
        if uncertainty is not None and prior is None:
            raise ValueError(
                "There is an Uncertainty-ControlNet, but no prior to scale its hint. Give the one it was trained with."
            )
        if compile:
            unet = compiled(unet)
            semantic, uncertainty = (n if n is None else compiled(n) for n in (semantic, uncertainty))
        if inferer.null_context is not None:
            inferer.null_context = inferer.null_context.to(device)
        self.inferer, self.autoencoder, self.unet = inferer, autoencoder, unet
        self.semantic, self.uncertainty = semantic, uncertainty
        self.latent_shape, self.steps, self.device = tuple(latent_shape), num_inference_steps, torch.device(device)
        self.num_labels, self.prior, self.prompts = num_labels, prior, prompts
        self.compile = compile
        self.autocast = autocast_settings(self.device, precision)

    def loaded_autoencoder(self) -> AutoencoderKL:
        """The autoencoder, read now if it is a stored one."""
        return self.autoencoder.load() if isinstance(self.autoencoder, StoredAutoencoder) else self.autoencoder

    def labels(self, requests: Sequence[Request]) -> Tensor | None:
        """The requested label maps, augmented where asked: (batch, 1, rows, columns) int64; None without any."""
        if self.semantic is None:
            return None
        load = LoadPixelsd(["label"], num_labels=self.num_labels)
        maps = [(load.read_label(str(r.label)), r.augment) for r in requests]
        return torch.stack([label if seed is None else augment_label(label, seed) for label, seed in maps])

    @torch.no_grad()
    def __call__(
        self, requests: Sequence[Request], labels: Tensor | None = None, weight: Weight | None = None
    ) -> Tensor:
        """Images (batch, channels, rows, columns) in [0, 1], one for each request."""
        labels = self.labels(requests) if labels is None else labels
        autoencoder = self.loaded_autoencoder()
        if labels is None:  # the hint needs the image's size: the latent's times the autoencoder's factor
            size = [side * downsampling(autoencoder) for side in self.latent_shape[1:]]
            labels = torch.full((len(requests), 1, *size), IGNORE_LABEL)
        hint = torch.zeros(len(requests))
        if self.uncertainty is not None and self.prior is not None:
            wanted = [r.uncertainty for r in requests if r.uncertainty is not None]
            if len(wanted) < len(requests):
                raise ValueError(
                    "No uncertainty to ask the Uncertainty-ControlNet for; give `uncertainties` or a prior."
                )
            hint = self.prior.hint(torch.tensor(wanted))
        context = None if self.prompts is None else self.prompts([r.prompt or "" for r in requests]).to(self.device)
        with torch.inference_mode(), torch.autocast(**self.autocast):  # a few percent faster than no_grad
            images = self.inferer.sample(
                label_map=one_hot(labels, self.num_labels).to(self.device),
                hint=hint.to(self.device),
                autoencoder=autoencoder,
                unet=self.unet,
                semantic=self.semantic,
                uncertainty=self.uncertainty,
                latent_shape=self.latent_shape,
                seeds=[r.seed for r in requests],
                num_inference_steps=self.steps,
                uncertainty_weight=weight,
                context=context,
            )
        batch = named(r.index for r in requests)
        return require_finite("A synthetic image", cast(Tensor, images).float(), batch).clamp(0, 1)


def downsampling(autoencoder: AutoencoderKL) -> int:
    """Image size / latent size of a MONAI ``AutoencoderKL``."""
    return 2 ** (len(autoencoder.decoder.channels) - 1)  # type: ignore[union-attr, arg-type]


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
        weight: uncertainty weight, kept as provenance.
        guidance: (of the uncertainty, of the label map) and, with prompts, of the text; kept as provenance.
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
        weight: float | None = None,
        guidance: Sequence[float] = (1.0, 1.0),
        batch_size: int = 16,
        resume: bool = False,
    ) -> None:
        self.generator, self.requests, self.batch_size, self.resume = generator, requests, batch_size, resume
        self.output_dir, self.label_dir, self.device_name = output_dir, label_dir, device_name
        self.models, self.weight, self.guidance = models or {}, weight, list(guidance)

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
            name=f"synthetic {self.device_name}",
            device=self.device_name,
            **layout_of(self.header),
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
            "guidance": self.guidance,
            "mode": inferer.mode,
            "steps": self.generator.steps,
            "scheduler": type(inferer.scheduler).__name__,
            "prediction_type": str(inferer.scheduler.prediction_type),
            **({"precision": "bfloat16"} if self.generator.autocast["enabled"] else {}),
            **({"compile": True} if self.generator.compile else {}),  # both round in another way
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
                "guidance": self.guidance,
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


class SampleSheet:
    """Images for a sheet during training, always from the same noise."""

    def __init__(self, generator: Generator, requests: Requests) -> None:
        self.generator, self.requests = generator, requests

    def __call__(self) -> Tensor:
        """(rows, columns, channels, height, width)."""
        networks = self.generator.unet, self.generator.semantic, self.generator.uncertainty
        network_modes = [(n, n.training) for n in networks if n is not None]
        try:
            for network, _ in network_modes:
                network.eval()
            return _as_sheet(self.generator(self.requests[:]))
        finally:
            for network, training in network_modes:
                network.train(training)


class ReconstructionSheet:
    """Images of a data set above their reconstructions.

    Args:
        autoencoder: the network.
        dataset: gives "image".
        count: images, evenly spread over the data set.
    """

    def __init__(self, autoencoder: AutoencoderKL, dataset: Sequence[dict[str, Any]], count: int = 8) -> None:
        self.autoencoder, self.dataset, self.count = autoencoder, dataset, count

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """(2, columns, channels, height, width)."""
        images = torch.stack([self.dataset[i]["image"] for i in evenly(len(self.dataset), self.count)])
        reconstructed = self.autoencoder.reconstruct(images.to(next(self.autoencoder.parameters()).device))
        return torch.stack([images, reconstructed.cpu().float()])


def _as_sheet(images: Tensor, columns: int = 8) -> Tensor:
    columns = min(columns, len(images))
    missing = -len(images) % columns
    return torch.cat([images, images.new_ones(missing, *images.shape[1:])]).unflatten(0, (-1, columns))
