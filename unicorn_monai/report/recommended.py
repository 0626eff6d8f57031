"""The network that a run recommends without a label of the unlabelled images: where it lies, why it, what that cost.

    regret = mean IoU of the best candidate - mean IoU of the one chosen         where there are labels to tell

How it was chosen: ``evaluation/recommendation.py``; its entry in ``results.json``: ``results.Recommendation``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from unicorn_monai.report.results import LOWER, Results
from unicorn_monai.report.trainings import BATCH_NORM

REASONS = {  # of a criterion: what the chosen network does better than all others
    "agreement": "its label maps agree best with what all networks say together",
    "belief": "its label maps fit best with how sure all networks together are of each label",
    "consistency": "it says most nearly the same of an image and of its mirror image with other grey values",
    "confidence": "it is the surest of its label maps, on a scale that was set on labelled images",
    "calibrated": "it is the surest, by what being sure was worth on disturbed labelled images",
    "information": "it is sure of its labels, and not always of the same ones",
    "density": "the pixels of its images fall into the clearest groups",
    "jury": "networks that are heard as much as they are expected to be worth prefer its label maps to all others",
    "reverse": "a small model that learns from its label maps does best on labelled images",
    "synthetic": "it does best on synthetic images that no network was trained on",
}


def bundle_of(run: Path, setup: str) -> Path:
    """The bundle of a run that defines the segmentation network of a set-up."""
    return run / (f"bundles_{BATCH_NORM}" if setup.startswith(BATCH_NORM) else "bundles") / "retinal_unet"


def networks_of(run: Path) -> dict[str, Path]:
    """Weights of every segmentation network of a run, by set-up."""
    found = {LOWER: run / "bundles" / "retinal_unet" / "models" / "model.pt"}
    found |= {folder.name: folder / "model.pt" for folder in sorted((run / "segmentation").glob("*"))}
    return {setup: path for setup, path in found.items() if path.is_file()}


def reason_of(criterion: str | None) -> str:
    """Why a criterion puts a network first, in words."""
    return REASONS.get(criterion or "", f"it is the first by the criterion \u201c{criterion}\u201d")


def best_of(values: Mapping[str, float | None], among: Collection[str]) -> str | None:
    """The set-up, of some, that a criterion puts first; None where it says nothing of them."""
    known = {setup: value for setup, value in values.items() if setup in among and value is not None}
    return max(known, key=known.__getitem__) if known else None


class Choice(NamedTuple):
    """What a criterion would have chosen, and what the labels say of it."""

    criterion: str
    setup: str
    score: float
    regret: float


def choices(results: Results) -> list[Choice]:
    """Of every criterion, that of the recommendation first; none without true scores of the candidates."""
    part, truth = results.recommendation, results.scores
    known = [setup for setup in part.candidates if setup in truth]
    found = []
    for criterion, scores in sorted(part.scores.items(), key=lambda entry: entry[0] != part.criterion):
        if chosen := best_of(scores, known):
            if criterion == part.criterion and part.setup in known and scores.get(part.setup) is not None:
                chosen = part.setup
            best = max(truth[setup] for setup in known)
            found.append(Choice(criterion, chosen, truth[chosen], best - truth[chosen]))
    return found
