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

from unicorn_monai.benchmark.cells import Row, Trained, cell
from unicorn_monai.benchmark.preparation import prepare, require_size, run_folder, settings
from unicorn_monai.benchmark.shifts import Shift
from unicorn_monai.benchmark.table import make_table
from unicorn_monai.experiment.experiment import Experiment
from unicorn_monai.experiment.settings import Settings, settings_begun_with
from unicorn_monai.fusion import MODES
from unicorn_monai.report.benchmark_page import write_page
from unicorn_monai.report.trainings import COMPARED
from unicorn_monai.system.files import PathLike, write_json, write_text


@dataclass(frozen=True)
class Plan:
    """What to run: shifts, rows of the table, pixels, and where."""

    folder: Path  # of the data sets and the runs
    methods: tuple[str, ...]
    size: int
    jobs: int | None = None  # stages side by side in a run
    overrides: dict[str, Any] | None = None  # settings of single bundles


def run_shift(shift: Shift, plan: Plan, data: Path | None, seeds: Sequence[int]) -> list[Trained]:
    """Prepare a shift and run, or go on with, the experiments of these seeds, each fold of them.

    Returns the finished runs of every seed of the shift, those of earlier calls too.
    """
    require_size(plan.size)
    for part in shift.parts():
        prepare(part, plan.folder, data, plan.size)
    for seed in seeds:
        for part in shift.parts():
            wanted = settings(part, plan.folder, plan.methods, plan.size, seed)
            run_methods(wanted | {"jobs": plan.jobs, "overrides": plan.overrides})
    folders = {seed: [run_folder(part, plan.folder, seed) for part in shift.parts()] for seed in shift.seeds}
    return [
        Trained(seed, tuple(runs))
        for seed, runs in folders.items()
        if all((run / "results.json").is_file() for run in runs)
    ]


def run_methods(wanted: dict[str, Any]) -> Path:
    """Run an experiment, or go on with it with these baselines and modes besides those it has; returns its folder."""
    folder = Path(wanted["output"])
    begun = folder / "experiment.json"
    if begun.is_file():
        before = settings_begun_with(folder)
        for key, order in (("baselines", COMPARED), ("modes", MODES)):
            both = {*before[key], *wanted[key]}
            wanted = wanted | {key: [name for name in order if name in both]}
    # An autoencoder that does not keep the images is told, and what follows is scored: here that is a result.
    Experiment(Settings.from_dict(wanted), resume=begun.is_file(), force=True).run()
    return folder


def weathers(trained: Sequence[Trained]) -> list[str]:
    """The sub-domains that these runs have scored."""
    scored = trained[0].results[0]["segmentation"].values()
    return list(dict.fromkeys(name for one in scored for name in one.get("sub_domains", {})))


def collect_shift(shift: Shift, trained: Sequence[Trained], results: PathLike) -> dict[str, list[str]]:
    """Write the cells of a shift, or of each of its sub-domains; returns the methods of every row."""
    rows: dict[str, str | None] = {shift.name: None}
    if shift.sub_domains:
        rows = {name: name for name in weathers(trained)}
    return {row: collect(Row(row, shift.ci_unit, part), trained, results) for row, part in rows.items()}


def collect(row: Row, trained: Sequence[Trained], results: PathLike) -> list[str]:
    """Write a cell for every method that all folds of a seed have scored, and the verdict; returns the methods."""
    folder, scored = Path(results) / row.shift, [[r["segmentation"] for r in one.results] for one in trained]
    methods = [name for name in scored[0][0] if any(all(name in fold for fold in folds) for folds in scored)]
    for method in methods:
        own = [one for one, folds in zip(trained, scored, strict=True) if all(method in fold for fold in folds)]
        target = folder / method / "results.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, json.dumps(cell(row, method, own), separators=(",", ":")) + "\n")
    write_json(folder / "verdict.json", verdict(trained[0].results, pooled=row.sub_domain is not None))
    return methods


def verdict(folds: Sequence[dict[str, Any]], pooled: bool = False) -> dict[str, Any]:
    """What the runs of one seed recommend, {"folds": one for each fold}; or {"not_computed": why}.

    ``pooled``: the images were of all sub-domains, so that nothing is expected of one of them.
    """
    found = [one.get("recommendation") or {"not_computed": "no network was recommended"} for one in folds]
    lacking = next((one["not_computed"] for one in found if "not_computed" in one), None)
    return {"not_computed": lacking} if lacking else {"folds": found, "pooled": pooled}


def write_table(results: PathLike) -> Path:
    """Write ``table.json`` of a folder of cells, and its page; returns the page."""
    write_json(Path(results) / "table.json", make_table(results))
    return write_page(Path(results))
