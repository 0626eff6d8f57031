"""Write a data set of simulated B-scans: anatomies from `unicorn_monai.simulation.retina`, seen by one of the devices.

    python -m data_prep.phantom OUTPUT --device home_oct --size 64 --subjects 40 --scans-per-subject 10 --seed 0

The preset `full` keeps the fields of view and depth windows of the devices (for 256 x 256 pixels and more); `demo`
crops the window around the retina, so that the thin layers are two to four pixels high already at 64 x 64. In both the
other devices see a smaller field, hence a taller retina: the spatial bias between the two domains.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

from data_prep.options import SHARES, Shares, command
from data_prep.splits import split_by_subject
from unicorn_monai.data.journal import begun
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.simulation.devices import Device
from unicorn_monai.simulation.other_devices import DEVICES
from unicorn_monai.simulation.retina import LABELS
from unicorn_monai.simulation.scans import simulate
from unicorn_monai.system.console import Whole
from unicorn_monai.system.terminal import say

# The window is fixed and close around the retina: 10.3 and 8.1 um per row at 64 rows. Averaging several speckle grains
# into each of so few pixels makes the home device look better than it is; its demo therefore draws from the harder half
# of `HOME_OCT` only: single shots (docs/simulation.md). Plausible, but NOT calibrated on any image of a home device.
WINDOWS = {"spectralis": (660.0, 5.0), "home_oct": (520.0, 3.8)}  # um deep, mm wide
HARDER = {"home_oct": {"looks": (1, 1), "frames": (1, 1), "noise_db": (-16.0, -12.0)}}


def _cropped(device: Device) -> Device:
    depth, width = WINDOWS.get(device.name, (600.0, 4.4))
    return replace(device, depth_um=(depth, depth), width_mm=(width, width), **HARDER.get(device.name, {}))


DEMO = {name: _cropped(device) for name, device in DEVICES.items()}
PRESETS: dict[str, dict[str, Device]] = {"demo": DEMO, "full": DEVICES}
# Nobody is examined with two devices: the subjects of each are counted from here.
FIRST_SUBJECT: dict[str, int] = {name: 100_000 * place for place, name in enumerate(DEVICES)}


@dataclass(frozen=True)
class Exam:
    """How eyes are examined.

    By default the devices see different people; with the same seed and first subject, both see the same eyes.
    """

    preset: str = "demo"  # window cropped around the retina, or "full": the device's own
    labels: bool = True  # whether the label maps are written
    first_subject: int | None = None  # number of the first eye

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"Unknown preset '{self.preset}'; expected one of {sorted(PRESETS)}.")


WHOLE_DEMO = Exam()


def write_phantom(
    output: str | Path,
    device: str,
    n_subjects: int,
    scans_per_subject: int,
    size: int = 64,
    seed: int = 0,
    split: Sequence[float] = (0.7, 0.1, 0.2),
    exam: Exam = WHOLE_DEMO,
) -> Path:
    """Simulate and write a data set of square images, split by subject.

    The device is one of `simulation.DEVICES`, the split are shares of the subjects for training, validation and
    test. Item i depends on (seed, subject, scan) only.
    """
    if device not in DEVICES:
        raise ValueError(f"Unknown device '{device}'; expected one of {sorted(DEVICES)}.")
    if n_subjects < 1 or scans_per_subject < 1:
        raise ValueError(f"{n_subjects} subjects with {scans_per_subject} scans each: expected at least 1 of both.")
    first = FIRST_SUBJECT[device] if exam.first_subject is None else exam.first_subject
    optics = PRESETS[exam.preset][device]
    names = [f"s{first + i:03d}" for i in range(n_subjects)]
    parts = split_by_subject(names, split, seed)
    nominal = (float(np.mean(optics.depth_um)) * 1e-3 / size, float(np.mean(optics.width_mm)) / size)
    fixed = optics.depth_um[0] == optics.depth_um[1] and optics.width_mm[0] == optics.width_mm[1]
    phantom = {"preset": exam.preset, "seed": seed, "subjects": n_subjects, "scans_per_subject": scans_per_subject}
    with DatasetWriter(
        output,
        About(
            name=f"phantom-{device}-{exam.preset}-{size}",
            device=device,
            labels=LABELS,
            modality="OCT",
            spacing_mm=nominal,
        ),
        simulated_device=True,
        simulated_anatomy=True,
        phantom=phantom,
        resume=begun(output),
        settings={"size": size, "labelled": exam.labels, "device": device, "split": list(split), "first_subject": first}
        | phantom,
    ) as writer:
        for index, scan in enumerate(simulate(optics, n_subjects, scans_per_subject, size, seed, first_subject=first)):
            if index in writer:
                continue
            name = names[scan.subject - first]
            own: dict[str, Any] = {} if fixed else {"spacing_mm": [round(s, 6) for s in scan.spacing_mm]}
            own |= {"index": index, "scan": scan.scan}
            writer.add(parts[name], scan.image, scan.label if exam.labels else None, subject=name, **own)
    return Path(output)


@command
def main(
    output: Annotated[Path, Parameter(help="folder of the data set")],
    *,
    device: Annotated[str, Parameter(choices=sorted(DEVICES), help="which device sees the eyes")] = "spectralis",
    size: Annotated[Whole, Parameter(help="rows and columns, pixels")] = 64,
    subjects: Annotated[Whole, Parameter(help="eyes, 1 or more")] = 40,
    scans_per_subject: Annotated[Whole, Parameter(help="B-scans of each, 1 or more")] = 10,
    seed: Annotated[Whole, Parameter(help="of eyes, scans and split; 0 or more")] = 0,
    split: Annotated[Shares, Parameter(help=SHARES)] = (0.7, 0.1, 0.2),
    preset: Annotated[str, Parameter(choices=sorted(PRESETS), help="window of the device")] = "demo",
    unlabeled: Annotated[bool, Parameter(help="write no label maps")] = False,
    first_subject: Annotated[Whole | None, Parameter(help="number of the first eye; each device its own")] = None,
) -> int:
    """Simulate and write."""
    exam = Exam(preset, not unlabeled, first_subject)
    folder = write_phantom(output, device, subjects, scans_per_subject, size, seed, split, exam)
    say(f"{subjects * scans_per_subject} B-scans in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
