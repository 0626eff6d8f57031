"""Healthy maculae of a Spectralis with eight manually traced surfaces -> the data set format; nine labels.

    python -m data_prep.spectralis_healthy INPUT OUTPUT --size 256
    python -m data_prep.spectralis_healthy INPUT OUTPUT --size 64 --crop-um 700 --training 1 2 3 --validation 4

INPUT holds `images/SubjectS_KK.png` and `boundaries/SubjectS_L.txt` (column k-1 belongs to image k, line x to A-scan x,
values are 1-based rows). Source: Tian, Varga, Somfai, Lee, Smiddy, Cabrera DeBuc, "Real-Time Automatic Segmentation of
OCT Volume Data of the Macular Region", PLoS ONE 10:e0133908 (2015), supporting file s002, CC BY 4.0: cite it.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep.convert import summarise
from data_prep.files import any_files_below, require_label_below
from data_prep.label_schemes import OCTEXPLORER
from data_prep.options import SHARES, Shares, command
from data_prep.scan import Report
from data_prep.splits import split_by_subject
from unicorn_monai.data.layout import SPLITS
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.images.files import open_picture
from unicorn_monai.images.surfaces import label_map, order_surfaces, resize_image, resize_surfaces
from unicorn_monai.system.console import MANY, Finite, Whole
from unicorn_monai.system.intake import lies_there, require_parsable
from unicorn_monai.system.terminal import printable, say

LABELS = OCTEXPLORER.labels
N_SURFACES = len(LABELS) - 1
AXIAL_UM = 3.87  # per row
LATERAL_UM = 11.5  # per column: estimated (11 to 12), not stated in the files
MOST_CROSSING = 0.05  # of all columns; found 0.4 to 1.6 %
SOURCE = "Tian et al., PLoS ONE 10(8):e0133908 (2015), supporting file s002, CC BY 4.0"


@dataclass(frozen=True)
class BScan:
    """One B-scan: image (rows, columns) uint8 and surfaces (8, columns), 0-based sub-pixel rows as traced."""

    scan: int
    image: NDArray[np.uint8]
    surfaces: NDArray[np.floating]


def _images(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """Subject, number of the B-scan, and file."""
    images = folder / "images"
    found = any_files_below(images, (".png",), Report(strict=True), folder) if images.is_dir() else []
    for path in sorted(path for path in found if path.parent == images):
        if named := re.fullmatch(r"Subject(\d+)_(\d+)\.png", path.name):
            yield int(named[1]), int(named[2]), path


def read_subjects(folder: str | Path) -> list[int]:
    """Numbers of the subjects of an input folder."""
    found = sorted({subject for subject, _, _ in _images(Path(folder))})
    if not found:
        raise ValueError(f"'{folder}' has no images/SubjectS_KK.png; expected the layout that --help describes")
    return found


def read_bscans(folder: str | Path, subject: int) -> Iterator[BScan]:
    """Read the B-scans of one subject, whose boundary files agree with the images in columns and number of B-scans."""
    folder = Path(folder)
    tables = []
    for k in range(1, N_SURFACES + 1):
        path = folder / "boundaries" / f"Subject{subject}_{k}.txt"
        if not lies_there(path):
            raise ValueError(f"'{path}' is missing: expected one file for each of the {N_SURFACES} surfaces")
        require_label_below(path, path.parent, folder)
        tables.append(np.loadtxt(require_parsable(path), delimiter=",", ndmin=2))
    shapes = {t.shape for t in tables}
    if len(shapes) > 1:
        raise ValueError(f"the boundary files of subject {subject} have the shapes {sorted(shapes)}: expected one")
    rows = np.stack(tables) - 1.0  # (surface, column, B-scan); the traced rows count from 1
    for owner, scan, path in _images(folder):
        if owner != subject:
            continue
        with open_picture(path) as opened:
            image = np.asarray(opened.convert("L"))
        if not 1 <= scan <= rows.shape[2] or image.shape[1] != rows.shape[1]:
            raise ValueError(
                f"'{path}' is B-scan {scan} with {image.shape[1]} columns, but the boundaries hold {rows.shape[2]} "
                f"B-scans with {rows.shape[1]} columns; check that both come from the same subject"
            )
        yield BScan(scan, image, rows[:, :, scan - 1])


def crop(bscan: BScan, crop_um: float | None, crop_mm: float | None, position: float = 0.5) -> BScan:
    """Cut a window of `crop_um` around the retina and of `crop_mm` across the field; whole where None.

    It begins at the left end of the field for position 0, and ends at the right one for 1.
    """
    image, surfaces = bscan.image, bscan.surfaces
    if crop_um is not None:
        height = min(max(round(crop_um / AXIAL_UM), 1), image.shape[0])
        middle = 0.5 * (np.nanmin(surfaces[0]) + np.nanmax(surfaces[-1]))
        top = int(np.clip(round(middle - height / 2), 0, image.shape[0] - height))
        image, surfaces = image[top : top + height], surfaces - top
    if crop_mm is not None:
        width = min(max(round(crop_mm * 1e3 / LATERAL_UM), 1), image.shape[1])
        left = round(position * (image.shape[1] - width))
        image, surfaces = image[:, left : left + width], surfaces[:, left : left + width]
    return replace(bscan, image=image, surfaces=surfaces)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Windows:
    """Which windows are cut from a B-scan, and what is written of them."""

    size: Annotated[Whole, Parameter(help="rows and columns, pixels")] = 256
    crop_um: Annotated[Finite | None, Parameter(help="height of a window around the retina, um; for small images")] = (
        None
    )
    crop_mm: Annotated[Finite | None, Parameter(help="width of a window, mm; in the middle of the field")] = None
    windows: Annotated[Whole, Parameter(help="windows of each B-scan, evenly spread across its field")] = 1
    labels: Annotated[Literal["nine", "none"], Parameter(help="none: write no label maps")] = "nine"
    device_name: Annotated[str, Parameter(help="name of the domain")] = "spectralis"


WHOLE = Windows()


def write_spectralis_healthy(
    folder: str | Path, output: str | Path, parts: dict[int, str], how: Windows = WHOLE
) -> tuple[Path, float]:
    """Convert subjects (number -> split); returns the data set and the share of columns where surfaces crossed."""
    present = read_subjects(folder)
    if unknown := sorted(set(parts) - set(present)):
        raise ValueError(f"subjects {unknown} are not in '{folder}'; it holds {present}")
    for name in ("size", "crop_um", "crop_mm", "windows"):
        if (value := getattr(how, name)) is not None and value <= 0:
            raise ValueError(f"{name.replace('_', '-')} {value}: expected a positive number")
    crossing, size = [], how.size
    width = how.crop_mm or 610 * LATERAL_UM * 1e-3
    nominal = ((how.crop_um or 496 * AXIAL_UM) * 1e-3 / size, width / size)
    fields = {"source": SOURCE, "lateral_spacing": "estimated", "simulated_device": False, "simulated_anatomy": False}
    with DatasetWriter(
        output,
        About(name=f"spectralis-healthy-{size}", device=how.device_name, labels=LABELS, spacing_mm=nominal),
        **fields,
    ) as writer:
        for subject, part in parts.items():
            bscans = read_bscans(folder, subject)
            for bscan in tqdm(bscans, printable(f"subject {subject}"), unit="B-scan", disable=None):
                surfaces, share = order_surfaces(bscan.surfaces)
                crossing.append(share)
                whole = replace(bscan, surfaces=surfaces)
                for window in range(how.windows):
                    cut = crop(whole, how.crop_um, how.crop_mm, (window + 0.5) / how.windows)
                    rows, columns = cut.image.shape
                    label = label_map(resize_surfaces(cut.surfaces, (rows, columns), (size, size)), size)
                    spacing = [rows * AXIAL_UM * 1e-3 / size, columns * LATERAL_UM * 1e-3 / size]
                    writer.add(
                        part,
                        resize_image(cut.image, (size, size)),
                        label if how.labels != "none" else None,
                        subject=f"subject{subject}",
                        scan=bscan.scan,
                        window=window,
                        spacing_mm=[round(s, 6) for s in spacing],
                    )
        crossed = float(np.mean(crossing))
        if crossed > MOST_CROSSING:
            raise ValueError(
                f"surfaces cross in {crossed:.1%} of all columns, expected at most {MOST_CROSSING:.0%}; "
                "check the order of the boundary files"
            )
    return Path(output), crossed


Subjects = Annotated[tuple[Whole, ...] | None, MANY, Parameter(help="these subjects, instead of a random split")]


@command
def main(
    input: Annotated[Path, Parameter(help="folder with images/ and boundaries/")],
    output: Annotated[Path, Parameter(help="folder of the data set")],
    *,
    how: Windows = WHOLE,
    subjects: Annotated[
        tuple[Whole, ...] | None, MANY, Parameter(help="use these subjects only, split at random")
    ] = None,
    split: Annotated[Shares, Parameter(help=SHARES)] = (0.6, 0.1, 0.3),
    seed: Annotated[Whole, Parameter(help="of the random split; 0 or more")] = 0,
    training: Subjects = None,
    validation: Subjects = None,
    test: Subjects = None,
    keep_original_ids: Annotated[bool, Parameter(help="always so: the published ids are pseudonyms")] = True,
) -> int:
    """Convert what INPUT holds."""
    asked = zip(SPLITS, (training, validation, test), strict=True)
    explicit = [(subject, part) for part, chosen in asked for subject in chosen or ()]
    parts = dict(explicit)
    if len(parts) < len(explicit):
        raise ValueError("a subject is listed twice; splits must not share subjects")
    if explicit and subjects:
        raise ValueError("--subjects cannot be combined with --training, --validation and --test; use one of both")
    if not explicit:
        names = [str(s) for s in subjects or read_subjects(input)]
        parts = {int(s): part for s, part in split_by_subject(names, split, seed).items()}
    folder, crossing = write_spectralis_healthy(input, output, parts, how)
    say(f"{len(parts)} subjects in {folder}; crossing surfaces repaired in {crossing:.2%} of the columns")
    return summarise(folder, Report())


if __name__ == "__main__":
    sys.exit(main())
