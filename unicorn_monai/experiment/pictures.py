"""The pictures of a report: what was asked for, what came out, and what is real, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from unicorn_monai.bundle.references import from_bundle
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import read_header
from unicorn_monai.experiment.measures import example_requests, make_generator
from unicorn_monai.images.files import write_array
from unicorn_monai.images.pictures import evenly, paint, palette, tile
from unicorn_monai.images.transforms import read_image
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.synthesis.requests import with_uncertainty
from unicorn_monai.synthesis.sheets import ReconstructionSheet
from unicorn_monai.system.files import read_json, write_json

if TYPE_CHECKING:
    from unicorn_monai.experiment.experiment import Experiment

COLUMNS = 8


@torch.no_grad()
def write_all(run: Experiment) -> None:
    """Write RUN/pictures/*.png and captions.json."""
    folder = run.run_dir / "pictures"
    folder.mkdir(exist_ok=True)
    captions = []
    for name, title, caption, sheet in _sheets(run):
        write_array(folder / f"{name}.png", tile(sheet))
        captions.append({"file": f"{name}.png", "title": title, "caption": caption})
    write_json(folder / "captions.json", captions)


def _sheets(run: Experiment) -> Iterator[tuple[str, str, str, Tensor]]:
    channels = run.num_channels
    real = {
        "labeled": _images(run.labeled, "validation", channels),
        "unlabeled": _images(run.unlabeled, "validation", channels),
    }
    main = run.settings.modes[0]
    prior = UncertaintyPrior.load(run.prior(main))
    columns = min(len(images) for images in real.values())  # at most COLUMNS
    requests = with_uncertainty(example_requests(run, columns), prior.mean)
    colours, told = palette(read_header(run.labeled), channels), " and the words" if run.settings.words else ""
    for mode in run.settings.modes:
        generator = make_generator(run, mode)
        labels = generator.labels(requests)
        shown = paint(labels, colours)  # type: ignore[arg-type]
        both = generator(requests)
        semantic = generator(requests, weight=0.0)
        yield (
            f"side_by_side_{mode}",
            f"Label map, label only, label and uncertainty ({mode})",
            f"Rows: the label map; the image with the Semantic-ControlNet alone{told}; the image with both ControlNets "
            "at the unlabelled domain's mean uncertainty; real images of the unlabelled domain (other subjects); real "
            "images of the labelled domain. The first three rows of a column share label map and noise.",
            torch.stack([shown, semantic.cpu(), both.cpu(), real["unlabeled"][:columns], real["labeled"][:columns]]),
        )
        grid = np.linspace(0.02, min(1.0, prior.mean + 2 * prior.std), COLUMNS)
        rows = [generator([*(with_uncertainty([r], float(u))[0] for u in grid)]).cpu() for r in requests[:3]]
        yield (
            f"rising_uncertainty_{mode}",
            f"The same label map and noise at rising uncertainty ({mode})",
            "Requested uncertainty from left to right: " + ", ".join(f"{u:.2f}" for u in grid) + ".",
            torch.stack(rows),
        )
    yield _ordered(run)
    root = run.bundle_dir("latent_diffusion", main)
    autoencoder = from_bundle(root, "autoencoder_def", "autoencoder.pt", run.device)
    both_domains = [{"image": image} for name in real for image in real[name][: COLUMNS // 2]]
    yield (
        "reconstructions",
        "Autoencoder: original above, reconstruction below",
        "The reconstruction must keep each domain's fine texture, or there is nothing for the uncertainty to steer.",
        ReconstructionSheet(autoencoder, both_domains, COLUMNS)(),
    )


def _ordered(run: Experiment) -> tuple[str, str, str, Tensor]:
    """Synthetic and real unlabelled images, from the least to the most uncertain, evenly spread over the ranks."""
    rows, told = [], []
    main, measured = run.settings.modes[0], read_json(run.run_dir / "uncertainties.json")
    sets = {
        "synthetic": (run.synthetic(main), measured[run.setup(main)]),
        "real": (run.unlabeled, measured["unlabeled"]),
    }
    columns = min(COLUMNS, *(len(values) for _, values in sets.values()))
    for name, (folder, values) in sets.items():
        items = datalist(folder, "training")
        chosen = np.argsort(values)[np.linspace(0, len(values) - 1, columns).round().astype(int)]
        rows.append(torch.stack([read_image(items[i]["image"], run.num_channels) for i in chosen]))
        told.append(f"{name} {', '.join(f'{values[i]:.3f}' for i in chosen)}")
    caption = (
        "Above synthetic images, below real images of the unlabelled domain, each from the least uncertain (left) to "
        f"the most uncertain one, at even steps of rank. Measured uncertainty: {'; '.join(told)}."
    )
    return "by_uncertainty", "Images ordered by measured uncertainty", caption, torch.stack(rows)


def _images(folder: Path, split: str, channels: int) -> Tensor:
    items = datalist(folder, split)
    return torch.stack([read_image(items[i]["image"], channels) for i in evenly(len(items), COLUMNS)])
