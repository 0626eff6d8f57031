"""The pictures of a report: what was asked for, what came out, and what is real, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unicorn_monai.data.items import datalist
from unicorn_monai.diffusion.autoencoder import ReconstructionSheet
from unicorn_monai.images.files import write_array
from unicorn_monai.images.pictures import evenly, paint, tile
from unicorn_monai.images.transforms import read_image
from unicorn_monai.synthesis.generator import Generator
from unicorn_monai.synthesis.requests import Request, with_uncertainty
from unicorn_monai.system.files import write_json

COLUMNS = 8


class Sheet(NamedTuple):
    """A picture: name of its file, title, caption, and images (rows, columns, channels, height, width)."""

    name: str
    title: str
    caption: str
    images: Tensor


def write_all(folder: Path, sheets: Iterable[Sheet]) -> None:
    """Write the pictures and captions.json into a folder."""
    folder.mkdir(exist_ok=True)
    captions = []
    for name, title, caption, images in sheets:
        write_array(folder / f"{name}.png", tile(images))
        captions.append({"file": f"{name}.png", "title": title, "caption": caption})
    write_json(folder / "captions.json", captions)


@torch.no_grad()
def side_by_side(
    generator: Generator, requests: Sequence[Request], real: Sequence[Tensor], colours: Tensor, words: bool
) -> Sheet:
    """Label maps, images of the label map alone and of both controls, and real images, a column for each request.

    ``real`` are as many images of the unlabelled and of the labelled domain, at least; with ``words`` the images are
    asked for in words too.
    """
    labels, told = generator.labels(requests), " and the words" if words else ""
    rows = [paint(labels, colours), generator(requests, weight=0.0), generator(requests)]  # type: ignore[arg-type]
    return Sheet(
        f"side_by_side_{generator.inferer.mode}",
        f"Label map, label only, label and uncertainty ({generator.inferer.mode})",
        f"Rows: the label map; the image of the label map alone{told}; the image of both controls "
        "at the unlabelled domain's mean uncertainty; real images of the unlabelled domain (other subjects); real "
        "images of the labelled domain. The first three rows of a column share label map and noise.",
        torch.stack([*(row.cpu() for row in rows), *(images[: len(requests)] for images in real)]),
    )


@torch.no_grad()
def rising(generator: Generator, requests: Sequence[Request], least: float, most: float) -> Sheet:
    """Each request at uncertainties from the least to the most."""
    grid = np.linspace(least, most, COLUMNS)
    return Sheet(
        f"rising_uncertainty_{generator.inferer.mode}",
        f"The same label map and noise at rising uncertainty ({generator.inferer.mode})",
        "Requested uncertainty from left to right: " + ", ".join(f"{u:.3g}" for u in grid) + ".",
        torch.stack([generator([*(with_uncertainty([r], float(u))[0] for u in grid)]).cpu() for r in requests]),
    )


def by_uncertainty(sets: Mapping[str, tuple[Path, Sequence[float]]], channels: int) -> Sheet:
    """Images of data sets, from the least to the most uncertain, evenly spread over the ranks.

    ``sets``: "synthetic" and "real" -> data set and measured uncertainty of each of its training images.
    """
    rows, told = [], []
    columns = min(COLUMNS, *(len(values) for _, values in sets.values()))
    for name, (folder, values) in sets.items():
        items = datalist(folder, "training")
        chosen = np.argsort(values)[evenly(len(values), columns)]
        rows.append(torch.stack([read_image(items[i]["image"], channels) for i in chosen]))
        told.append(f"{name} {', '.join(f'{values[i]:.3f}' for i in chosen)}")
    caption = (
        "Above synthetic images, below real images of the unlabelled domain, each from the least uncertain (left) to "
        f"the most uncertain one, at even steps of rank. Measured uncertainty: {'; '.join(told)}."
    )
    return Sheet("by_uncertainty", "Images ordered by measured uncertainty", caption, torch.stack(rows))


def reconstructed(autoencoder: torch.nn.Module, real: Iterable[Tensor]) -> Sheet:
    """Real images of each domain above their reconstructions."""
    both = [{"image": image} for images in real for image in images[: COLUMNS // 2]]
    return Sheet(
        "reconstructions",
        "Autoencoder: original above, reconstruction below",
        "The reconstruction must keep each domain's fine texture, or there is nothing for the uncertainty to steer.",
        ReconstructionSheet(autoencoder, both, COLUMNS)(),  # type: ignore[arg-type]
    )


def examples(folder: Path, channels: int) -> Tensor:
    """Real validation images, spread over their data set: (at most COLUMNS, channels, rows, columns)."""
    items = datalist(folder, "validation")
    return torch.stack([read_image(items[i]["image"], channels) for i in evenly(len(items), COLUMNS)])
