"""One method on one shift: a cell of the benchmark, made of what its run folders counted, small enough to be committed.

    IoU_k = hit_k / (true_k + seen_k - hit_k),      counts[training][unit] = [hit, true, seen], each over the labels k

Units are what intervals resample (``ci_unit``). Folds of a leave-one-out are put together unit by unit before anything
is computed; trainings are those of every generator seed. What compares methods, ``table.py``, needs nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unicorn_monai.evaluation import bootstrap
from unicorn_monai.evaluation.comparison import mean_of, sub_domain_table
from unicorn_monai.evaluation.scoring import Counts
from unicorn_monai.experiment.run import nth
from unicorn_monai.system.files import or_none, read_json

Array = NDArray[np.floating]
LABELLED = ("mean_iou", "ece", "nll")  # of the labelled device


@dataclass(frozen=True)
class Trained:
    """The run folders of one generator seed of a shift: one, or one for each fold."""

    seed: int
    folds: tuple[Path, ...]

    def results(self) -> list[dict[str, Any]]:
        """What each run has found."""
        return [read_json(run / "results.json") for run in self.folds]


def mean_iou(counts: Array) -> Array:
    """Mean over the labels that occur of [hit, true, seen], (..., 3, labels) -> (...); NaN without any."""
    hit, true, seen = np.moveaxis(counts, -2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = hit / (true + seen - hit)
        return np.nansum(iou, axis=-1) / np.isfinite(iou).sum(axis=-1)


def marginals(confusion: Array) -> Array:
    """(..., true, seen) -> (..., 3, labels): pixels hit, true and seen of each label."""
    hit = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.stack([hit, confusion.sum(axis=-1), confusion.sum(axis=-2)], axis=-2)


def counted(run: Path, method: str, training: int, sub_domain: str | None, fold: bool) -> tuple[Array, str]:
    """What a training's network hit in the test images, (units, 3, labels), and what a unit is.

    A fold has few subjects, or one, but all folds have many: its units are its subjects.
    """
    counts = Counts.load(run / "evaluation" / f"{nth(method, training)}.json")
    if sub_domain is not None:
        data = read_json(run / "experiment.json")["settings"]["unlabeled"]
        counts = counts.only(sub_domain_table(data, "test"), sub_domain)
    if fold:
        confusion = np.asarray(counts.confusion, dtype=np.float64)
        return marginals(bootstrap.by_subject(confusion, counts.subjects)), "subjects"
    return marginals(counts.of_subjects()), counts.ci_unit


def cell(shift: str, method: str, trained: Sequence[Trained], sub_domain: str | None = None) -> dict[str, Any]:
    """What a method is worth on a shift; see the file's header.

    Raises:
        ValueError: a run has not scored the method.
    """
    found = [(one, one.results()) for one in trained]
    lacking = [
        str(run) for one, each in found for run, r in zip(one.folds, each, strict=True) if not _scored(r, method)
    ]
    if lacking:
        raise ValueError(f"'{method}' has no scores in {lacking}; run it there first.")
    parts, trainings, units, sizes = list[Array](), list[dict[str, Any]](), set[str](), list[int]()
    for one, results in found:
        settings = read_json(one.folds[0] / "experiment.json")["settings"]
        for i in range(int(settings.get("trainings", 1))):
            whole = [counted(run, method, i, sub_domain, fold=len(one.folds) > 1) for run in one.folds]
            sizes = [len(counts) for counts, _ in whole]
            parts.append(np.concatenate([counts for counts, _ in whole]))
            units |= {unit for _, unit in whole}
            trainings.append({"seed": one.seed, "training": i, "mean_iou": float(mean_iou(parts[-1].sum(axis=0)))})
    pooled = bootstrap.over_seeds(parts, mean_iou, 0)
    every = [results for _, each in found for results in each]
    scores = [results["segmentation"][method] for results in every]
    return {
        "shift": shift,
        "method": method,
        "mean_iou": pooled["mean"],
        "ci95": pooled["ci95"],
        "ci_unit": " and ".join(sorted(units)),
        "std_trainings": pooled["std_seeds"],
        "trainings": trainings,
        "validation_mean_iou": mean_of([one.get("validation", {}).get("mean_iou") for one in scores]),
        **{
            f"{key}_labelled_device": mean_of([one.get("labelled_device", {}).get(key) for one in scores])
            for key in LABELLED
        },
        **{key: mean_of([one.get(key) for one in scores]) for key in ("ece", "nll")},
        "boundary_um": mean_of([(one.get("boundary") or {}).get("all_mean_um") for one in scores]),
        "labels": every[0]["labels"],
        **_how(method, found),
        "fold_units": sizes,
        "counts": np.stack(parts).astype(int).tolist(),
    }


def _scored(results: dict[str, Any], method: str) -> bool:
    return method in results.get("segmentation", {})


def _how(method: str, found: Sequence[tuple[Trained, list[dict[str, Any]]]]) -> dict[str, Any]:
    """How to do it again, on what, in which time: the minutes of the method's own stages, over all runs."""
    own = re.compile(rf"{re.escape(method)}(_before)?(_training\d*|_translation|_synthesis|_\w+_controlnet)?")
    every = [results for _, each in found for results in each]
    seconds = [s for results in every for stage, s in results["seconds"].items() if own.fullmatch(stage)]
    begun = [read_json(run / "experiment.json") for one, _ in found for run in one.folds]
    last = [(record.get("resumed") or [record])[-1] for record in begun]
    return {
        "minutes": round(sum(seconds) / 60, 2),
        "commit": last[0].get("git_revision"),
        "command": last[0].get("command"),
        "machine": or_none(every[0].get("environment", {}).get("machine")),
        "cpus": every[0].get("environment", {}).get("cpus"),
    }
