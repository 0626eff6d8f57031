"""Real Spectralis B-scans as a home device might have seen them: real anatomy and labels, SIMULATED device.

    python -m data_prep.home_oct SPECTRALIS_DATASET OUTPUT --seed 0

No labelled images of a home device are public. This applies the image formation `HOME_OCT` (smaller field and depth,
one or two looks, noise, haze, motion) to a labelled data set, e.g. one of `data_prep.spectralis_healthy` with other
subjects than the labelled domain's. The parameters are plausible, not calibrated: say so wherever a number is shown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep.convert import Report, summarise
from data_prep.options import run
from data_prep.splits import split_by_subject
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import SPLITS, read_header
from unicorn_monai.data.writer import DatasetWriter
from unicorn_monai.images.files import read_array
from unicorn_monai.images.surfaces import label_map, resize_weights, surfaces_from_labels
from unicorn_monai.simulation.devices import HOME_OCT, degrade
from unicorn_monai.system.intake import finite
from unicorn_monai.system.terminal import LINES, Parser, say

SUFFIX = "-as-home-oct"


def draw_window(
    labels: NDArray[np.uint8], spacing_mm: Sequence[float], rng: np.random.Generator
) -> tuple[slice, slice]:
    """Draw the home device's window in a B-scan of the clinical one.

    The field and the depth window are those of `HOME_OCT`, at most the image; where the image is cropped already, 75 to
    95 % of it, so that the retina fills more of the picture. The whole retina stays in the window where it fits.

    Args:
        labels: (rows, columns) label map, 0 = vitreous, 255 = ignore.
        spacing_mm: (axial, lateral) pixel size, mm.
        rng: source of randomness.

    Returns:
        rows and columns of the window.
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


def enlarge(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], size: tuple[int, int], n_surfaces: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Resample a window to the size of the image: grey levels linearly, labels by way of their surfaces."""
    rows, columns = (resize_weights(n, m) for n, m in zip(image.shape, size, strict=True))
    out = np.clip(np.rint(rows @ image.astype(np.float64) @ columns.T), 0, 255).astype(np.uint8)
    surfaces = surfaces_from_labels(labels, n_surfaces)
    missing = (columns @ np.isnan(surfaces).T.astype(float)).T > 0
    z = ((columns @ np.nan_to_num(surfaces).T).T + 0.5) * size[0] / image.shape[0] - 0.5
    return out, label_map(np.where(missing, np.nan, z), size[0])


def write_home_oct(
    dataset: str | Path,
    output: str | Path,
    seed: int = 0,
    repeats: int = 1,
    size: int | None = None,
    split: Sequence[float] | None = None,
    subjects: Sequence[str] | None = None,
    labels: bool = True,
    device: str = HOME_OCT.name,
) -> Path:
    """Convert a labelled data set, item by item; subjects are kept.

    Args:
        dataset: labelled data set of the clinical device, with spacings.
        output: folder of the new data set.
        seed: item i depends on (seed, i) only.
        repeats: acquisitions of each B-scan, each with its own window, motion and noise.
        size: rows and columns; those of the input by default.
        split: shares of the subjects for training, validation and test; the input's splits by default.
        subjects: only these; all by default.
        labels: whether to write the label maps.
        device: name of the domain.

    Returns:
        The new folder.

    Raises:
        ValueError: if the data set has no spacing, is of a home device already, or lacks a subject asked for.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; expected at least 1")
    if size is not None and size < 8:
        raise ValueError(f"--size {size}: expected at least 8")
    header = read_header(dataset)
    if header.get("spacing_mm") is None:
        raise ValueError(f"'{dataset}' has no spacing_mm: the optics need the pixel size; add it to dataset.json")
    if header.get("device") == HOME_OCT.name or str(header.get("name", "")).endswith(SUFFIX):
        raise ValueError(f"'{dataset}' is of device '{HOME_OCT.name}' already; give a data set of a clinical device")
    chosen = _chosen(dataset, header, subjects, split, seed)
    names = {int(k): v for k, v in header["labels"].items()}
    nominal = [min(s * n, m) / (size or n) for s, n, m in _extent(dataset, header)]
    with DatasetWriter(
        output,
        name=f"{header.get('name', 'oct')}{SUFFIX}",
        device=device,
        labels=names,
        spacing_mm=nominal,
        simulated_device=True,
        simulated_anatomy=bool(header.get("simulated_anatomy", False)),
        source=header.get("source"),
        seed=seed,
    ) as writer:
        progress = tqdm(product(chosen, range(repeats)), "home_oct", len(chosen) * repeats, unit="B-scan", disable=None)
        for index, ((part, item), repeat) in enumerate(progress):
            rng = np.random.default_rng([seed, index, 5])
            image, label = read_array(item["image"]), read_array(item["label"]).astype(np.uint8)
            spacing = item.get("spacing_mm") or header["spacing_mm"]
            rows, columns = draw_window(label, spacing, rng)
            target = (size, size) if size else image.shape
            image, label = enlarge(image[rows, columns], label[rows, columns], target, max(names))
            used = [
                spacing[0] * (rows.stop - rows.start) / target[0],
                spacing[1] * (columns.stop - columns.start) / target[1],
            ]
            image, label = degrade(image, label, (used[0] * 1e3, used[1] * 1e3), rng)
            own = {k: item[k] for k in ("subject", "scan") if k in item}
            kept = label if labels else None
            writer.add(part, image, kept, **own, repeat=repeat, spacing_mm=[round(s, 6) for s in used])
    return Path(output)


def _chosen(
    dataset: str | Path, header: dict, subjects: Sequence[str] | None, split: Sequence[float] | None, seed: int
) -> list[tuple[str, dict]]:
    """The items of the subjects asked for, with their splits."""
    items = [
        (part, item) for part in SPLITS if header.get(part) for item in datalist(dataset, part, ("image", "label"))
    ]
    present = list(dict.fromkeys(item["subject"] for _, item in items))
    if unknown := sorted(set(subjects or ()) - set(present)):
        raise ValueError(f"--subjects {unknown} are not in '{dataset}'; it holds {present}")
    items = [(part, item) for part, item in items if subjects is None or item["subject"] in subjects]
    if split is not None:
        parts = split_by_subject([s for s in present if subjects is None or s in subjects], split, seed)
        items = sorted(((parts[item["subject"]], item) for _, item in items), key=lambda pair: SPLITS.index(pair[0]))
    return items


def _extent(dataset: str | Path, header: dict) -> list[tuple[float, int, float]]:
    """Return (spacing in mm, pixels, extent of the home device's window in mm) for both axes."""
    first = next(item for part in SPLITS for item in header.get(part, []))
    shape = read_array(Path(dataset) / first["image"]).shape
    window = (float(np.mean(HOME_OCT.depth_um)) * 1e-3, float(np.mean(HOME_OCT.width_mm)))
    return list(zip(header["spacing_mm"], shape, window, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return the exit status."""
    parser = Parser(
        prog="python -m data_prep.home_oct", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", type=Path, help="labelled data set of the clinical device")
    parser.add_argument("output", type=Path, help="folder of the data set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1, help="acquisitions of each B-scan (default 1)")
    parser.add_argument("--size", type=int, help="rows and columns (default: the input's)")
    parser.add_argument("--split", type=finite, nargs=3, metavar=("TRAIN", "VAL", "TEST"), help="default: the input's")
    parser.add_argument("--subjects", nargs="+", help="only these subjects of the input")
    parser.add_argument("--labels", choices=("same", "none"), default="same", help="none: write no label maps")
    parser.add_argument("--device-name", default=HOME_OCT.name, help="name of the domain (default home_oct)")
    parser.add_argument("--keep-original-ids", action="store_true", help="always so: the input has pseudonyms already")
    a = parser.parse_args(arguments)
    try:
        folder = write_home_oct(
            a.input, a.output, a.seed, a.repeats, a.size, a.split, a.subjects, a.labels != "none", a.device_name
        )
    except ValueError as error:
        say(f"error: {error}", LINES, file=sys.stderr)
        return 1
    say(f"simulated home OCT in {folder}")
    return summarise(folder, Report())


if __name__ == "__main__":
    sys.exit(run(main))
