"""One method on one shift: a cell of the benchmark, made of what its run folders counted, small enough to be committed.

    IoU_k = hit_k / (true_k + seen_k - hit_k),      counts[training][unit] = [hit, true, seen], each over the labels k

Units are what intervals resample (``ci_unit``). Folds of a leave-one-out are put together subject by subject before
anything is computed; trainings are those of every generator seed. What compares methods, ``table.py``, needs no more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unicorn_monai.evaluation import bootstrap
from unicorn_monai.evaluation.bootstrap import Units
from unicorn_monai.evaluation.comparison import mean_of, sub_domain_table
from unicorn_monai.evaluation.scoring import Counts, marginals, mean_iou
from unicorn_monai.experiment.run import nth
from unicorn_monai.report.trainings import PSEUDO_LABELS
from unicorn_monai.report.trimming import without_places
from unicorn_monai.system.files import read_json

Array = NDArray[np.floating]
HOME = ("mean_iou", "ece", "nll")  # scores on the labelled device
Results = dict[str, Any]  # what a run has found


@dataclass(frozen=True)
class Row:
    """A shift of the table."""

    shift: str  # its name
    unit: str = bootstrap.SUBJECTS  # what its subjects are called
    sub_domain: str | None = None  # of the runs' images, where the row is of one


@dataclass(frozen=True)
class Trained:
    """The run folders of one generator seed of a shift: one, or one for each fold."""

    seed: int
    folds: tuple[Path, ...]

    @cached_property
    def results(self) -> list[Results]:
        """What each run has found."""
        return [read_json(run / "results.json") for run in self.folds]


def units_of(content: Mapping[str, Any]) -> list[Units]:
    """What a cell counted in each training, as ``bootstrap`` takes it."""
    own = content["ci_unit"], content["subjects"]
    return [Units(np.asarray(counts, dtype=np.float64), *own) for counts in content["counts"]]


def counted(run: Path, method: str, training: int, sub_domain: str | None = None) -> Counts:
    """What a training's network counted in the test images, those of a sub-domain if one is named."""
    counts = Counts.load(run / "evaluation" / f"{nth(method, training)}.json")
    if sub_domain is None:
        return counts
    return counts.only(_sub_domains(read_json(run / "experiment.json")["settings"]["unlabeled"]), sub_domain)


@cache
def _sub_domains(data: str) -> dict[str, str]:
    """Test image -> sub-domain, read once for all methods and trainings."""
    return sub_domain_table(data, "test")


def together(folds: Sequence[Counts]) -> tuple[Units, list[int]]:
    """Units of one training, and how many of them each fold has.

    Of a shift without folds they are as everywhere; of several folds they are the subjects of each.
    """
    if len(folds) == 1:
        units = folds[0].of_subjects()
        return Units(marginals(units.counts), units.unit, units.subjects), [len(units.counts)]
    parts = []
    for counts in folds:
        confusion, names = np.asarray(counts.confusion, dtype=np.float64), np.asarray(counts.subjects)
        parts.append([marginals(confusion[names == name].sum(axis=0)) for name in dict.fromkeys(counts.subjects)])
    every = np.stack([counts for part in parts for counts in part])
    return Units(every, bootstrap.SUBJECTS, len(every)), [len(part) for part in parts]


def cell(row: Row, method: str, trained: Sequence[Trained]) -> dict[str, Any]:
    """What a method is worth on a shift; see the file's header.

    Raises:
        ValueError: a run has not scored the method.
    """
    runs = [(run, found) for one in trained for run, found in zip(one.folds, one.results, strict=True)]
    if lacking := [str(run) for run, found in runs if method not in found.get("segmentation", {})]:
        raise ValueError(f"'{method}' has no scores in {lacking}; run it there first.")
    units, trainings, sizes = list[Units](), list[dict[str, Any]](), list[int]()
    for one in trained:
        for i in range(int(read_json(one.folds[0] / "experiment.json")["settings"].get("trainings", 1))):
            whole, sizes = together([counted(run, method, i, row.sub_domain) for run in one.folds])
            units.append(whole)
            trainings.append({"seed": one.seed, "training": i, "mean_iou": float(mean_iou(whole.counts.sum(axis=0)))})
    pooled = bootstrap.over_seeds(units, mean_iou, 0)
    return {
        "shift": row.shift,
        "method": method,
        "mean_iou": pooled["mean"],
        "ci95": pooled["ci95"],
        "ci_unit": row.unit if pooled["ci_unit"] == bootstrap.SUBJECTS else pooled["ci_unit"],
        "subjects": pooled["n_subjects"],
        "std_trainings": pooled["std_seeds"],
        "trainings": trainings,
        **_means([found["segmentation"][method] for _, found in runs], of_all=row.sub_domain is not None),
        "labels": runs[0][1]["labels"],
        **_how(method, runs),
        "fold_units": sizes,
        "counts": [each.counts.astype(int).tolist() for each in units],
    }


def _means(scores: Sequence[dict[str, Any]], of_all: bool) -> dict[str, Any]:
    """Means over the runs of what each has computed from its own images.

    ``of_all``: these are of all sub-domains together. What they say of one is nothing, but for the validation images,
    by which opponents are ranked.
    """
    home, checked = ([one.get(key) or {} for one in scores] for key in ("labelled_device", "validation"))
    return {
        "validation_mean_iou": mean_of([one.get("mean_iou") for one in checked]),
        **{f"{key}_labelled_device": mean_of([one.get(key) for one in home]) for key in HOME},
        **{key: None if of_all else mean_of([one.get(key) for one in scores]) for key in ("ece", "nll")},
        "boundary_um": mean_of([(one.get("boundary") or {}).get("all_mean_um") for one in scores]),
    }


def _how(method: str, runs: Sequence[tuple[Path, Results]]) -> dict[str, Any]:
    """How to do it again, on what, in which time: the minutes of the stages that make it, over all runs."""
    base, name = re.escape(method.split("+")[0]), re.escape(method)
    made = rf"{base}_(training|translation|images|synthesis|uncertainty_controlnet|semantic_controlnet)"
    taught = "|teacher(_guesses)?" if method == PSEUDO_LABELS else ""
    own = re.compile(rf"{name}(_before)?(_training\d+)?|{made}{taught}")
    seconds = [s for _, found in runs for stage, s in found["seconds"].items() if own.fullmatch(stage)]
    run, found = runs[0]
    record, marker = read_json(run / "experiment.json"), run / "stages" / f"{method}.json"
    stage, machine = read_json(marker) if marker.is_file() else {}, found.get("environment", {})
    return {
        "minutes": round(sum(seconds) / 60, 2),
        "commit": stage.get("git_revision") or record.get("git_revision"),  # that trained it, or began the run
        "command": without_places(record.get("command") or ""),
        "forced": found.get("forced"),
        "machine": machine.get("machine"),
        "cpus": machine.get("cpus"),
    }
