"""Real Spectralis B-scans as a home device might have seen them: real anatomy and labels, SIMULATED device.

    python -m data_prep.home_oct SPECTRALIS_DATASET OUTPUT --seed 0

No labelled images of a home device are public. This applies the image formation `HOME_OCT` (smaller field and depth,
one or two looks, noise, haze, motion) to a labelled data set, e.g. one of `data_prep.spectralis_healthy` with other
subjects than the labelled domain's. The parameters are plausible, not calibrated: say so wherever a number is shown.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from cyclopts import Parameter
from numpy.random import Generator
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep.convert import summarise
from data_prep.options import SHARES, Shares, command
from data_prep.scan import Report
from data_prep.splits import split_by_subject
from unicorn_monai.data import About, DatasetWriter, datalist, read_array, read_header
from unicorn_monai.data.layout import SPLITS
from unicorn_monai.images.surfaces import label_map, resize_image, resize_surfaces, surfaces_from_labels
from unicorn_monai.simulation.devices import HOME_OCT, degrade
from unicorn_monai.system.console import MANY, Whole
from unicorn_monai.system.terminal import say

SUFFIX = "-as-home-oct"
Pixels = NDArray[np.uint8]  # (rows, columns)


def draw_window(labels: Pixels, spacing_mm: Sequence[float], rng: Generator) -> tuple[slice, slice]:
    """Draw the home device's window in a B-scan of the clinical one.

    The field and the depth window are those of `HOME_OCT`, at most the image; where the image is cropped already, 75 to
    95 % of it, so that the retina fills more of the picture. The whole retina stays in the window where it fits.
    Label 0 is vitreous, 255 ignore.
    """
    h, w = labels.shape
    height = rng.uniform(*HOME_OCT.depth_um) * 1e-3 / spacing_mm[0]
    width = rng.uniform(*HOME_OCT.width_mm) / spacing_mm[1]
    shrink = rng.uniform(0.75, 0.95, size=2)
    height = round(height if height < h else shrink[0] * h)
    width = round(width if width < w else shrink[1] * w)
    left = int(rng.integers(0, w - width + 1))
    part = labels[:, left : left + width]
    last = labels[labels != 255].max(initial=0)
    inner = np.flatnonzero(((part != 0) & (part != last) & (part != 255)).any(axis=1))
    first, end = (int(inner[0]), int(inner[-1]) + 1) if inner.size else (0, 1)
    top = first - rng.uniform(*HOME_OCT.ilm_position) * height
    top = min(max(top, end + 0.05 * height - height), first - 0.03 * height)
    top = int(np.clip(round(top), 0, h - height))
    return slice(top, top + height), slice(left, left + width)


def enlarge(image: Pixels, labels: Pixels, size: tuple[int, int], n_surfaces: int) -> tuple[Pixels, Pixels]:
    """Resample a window to the size of the image: grey levels linearly, labels by way of their surfaces."""
    surfaces = resize_surfaces(surfaces_from_labels(labels, n_surfaces), image.shape, size)
    return resize_image(image, size), label_map(surfaces, size[0])


def as_home_oct(
    image: Pixels, label: Pixels, spacing_mm: Sequence[float], size: tuple[int, int], surfaces: int, rng: Generator
) -> tuple[Pixels, Pixels, list[float]]:
    """Image and label map as the home device has them, and their (axial, lateral) pixel size, mm."""
    window = draw_window(label, spacing_mm, rng)
    image, label = enlarge(image[window], label[window], size, surfaces)
    used = [s * (part.stop - part.start) / n for s, part, n in zip(spacing_mm, window, size, strict=True)]
    image, label = degrade(image, label, (used[0] * 1e3, used[1] * 1e3), rng)
    return image, label, used


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class HomeDevice:
    """What is shown to the home device, how often, and what is written of it."""

    seed: Annotated[Whole, Parameter(help="item i depends on (seed, i) only; 0 or more")] = 0
    repeats: Annotated[Whole, Parameter(help="acquisitions of each B-scan, each with its own window and noise")] = 1
    size: Annotated[Whole | None, Parameter(help="rows and columns, 8 pixels or more; by default the input's")] = None
    split: Annotated[Shares | None, Parameter(help=f"{SHARES}; by default the input's splits")] = None
    subjects: Annotated[tuple[str, ...] | None, MANY, Parameter(help="only these subjects of the input")] = None
    labels: Annotated[Literal["same", "none"], Parameter(help="none: write no label maps")] = "same"
    device_name: Annotated[str, Parameter(help="name of the domain")] = HOME_OCT.name


PLAIN = HomeDevice()


def write_home_oct(dataset: str | Path, output: str | Path, how: HomeDevice = PLAIN) -> Path:
    """Convert a labelled data set of a clinical device, with spacings, item by item; subjects are kept."""
    if how.repeats < 1:
        raise ValueError(f"repeats is {how.repeats}; expected at least 1")
    if how.size is not None and how.size < 8:
        raise ValueError(f"--size {how.size}: expected at least 8")
    header = read_header(dataset)
    if header.get("spacing_mm") is None:
        raise ValueError(f"'{dataset}' has no spacing_mm: the optics need the pixel size; add it to dataset.json")
    if header.get("device") == HOME_OCT.name or str(header.get("name", "")).endswith(SUFFIX):
        raise ValueError(f"'{dataset}' is of device '{HOME_OCT.name}' already; give a data set of a clinical device")
    chosen = _chosen(dataset, header, how)
    names = {int(k): v for k, v in header["labels"].items()}
    with DatasetWriter(
        output,
        About(
            name=f"{header.get('name', 'oct')}{SUFFIX}",
            device=how.device_name,
            labels=names,
            spacing_mm=[min(s * n, m) / (how.size or n) for s, n, m in _extent(dataset, header)],
        ),
        simulated_device=True,
        simulated_anatomy=bool(header.get("simulated_anatomy", False)),
        source=header.get("source"),
        seed=how.seed,
    ) as writer:
        todo = list(product(chosen, range(how.repeats)))
        for index, ((part, item), repeat) in enumerate(tqdm(todo, "home_oct", unit="B-scan", disable=None)):
            rng = np.random.default_rng([how.seed, index, 5])
            image, label = read_array(item["image"]), read_array(item["label"]).astype(np.uint8)
            size = (how.size, how.size) if how.size else image.shape
            spacing = item.get("spacing_mm") or header["spacing_mm"]
            image, label, used = as_home_oct(image, label, spacing, size, max(names), rng)
            own = {k: item[k] for k in ("subject", "scan") if k in item}
            kept = label if how.labels != "none" else None
            writer.add(part, image, kept, **own, repeat=repeat, spacing_mm=[round(s, 6) for s in used])
    return Path(output)


def _chosen(dataset: str | Path, header: dict, how: HomeDevice) -> list[tuple[str, dict]]:
    """The items of the subjects asked for, with their splits."""
    found = [part for part in SPLITS if header.get(part)]
    items = [(part, item) for part in found for item in datalist(dataset, part, ("image", "label"))]
    present = list(dict.fromkeys(item["subject"] for _, item in items))
    if unknown := sorted(set(how.subjects or ()) - set(present)):
        raise ValueError(f"--subjects {unknown} are not in '{dataset}'; it holds {present}")
    wanted = present if how.subjects is None else [subject for subject in present if subject in how.subjects]
    items = [(part, item) for part, item in items if item["subject"] in wanted]
    if how.split is not None:
        parts = split_by_subject(wanted, how.split, how.seed)
        items = sorted(((parts[item["subject"]], item) for _, item in items), key=lambda pair: SPLITS.index(pair[0]))
    return items


def _extent(dataset: str | Path, header: dict) -> list[tuple[float, int, float]]:
    """Return (spacing in mm, pixels, extent of the home device's window in mm) for both axes."""
    first = next(item for part in SPLITS for item in header.get(part, []))
    shape = read_array(Path(dataset) / first["image"]).shape
    window = (float(np.mean(HOME_OCT.depth_um)) * 1e-3, float(np.mean(HOME_OCT.width_mm)))
    return list(zip(header["spacing_mm"], shape, window, strict=True))


@command
def main(
    input: Annotated[Path, Parameter(help="labelled data set of the clinical device")],
    output: Annotated[Path, Parameter(help="folder of the data set")],
    *,
    how: HomeDevice = PLAIN,
    keep_original_ids: Annotated[bool, Parameter(help="always so: the input has pseudonyms already")] = True,
) -> int:
    """Convert what INPUT holds."""
    folder = write_home_oct(input, output, how)
    say(f"simulated home OCT in {folder}")
    return summarise(folder, Report())


if __name__ == "__main__":
    sys.exit(main())
