"""The table of tables: every method on every shift, from the committed cells alone.

strongest       the opponent of the best mean IoU on the unlabelled domain's VALIDATION images, by their true labels
difference      a method's mean IoU minus the strongest one's, on the same resampled units
regret          the best candidate's mean IoU minus that of the one chosen without labels
error           of the estimated mean IoU of the chosen one
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unicorn_monai.benchmark.cells import Array, mean_iou, units_of
from unicorn_monai.benchmark.shifts import read_shifts
from unicorn_monai.data.layout import WEATHER
from unicorn_monai.evaluation import bootstrap, comparison
from unicorn_monai.report.recommended import best_of
from unicorn_monai.system.files import PathLike, read_json

PLUS, GUARD = "unicorn_plus", "augmentation"
SHOWN = (
    *("mean_iou", "ci95", "ci_unit", "std_trainings", "mean_iou_labelled_device", "ece", "nll", "boundary_um"),
    *("validation_mean_iou", "minutes", "commit"),
)
Cells = Mapping[str, dict[str, Any]]  # method -> cell


def read_cells(results: PathLike) -> dict[str, dict[str, dict[str, Any]]]:
    """Shift -> method -> cell, of ``results/SHIFT/METHOD/results.json``."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(Path(results).glob("*/*/results.json")):
        content = read_json(path)
        found.setdefault(content["shift"], {})[content["method"]] = content
    return found


def make_table(results: PathLike) -> dict[str, Any]:
    """``table.json`` of a folder of cells, and of what was recommended without labels, ``SHIFT/verdict.json``."""
    shifts, found = {}, read_cells(results)
    if not found:
        raise ValueError(f"'{results}' holds no SHIFT/METHOD/results.json; run `unicorn-monai benchmark` first.")
    for shift, cells in found.items():
        verdict = Path(results) / shift / "verdict.json"
        shifts[shift] = row(cells, read_json(verdict) if verdict.is_file() else {})
    known = [shift.name for shift in read_shifts().chosen() if not shift.sub_domains]
    return {"shifts": shifts, "not_run": [name for name in (*known, *WEATHER) if name not in shifts]}


def row(cells: Cells, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """One shift: the methods, the strongest opponent, everything's difference to it, and the recommendation."""
    known = {name: {"validation": {"mean_iou": one["validation_mean_iou"]}} for name, one in cells.items()}
    strongest = comparison.strongest(known).get("setup")
    differences: dict[str, dict[str, Any]] = {}
    if strongest is not None:
        others = {name: one for name, one in cells.items() if name != strongest}
        differences = {name: difference(one, cells[strongest]) for name, one in others.items()}
    plus = differences.get(f"{PLUS}+real") or differences.get(PLUS)
    return {
        "methods": {name: shown(one) for name, one in cells.items()},
        "strongest": strongest,
        "differences": differences,
        "unicorn_plus_minus_strongest": plus or {"mean": None, "ci95": None, "why": f"no '{PLUS}' yet"},
        "recommendation": recommendation(cells, verdict),
    }


def shown(one: Mapping[str, Any]) -> dict[str, Any]:
    """What the table tells of a cell."""
    return {key: one[key] for key in SHOWN} | {"trainings": len(one["trainings"])}


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Mean IoU of a cell minus that of another, paired: {"mean", "ci95"}."""
    found = bootstrap.paired_difference(units_of(one), units_of(other), mean_iou, 0)
    return {"mean": found["difference"], "ci95": found["ci95"]}


def recommendation(cells: Cells, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """What was chosen without labels, what better choice there was, and how wrong its estimate is."""
    folds = verdict.get("folds", [])
    chosen = [fold["setup"] for fold in folds if fold.get("setup") in cells]
    if not chosen or len(chosen) < len(folds):
        return {"method": None, "not_computed": verdict.get("not_computed", "no verdict yet")}
    scores = true_scores(cells, folds[0]["candidates"])
    best, value = max(scores.values()), _of_choice(cells, chosen)
    estimate = float(np.mean([fold["estimate"] for fold in folds]))
    return {
        "method": max(chosen, key=chosen.count),
        "chosen": chosen,
        "mean_iou": value,
        "regret": best - value,
        "best": max(scores, key=lambda name: scores[name]),
        "minus_augmentation": value - scores[GUARD] if GUARD in scores else None,
        "estimate": None if verdict.get("pooled") else estimate,
        "errors": {} if verdict.get("pooled") else errors(folds, value),
        "criterion": folds[0]["criterion"],
        "candidates": len(scores),
        "regrets": {kind: best - _of_choice(cells, each) for kind, each in choices(folds, scores).items()},
    }


def true_scores(cells: Cells, candidates: list[str]) -> dict[str, float]:
    """The mean IoU of the candidates."""
    return {name: cells[name]["mean_iou"] for name in candidates if name in cells}


def choices(folds: list[dict[str, Any]], scores: Mapping[str, float]) -> dict[str, list[str]]:
    """What each criterion would have chosen in each fold."""
    found: dict[str, list[str]] = {}
    for fold in folds:
        for kind, values in fold["scores"].items():
            if first := best_of(values, scores):
                found.setdefault(kind, []).append(first)
    return {kind: each for kind, each in found.items() if len(each) == len(folds)}


def errors(folds: list[dict[str, Any]], value: float) -> dict[str, float]:
    """What each estimator expected of the one chosen, the mean over the folds, minus what it has."""
    known = [kind for kind in folds[0]["estimators"] if all(kind in fold["estimators"] for fold in folds)]
    expected = {kind: [fold["estimators"][kind] for fold in folds] for kind in known}
    return {kind: float(np.mean(values)) - value for kind, values in expected.items()}


def _of_choice(cells: Cells, chosen: list[str]) -> float:
    """Mean IoU of one choice for all units, or of each fold's choice for that fold's units."""
    if len(set(chosen)) == 1:
        return float(cells[chosen[0]]["mean_iou"])
    parts, start = list[Array](), 0
    for name, size in zip(chosen, cells[chosen[0]]["fold_units"], strict=True):
        parts.append(np.asarray(cells[name]["counts"], dtype=np.float64)[:, start : start + size])
        start += size
    trainings = min(len(part) for part in parts)
    together = np.concatenate([part[:trainings] for part in parts], axis=1)
    return float(np.mean([mean_iou(training.sum(axis=0)) for training in together]))
