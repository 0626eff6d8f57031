"""Write a data set of simulated street scenes (`unicorn_monai.simulation.drives`) in clear or bad weather.

    python -m data_prep.street_phantom OUTPUT --weather fog night rain snow --size 64 --drives 60 --seed 0

Each drive is one subject and has one weather, in turn; it is kept as `sub_domain` of its items.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from data_prep.options import SHARES, Shares, command
from data_prep.splits import split_by_subject
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.simulation.drives import simulate_drives
from unicorn_monai.simulation.street import CLASSES, STREET_LABELS
from unicorn_monai.simulation.weather import WEATHERS
from unicorn_monai.system.console import MANY, Whole
from unicorn_monai.system.terminal import say

BAD_WEATHER = tuple(name for name in WEATHERS if name != "clear")


def write_streets(
    output: str | Path,
    weather: Sequence[str],
    drives: int | range,
    frames: int,
    size: int | tuple[int, int] = 64,
    seed: int = 0,
    split: Sequence[float] = (0.7, 0.1, 0.2),
    labels: bool = True,
) -> Path:
    """Simulate and write a data set, split by drive; every weather has its share of every split.

    The kinds of weather come in turn over the drives, a number of streets or which: counted from 0 in clear
    weather, else from 100,000, for nobody drives the same street in both domains. A drive has 1 to 40 frames.
    Item i depends on (seed, drive, frame) only.
    """
    if unknown := sorted(set(weather) - set(WEATHERS)) or not weather:
        raise ValueError(f"Unknown weather {unknown if weather else 'none'}; expected some of {list(WEATHERS)}.")
    if isinstance(drives, int):
        first = 0 if "clear" in weather else 100_000
        drives = range(first, first + drives)
    if not drives or frames < 1:
        raise ValueError(f"{len(drives)} drives with {frames} frames each: expected at least 1 of both.")
    names = [f"d{drive:03d}" for drive in drives]
    parts: dict[str, str] = {}
    for k in range(len(weather)):  # by weather, so that each has test images
        parts |= split_by_subject(names[k :: len(weather)], split, seed)
    with DatasetWriter(
        output,
        About(
            name=f"streets-{'-'.join(weather)}-{size}",
            device=f"simulated camera, {', '.join(weather)}",
            labels=STREET_LABELS,
            modality="RGB",
            suffix=".png",
        ),
        simulated_device=True,
        simulated_anatomy=True,
        simulated="streets and weather",
        colours=[list(colour) for colour in CLASSES.values()],
        phantom={"weather": list(weather), "seed": seed, "drives": len(drives), "frames": frames},
    ) as writer:
        for item in simulate_drives(weather, drives, frames, size, seed):
            name = f"d{item.drive:03d}"
            label = item.label if labels else None
            writer.add(parts[name], item.image, label, subject=name, scan=item.frame, sub_domain=item.weather)
    return Path(output)


@command
def main(
    output: Annotated[Path, Parameter(help="folder of the data set")],
    *,
    weather: Annotated[tuple[str, ...], MANY, Parameter(choices=tuple(WEATHERS), help="in turn")] = ("clear",),
    size: Annotated[tuple[Whole, ...], MANY, Parameter(help="rows and columns, or one number; pixels")] = (64,),
    drives: Annotated[Whole, Parameter(help="streets, 1 or more")] = 40,
    frames: Annotated[Whole, Parameter(help="pictures of each, 1 to 40")] = 10,
    seed: Annotated[Whole, Parameter(help="of streets, pictures and split; 0 or more")] = 0,
    split: Annotated[Shares, Parameter(help=SHARES)] = (0.7, 0.1, 0.2),
    unlabeled: Annotated[bool, Parameter(help="write no label maps")] = False,
    first_drive: Annotated[Whole | None, Parameter(help="number of the first street")] = None,
) -> int:
    """Simulate and write."""
    if len(size) > 2:
        raise ValueError(f"--size {[*size]}: expected one number or two.")
    streets = drives if first_drive is None else range(first_drive, first_drive + drives)
    folder = write_streets(output, weather, streets, frames, (size[0], size[-1]), seed, split, not unlabeled)
    say(f"{drives * frames} pictures in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
