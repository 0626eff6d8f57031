"""Does an uncertainty see the shift? How well it tells the unlabelled images from the labelled ones.

    AUC = P(u(unlabelled) > u(labelled)) + P(u(unlabelled) = u(labelled)) / 2        Mann and Whitney 1947

of an unlabelled and a labelled image drawn at random. 0.5 tells nothing: asked for what the unlabelled images have, a
generator is asked for what the labelled ones have too. Near 0 tells as much as near 1: a network may be surer of what
it does not know. No label is needed. The labelled images are those of the validation, since a network is surer of the
images that it was trained on than of others of the same device.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.stats import rankdata
from torch import Tensor

from unicorn_monai.data.items import datalist
from unicorn_monai.data.uncertainties import read_uncertainties

ENOUGH = 0.9  # of `separates`; below it more than one in ten pairs of images is the wrong way round


def separates(auc: float) -> float:
    """How well domains are told apart, whichever is the more uncertain: 0.5 to 1."""
    return max(auc, 1 - auc)


def separation(labelled: Tensor, unlabelled: Tensor) -> float:
    """The AUC of uncertainties (images,) of both domains, in [0, 1]."""
    n, m = len(labelled), len(unlabelled)
    if not n or not m:
        raise ValueError(f"Got {n} labelled and {m} unlabelled images; expected one or more of each.")
    ranks = rankdata(np.concatenate([labelled.numpy(), unlabelled.numpy()]))
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def measured_separation(path: Path, labelled_dir: Path, unlabelled_dir: Path) -> float:
    """That of a file of uncertainties: labelled validation images against all unlabelled ones but those of the test."""
    labelled = read_uncertainties(path, datalist(labelled_dir, "validation"))
    unlabelled = read_uncertainties(path, datalist(unlabelled_dir, ["training", "validation"]))
    return separation(labelled, unlabelled)
