"""The two simulated data sets of `unicorn-monai demo`, and the settings that it runs the experiment with."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.phantom import Exam, write_phantom
from data_prep.street_phantom import BAD_WEATHER, write_streets
from unicorn_monai.data.journal import begun
from unicorn_monai.report.trainings import BASELINES, ON_TOP, SEMANTIC_ONLY

DOMAINS = ("labeled", "unlabeled")
SPLIT = (0.667, 0.1, 0.233)
# Trainings of the quick demo, in epochs of a fixed number of iterations (`iterations_per_epoch` of the preset): two
# thirds of what the experiments of the documents use at this size.
BRIEF: dict[str, dict[str, dict[str, int]]] = {
    "joint": {"train.json": {"max_epochs": 54}},
}


@dataclass(frozen=True)
class Demo:
    """A demo in a run folder, the data sets in its folder ``data``."""

    output: Path
    street: bool  # streets in clear and bad weather instead of eyes seen by two devices
    full: bool  # with all baselines and three trainings of each network, as the preset of that name
    small: bool  # 64 x 64 pixels, with networks to match, instead of 256 x 256
    seed: int = 0

    def simulate(self) -> Iterator[str]:
        """Write the data sets that are not there yet; yields a sentence for each."""
        for name in DOMAINS:
            folder = self.output / "data" / name
            if begun(folder) or not (folder / "dataset.json").is_file():
                what = self._streets(name, folder) if self.street else self._eyes(name, folder)
                yield f"simulated {what}: {folder}"

    def _eyes(self, name: str, folder: Path) -> str:
        size, subjects, exam = (64, 60, Exam("demo")) if self.small else (256, 150, Exam("full"))
        device = "spectralis" if name == "labeled" else "home_oct"
        write_phantom(folder, device, subjects, 10, size, self.seed, SPLIT, exam)
        return f"{subjects * 10} B-scans of {size} x {size}"

    def _streets(self, name: str, folder: Path) -> str:
        size, drives, frames = ((64, 64), 60, 10) if self.small else ((128, 256), 150, 20)
        weather = ("clear",) if name == "labeled" else BAD_WEATHER
        write_streets(folder, weather, drives, frames, size, self.seed, SPLIT)
        return f"{drives * frames} street scenes of {size[0]} x {size[1]}"

    def settings(self, device: str | None = None) -> dict[str, Any]:
        """Settings of its experiment, as `Settings.from_dict` takes them."""
        baselines = [*(BASELINES if self.full else ON_TOP), *[SEMANTIC_ONLY] * self.street]
        return {
            **{name: str(self.output / "data" / name) for name in DOMAINS},
            "output": str(self.output),
            "preset": "quick" if self.small else "full",  # of the networks
            "seed": self.seed,
            "device": device,
            "baselines": baselines,
            # The words name weathers to ControlNets, which the comparison without the uncertainty is made with, too.
            "modes": ["joint", "paper"] if self.full or self.street else ["joint"],
            "trainings": 3 if self.full else 1,
            "samples_per_label": None if self.full else 1,  # three of each would take most of its minutes
            "words": self.street,
            "overrides": BRIEF if self.small and not self.full and not self.street else None,
        }
