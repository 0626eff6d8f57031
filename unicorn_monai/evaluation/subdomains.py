"""Scores of each sub-domain of a test set: fog, night, rain and snow are different problems with one mean.

An item's ``sub_domain`` in dataset.json says where it belongs. The pooled mean IoU of a sub-domain is that of its own
images; labels that do not occur there do not enter its mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray

from unicorn_monai.datasets import PathLike, datalist, write_json
from unicorn_monai.evaluation import bootstrap, segmentation
from unicorn_monai.evaluation.segmentation import Counts, confusion_matrix, or_none, scores, statistic

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


def by_sub_domain(counts: Counts, table: Mapping[str, str], seed: int) -> dict[str, dict[str, Any]]:
    """Scores of each sub-domain from what was counted, with 95 % intervals over subjects.

    Args:
        counts: of a test set.
        table: image file -> sub-domain, of all its images.
        seed: of the resampling.

    Returns:
        sub-domain -> "iou", "mean_iou", "ci95", "n_test", "n_subjects"; empty without sub-domains.
    """
    confusion = np.asarray(counts.confusion, dtype=np.float64)
    names = np.array([table.get(image, "") for image in counts.images])
    result = {}
    for name in dict.fromkeys(table.values()):
        here = names == name
        whose = [s for s, inside in zip(counts.subjects, here, strict=True) if inside]
        subjects = bootstrap.by_subject(confusion[here], whose)
        found = scores(subjects.sum(axis=0))
        result[name] = {key: or_none(found[key]) for key in SHOWN} | {
            "ci95": bootstrap.confidence(subjects, statistic("mean_iou"), seed),
            "n_test": int(here.sum()),
            "n_subjects": len(subjects),
        }
    return result


def score_images(
    bundle_root: PathLike,
    weights: PathLike,
    dataset_dir: PathLike,
    split: str,
    seed: int,
    device: torch.device,
    record: PathLike,
) -> dict[str, Any]:
    """As ``segmentation.score_images``, and "sub_domains" with the same for each of them, if the data set has any."""
    table = sub_domain_table(dataset_dir, split)
    found = segmentation.score_images(bundle_root, weights, dataset_dir, split, seed, device, record)
    return found | ({"sub_domains": by_sub_domain(Counts.load(record), table, seed)} if table else {})


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
        found = {name: scores(confusion) for name, confusion in self.confusion.items()}
        write_json(self.path, {name: {key: or_none(part[key]) for key in SHOWN} for name, part in found.items()})
