"""How sure is a score? Percentile bootstrap over SUBJECTS: of one set-up, a difference, a closed gap, over seeds.

B-scans of one eye are not independent, so whole subjects are drawn, with replacement:

    M* = sum_s w_s M_s,      w ~ multinomial(S, 1/S),      score* = score(M*)

with M_s what was counted in the images of subject s. The interval is from the 2.5th to the 97.5th percentile of
score*. Differences, and shares of a gap, are paired: all set-ups are scored on the same draw. With several trainings
(seeds) of a set-up the score is the mean over them on each draw, and the spread over the seeds is given beside it.

With one subject or two there is nothing to draw from. Then blocks of images are drawn instead, up to ten of each
subject, of consecutive images, since neighbours resemble each other; and of each draw the trainings are drawn too, all
set-ups' with one generator, since a pupil and its teacher share a seed. ``ci_unit`` says which of both an interval is
over: one over blocks says nothing about other subjects.

What was counted in a set-up is one :class:`Units` for each of its trainings; units are the same, in the same order,
everywhere. An interval is None where there is one image, one training and so nothing to draw.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Statistic = Callable[[Array], Array]  # what was counted, (..., *shape) -> score, (...)
SUBJECTS, BLOCKS = "subjects", "image blocks"  # that are drawn
FEWEST_SUBJECTS = 3  # to be drawn
MOST_BLOCKS = 10  # of a subject


@dataclass(frozen=True)
class Units:
    """What was counted in the images of a test set by one training, summed over each unit that is drawn."""

    counts: Array  # (units, *shape)
    unit: str  # SUBJECTS or BLOCKS
    subjects: int  # number of them


def resample(units: int, seed: int, resamples: int = 2000) -> NDArray[np.int64]:
    """How often each unit is drawn in each resample: (resamples, units), rows sum to ``units``."""
    draws = np.random.default_rng(seed).integers(0, units, (resamples, units))
    offset = np.arange(resamples)[:, None] * units
    return np.bincount((draws + offset).ravel(), minlength=resamples * units).reshape(resamples, units)


def by_subject(counts: Array, subjects: Sequence[str], images: Sequence[str]) -> Units:
    """Sum what was counted per image, (images, *shape), over each subject's images, or over blocks of them.

    Subjects are sorted; the images of a block follow each other by name ("9.png" before "10.png"), in which data sets
    keep the order of the scans.
    """
    names, at = np.unique(np.asarray(subjects), return_inverse=True)
    unit = SUBJECTS if len(names) >= FEWEST_SUBJECTS else BLOCKS
    if unit == BLOCKS:
        at = _blocks(at, images)
    total = np.zeros((at.max() + 1, *counts.shape[1:]), dtype=np.float64)
    np.add.at(total, at, counts)
    return Units(total, unit, len(names))


def _blocks(whose: NDArray[np.int64], images: Sequence[str]) -> NDArray[np.int64]:
    """The block of each image, from the number of its subject and its name."""
    order = np.array(sorted(range(len(images)), key=lambda i: _by_number(images[i])))
    at, made = np.empty(len(images), dtype=np.int64), 0
    for subject in range(whose.max() + 1):
        own = order[whose[order] == subject]
        for block in np.array_split(own, min(MOST_BLOCKS, len(own))):
            at[block], made = made, made + 1
    return at


def _by_number(name: str) -> list[str | int]:
    """What sorts names as a reader does: text and numbers by turns."""
    return [int(part) if k % 2 else part for k, part in enumerate(re.split(r"([0-9]+)", name))]


def resampled_scores(counts: Array, statistic: Statistic, seed: int) -> Array:
    """The score of every resample, (resamples,), from what was counted per unit, (units, *shape)."""
    drawn = resample(len(counts), seed) @ counts.reshape(len(counts), -1)
    return statistic(drawn.reshape(-1, *counts.shape[1:]))


def interval(values: Array) -> list[float] | None:
    """95 % percentile interval; resamples without a score do not count, None if none has one."""
    values = values[np.isfinite(values)]
    return [float(q) for q in np.percentile(values, [2.5, 97.5])] if values.size else None


def confidence(units: Units, statistic: Statistic, seed: int) -> list[float] | None:
    """95 % interval of the score of one training."""
    return interval(_trainings([units], statistic, seed)[1]) if _varies([units]) else None


def over_seeds(trainings: Sequence[Units], statistic: Statistic, seed: int) -> dict[str, Any]:
    """The mean score over the trainings: "mean", its "ci95", "seeds" (each score), "std_seeds" (None for one).

    Also "ci_unit" and "n_subjects", as everywhere here.
    """
    told = _told(trainings)
    scores, draws = _trainings(trainings, statistic, seed)
    return {
        "mean": float(np.mean(scores)),
        "seeds": scores,
        "std_seeds": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "ci95": interval(draws) if _varies(trainings) else None,
        **told,
    }


def paired_difference(
    trainings: Sequence[Units], reference: Sequence[Units], statistic: Statistic, seed: int
) -> dict[str, Any]:
    """Score of a set-up minus the score of another: "difference", "ci95", "ci_unit", "n_subjects"."""
    told = _told([*trainings, *reference])
    (scores, draws), (others, other_draws) = (_trainings(parts, statistic, seed) for parts in (trainings, reference))
    return {
        "difference": float(np.mean(scores) - np.mean(others)),
        "ci95": interval(draws - other_draws) if _varies(trainings, reference) else None,
        **told,
    }


def closed_gap(
    trainings: Sequence[Units], lower: Sequence[Units], upper: Sequence[Units], statistic: Statistic, seed: int
) -> dict[str, Any]:
    """Share of the gap between two bounds that a set-up closes, (u - l) / (U - l), all three on the same draw.

    The bounds are measured on the same subjects and vary with them: with both taken as exact, the interval would be
    that of the score alone, which may be too wide or too narrow. A draw in which U is not above l has no share; it
    counts as the worst one at either end.

    Returns:
        "share" (None where U is not above l), "ci95" (None also without a share, or where an end is a draw without
        one), "ci_unit", "n_subjects".
    """
    told = _told([*trainings, *lower, *upper])
    scores, draws = zip(*(_trainings(parts, statistic, seed) for parts in (trainings, lower, upper)), strict=True)
    share, shares = float(_share(*map(np.mean, scores))), _share(*draws)
    without = np.isnan(shares)
    with np.errstate(invalid="ignore"):  # between two draws without a share
        low = float(np.percentile(np.where(without, -np.inf, shares), 2.5))
        high = float(np.percentile(np.where(without, np.inf, shares), 97.5))
    known = _varies(trainings, lower, upper) and np.isfinite([share, low, high]).all()
    return {"share": share if np.isfinite(share) else None, "ci95": [low, high] if known else None, **told}


def _share(score: Any, lower: Any, upper: Any) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(upper > lower, (score - lower) / np.subtract(upper, lower), np.nan)


def _trainings(trainings: Sequence[Units], statistic: Statistic, seed: int) -> tuple[list[float], Array]:
    """The score of each training, and of every resample the mean over them, or over those that are drawn too."""
    scores = [float(statistic(each.counts.sum(axis=0))) for each in trainings]
    draws = np.stack([resampled_scores(each.counts, statistic, seed) for each in trainings], axis=1)
    if trainings[0].unit == BLOCKS:
        drawn = np.random.default_rng([seed, 1]).integers(0, len(trainings), draws.shape)
        draws = np.take_along_axis(draws, drawn, axis=1)
    return scores, draws.mean(axis=1)


def _varies(*setups: Sequence[Units]) -> bool:
    """Whether there is something to draw: several units, or several trainings where these are drawn, too."""
    first = setups[0][0]
    return len(first.counts) > 1 or (first.unit == BLOCKS and any(len(trainings) > 1 for trainings in setups))


def _told(trainings: Sequence[Units]) -> dict[str, Any]:
    """What intervals are over, and how many subjects there are: everywhere as many and at least one."""
    lengths = {len(each.counts) for each in trainings}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"Trainings were scored on {sorted(lengths)} subjects; expected the same subjects for all, at least one. "
            "Score every set-up on the same test set."
        )
    return {"ci_unit": trainings[0].unit, "n_subjects": trainings[0].subjects}
