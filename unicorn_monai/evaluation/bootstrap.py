"""How sure is a score? Percentile bootstrap over SUBJECTS: of one set-up, a difference, a closed gap, over seeds.

B-scans of one eye are not independent, so whole subjects are drawn, with replacement:

    M* = sum_s w_s M_s,      w ~ multinomial(S, 1/S),      score* = score(M*)

with M_s what was counted in the images of subject s. The interval is from the 2.5th to the 97.5th percentile of
score*. Differences, and shares of a gap, are paired: all set-ups are scored on the same draw. With several trainings
(seeds) of a set-up the score is the mean over them on each draw, and the spread over the seeds is given beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000

Array = NDArray[np.floating]
Statistic = Callable[[Array], Array]  # what was counted, (..., *shape) -> score, (...)


def resample(subjects: int, seed: int, resamples: int = RESAMPLES) -> NDArray[np.int64]:
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
    """95 % interval of a score; None with fewer than two subjects."""
    return interval(resampled_scores(counts, statistic, seed)) if len(counts) > 1 else None


def over_seeds(counts: Sequence[Array], statistic: Statistic, seed: int) -> dict[str, Any]:
    """The mean score of several trainings of one set-up.

    Args:
        counts: for each training what was counted per subject, (subjects, *shape), of the same subjects.
        statistic: the score.
        seed: of the resampling.

    Returns:
        "mean", "seeds" (each training's score), "std_seeds" (None for one training), "ci95" of the mean (over
        subjects; None with fewer than two), "n_subjects".
    """
    scores = [_score(part, statistic) for part in _of_one_length(counts)]
    draws = np.mean([resampled_scores(part, statistic, seed) for part in counts], axis=0)
    return {
        "mean": float(np.mean(scores)),
        "seeds": scores,
        "std_seeds": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "ci95": interval(draws) if len(counts[0]) > 1 else None,
        "n_subjects": len(counts[0]),
    }


def paired_difference(
    counts: Sequence[Array], reference: Sequence[Array], statistic: Statistic, seed: int
) -> dict[str, Any]:
    """Score of a set-up minus the score of another on the same subjects; each is the mean over its trainings.

    Args:
        counts: for each training of the set-up what was counted per subject, (subjects, *shape).
        reference: the same for the other set-up, of the same subjects in the same order.
        statistic: the score.
        seed: of the resampling.

    Returns:
        "difference", "ci95" (None with fewer than two subjects), "n_subjects".
    """
    _of_one_length([*counts, *reference])
    both = [np.mean([_score(p, statistic) for p in parts]) for parts in (counts, reference)]
    draws = [np.mean([resampled_scores(p, statistic, seed) for p in parts], axis=0) for parts in (counts, reference)]
    return {
        "difference": float(both[0] - both[1]),
        "ci95": interval(draws[0] - draws[1]) if len(counts[0]) > 1 else None,
        "n_subjects": len(counts[0]),
    }


def closed_gap(
    counts: Sequence[Array], lower: Sequence[Array], upper: Sequence[Array], statistic: Statistic, seed: int
) -> dict[str, Any]:
    """Share of the gap between two bounds that a set-up closes, (u - l) / (U - l), all three on the same draw.

    The bounds are measured on the same subjects and vary with them: with both taken as exact, the interval would be
    that of the score alone, which may be too wide or too narrow. A draw in which U is
    not above l has no share; it counts as the worst one at either end.

    Args:
        counts: for each training of the set-up what was counted per subject, (subjects, *shape).
        lower: the same for the lower bound l, of the same subjects in the same order.
        upper: the same for the upper bound U.
        statistic: the score; each is the mean over the trainings.
        seed: of the resampling.

    Returns:
        "share" (None where U is not above l), "ci95" (None with fewer than two subjects, without a share, or where an
        end is a draw without one), "n_subjects".
    """
    _of_one_length([*counts, *lower, *upper])
    share = float(_share(*(np.mean([_score(p, statistic) for p in parts]) for parts in (counts, lower, upper))))
    draws = _share(
        *(np.mean([resampled_scores(p, statistic, seed) for p in parts], axis=0) for parts in (counts, lower, upper))
    )
    without = np.isnan(draws)
    with np.errstate(invalid="ignore"):  # between two draws without a share
        low = float(np.percentile(np.where(without, -np.inf, draws), 2.5))
        high = float(np.percentile(np.where(without, np.inf, draws), 97.5))
    known = len(counts[0]) > 1 and np.isfinite([share, low, high]).all()
    return {
        "share": share if np.isfinite(share) else None,
        "ci95": [low, high] if known else None,
        "n_subjects": len(counts[0]),
    }


def _share(score: Any, lower: Any, upper: Any) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(upper > lower, (score - lower) / np.subtract(upper, lower), np.nan)


def _score(counts: Array, statistic: Statistic) -> float:
    return float(statistic(counts.sum(axis=0)))


def _of_one_length(counts: Sequence[Array]) -> Sequence[Array]:
    lengths = {len(part) for part in counts}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"Trainings were scored on {sorted(lengths)} subjects; expected the same subjects for all, at least one. "
            "Score every set-up on the same test set."
        )
    return counts
