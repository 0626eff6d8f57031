"""Write a data set of simulated B-scans: anatomies from `unicorn_monai.simulation.retina`, seen by one of two devices.

    python -m data_prep.phantom OUTPUT --device home_oct --size 64 --subjects 40 --scans-per-subject 10 --seed 0

The preset `full` keeps the fields of view and depth windows of the devices (for 256 x 256 pixels and more); `demo`
crops the window around the retina, so that the thin layers are two to four pixels high already at 64 x 64. In both the
home device sees a smaller field, hence a taller retina: the spatial bias between the two domains.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.options import run
from data_prep.splits import split_by_subject
from unicorn_monai.data.journal import begun
from unicorn_monai.data.writer import DatasetWriter
from unicorn_monai.simulation.devices import DEVICES, HOME_OCT, SPECTRALIS, Device
from unicorn_monai.simulation.retina import LABELS
from unicorn_monai.simulation.scans import simulate
from unicorn_monai.system.intake import finite
from unicorn_monai.system.terminal import LINES, Parser, say

# The window is fixed and close around the retina: 10.3 and 8.1 um per row at 64 rows. Averaging several speckle grains
# into each of so few pixels makes the home device look better than it is; its demo therefore draws from the harder half
# of `HOME_OCT` only (single shot). Chosen so that a U-Net trained on the first device reaches
# little more than half the mean intersection over union of one trained on the second (docs/simulation.md). Within
# plausible ranges, but NOT calibrated on any image of a home device.
DEMO: dict[str, Device] = {
    "spectralis": replace(SPECTRALIS, depth_um=(660.0, 660.0), width_mm=(5.0, 5.0)),
    "home_oct": replace(
        HOME_OCT, depth_um=(520.0, 520.0), width_mm=(3.8, 3.8), looks=(1, 1), frames=(1, 1), noise_db=(-16.0, -12.0)
    ),
}
PRESETS: dict[str, dict[str, Device]] = {"demo": DEMO, "full": DEVICES}
# Nobody is examined with both devices: the home device's subjects are counted from here.
FIRST_SUBJECT: dict[str, int] = {"spectralis": 0, "home_oct": 100_000}


def write_phantom(
    output: str | Path,
    device: str,
    n_subjects: int,
    scans_per_subject: int,
    size: int = 64,
    seed: int = 0,
    split: Sequence[float] = (0.7, 0.1, 0.2),
    labels: bool = True,
    preset: str = "demo",
    first_subject: int | None = None,
) -> Path:
    """Simulate and write a data set, split by subject.

    Args:
        output: folder of the data set.
        device: "spectralis" or "home_oct".
        n_subjects: eyes.
        scans_per_subject: B-scans of each.
        size: rows and columns.
        seed: item i depends on (seed, subject, scan) only.
        split: shares of the subjects for training, validation and test.
        labels: whether to write the label maps.
        preset: "demo" (window cropped around the retina) or "full" (the device's own).
        first_subject: number of the first eye; by default the devices see different people. Data sets of both devices
            with the same seed and first subject show the same eyes.

    Returns:
        The folder.

    Raises:
        ValueError: unknown device or preset, no images asked for, or an impossible split.
    """
    if device not in DEVICES:
        raise ValueError(f"Unknown device '{device}'; expected one of {sorted(DEVICES)}.")
    if preset not in PRESETS:
        raise ValueError(f"Unknown preset '{preset}'; expected one of {sorted(PRESETS)}.")
    if n_subjects < 1 or scans_per_subject < 1:
        raise ValueError(f"{n_subjects} subjects with {scans_per_subject} scans each: expected at least 1 of both.")
    first = FIRST_SUBJECT[device] if first_subject is None else first_subject
    optics = PRESETS[preset][device]
    names = [f"s{first + i:03d}" for i in range(n_subjects)]
    parts = split_by_subject(names, split, seed)
    nominal = (float(np.mean(optics.depth_um)) * 1e-3 / size, float(np.mean(optics.width_mm)) / size)
    fixed = optics.depth_um[0] == optics.depth_um[1] and optics.width_mm[0] == optics.width_mm[1]

    phantom = {"preset": preset, "seed": seed, "subjects": n_subjects, "scans_per_subject": scans_per_subject}
    with DatasetWriter(
        output,
        name=f"phantom-{device}-{preset}-{size}",
        device=device,
        labels=LABELS,
        modality="OCT",
        spacing_mm=nominal,
        simulated_device=True,
        simulated_anatomy=True,
        phantom=phantom,
        resume=begun(output),
        settings={
            "size": size,
            "labelled": labels,
            "device": device,
            "split": list(split),
            "first_subject": first,
            **phantom,
        },
    ) as writer:
        for index, scan in enumerate(simulate(optics, n_subjects, scans_per_subject, size, seed, first_subject=first)):
            if index in writer:
                continue
            name = names[scan.subject - first]
            own: dict[str, Any] = {} if fixed else {"spacing_mm": [round(s, 6) for s in scan.spacing_mm]}
            own |= {"index": index, "scan": scan.scan}
            writer.add(parts[name], scan.image, scan.label if labels else None, subject=name, **own)
    return Path(output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return the exit status."""
    parser = Parser(
        prog="python -m data_prep.phantom", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder of the data set")
    parser.add_argument("--device", choices=sorted(DEVICES), default="spectralis")
    parser.add_argument("--size", type=int, default=64, help="rows and columns (default 64)")
    parser.add_argument("--subjects", type=int, default=40)
    parser.add_argument("--scans-per-subject", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", type=finite, nargs=3, default=(0.7, 0.1, 0.2), metavar=("TRAIN", "VAL", "TEST"))
    parser.add_argument("--preset", choices=sorted(PRESETS), default="demo")
    parser.add_argument("--unlabeled", action="store_true", help="write no label maps")
    parser.add_argument("--first-subject", type=int, help="number of the first eye (default: each device its own)")
    a = parser.parse_args(arguments)
    try:
        folder = write_phantom(
            a.output,
            a.device,
            a.subjects,
            a.scans_per_subject,
            a.size,
            a.seed,
            a.split,
            labels=not a.unlabeled,
            preset=a.preset,
            first_subject=a.first_subject,
        )
    except ValueError as error:
        say(f"error: {error}", LINES, file=sys.stderr)
        return 1
    say(f"{a.subjects * a.scans_per_subject} B-scans in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
