"""How sure is a score? Percentile bootstrap over SUBJECTS: of one set-up, a difference, a closed gap, over seeds.

B-scans of one eye are not independent, so whole subjects are drawn, with replacement:

    M* = sum_s w_s M_s,      w ~ multinomial(S, 1/S),      score* = score(M*)

with M_s what was counted in the images of subject s. The interval is from the 2.5th to the 97.5th percentile of
score*. Differences, and shares of a gap, are paired: all set-ups are scored on the same draw. With several trainings
(seeds) of a set-up the score is the mean over them on each draw, and the spread over the seeds is given beside it.

What was counted in a set-up is one array (subjects, *shape) for each of its trainings; subjects are the same, in the
same order, everywhere. An interval is None with fewer than two subjects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Statistic = Callable[[Array], Array]  # what was counted, (..., *shape) -> score, (...)


def resample(subjects: int, seed: int, resamples: int = 2000) -> NDArray[np.int64]:
    """How often each subject is drawn in each resample: (resamples, subjects), rows sum to ``subjects``."""
    draws = np.random.default_rng(seed).integers(0, subjects, (resamples, subjects))
    offset = np.arange(resamples)[:, None] * subjects
    return np.bincount((draws + offset).ravel(), minlength=resamples * subjects).reshape(resamples, subjects)


def by_subject(counts: Array, subjects: Sequence[str]) -> Array:
    """Sum what was counted per image, (images, *shape), over each subject's images: (subjects, *shape), sorted."""
    names, at = np.unique(np.asarray(subjects), return_inverse=True)
    total = np.zeros((len(names), *counts.shape[1:]), dtype=np.float64)
    np.add.at(total, at, counts)
    return total


def resampled_scores(counts: Array, statistic: Statistic, seed: int) -> Array:
    """The score of every resample, (resamples,), from what was counted per subject, (subjects, *shape)."""
    drawn = resample(len(counts), seed) @ counts.reshape(len(counts), -1)
    return statistic(drawn.reshape(-1, *counts.shape[1:]))


def interval(values: Array) -> list[float] | None:
    """95 % percentile interval; resamples without a score do not count, None if none has one."""
    values = values[np.isfinite(values)]
    return [float(q) for q in np.percentile(values, [2.5, 97.5])] if values.size else None


def confidence(counts: Array, statistic: Statistic, seed: int) -> list[float] | None:
    """95 % interval of the score of one training."""
    return interval(resampled_scores(counts, statistic, seed)) if len(counts) > 1 else None


def over_seeds(counts: Sequence[Array], statistic: Statistic, seed: int) -> dict[str, Any]:
    """The mean score over the trainings: "mean", its "ci95", "seeds" (each score), "std_seeds" (None for one)."""
    subjects = _subjects(counts)
    scores, draws = _trainings(counts, statistic, seed)
    return {
        "mean": float(np.mean(scores)),
        "seeds": scores,
        "std_seeds": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "ci95": interval(draws) if subjects > 1 else None,
        "n_subjects": subjects,
    }


def paired_difference(
    counts: Sequence[Array], reference: Sequence[Array], statistic: Statistic, seed: int
) -> dict[str, Any]:
    """Score of a set-up minus the score of another: "difference", "ci95", "n_subjects"."""
    subjects = _subjects([*counts, *reference])
    (scores, draws), (others, other_draws) = (_trainings(parts, statistic, seed) for parts in (counts, reference))
    return {
        "difference": float(np.mean(scores) - np.mean(others)),
        "ci95": interval(draws - other_draws) if subjects > 1 else None,
        "n_subjects": subjects,
    }


def closed_gap(
    counts: Sequence[Array], lower: Sequence[Array], upper: Sequence[Array], statistic: Statistic, seed: int
) -> dict[str, Any]:
    """Share of the gap between two bounds that a set-up closes, (u - l) / (U - l), all three on the same draw.

    The bounds are measured on the same subjects and vary with them: with both taken as exact, the interval would be
    that of the score alone, which may be too wide or too narrow. A draw in which U is not above l has no share; it
    counts as the worst one at either end.

    Returns:
        "share" (None where U is not above l), "ci95" (None also without a share, or where an end is a draw without
        one), "n_subjects".
    """
    subjects = _subjects([*counts, *lower, *upper])
    scores, draws = zip(*(_trainings(parts, statistic, seed) for parts in (counts, lower, upper)), strict=True)
    share, shares = float(_share(*map(np.mean, scores))), _share(*draws)
    without = np.isnan(shares)
    with np.errstate(invalid="ignore"):  # between two draws without a share
        low = float(np.percentile(np.where(without, -np.inf, shares), 2.5))
        high = float(np.percentile(np.where(without, np.inf, shares), 97.5))
    known = subjects > 1 and np.isfinite([share, low, high]).all()
    return {
        "share": share if np.isfinite(share) else None,
        "ci95": [low, high] if known else None,
        "n_subjects": subjects,
    }


def _share(score: Any, lower: Any, upper: Any) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(upper > lower, (score - lower) / np.subtract(upper, lower), np.nan)


def _trainings(counts: Sequence[Array], statistic: Statistic, seed: int) -> tuple[list[float], Array]:
    """The score of each training, and of every resample the mean over them."""
    scores = [float(statistic(part.sum(axis=0))) for part in counts]
    return scores, np.mean([resampled_scores(part, statistic, seed) for part in counts], axis=0)


def _subjects(counts: Sequence[Array]) -> int:
    """How many subjects there are, everywhere as many and at least one."""
    lengths = {len(part) for part in counts}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"Trainings were scored on {sorted(lengths)} subjects; expected the same subjects for all, at least one. "
            "Score every set-up on the same test set."
        )
    return lengths.pop()
