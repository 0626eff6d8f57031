"""Every method on every shift: an ordinary run folder for each shift, fold and seed, which can be gone on with.

RUNS/SHIFT[/FOLD][/seedN]/                an experiment; methods that are asked for later are added to it
RESULTS/SHIFT/METHOD/results.json         a cell; RESULTS/SHIFT/verdict.json   what was recommended without labels
RESULTS/table.json                        the table of tables, from these alone
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unicorn_monai.benchmark.cells import Trained, cell
from unicorn_monai.benchmark.preparation import prepare, settings
from unicorn_monai.benchmark.shifts import Shift
from unicorn_monai.benchmark.table import make_table
from unicorn_monai.experiment.experiment import Experiment
from unicorn_monai.experiment.settings import Settings, settings_begun_with
from unicorn_monai.fusion import MODES
from unicorn_monai.report.benchmark_page import write_page
from unicorn_monai.report.trainings import BASELINES, SEMANTIC_ONLY
from unicorn_monai.system.files import PathLike, write_json, write_text


@dataclass(frozen=True)
class Plan:
    """What to run: shifts, rows of the table, pixels, and where."""

    folder: Path  # of the data sets and the runs
    methods: tuple[str, ...]
    size: int
    jobs: int | None = None  # stages side by side in a run


def run_shift(shift: Shift, plan: Plan, data: Path | None, seeds: Sequence[int]) -> list[Trained]:
    """Prepare a shift and run, or go on with, the experiments of these seeds, each fold of them."""
    for part in shift.parts():
        prepare(part, plan.folder, data, plan.size)
    found = []
    for seed in seeds:
        runs = [settings(part, plan.folder, plan.methods, plan.size, seed) for part in shift.parts()]
        found.append(Trained(seed, tuple(run_methods(values | {"jobs": plan.jobs}) for values in runs)))
    return found


def run_methods(wanted: dict[str, Any]) -> Path:
    """Run an experiment, or go on with it with these baselines and modes besides those it has; returns its folder."""
    folder = Path(wanted["output"])
    begun = folder / "experiment.json"
    if begun.is_file():
        before = settings_begun_with(folder)
        for key, order in (("baselines", (*BASELINES, SEMANTIC_ONLY)), ("modes", MODES)):
            both = {*before[key], *wanted[key]}
            wanted = wanted | {key: [name for name in order if name in both]}
    # An autoencoder that does not keep the images is told, and what follows is scored: here that is a result.
    Experiment(Settings.from_dict(wanted), resume=begun.is_file(), force=True).run()
    return folder


def weathers(trained: Sequence[Trained]) -> list[str]:
    """The sub-domains that these runs have scored."""
    scored = trained[0].results()[0]["segmentation"].values()
    return list(dict.fromkeys(name for one in scored for name in one.get("sub_domains", {})))


def collect_shift(shift: Shift, trained: Sequence[Trained], results: PathLike) -> dict[str, list[str]]:
    """Write the cells of a shift, or of each of its sub-domains; returns the methods of every row."""
    if not shift.sub_domains:
        return {shift.name: collect(shift.name, trained, results)}
    return {name: collect(name, trained, results, name) for name in weathers(trained)}


def collect(shift: str, trained: Sequence[Trained], results: PathLike, sub_domain: str | None = None) -> list[str]:
    """Write the cells of all that these runs have scored, and the verdict; returns the methods."""
    every = [found for one in trained for found in one.results()]
    methods = [name for name in every[0]["segmentation"] if all(name in one["segmentation"] for one in every)]
    folder = Path(results) / shift
    for method in methods:
        target = folder / method / "results.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, json.dumps(cell(shift, method, trained, sub_domain), separators=(",", ":")) + "\n")
    found = [one.get("recommendation") or {} for one in trained[0].results()]
    why = next((one["not_computed"] for one in found if "not_computed" in one), None)
    write_json(folder / "verdict.json", {"not_computed": why} if why else {"folds": [one for one in found if one]})
    return methods


def write_table(results: PathLike) -> Path:
    """Write ``table.json`` of a folder of cells, and its page; returns the page."""
    write_json(Path(results) / "table.json", make_table(results))
    return write_page(Path(results))
