"""What is each part worth? A finished run again from its diffusion model on, with one thing changed at a time.

    python -m benchmarks.ablation runs/demo --output runs/ablation --changes plain_hint quantile_hint

Every change gets a run of its own, which takes over from the finished one what comes before it: autoencoder, diffusion
model, the networks of the real images, and the ControlNets where only the synthesis changes. The rest is done anew,
with another seed where seeds are given. Choose by the validation images of the unlabelled domain; the test images are
for the record. What is done is kept in the output folder and not done again.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import table, where
from benchmarks.steps import spread
from unicorn_monai.bundle import default_device
from unicorn_monai.evaluation import score_images
from unicorn_monai.experiment import CONTROLNETS, Experiment, Stage, needed, settings_of
from unicorn_monai.system import log_to_console, read_record

REAL = ("lower_bound", "upper_bound", "augmentation")  # networks of real images
KEPT = ("autoencoder", "diffusion", "textures", "latents", "styles", "guessed_labels", *REAL)
RECIPES = ("unicorn", "unicorn+real", "unicorn+real+augmentation")
CONTROL = {"Spearman": "spearman", "error of the uncertainty": "mean_absolute_error",
           "label fidelity": "label_fidelity_mean_iou"}  # fmt: skip


class Change(NamedTuple):
    """What it is called in the table, the settings, and which of the ControlNets are as they were."""

    title: str
    settings: dict[str, Any]
    controlnets: tuple[str, ...] = ()


CHANGES = {
    "nothing": Change("as it is", {}, CONTROLNETS),
    "plain_hint": Change("the hint in its own scale", {"scaling": "paper"}),
    "quantile_hint": Change("the hint by quantiles", {"scaling": "quantile"}),
    "no_guessed_labels": Change("no guessed labels", {"pseudo_labels": False}, CONTROLNETS[:1]),
    "no_style_augmentation": Change("no strongly augmented images", {"style_augmentation": False}, CONTROLNETS[:1]),
    "same_label_maps": Change("label maps as they are", {"augment": False}, CONTROLNETS),
    "no_guidance": Change("no guidance", {"guidance": (1.0, 1.0)}, CONTROLNETS),
    "two_of_a_label_map": Change("two images of each label map", {"samples_per_label": 2}, CONTROLNETS),
    "four_of_a_label_map": Change("four images of each label map", {"samples_per_label": 4}, CONTROLNETS),
    "weight_2": Change("weight 2", {"uncertainty_weight": 2.0}, CONTROLNETS),
    "paper_mode": Change("paper mode", {"modes": ("paper",)}),
    "paper_mode_zscore": Change("paper mode, standardised hint", {"modes": ("paper",), "paper_scaling": "zscore"}),
}


class Ablation:
    """The run with one change.

    Args:
        run: folder of the finished run.
        output: where this one goes.
        change: what is different.
        seed: of everything that is done anew; None for the run's own.
    """

    def __init__(self, run: Path, output: Path, change: Change, seed: int | None = None) -> None:
        settings, chosen = settings_of(run)
        if settings.modes[0] != "compositional":
            raise ValueError(f"'{run}' has the modes {list(settings.modes)}; expected 'compositional' first.")
        weight = settings.weight_used("compositional", chosen)
        own: dict[str, Any] = {"modes": ("compositional",), "uncertainty_weight": weight} | change.settings
        own |= {"output": str(output), "seed": settings.seed if seed is None else seed, "rounds": 1, "trainings": 1}
        made = {"labeled_augmented": "style_augmentation", "guessed": "pseudo_labels"}
        without = [folder for folder, setting in made.items() if not own.get(setting, True)]
        take_over(run, output, change.controlnets, without)
        settings = replace(settings, baselines=("augmentation",), tracking=False, jobs=1, **own)
        self.experiment = Experiment(settings, resume=True, force=read_record(run).get("forced") is True)

    def measure(self) -> dict[str, float]:
        """Mean IoU of every recipe, on validation and test images, and how far the control is obeyed."""
        experiment, run, runner = self.experiment, self.experiment.folder, self.experiment.runner
        with runner.guard():
            experiment.claim()
            run.install_bundles()
            experiment.walk(needed(experiment.stages, ["unicorn_control", *(f"{r}_evaluation" for r in RECIPES)]))
            scores = {}
            for setup in RECIPES:
                stage = Stage(f"{setup}_validation", (), (), partial(self.validate, setup))
                scores[f"{setup}, validation"] = runner.run(stage)
                scores[f"{setup}, test"] = run.results["segmentation"][setup]["mean_iou"]
        return scores | {name: run.results["control"][key] for name, key in CONTROL.items()}

    def validate(self, setup: str) -> float:
        """Mean IoU of a set-up on the unlabelled domain's validation images."""
        run = self.experiment.folder
        arguments = (run.bundle_dir("retinal_unet"), run.weights(setup), run.unlabeled, "validation")
        return score_images(*arguments, run.settings.seed, run.device)["mean_iou"]


def take_over(run: Path, output: Path, controlnets: Sequence[str], without: Sequence[str] = ()) -> None:
    """Copy what the finished run has and the new one does not do again; once, the markers of its stages last."""
    if (output / "experiment.json").is_file():
        return
    networks = [f"segmentation/{name}" for name in REAL[1:]]
    bundles = [f"bundles/{name}" for name in ("retinal_unet", "latent_diffusion", *controlnets)]
    for folder in (*bundles, *networks, "labeled_augmented", "guessed", "evaluation"):
        if not (run / folder).is_dir():
            raise ValueError(f"'{run}' has no folder '{folder}'; expected a finished run with the default settings.")
        if folder not in without:
            shutil.copytree(run / folder, output / folder, dirs_exist_ok=True)
    (output / "stages").mkdir(exist_ok=True)
    for name in (*KEPT, *(f"{name}_evaluation" for name in REAL), *(f"unicorn_{net}" for net in controlnets)):
        shutil.copy2(run / "stages" / f"{name}.json", output / "stages")


def compare(run: Path, output: Path, changes: Sequence[str], seeds: Sequence[int | None]) -> str:
    """The table: a row for each change, mean (smallest to largest) over the seeds."""
    rows, columns = [], list[str]()
    for name in changes:
        folders = [output / (name if seed is None else f"{name}_seed{seed}") for seed in seeds]
        found = [Ablation(run, f, CHANGES[name], seed).measure() for f, seed in zip(folders, seeds, strict=True)]
        columns = list(found[0])
        rows.append([CHANGES[name].title, *(spread([f[key] for f in found]) for key in columns)])
    return table(["changed", *columns], rows)


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--output", type=Path, required=True, help="folder for what is made here")
    parser.add_argument("--changes", nargs="+", choices=CHANGES, default=list(CHANGES))
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[None], help="of what is done anew; by default the run's"
    )
    settings = parser.parse_args(words)
    log_to_console()
    place = where(default_device())
    print(compare(settings.run.resolve(), settings.output.resolve(), settings.changes, settings.seeds))
    print(f"\nrun {settings.run.name}, seeds {settings.seeds}; {place}")


if __name__ == "__main__":
    main()
