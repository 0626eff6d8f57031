"""Label maps x sampled uncertainties -> images: what is asked for, the generator, and the data set on disk.

A :class:`Request` says what one image is made of; it depends on (run seed, index) only, so images are the same in any
batch and after any interruption. A :class:`Generator` holds the networks. A :class:`Synthesizer` streams a labelled
data set that looks exactly like a real one, with the provenance of every item.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.networks.nets import AutoencoderKL
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from unicorn_monai.datasets import (
    IGNORE_LABEL,
    JOURNAL,
    DatasetWriter,
    PathLike,
    datalist,
    layout_of,
    read_header,
    write_json,
)
from unicorn_monai.fusion import Weight
from unicorn_monai.handlers import tile
from unicorn_monai.inferers import DualControlNetInferer
from unicorn_monai.networks import require_finite
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.prompts import PromptEmbeddings, PromptTemplate
from unicorn_monai.training import autocast_settings
from unicorn_monai.transforms import LoadPixelsd, one_hot, to_uint8

logger = logging.getLogger("unicorn_monai")


@dataclass(frozen=True)
class Request:
    """One image to be made.

    Args:
        index: position in the data set.
        seed: of the image's noise.
        split: split it belongs to.
        subject: subject of the label map.
        label: file of the label map; None without semantic control.
        uncertainty: requested, in [0, 1]; None without uncertainty control.
        augment: seed of the label map's augmentation; None leaves it as it is.
        prompt: what the image is to show, in words; None without prompts.
    """

    index: int
    seed: int
    split: str = "training"
    subject: str = ""
    label: str | None = None
    uncertainty: float | None = None
    augment: int | None = None
    prompt: str | None = None


class Requests(Sequence[Request]):
    """The images to be made: label maps in turn, each with an uncertainty of its own.

    Args:
        count: images for the first split; every further split gets images in proportion to its label maps.
        seed: of the run.
        label_dir: data set with the label maps; None without semantic control.
        split: splits whose label maps are used, e.g. ["training", "validation"].
        prior: uncertainties are drawn from it; None without uncertainty control.
        uncertainties: take these in turn instead of drawing (a sweep, as in the paper's Fig. 5).
        augment: change the label maps' geometry a little (see :func:`augment_label`).
        template: makes the prompts from the label maps' items.
        subdomains: the prompts name these in turn instead of the label maps' own, e.g. ["fog", "rain"].
    """

    def __init__(
        self,
        count: int | None = None,
        seed: int = 0,
        label_dir: PathLike | Sequence[PathLike] | None = None,
        split: str | Sequence[str] = "training",
        prior: UncertaintyPrior | None = None,
        uncertainties: Sequence[float] | None = None,
        augment: bool = False,
        template: PromptTemplate | None = None,
        subdomains: Sequence[str] | None = None,
    ) -> None:
        splits = [split] if isinstance(split, str) else list(split)
        maps = {s: datalist(label_dir, s, ("image", "label")) if label_dir is not None else [{}] for s in splits}
        count = len(maps[splits[0]]) if count is None else count
        if count < 1:
            raise ValueError(f"count is {count}; expected at least one image.")
        self.requests: list[Request] = []
        for s in splits:
            for i in range(max(1, round(count * len(maps[s]) / len(maps[splits[0]])))):
                index, item = len(self.requests), maps[s][i % len(maps[s])]
                turn = sum(divmod(i, len(maps[s])))  # another sub-domain whenever a label map comes again
                named = subdomains[turn % len(subdomains)] if subdomains else None
                prompt = None if template is None else template(item, named)
                image_seed = derive_seed(seed, index)
                uncertainty = None
                if uncertainties is not None:
                    uncertainty = float(uncertainties[i % len(uncertainties)])
                elif prior is not None:
                    uncertainty = float(prior.sample([image_seed])[0])
                change = derive_seed(seed, index, 1) if augment else None
                subject, label = str(item.get("subject", "")), item.get("label")
                self.requests.append(Request(index, image_seed, s, subject, label, uncertainty, change, prompt))

        drawn = [r.seed for r in self.requests] if prior is not None and uncertainties is None else []
        if prior is not None and (rejected := prior.rejected(drawn)):
            logger.info(
                f"{rejected} of {len(drawn)} draws of the uncertainty would lie outside [0, 1] without truncation"
            )

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, index):
        return self.requests[index]


def derive_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, e.g. (run seed, index)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Generator:
    """The networks, ready to make images.

    Args:
        inferer: the denoising loop.
        autoencoder: decodes.
        unet: noise predictor.
        latent_shape: (channels, *latent).
        num_inference_steps: denoising steps.
        device: where to run.
        semantic: ControlNet of the label map, or None.
        uncertainty: ControlNet of the uncertainty, or None.
        num_labels: of the label maps.
        prior: scales the uncertainty.
        prompts: gives the embeddings of the requests' prompts, to a U-Net that attends to them.
        precision: "float32", or "bfloat16" for automatic mixed precision.
    """

    def __init__(
        self,
        inferer: DualControlNetInferer,
        autoencoder: AutoencoderKL,
        unet: nn.Module,
        latent_shape: Sequence[int],
        num_inference_steps: int = 50,
        device: torch.device | str = "cpu",
        semantic: nn.Module | None = None,
        uncertainty: nn.Module | None = None,
        num_labels: int = 1,
        prior: UncertaintyPrior | None = None,
        prompts: PromptEmbeddings | None = None,
        precision: str = "float32",
    ) -> None:
        self.inferer, self.autoencoder, self.unet = inferer, autoencoder, unet
        self.semantic, self.uncertainty = semantic, uncertainty
        self.latent_shape, self.steps, self.device = tuple(latent_shape), num_inference_steps, torch.device(device)
        self.num_labels, self.prior, self.prompts = num_labels, prior, prompts
        self.autocast = autocast_settings(self.device, precision)

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
        if labels is None:  # the hint needs the image's size: the latent's times the autoencoder's factor
            size = [side * downsampling(self.autoencoder) for side in self.latent_shape[1:]]
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
        with torch.autocast(**self.autocast):
            images = self.inferer.sample(
                label_map=one_hot(labels, self.num_labels).to(self.device),
                hint=hint.to(self.device),
                autoencoder=self.autoencoder,
                unet=self.unet,
                semantic=self.semantic,
                uncertainty=self.uncertainty,
                latent_shape=self.latent_shape,
                seeds=[r.seed for r in requests],
                num_inference_steps=self.steps,
                uncertainty_weight=weight,
                context=context,
            )
        return require_finite("A synthetic image", cast(Tensor, images).float()).clamp(0, 1)


def downsampling(autoencoder: AutoencoderKL) -> int:
    """Image size / latent size of a MONAI ``AutoencoderKL``."""
    return 2 ** (len(autoencoder.decoder.channels) - 1)  # type: ignore[union-attr, arg-type]


def augment_label(label: Tensor, seed: int) -> Tensor:
    """Change a label map's geometry: mirror, shift, depth and lateral scale, smooth bending of the layers.

    Two devices differ in depth range, field of view and in how the eye sits before them; the label maps of one do not
    cover the other's. Rows and columns outside the map repeat its border.

    Args:
        label: (1, rows, columns).
        seed: of the change.
    """
    random = np.random.default_rng(seed)
    _, rows, columns = label.shape
    y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
    bend = sum(
        random.normal(0, 0.04 / k) * torch.cos(k * torch.pi * x / 2 + random.uniform(0, 2 * np.pi)) for k in (1, 2, 3)
    )
    y = y / random.uniform(0.85, 1.3) + random.uniform(-0.12, 0.12) + bend
    x = x * random.uniform(0.8, 1.0) * random.choice([-1.0, 1.0]) + random.uniform(-0.1, 0.1)
    grid = torch.stack([x, y], dim=-1)[None].float()
    warped = functional.grid_sample(
        label[None].float(), grid, mode="nearest", padding_mode="border", align_corners=True
    )
    return warped[0].to(label.dtype)


class Synthesizer:
    """Write a labelled synthetic data set, streamed and resumable.

    Args:
        generator: makes the images.
        requests: what to make.
        output_dir: the data set; an interrupted one is continued, a finished one refused.
        label_dir: data set of the label maps: gives the label table.
        device_name: device the images look like.
        models: name -> sha256 of the weights, kept as provenance.
        weight: uncertainty weight, kept as provenance.
        guidance: (of the uncertainty, of the label map), kept as provenance.
        batch_size: images made at a time.
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
    ) -> None:
        self.generator, self.requests, self.batch_size = generator, requests, batch_size
        self.output_dir, self.label_dir, self.device_name = Path(output_dir), label_dir, device_name
        self.models, self.weight, self.guidance = models or {}, weight, list(guidance)

    def run(self) -> None:
        """Make what is missing."""
        header = read_header(self.label_dir)
        with DatasetWriter(
            self.output_dir,
            name=f"synthetic {self.device_name}",
            device=self.device_name,
            **layout_of(header),
            resume=(self.output_dir / JOURNAL).exists(),
            synthetic=True,
        ) as writer:
            missing = [r for r in self.requests if r.index not in writer]
            for start in tqdm(range(0, len(missing), self.batch_size), desc="synthesis", disable=None, leave=False):
                batch = missing[start : start + self.batch_size]
                labels = self.generator.labels(batch)
                images = self.generator(batch, labels)
                for i, request in enumerate(batch):
                    self._write(writer, request, images[i], None if labels is None else labels[i, 0])

    def _write(self, writer: DatasetWriter, request: Request, image: Tensor, label: Tensor | None) -> None:
        writer.add(
            request.split,
            to_uint8(image),
            None if label is None else label.numpy().astype(np.uint8),
            subject=request.subject,
            index=request.index,
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
            Image.fromarray(to_uint8(image)).save(self.output_dir / f"{request.index:04d}.png")
        Image.fromarray(tile(_as_sheet(torch.cat(images)))).save(self.output_dir / "sheet.png")
        write_json(self.output_dir / "samples.json", [request.__dict__ for request in self.requests])


class SampleSheet:
    """Images for a sheet during training, always from the same noise."""

    def __init__(self, generator: Generator, requests: Requests) -> None:
        self.generator, self.requests = generator, requests

    def __call__(self) -> Tensor:
        """(rows, columns, channels, height, width)."""
        network_modes = [
            (n, n.training) for n in (self.generator.semantic, self.generator.uncertainty) if n is not None
        ]
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
        at = np.linspace(0, len(self.dataset) - 1, min(self.count, len(self.dataset))).round().astype(int)
        images = torch.stack([self.dataset[int(i)]["image"] for i in at])
        reconstructed = self.autoencoder.reconstruct(images.to(next(self.autoencoder.parameters()).device))
        return torch.stack([images, reconstructed.cpu().float()])


def _as_sheet(images: Tensor, columns: int = 8) -> Tensor:
    columns = min(columns, len(images))
    missing = -len(images) % columns
    return torch.cat([images, images.new_ones(missing, *images.shape[1:])]).unflatten(0, (-1, columns))


def with_uncertainty(requests: Sequence[Request], uncertainty: float) -> list[Request]:
    """The same requests at another uncertainty."""
    return [replace(request, uncertainty=uncertainty) for request in requests]
