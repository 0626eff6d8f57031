"""The whole method, from two data sets to a retrained segmentation network and a report.

An experiment is put together from a run folder (``run.py``), what its stages are (``plan.py``), what runs them
(``runner.py``) and an MLflow record (``tracking.py``). What can be set: ``settings.py``.
"""

from __future__ import annotations

import platform
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from unicorn_monai.data.layout import read_header
from unicorn_monai.evaluation.comparison import closed_gaps, differences, strongest
from unicorn_monai.experiment.image_counts import require_images
from unicorn_monai.experiment.plan import Plan
from unicorn_monai.experiment.run import Run
from unicorn_monai.experiment.runner import Runner
from unicorn_monai.experiment.settings import Settings
from unicorn_monai.experiment.stages import Stage
from unicorn_monai.experiment.tracking import Tracker
from unicorn_monai.experiment.versions import provenance
from unicorn_monai.report.report import write_report
from unicorn_monai.report.results import LOWER, Results
from unicorn_monai.report.trainings import AUGMENTED, SEMANTIC_ONLY
from unicorn_monai.system.console import log_to_console
from unicorn_monai.system.distributed import require_single
from unicorn_monai.system.files import write_json
from unicorn_monai.system.records import read_record, read_stage

REFERENCES = (LOWER, "cut+real", *AUGMENTED, SEMANTIC_ONLY)  # compared with, and the strongest opponent


class Experiment:
    """One run of the whole method.

    Args:
        settings: what to do.
        resume: go on with a run folder in use; finished stages are not run again. ``baselines`` may be
            added, and ``modes`` to a run that has none or ``joint`` alone.
        force: go on even where the autoencoder does not keep the images; kept with the run.
    """

    def __init__(self, settings: Settings, resume: bool = False, force: bool = False) -> None:
        require_single("an experiment")
        settings.validate()
        require_images(settings)
        self.settings, self.folder, self.may_resume = settings, Run(settings), resume
        self.resumed = self.folder.goes_on(resume)
        self.folder.forced = force or (self.resumed and read_record(self.folder.run_dir).get("forced") is True)
        self.runner, self.stages = parts(self.folder)

    @property
    def results(self) -> dict[str, Any]:
        """What has been found so far, as it will stand in results.json."""
        return self.folder.results

    def run(self) -> Path:
        """Run every stage that is not finished; returns the report's path."""
        started, run = time.monotonic(), self.folder
        with self.runner.guard():
            self.resumed = run.goes_on(self.may_resume)  # a run may have been begun here meanwhile
            self.claim()
            run.tell_label_maps()
            with Tracker(run.run_dir, run.run_dir.name, self.settings.tracking) as tracker:
                self.runner.tracker = tracker
                run.install_bundles()
                self.walk(self.stages)
                if not self.resumed:  # stages side by side: less than the sum of their seconds
                    run.results["wall_seconds"] = round(time.monotonic() - started, 1)
                return self.finish()

    def claim(self) -> None:
        """Write down what the run does; within ``Runner.guard``, for it changes what a run here goes by."""
        self.folder.claim()
        self.runner.forget(self.stages)

    def walk(self, stages: list[Stage]) -> None:
        """Run what is not finished of these stages, side by side where there is room."""
        task = partial(_run_elsewhere, self.settings, self.folder.forced, self.runner.tracker.parent)
        self.runner.walk(stages, self.folder.jobs, task)

    def finish(self) -> Path:
        """Write results.json and the report, and close the tracking; returns the report's path."""
        run, results, seed = self.folder, self.folder.results, self.settings.seed
        records = {s: [run.record(s, i) for i in range(self.settings.trainings)] for s in results["segmentation"]}
        results |= {"not_computed": run.not_computed, "label_maps": run.label_maps}
        results["strongest"] = strongest(results["segmentation"])
        references = dict.fromkeys([*REFERENCES, results["strongest"].get("setup", LOWER)])
        results |= {"differences": differences(records, [*references], seed), "gap": closed_gaps(records, seed)}
        header = read_header(run.unlabeled)
        simulated = [bool(header.get(key)) for key in ("simulated_device", "simulated_anatomy")]
        what = "devices and anatomy" if all(simulated) else "devices" if any(simulated) else "none"
        results |= {"simulated": header.get("simulated", what)}
        results |= {"commands": self.runner.commands, "sha256": run.hashes()}
        machine = {"machine": platform.machine(), "cpus": torch.get_num_threads()}
        results["environment"] = provenance()["versions"] | machine
        markers = sorted((run.run_dir / "stages").glob("*.json"), key=lambda p: p.stat().st_mtime)
        kept = {p.stem: read_stage(p) for p in markers}
        results["seconds"] = {name: stage["seconds"] for name, stage in kept.items()}
        results["without_command"] = [name for name, stage in kept.items() if not stage["commands"]]
        scores = {f"{k}.mean_iou".replace("+", "_"): score for k, score in Results.of(results).scores.items()}
        write_json(run.run_dir / "results.json", results)
        report = write_report(run.run_dir)
        self.runner.tracker.close(scores, [run.run_dir / "results.json", report])
        return report


def parts(run: Run, elsewhere: bool = False) -> tuple[Runner, list[Stage]]:
    """What runs the stages of a run folder, perhaps in a process beside the one that was started, and the stages."""
    runner = Runner(run.run_dir, run.device, run.settings.seed, run.results, elsewhere)
    return runner, Plan(run, runner).stages()


def _run_elsewhere(settings: Settings, forced: bool, parent: str, name: str, threads: int) -> None:
    """One stage of an experiment, whose settings and data were checked at its start, in a process of its own."""
    torch.set_num_threads(threads)
    log_to_console()
    runner, stages = parts(Run(settings, forced), elsewhere=True)
    with runner.branch():
        runner.recall(stages)
        runner.tracker = Tracker(runner.run_dir, runner.run_dir.name, settings.tracking, parent)
        runner.run(next(stage for stage in stages if stage.name == name))
