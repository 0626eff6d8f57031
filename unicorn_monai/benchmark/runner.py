"""Every method on every shift: an ordinary run folder for each shift, fold and generator seed, gone on with at any time.

RUNS/SHIFT[/FOLD][/seedN]/                an experiment; methods that are asked for later are added to it
RESULTS/SHIFT/METHOD/results.json         a cell; RESULTS/SHIFT/verdict.json   what was recommended without labels
RESULTS/table.json                        the table of tables, from these alone
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from unicorn_monai.benchmark.cells import Trained, cell
from unicorn_monai.benchmark.table import make_table
from unicorn_monai.experiment.experiment import Experiment
from unicorn_monai.experiment.settings import Settings
from unicorn_monai.fusion import MODES
from unicorn_monai.report.trainings import BASELINES, SEMANTIC_ONLY
from unicorn_monai.system.files import PathLike, read_json, write_json, write_text

logger = logging.getLogger("unicorn_monai")

ALWAYS = ("lower_bound", "upper_bound")
OURS = {"unicorn": "compositional", "unicorn_paper": "paper"}  # method -> mode
METHODS = (*BASELINES, SEMANTIC_ONLY, *OURS)


def asked(methods: Iterable[str]) -> dict[str, Any]:
    """The settings of an experiment that make these methods: {"baselines", "modes"}.

    Raises:
        ValueError: there is no such method.
    """
    wanted = [name for name in methods if name not in ALWAYS]
    if unknown := sorted(set(wanted) - set(METHODS)):
        raise ValueError(f"Unknown method(s) {unknown}; expected some of {[*ALWAYS, *METHODS]}.")
    modes = [mode for name, mode in OURS.items() if name in wanted]
    if SEMANTIC_ONLY in wanted and "paper" not in modes:
        modes.append("paper")
    return {
        "baselines": [name for name in (*BASELINES, SEMANTIC_ONLY) if name in wanted],
        "modes": [mode for mode in MODES if mode in modes],
    }


def run_methods(settings: dict[str, Any]) -> Path:
    """Run an experiment, or go on with it with these baselines and modes besides those it has; returns its folder."""
    folder = Path(settings["output"])
    begun = folder / "experiment.json"
    if begun.is_file():
        before = read_json(begun)["settings"]
        for key, order in (("baselines", (*BASELINES, SEMANTIC_ONLY)), ("modes", MODES)):
            wanted = {*before[key], *settings[key]}
            settings = settings | {key: [name for name in order if name in wanted]}
    Experiment(Settings.from_dict(settings), resume=begun.is_file()).run()
    return folder


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
    write_json(folder / "verdict.json", {"why": why} if why else {"folds": [one for one in found if one]})
    return methods


def write_table(results: PathLike) -> Path:
    """Write ``table.json`` of a folder of cells; returns it."""
    target = Path(results) / "table.json"
    write_json(target, make_table(results))
    return target
