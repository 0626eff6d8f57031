"""Label map -> layer surfaces, how far predicted and true surfaces are apart, and where the order of layers breaks.

    z_k(x) = #{rows i : label(i, x) <= k} - 1/2,      k = 0 ... K - 2        (row of the lower border of label k)

the inverse of label(i, x) = #{k : z_k(x) <= i}. Pixels are counted, not searched for, so that a stray pixel moves a
surface by one row and not across the image; surfaces found in this way never cross. What that hides is counted by
itself: columns in which the labels do not increase downwards, or lack a layer that is there in truth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unicorn_monai.images.files import IGNORE_LABEL
from unicorn_monai.images.surfaces import surfaces_from_labels

Labels = NDArray[np.integer]  # (..., rows, columns), values 0 ... K - 1, 255 = ignore


def boundary_errors(prediction: Labels, truth: Labels, num_labels: int) -> NDArray[np.float64]:
    """Distance of every predicted surface from the true one, in rows: (..., K - 1, columns), at least 0.

    NaN where the column is not annotated or the true surface lies outside the image.
    """
    _require_one_shape(prediction, truth)
    found, true = (surfaces_from_labels(labels, num_labels - 1) for labels in (prediction, truth))
    outside = (true < 0) | (true > truth.shape[-2] - 1)
    return np.where(outside, np.nan, np.abs(found - true))


def broken_columns(prediction: Labels, truth: Labels, num_labels: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Columns with a missing or a crossing layer, and columns that are annotated at all.

    A layer is missing where the true column has it and the predicted one does not; layers cross where the predicted
    label decreases from one row to the next although the true ones do not. Both are (..., columns); only annotated
    columns are broken.
    """
    _require_one_shape(prediction, truth)
    annotated = (truth != IGNORE_LABEL).all(axis=-2)
    missing = np.zeros_like(annotated)
    for k in range(num_labels):
        missing |= (truth == k).any(axis=-2) & ~(prediction == k).any(axis=-2)
    return (missing | (_crossing(prediction) & ~_crossing(truth))) & annotated, annotated


def _crossing(labels: Labels) -> NDArray[np.bool_]:
    return np.any(labels[..., 1:, :] < labels[..., :-1, :], axis=-2)


def _require_one_shape(prediction: Labels, truth: Labels) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(
            f"Prediction has shape {prediction.shape}, truth {truth.shape}; expected one label map for each other one."
        )
