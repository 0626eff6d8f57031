"""How many denoising steps are worth their time? A finished run, sampled with few and with many, and what comes of it.

    python -m benchmarks.steps runs/demo --output runs/demo_steps --steps 10 15 20 30 50 1000 --seeds 0 1 2

For every number of steps the run's networks make its synthetic data set anew, the segmentation network is retrained on
it and scored on the unlabelled domain's real images, and the oracle (the network trained on that domain's labels) says
how far the images follow their label maps. Choose the number by the validation images; the test images are for the
record. What is done is kept in the output folder and not done again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import table, where
from unicorn_monai.bundle import arguments, default_device, drawing
from unicorn_monai.data import read_header
from unicorn_monai.evaluation import score_images
from unicorn_monai.experiment import Runner, Stage, bundle_places, settings_begun_with, settings_of
from unicorn_monai.system import log_to_console, read_json

SAMPLERS = ("DDIM", "DPMSolverPlusPlus", "UniPC")


class Steps:
    """One seed: data set, retraining and scores for a number of steps.

    Args:
        run: folder of the finished run.
        output: what is made here goes there.
        seed: of synthesis and retraining.
        sampler: one of ``SAMPLERS``; None for the run's own.
    """

    def __init__(self, run: Path, output: Path, seed: int, sampler: str | None = None) -> None:
        self.settings, chosen = settings_of(run)
        self.bundles, self.unlabeled = run.resolve() / "bundles", Path(self.settings.unlabeled)
        self.places = bundle_places(self.bundles, self.settings)
        self.weight = self.settings.weight_used(self.settings.modes[0], chosen)
        self.oracle, self.sampler = run.resolve() / "segmentation" / "upper_bound" / "model.pt", sampler
        if not self.oracle.is_file():
            raise ValueError(f"'{run}' has no network of the upper bound; expected a finished run on labelled data.")
        output = output.resolve() / f"seed{seed}_{sampler or 'own'}"
        (output / "stages").mkdir(parents=True, exist_ok=True)
        self.runner = Runner(output, torch.device(self.settings.device or default_device()), seed)

    def measure(self, n: int) -> dict[str, float]:
        """Seconds of synthesis, label fidelity and downstream mean IoU at ``n`` steps."""
        runner, root = self.runner, self.bundles / "retinal_unet"
        data, folder = runner.run_dir / f"synthetic_{n}", runner.run_dir / "segmentation" / str(n)
        runner.run(Stage(f"synthesis_{n}", (), (), lambda: self.synthesise(n, data)))
        folders = {"dataset_dir": str(data), "validation_dir": str(data), "ckpt_dir": str(folder)}
        train = {**folders, "output_dir": str(folder), "bundle_root": str(root)}
        runner.run(Stage(f"retraining_{n}", (), (), lambda: runner.bundle(root, "train.json", **train)))
        seconds = read_json(runner.marker(f"synthesis_{n}"))["seconds"]
        scores = {
            "label fidelity": self.score(n, "fidelity", self.oracle, data, "training"),
            "mean IoU, validation": self.score(n, "validation", folder / "model.pt", self.unlabeled, "validation"),
            "mean IoU, test": self.score(n, "test", folder / "model.pt", self.unlabeled, "test"),
        }
        return {"seconds of synthesis": seconds} | scores

    def synthesise(self, n: int, data: Path) -> None:
        """The run's synthetic data set, at ``n`` steps."""
        own: dict[str, Any] = {**self.places, "output_dir": str(data), "num_inference_steps": n}
        if self.sampler is not None:
            schedule = arguments(self.bundles / "latent_diffusion", "scheduler")
            own["scheduler"] = {"_target_": f"unicorn_monai.schedulers.{self.sampler}", **schedule, "coarse": True}
        settings = self.settings.synthesis(self.settings.main, self.weight)
        self.runner.bundle(self.bundles / drawing(self.settings.main), "inference.json", "infer", **settings, **own)

    def score(self, n: int, name: str, weights: Path, data: Path, split: str) -> float:
        """Mean IoU of a segmentation network, once."""
        arguments = (self.bundles / "retinal_unet", weights, data, split, self.runner.seed, self.runner.device)
        return self.runner.run(Stage(f"{name}_{n}", (), (), lambda: score_images(*arguments)["mean_iou"]))


def measure(
    run: Path, output: Path, steps: Sequence[int], seeds: Sequence[int], samplers: Sequence[str | None] = (None,)
) -> str:
    """The table: one row per sampler and number of steps, mean (smallest to largest) over the seeds."""
    validation = read_header(Path(settings_begun_with(run)["unlabeled"])).get("validation", [])
    if not validation or not all("label" in item for item in validation):
        raise ValueError("The unlabelled domain has no labels for validation; expected some, to choose the steps by.")
    rows, columns = [], list[str]()
    for sampler in samplers:
        for n in steps:
            found = [Steps(run, output, seed, sampler).measure(n) for seed in seeds]
            columns = list(found[0])
            rows.append([sampler or "the run's own", str(n), *(spread([f[key] for f in found]) for key in columns)])
    return table(["sampler", "steps", *columns], rows)


def spread(values: Sequence[float]) -> str:
    """Mean and, for several values, the smallest and largest."""
    form = ".3f" if max(values) < 1 else ".1f"
    text = f"{np.mean(values):{form}}"
    return text if len(values) == 1 else f"{text} ({min(values):{form}} to {max(values):{form}})"


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--output", type=Path, required=True, help="folder for what is made here")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 15, 20, 30, 50, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of synthesis and retraining")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, help="the run's own by default")
    settings = parser.parse_args(words)
    log_to_console()
    text = measure(settings.run, settings.output, settings.steps, settings.seeds, settings.samplers or [None])
    print(text)
    print(f"\nrun {settings.run.name}, seeds {settings.seeds}; {where(default_device())}")


if __name__ == "__main__":
    main()
