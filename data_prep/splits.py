"""Splits are by subject, never by image: B-scans of one eye are not independent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unicorn_monai.dataset_files import SPLITS


def split_by_subject(subjects: Sequence[str], split: Sequence[float], seed: int) -> dict[str, str]:
    """Assign each subject to training, validation or test, at random.

    Args:
        subjects: names, each once.
        split: three shares; those above zero get at least one subject.
        seed: of the shuffle.

    Returns:
        subject -> split, in the order given.

    Raises:
        ValueError: if the shares are not three numbers >= 0 with a positive sum, or there are too few subjects.
    """
    shares = np.asarray(split, dtype=float)
    if shares.shape != (3,) or (shares < 0).any() or shares.sum() <= 0:
        raise ValueError(f"split {tuple(split)}: expected three shares >= 0 for {', '.join(SPLITS)}, e.g. 0.7 0.1 0.2")
    n, wanted = len(subjects), int((shares > 0).sum())
    if n < wanted:
        raise ValueError(
            f"{n} subjects cannot fill {wanted} splits, which share no subject; add subjects or set a share to 0"
        )
    counts = np.where(shares > 0, np.maximum(np.rint(n * shares / shares.sum()), 1), 0).astype(int)
    while counts.sum() != n:  # rounding: the largest part gives or takes
        counts[np.argmax(counts)] += np.sign(n - counts.sum())
    names = np.repeat(SPLITS, counts)
    order = np.random.default_rng([seed, 4]).permutation(n)
    assigned = dict(zip((subjects[i] for i in order), names.tolist(), strict=True))
    return {subject: assigned[subject] for subject in subjects}
