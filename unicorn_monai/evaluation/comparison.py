"""Set-ups compared from what was counted in their test images: over trainings, with each other, with both bounds.

    difference = score - score of a reference           share of the gap closed = (score - l) / (U - l)

with l the lower and U the upper bound. Everything is computed from the records (:class:`Counts`) of the trainings, all
of one test set, so intervals and differences are those of the same subjects (``bootstrap.py``).

Fog, night, rain and snow are different problems with one mean: an item's ``sub_domain`` in dataset.json says where it
belongs. The pooled mean IoU of a sub-domain is that of its own images; labels that do not occur there do not enter its
mean, and without a labelled pixel it has no score (None).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from numpy.typing import NDArray

from unicorn_monai.data.items import datalist
from unicorn_monai.evaluation import bootstrap
from unicorn_monai.evaluation.scoring import Counts, confusion_matrix, mean_ratio, overlap, ratio, statistic
from unicorn_monai.system.files import PathLike, or_none, write_json

LOWER, UPPER = "lower_bound", "upper_bound"
OURS = ("unicorn", "semantic_only")  # how the names of set-ups begin that are no opponents of the method
MEANS = ("mean_iou", "mean_iou_layers", "mean_dice")
SHOWN = ("iou", "mean_iou")  # of a sub-domain


def compare(records: Sequence[PathLike], reference: Sequence[PathLike], seed: int) -> dict[str, Any]:
    """Paired difference of the mean IoU of two set-ups, each with the records of one or several trainings."""
    return bootstrap.paired_difference(_subjects(records), _subjects(reference, records), statistic("mean_iou"), seed)


def differences(
    records: Mapping[str, Sequence[PathLike]], references: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
    """Mean IoU of every set-up minus that of each reference there is, on the same subjects, with intervals."""
    return {
        reference: {s: compare(each, records[reference], seed) for s, each in records.items() if s != reference}
        for reference in references
        if reference in records
    }


def closed_gaps(records: Mapping[str, Sequence[PathLike]], seed: int) -> dict[str, dict[str, Any]]:
    """Share of the gap between both bounds that every other set-up closes, by its mean IoU; {} without both bounds."""
    if not {LOWER, UPPER} <= records.keys():
        return {}
    lower, upper = _subjects(records[LOWER]), _subjects(records[UPPER], records[LOWER])
    return {
        setup: bootstrap.closed_gap(_subjects(each, records[LOWER]), lower, upper, statistic("mean_iou"), seed)
        for setup, each in records.items()
        if setup not in (LOWER, UPPER)
    }


def strongest(segmentation: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The opponent that every set-up is compared with: the best by the unlabelled domain's VALIDATION images.

    Their true labels serve this choice and nothing else: chosen by test images, it would be the luckiest one there.
    ``segmentation`` is that of ``results.json``. Returns "setup", "validation_mean_iou", "chosen_by"; or
    "not_computed": why.
    """
    opponents = [name for name in segmentation if name != UPPER and not name.startswith(OURS)]
    found = {name: segmentation[name].get("validation", {}).get("mean_iou") for name in opponents}
    if not found:
        return {"not_computed": "no opponent of the method was scored"}
    found = {name: score for name, score in found.items() if score is not None}
    if not found:
        return {"not_computed": "no opponent was scored on validation images of the unlabelled domain"}
    best = max(found, key=lambda name: found[name])
    by = "true labels of the unlabelled domain's validation images"
    return {"setup": best, "validation_mean_iou": found[best], "chosen_by": by}


def score_trainings(each: Sequence[dict[str, Any]], records: Sequence[PathLike], seed: int) -> dict[str, Any]:
    """Scores of a set-up that was trained several times: means over the trainings; intervals are those of the mean.

    As :func:`summarise`, from ``each`` training's, with "trainings": {"mean_iou": [of each], "std": their spread}.
    """
    pooled = {key: over_seeds(records, seed, key) for key in MEANS}
    result: dict[str, Any] = {key: mean_of([one[key] for one in each]) for key in ("iou", "dice")}
    result |= {key: or_none(pooled[key]["mean"]) for key in MEANS}
    result |= {
        "ci95": pooled["mean_iou"]["ci95"],
        "ci_unit": pooled["mean_iou"]["ci_unit"],
        "ece": mean_of([one["ece"] for one in each]),
        "nll": mean_of([one["nll"] for one in each]),
        "intervals": {key: pooled[key]["ci95"] for key in MEANS[1:]} | {"nll": None},
        "trainings": {"mean_iou": pooled["mean_iou"]["seeds"], "std": pooled["mean_iou"]["std_seeds"]},
        "per_image": _means([one["per_image"] for one in each]),
    }
    if result["nll"] is not None:
        found = bootstrap.over_seeds(_subjects(records, of="losses"), ratio, seed)
        result["intervals"]["nll"] = found["ci95"]
    for key, counted, score in (("boundary", "boundary", mean_ratio), ("broken_columns", "columns", ratio)):
        parts = [one[key] for one in each]
        result[key] = None if None in parts else _means(parts)
        if result[key] is not None:
            found = bootstrap.over_seeds(_subjects(records, of=counted), score, seed)
            result[key] |= {name: found[name] for name in ("ci95", "ci_unit")}
    return result | {key: each[0][key] for key in ("absent", "n_test", "n_subjects")}


def _means(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Entry by entry, but for intervals, which are no scores."""
    return {key: mean_of([part[key] for part in parts]) for key in parts[0] if key not in ("ci95", "ci_unit")}


def mean_of(values: Sequence[Any]) -> Any:
    """Mean of numbers, or entry by entry of lists of them; None where one is missing."""
    if isinstance(values[0], list):
        return [mean_of(column) for column in zip(*values, strict=True)]
    return None if None in values else float(np.mean(values))


def over_seeds(records: Sequence[PathLike], seed: int, key: str = "mean_iou") -> dict[str, Any]:
    """A pooled mean over the trainings of one set-up: mean, spread and interval (see ``bootstrap.over_seeds``)."""
    return bootstrap.over_seeds(_subjects(records), statistic(key), seed)


def _subjects(
    records: Sequence[PathLike], like: Sequence[PathLike] = (), of: str = "confusion"
) -> list[bootstrap.Units]:
    """Counts per unit of each record; all records must be of the images of the first of ``like`` (or of all)."""
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


# ---------------------------------------------------------------- sub-domains


def sub_domain_table(dataset_dir: PathLike | Sequence[PathLike], split: str | Sequence[str]) -> dict[str, str]:
    """Image file -> sub-domain; empty if the data set names none."""
    items = datalist(dataset_dir, split)
    table = {str(item["image"]): str(item["sub_domain"]) for item in items if item.get("sub_domain")}
    if table and len(table) < len(items):
        lacking = next(item["image"] for item in items if not item.get("sub_domain"))
        raise ValueError(
            f"{len(items) - len(table)} of {len(items)} items have no 'sub_domain' in dataset.json, first '{lacking}'. "
            "Name it for all items of the split, or for none."
        )
    return table


def by_sub_domain(each: Sequence[Counts], table: Mapping[str, str], seed: int) -> dict[str, dict[str, Any]]:
    """Scores of each sub-domain from the counts of each training, means over them, with 95 % intervals over subjects.

    ``table`` is that of :func:`sub_domain_table`. Returns sub-domain -> "iou", "mean_iou", "ci95", "ci_unit",
    "n_test", "n_subjects".
    """
    result: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(table.values()):
        size = sum(table[image] == name for image in each[0].images)
        if not size:  # none of its images has a label map
            nothing: list[None] = [None] * np.shape(each[0].confusion)[-1]
            result[name] = {
                "iou": nothing,
                "mean_iou": None,
                "ci95": None,
                "ci_unit": None,
                "n_test": 0,
                "n_subjects": 0,
            }
            continue
        subjects = [counts.only(table, name).of_subjects() for counts in each]
        found = [overlap(counted.counts.sum(axis=0)) for counted in subjects]
        pooled = bootstrap.over_seeds(subjects, statistic("mean_iou"), seed)
        result[name] = {key: mean_of([or_none(one[key]) for one in found]) for key in SHOWN}
        result[name] |= {key: pooled[key] for key in ("ci95", "ci_unit", "n_subjects")} | {"n_test": size}
    return result


def sub_domain_scores(
    records: Sequence[PathLike], dataset_dir: PathLike, split: str, seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """{"sub_domains": scores of each} from the records of a set-up's trainings; {} where the data set names none."""
    table = sub_domain_table(dataset_dir, split)
    return {"sub_domains": by_sub_domain([Counts.load(path) for path in records], table, seed)} if table else {}


class SubDomainWriter:
    """Ignite handler: write the scores of each sub-domain of ``split``, {} without, when an evaluator has finished."""

    def __init__(
        self, path: PathLike, dataset_dir: PathLike | Sequence[PathLike], split: str | Sequence[str], num_labels: int
    ) -> None:
        self.path, self.num_labels = Path(path), num_labels
        self.table = sub_domain_table(dataset_dir, split)
        self.confusion: dict[str, NDArray] = {}

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator that does not decollate."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _count(self, engine: Engine) -> None:
        prediction = engine.state.output["pred"].argmax(dim=1)  # type: ignore[index, call-overload]
        labels = engine.state.output["label"]  # type: ignore[index, call-overload]
        for path, predicted, label in zip(engine.state.batch["image_path"], prediction, labels, strict=True):  # type: ignore[index]
            if name := self.table.get(path):
                found = confusion_matrix(predicted.cpu(), label.cpu(), self.num_labels).numpy()
                self.confusion[name] = self.confusion.get(name, 0) + found

    def _write(self, engine: Engine) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        found = {name: overlap(confusion) for name, confusion in self.confusion.items()}
        write_json(self.path, {name: {key: or_none(part[key]) for key in SHOWN} for name, part in found.items()})
