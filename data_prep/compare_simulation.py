"""Compare simulated with real B-scans: a picture and the grey levels, noise and contrast of every layer.

    python -m data_prep.compare_simulation --output docs

Per layer: mean grey level, then its standard deviation between images. Local noise: standard deviation about the mean
of a box of 3 rows x 15 columns within the layer. Contrast of layers 1 and 2 in an image with within-layer deviations s:

    CNR = |m_1 - m_2| / sqrt((s_1^2 + s_2^2) / 2)

"Inside" leaves out the pixels that touch another layer: a traced border is seldom exact to a pixel.

Real images: healthy Spectralis B-scans in $UNICORN_DATA/spectralis_healthy, read by `data_prep.spectralis_healthy`.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion, uniform_filter

from data_prep.home_oct import as_home_oct
from data_prep.options import command
from data_prep.phantom import FIRST_SUBJECT, PRESETS
from data_prep.spectralis_healthy import AXIAL_UM, LATERAL_UM, N_SURFACES, read_bscans, read_subjects
from unicorn_monai.images.surfaces import label_map, order_surfaces, resize_image, resize_surfaces
from unicorn_monai.simulation import DEVICES, simulate, simulate_scan
from unicorn_monai.system.console import Whole
from unicorn_monai.system.terminal import LINES, say

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8], float]  # image, label map of nine labels, axial spacing in um
LAYERS = ("vitreous", "RNFL", "GCL+IPL", "INL", "OPL", "ONL+IS", "EZ/OS", "RPE")
CONTRASTS = ((1, 5), (2, 3), (4, 5))
TO_NINE = np.array([0, 1, 2, 3, 4, 5, 5, 6, 7, 8], dtype=np.uint8)  # the real images have no ELM: ONL and IS are one
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def real_pairs(folder: Path, size: int) -> list[Pair]:
    """Read all real B-scans with their label maps."""
    pairs = []
    for subject in read_subjects(folder):
        for bscan in read_bscans(folder, subject):
            surfaces, _ = order_surfaces(bscan.surfaces)
            label = label_map(resize_surfaces(surfaces, bscan.image.shape, (size, size)), size)
            pairs.append((resize_image(bscan.image, (size, size)), label, bscan.image.shape[0] * AXIAL_UM / size))
    return pairs


def degraded_pairs(pairs: Iterable[Pair], seed: int) -> list[Pair]:
    """Pass real B-scans through the home device's image formation."""
    out = []
    for i, (image, label, axial_um) in enumerate(pairs):
        rng = np.random.default_rng([seed, i, 5])
        spacing_mm = (axial_um * 1e-3, 610 * LATERAL_UM * 1e-3 / image.shape[1])
        image, label, used = as_home_oct(image, label, spacing_mm, image.shape, N_SURFACES, rng)
        out.append((image, label, used[0] * 1e3))
    return out


def simulated_pairs(device: str, subjects: int, scans: int, size: int, seed: int, preset: str = "full") -> list[Pair]:
    """Simulate B-scans, with the nine labels of the real ones."""
    found = simulate(PRESETS[preset][device], subjects, scans, size, seed, first_subject=FIRST_SUBJECT[device])
    return [(s.image, TO_NINE[s.label], s.spacing_mm[0] * 1e3) for s in found]


def measure(pairs: Sequence[Pair]) -> dict[str, tuple[float, float]]:
    """Quantity -> (mean over the images, standard deviation between them)."""
    rows: list[dict[str, float]] = []
    for grey, label, axial_um in pairs:
        image = grey.astype(float)
        masks = [label == k for k in range(len(LAYERS))]
        depth = (np.cumsum(label == len(LAYERS), axis=0) - 0.5) * axial_um  # below Bruch's membrane
        row = {name: image[m].mean() for name, m in zip(LAYERS, masks, strict=True) if m.sum() > 20}
        for name, low, high in (("50 um below", 0, 50), ("50 to 70 um below", 50, 70)):
            below = (label == len(LAYERS)) & (depth >= low) & (depth < high)
            if below.sum() > 20:
                row[name] = image[below].mean()
        for k in (2, 5):
            row[f"noise {LAYERS[k]}"] = local_deviation(image, masks[k])
        inside = [binary_erosion(mask) for mask in masks]
        if inside[1].sum() > 20:
            row["RNFL inside"] = image[inside[1]].mean()
        for which, suffix in ((masks, ""), (inside, " inside")):
            for a, b in CONTRASTS:
                x, y = image[which[a]], image[which[b]]
                if min(x.size, y.size) > 20:
                    contrast = abs(x.mean() - y.mean()) / np.sqrt((x.var() + y.var()) / 2)
                    row[f"CNR {LAYERS[a]}, {LAYERS[b]}{suffix}"] = contrast
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    values = {name: np.array([row[name] for row in rows if name in row]) for name in names}
    return {name: (float(np.nanmean(v)), float(np.nanstd(v))) for name, v in values.items()}


def local_deviation(image: NDArray[np.floating], mask: NDArray[np.bool_], box: tuple[int, int] = (3, 15)) -> float:
    """Standard deviation about the local mean inside a mask, of boxes that lie wholly within it; NaN if none does."""
    m = mask.astype(float)
    share = uniform_filter(m, box, mode="constant")
    mean, square = (uniform_filter(image**p * m, box, mode="constant") / np.maximum(share, 1e-9) for p in (1, 2))
    whole = mask & (share > 1 - 1e-6)
    return float(np.sqrt(np.clip(square - mean**2, 0, None)[whole].mean())) if whole.any() else float("nan")


def table(measured: dict[str, dict[str, tuple[float, float]]]) -> str:
    """Write the measurements as a markdown table, one column per set of images."""
    names = list(dict.fromkeys(name for m in measured.values() for name in m))
    lines = ["| | " + " | ".join(measured) + " |", "|---|" + "---|" * len(measured)]
    for name in names:
        digits = 2 if name.startswith("CNR") else 1 if name.startswith("noise") else 0
        cells = [f"{m[name][0]:.{digits}f} ± {m[name][1]:.{digits}f}" if name in m else "-" for m in measured.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: dict[str, list[NDArray[np.uint8]]], path: Path) -> None:
    """Draw one row of images per set, all at the same size without smoothing, and save them with 32 levels of grey."""
    columns = min(len(images) for images in rows.values())
    figure = Figure(figsize=(1.75 * columns, 1.92 * len(rows)))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
            axis.set_axis_off()
        line[0].set_title(name, loc="left", fontsize=9)
    figure.tight_layout(pad=0.3, h_pad=0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    with Image.open(path) as opened:
        grey = opened.convert("L").quantize(32)  # speckle does not compress: 32 levels halve the file
    grey.save(path, optimize=True)


def same_eyes(eyes: int, seed: int) -> dict[str, list[NDArray[np.uint8]]]:
    """A B-scan of each of some eyes as every simulated device shows it, 256 x 256."""
    return {
        name: [simulate_scan(device, eye, 0, 256, seed).image for eye in range(eyes)]
        for name, device in DEVICES.items()
    }


@command
def main(
    *,
    output: Annotated[Path, Parameter(help="receives images/simulation.png and devices.png")] = Path("docs"),
    real: Annotated[Path | None, Parameter(help="real B-scans; by default $UNICORN_DATA/spectralis_healthy")] = None,
    subjects: Annotated[Whole, Parameter(help="simulated subjects, 5 B-scans each; 1 or more")] = 14,
    seed: Whole = 0,
) -> int:
    """Measure and draw; the table in OUTPUT/simulation.md is replaced where there is one."""
    pairs = real_pairs(real or Path(os.environ.get("UNICORN_DATA", ".")) / "spectralis_healthy", 256)
    sets = {
        "real Spectralis": pairs,
        "simulated Spectralis": simulated_pairs("spectralis", subjects, 5, 256, seed),
        "simulated home OCT": simulated_pairs("home_oct", subjects, 5, 256, seed),
        "real, as home OCT": degraded_pairs(pairs, seed),
        "demo A (64 px)": simulated_pairs("spectralis", subjects, 5, 64, seed, "demo"),
        "demo B (64 px)": simulated_pairs("home_oct", subjects, 5, 64, seed, "demo"),
    }
    pictures = {name: [pair[0] for pair in pairs[4::10]][:5] for name, pairs in sets.items()}
    draw(pictures, output / "images" / "simulation.png")
    draw(same_eyes(3, seed), output / "images" / "devices.png")
    text = table({name: measure(pairs) for name, pairs in sets.items()})
    say(text, LINES)
    document = output / "simulation.md"
    if document.is_file() and BEGIN in (old := document.read_text(encoding="utf-8")) and END in old:
        head, tail = old.split(BEGIN)[0], old.split(END)[1]
        document.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
