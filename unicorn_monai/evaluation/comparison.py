"""Set-ups compared from what was counted in their test images: over trainings, with each other, with both bounds.

    difference = score - score of a reference           share of the gap closed = (score - l) / (U - l)

with l the lower and U the upper bound. Everything is computed from the records (:class:`Counts`) of the trainings, all
of one test set, so intervals and differences are those of the same subjects (``bootstrap.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unicorn_monai.evaluation import bootstrap
from unicorn_monai.evaluation.scoring import Counts, mean_ratio, ratio, statistic
from unicorn_monai.system.files import PathLike, or_none

LOWER, UPPER = "lower_bound", "upper_bound"
MEANS = ("mean_iou", "mean_iou_layers", "mean_dice")


def compare(
    records: Sequence[PathLike], reference: Sequence[PathLike], seed: int, key: str = "mean_iou"
) -> dict[str, Any]:
    """Paired difference of a pooled mean between two set-ups, each with the records of one or several trainings."""
    return bootstrap.paired_difference(_subjects(records), _subjects(reference, records), statistic(key), seed)


def differences(
    records: Mapping[str, Sequence[PathLike]], references: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
    """Mean IoU of every set-up minus that of each reference there is, on the same subjects, with intervals."""
    return {
        reference: {s: compare(each, records[reference], seed) for s, each in records.items() if s != reference}
        for reference in references
        if reference in records
    }


def closed_gaps(
    records: Mapping[str, Sequence[PathLike]], seed: int, key: str = "mean_iou"
) -> dict[str, dict[str, Any]]:
    """Share of the gap between both bounds that each set-up closes (see ``bootstrap.closed_gap``).

    Args:
        records: set-up -> the records of its trainings.
        seed: of the resampling.
        key: the pooled mean.

    Returns:
        set-up -> "share", "ci95", "n_subjects", of every set-up but the bounds; empty without one of the bounds.
    """
    if not {LOWER, UPPER} <= records.keys():
        return {}
    lower, upper = _subjects(records[LOWER]), _subjects(records[UPPER], records[LOWER])
    return {
        setup: bootstrap.closed_gap(_subjects(each, records[LOWER]), lower, upper, statistic(key), seed)
        for setup, each in records.items()
        if setup not in (LOWER, UPPER)
    }


def score_trainings(each: Sequence[dict[str, Any]], records: Sequence[PathLike], seed: int) -> dict[str, Any]:
    """Scores of a set-up that was trained several times: means over the trainings; intervals are those of the mean.

    Args:
        each: of every training, from :func:`score_images`.
        records: their counts.
        seed: of the resampling.

    Returns:
        As ``evaluation.scoring.summarise``, with "trainings": {"mean_iou": [of each], "std": their spread}.
    """
    pooled = {key: over_seeds(records, seed, key) for key in MEANS}
    result: dict[str, Any] = {key: mean_of([one[key] for one in each]) for key in ("iou", "dice")}
    result |= {key: or_none(pooled[key]["mean"]) for key in MEANS}
    result |= {
        "ci95": pooled["mean_iou"]["ci95"],
        "intervals": {key: pooled[key]["ci95"] for key in MEANS[1:]},
        "trainings": {"mean_iou": pooled["mean_iou"]["seeds"], "std": pooled["mean_iou"]["std_seeds"]},
        "per_image": _means([one["per_image"] for one in each]),
    }
    for key, counted, score in (("boundary", "boundary", mean_ratio), ("broken_columns", "columns", ratio)):
        parts = [one[key] for one in each]
        result[key] = None if None in parts else _means(parts)
        if result[key] is not None:
            result[key]["ci95"] = bootstrap.over_seeds(_subjects(records, of=counted), score, seed)["ci95"]
    return result | {key: each[0][key] for key in ("absent", "n_test", "n_subjects")}


def _means(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Entry by entry, but for intervals, which are no scores."""
    return {key: mean_of([part[key] for part in parts]) for key in parts[0] if key != "ci95"}


def mean_of(values: Sequence[Any]) -> Any:
    """Mean of numbers, or entry by entry of lists of them; None where one is missing."""
    if isinstance(values[0], list):
        return [mean_of(column) for column in zip(*values, strict=True)]
    return None if None in values else float(np.mean(values))


def over_seeds(records: Sequence[PathLike], seed: int, key: str = "mean_iou") -> dict[str, Any]:
    """A pooled mean over several trainings of one set-up: mean, spread and interval (see ``bootstrap.over_seeds``)."""
    return bootstrap.over_seeds(_subjects(records), statistic(key), seed)


def _subjects(
    records: Sequence[PathLike], like: Sequence[PathLike] = (), of: str = "confusion"
) -> list[bootstrap.Array]:
    """Counts per subject of each record; all records must be of the images of the first of ``like`` (or of all)."""
    paths = [*(like or records)[:1], *records]
    if not records:
        raise ValueError("No record to compare; expected at least one for each set-up. Score the networks first.")
    first, *loaded = [Counts.load(path) for path in paths]
    images = set(zip(first.images, first.subjects, strict=True))
    for path, counts in zip(records, loaded, strict=True):
        if set(zip(counts.images, counts.subjects, strict=True)) != images:
            raise ValueError(
                f"'{path}' was scored on other images than '{paths[0]}'; a comparison needs one test set. Score both "
                "set-ups on it."
            )
    return [counts.of_subjects(of) for counts in loaded]
