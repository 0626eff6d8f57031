"""Scores of each sub-domain of a test set: fog, night, rain and snow are different problems with one mean.

An item's ``sub_domain`` in dataset.json says where it belongs. The pooled mean IoU of a sub-domain is that of its own
images; labels that do not occur there do not enter its mean, and without a labelled pixel it has no score (None).
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
from unicorn_monai.evaluation.comparison import mean_of
from unicorn_monai.evaluation.scoring import Counts, confusion_matrix, overlap, statistic
from unicorn_monai.system.files import PathLike, or_none, write_json

SHOWN = ("iou", "mean_iou")


def sub_domain_table(dataset_dir: PathLike | Sequence[PathLike], split: str | Sequence[str]) -> dict[str, str]:
    """Image file -> sub-domain; empty if the data set names none.

    Raises:
        ValueError: some items have one and others do not.
    """
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
    """Scores of each sub-domain from what was counted, means over the trainings, with 95 % intervals over subjects.

    Args:
        each: counts of a test set, one for each training.
        table: image file -> sub-domain, of all its images.
        seed: of the resampling.

    Returns:
        sub-domain -> "iou", "mean_iou", "ci95", "n_test", "n_subjects"; empty without sub-domains.
    """
    result: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(table.values()):
        if not any(table[image] == name for image in each[0].images):  # none of its images has a label map
            nothing: list[None] = [None] * np.shape(each[0].confusion)[-1]
            result[name] = {"iou": nothing, "mean_iou": None, "ci95": None, "n_test": 0, "n_subjects": 0}
            continue
        subjects = [_subjects(counts, table, name) for counts in each]
        found = [overlap(counted.sum(axis=0)) for counted in subjects]
        if len(subjects) == 1:
            interval = bootstrap.confidence(subjects[0], statistic("mean_iou"), seed)
        else:
            interval = bootstrap.over_seeds(subjects, statistic("mean_iou"), seed)["ci95"]
        result[name] = {key: mean_of([or_none(one[key]) for one in found]) for key in SHOWN} | {
            "ci95": interval,
            "n_test": sum(table[image] == name for image in each[0].images),
            "n_subjects": len(subjects[0]),
        }
    return result


def _subjects(counts: Counts, table: Mapping[str, str], name: str) -> NDArray:
    here = np.array([table[image] == name for image in counts.images])
    whose = [subject for subject, inside in zip(counts.subjects, here, strict=True) if inside]
    return bootstrap.by_subject(np.asarray(counts.confusion, dtype=np.float64)[here], whose)


def sub_domain_scores(
    records: Sequence[PathLike], dataset_dir: PathLike, split: str, seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """{"sub_domains": scores of each} from the records of a set-up's trainings; {} where the data set names none."""
    table = sub_domain_table(dataset_dir, split)
    return {"sub_domains": by_sub_domain([Counts.load(path) for path in records], table, seed)} if table else {}


class SubDomainWriter:
    """Ignite handler: write the scores of each sub-domain when an evaluator has finished.

    Args:
        path: the JSON file; {} without sub-domains.
        dataset_dir: the data set evaluated.
        split: its split.
        num_labels: number of labels.
    """

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
