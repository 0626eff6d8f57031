"""Write a data set of simulated street scenes (`unicorn_monai.simulation.drives`) in clear or bad weather.

    python -m data_prep.street_phantom OUTPUT --weather fog night rain snow --size 64 --drives 60 --seed 0

Each drive is one subject and has one weather, in turn; it is kept as `sub_domain` of its items.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.options import run
from data_prep.splits import split_by_subject
from unicorn_monai.data.writer import DatasetWriter
from unicorn_monai.simulation.drives import simulate_drives
from unicorn_monai.simulation.street import CLASSES, STREET_LABELS
from unicorn_monai.simulation.weather import WEATHERS
from unicorn_monai.system.intake import finite
from unicorn_monai.system.terminal import Parser, say

BAD_WEATHER = tuple(name for name in WEATHERS if name != "clear")
FIRST_DRIVE = {"clear": 0, "bad": 100_000}  # nobody drives the same street in both domains


def write_streets(
    output: str | Path,
    weather: Sequence[str],
    drives: int,
    frames: int,
    size: int | tuple[int, int] = 64,
    seed: int = 0,
    split: Sequence[float] = (0.7, 0.1, 0.2),
    labels: bool = True,
    first_drive: int | None = None,
) -> Path:
    """Simulate and write a data set, split by drive; every weather has its share of every split.

    Args:
        output: folder of the data set.
        weather: the kinds of weather, in turn over the drives.
        drives: streets.
        frames: pictures of each.
        size: rows and columns.
        seed: item i depends on (seed, drive, frame) only.
        split: shares of the drives for training, validation and test.
        labels: whether to write the label maps.
        first_drive: number of the first street; by default clear and bad weather have streets of their own.

    Returns:
        The folder.

    Raises:
        ValueError: unknown weather, nothing asked for, too few drives, or an impossible split.
    """
    if unknown := sorted(set(weather) - set(WEATHERS)) or not weather:
        raise ValueError(f"Unknown weather {unknown if weather else 'none'}; expected some of {list(WEATHERS)}.")
    if drives < 1 or frames < 1:
        raise ValueError(f"{drives} drives with {frames} frames each: expected at least 1 of both.")
    first = FIRST_DRIVE["clear" if "clear" in weather else "bad"] if first_drive is None else first_drive
    names = [f"d{first + i:03d}" for i in range(drives)]
    parts: dict[str, str] = {}
    for k in range(len(weather)):  # by weather, so that each has test images
        parts |= split_by_subject(names[k :: len(weather)], split, seed)
    with DatasetWriter(
        output,
        name=f"streets-{'-'.join(weather)}-{size}",
        device=f"simulated camera, {', '.join(weather)}",
        labels=STREET_LABELS,
        modality="RGB",
        suffix=".png",
        simulated_device=True,
        simulated_anatomy=True,
        simulated="streets and weather",
        colours=[list(colour) for colour in CLASSES.values()],
        phantom={"weather": list(weather), "seed": seed, "drives": drives, "frames": frames},
    ) as writer:
        for item in simulate_drives(list(weather), drives, frames, size, seed, first):
            name = names[item.drive - first]
            label = item.label if labels else None
            writer.add(parts[name], item.image, label, subject=name, scan=item.frame, sub_domain=item.weather)
    return Path(output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return the exit status."""
    parser = Parser(
        prog="python -m data_prep.street_phantom",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", type=Path, help="folder of the data set")
    parser.add_argument("--weather", nargs="+", choices=list(WEATHERS), default=["clear"])
    parser.add_argument("--size", type=int, nargs="+", default=[64], help="rows and columns, or one number (64)")
    parser.add_argument("--drives", type=int, default=40, help="streets (40)")
    parser.add_argument("--frames", type=int, default=10, help="pictures of each (10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", type=finite, nargs=3, default=(0.7, 0.1, 0.2), metavar=("TRAIN", "VAL", "TEST"))
    parser.add_argument("--unlabeled", action="store_true", help="write no label maps")
    parser.add_argument("--first-drive", type=int, help="number of the first street")
    a = parser.parse_args(arguments)

    def work() -> int:
        if len(a.size) > 2:
            raise ValueError(f"--size {a.size}: expected one number or two.")
        size = (a.size[0], a.size[-1])
        folder = write_streets(
            a.output, a.weather, a.drives, a.frames, size, a.seed, a.split, not a.unlabeled, a.first_drive
        )
        say(f"{a.drives * a.frames} pictures in {folder}")
        return 0

    return run(work)


if __name__ == "__main__":
    sys.exit(run(main))
