"""Do synthetic images look like a device's images, as a set? Frechet and kernel distance between sets of features.

    FID = |m_a - m_b|^2 + tr S_a + tr S_b - 2 ||A B^T||_*,    A = (a - m_a) / sqrt(N - 1), S_a = A^T A

    KID = mean k(a, a') + mean k(b, b') - 2 mean k(a, b),     k(x, y) = (x . y / D + 1)^3, x != x'

||.||_* is the sum of the singular values: of an N x N matrix, no square root of a D x D one (Heusel et al. 2017 write
tr (S_a S_b)^(1/2), which is the same). KID (Binkowski et al. 2018) has no bias; FID's falls with N, so all numbers of a
table are computed from equal numbers of images, and between two halves of the same real set, split by subject, stands
the smallest value to be expected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SUBSETS = 50  # for the standard deviation of KID


@dataclass(frozen=True)
class FeatureSet:
    """Features (images, D) of a set of images and the subject of each image."""

    features: Tensor
    subjects: Sequence[str]


def fid(a: Tensor, b: Tensor) -> float:
    """Frechet distance between the Gaussians of two sets of features, each (N, D); computed in float64."""
    a, b = _require_pair(a, b)
    mean = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    roots = [(x - x.mean(dim=0)) / (len(x) - 1) ** 0.5 for x in (a, b)]
    traces = sum(root.square().sum() for root in roots)
    if len(a) > a.shape[1]:  # A = QR: R^T R is the same covariance
        roots = [torch.linalg.qr(root, mode="r").R for root in roots]
    distance = mean + traces - 2 * torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return max(0.0, float(distance))  # rounding may leave -1e-12


def kid(a: Tensor, b: Tensor, seed: int = 0) -> tuple[float, float]:
    """Kernel distance between two sets of features, each (N, D): (unbiased estimate, standard deviation).

    The estimate uses all images and may be slightly below 0; the standard deviation is that of the estimates from
    ``SUBSETS`` random halves of both sets.
    """
    a, b = _require_pair(a, b)
    k_aa, k_bb, k_ab = (((x @ y.T) / a.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    half = max(2, len(a) // 2)
    random = np.random.default_rng(seed)
    values = []
    for _ in range(SUBSETS):
        i, j = (torch.from_numpy(random.permutation(len(a))[:half]) for _ in range(2))
        values.append(_unbiased(k_aa[i][:, i], k_bb[j][:, j], k_ab[i][:, j]))
    return _unbiased(k_aa, k_bb, k_ab), float(np.std(values))


def _unbiased(k_aa: Tensor, k_bb: Tensor, k_ab: Tensor) -> float:
    n = len(k_aa)
    within = sum((k.sum() - k.diagonal().sum()) / (n * (n - 1)) for k in (k_aa, k_bb))
    return float(within - 2 * k_ab.mean())


def distances(sets: Mapping[str, FeatureSet], features: str, real: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Table 2: FID and KID between every pair of sets, from equal numbers of images of each.

    Args:
        sets: name -> features.
        features: name of the feature network.
        real: names of the sets of real images.
        seed: of the choice of images.

    Returns:
        SET -> {SET: FID} for every pair; a real set with itself is the floor, two halves of other subjects (None where
        it has fewer than two). "kid" and "kid_std" likewise; "n" images of each set, "features".
    """
    for name, one in sets.items():
        if len(one.features) < 2 or len(one.features) != len(one.subjects):
            raise ValueError(
                f"The set '{name}' has {len(one.features)} image(s) of {len(one.subjects)} listed; expected at least 2."
            )
    widths = {name: one.features.shape[1] for name, one in sets.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"Features of different networks: widths {widths}. Compute all with one feature network.")
    halves = {name: split_subjects(sets[name].subjects, seed) for name in real if name in sets}
    smallest = [len(half) for pair in halves.values() if pair for half in pair]
    n = min([len(one.features) for one in sets.values()] + [size for size in smallest if size > 1])
    chosen = {
        name: one.features[np.random.default_rng([seed, i]).permutation(len(one.features))[:n]]
        for i, (name, one) in enumerate(sets.items())
    }
    pairs: dict[tuple[str, str], tuple[Tensor, Tensor] | None] = {}
    for one, other in combinations_with_replacement(sets, 2):
        if one != other:
            pairs[one, other] = chosen[one], chosen[other]
        elif one in halves:
            first, second = halves[one] or ((), ())
            enough = min(len(first), len(second)) >= n
            pairs[one, one] = (sets[one].features[first[:n]], sets[one].features[second[:n]]) if enough else None
    fids, kids, stds = ({name: {} for name in sets} for _ in range(3))
    for (one, other), pair in pairs.items():
        found = (fid(*pair), *kid(*pair, seed)) if pair else (None, None, None)
        for table, value in zip((fids, kids, stds), found, strict=True):
            table[one][other] = table[other][one] = value
    return fids | {"kid": kids, "kid_std": stds, "n": n, "features": features}


def split_subjects(subjects: Sequence[str], seed: int = 0) -> tuple[NDArray, NDArray] | None:
    """Indices of two halves of other subjects, each in random order; None with fewer than two subjects."""
    random = np.random.default_rng(seed)
    names, at, sizes = np.unique(np.asarray(subjects), return_inverse=True, return_counts=True)
    if len(names) < 2:
        return None
    total, side = [0, 0], np.zeros(len(names), dtype=int)
    order = random.permutation(len(names))
    for i in order[np.argsort(-sizes[order], kind="stable")]:  # the largest first, each to the smaller half
        side[i] = int(total[1] < total[0])
        total[side[i]] += sizes[i]
    first, second = (random.permutation(np.flatnonzero(side[at] == half)) for half in (0, 1))
    return first, second


def _require_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    for x in (a, b):
        if x.ndim != 2 or len(x) < 2:
            raise ValueError(f"Features have shape {tuple(x.shape)}; expected (images, D) with at least 2 images.")
        if not torch.isfinite(x).all():
            raise ValueError("Features hold NaN or infinite values; check the images and the feature network.")
    if a.shape != b.shape:
        raise ValueError(
            f"Features have shapes {tuple(a.shape)} and {tuple(b.shape)}; expected equal numbers of images, since "
            "FID depends on them, and one feature network."
        )
    return a.double(), b.double()
