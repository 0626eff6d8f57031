"""Which way up is a B-scan? Evidence against an image that is transposed or upside down.

    transposed:   t = var_x(mean over rows) / var_z(mean over columns)      layers lie across the rows: t << 1
    upside down:  e = (rise - fall) / (rise + fall)                        steepest edges of each A-scan: e > 0

The steepest edge on the way down an A-scan is a rise from dark to bright (vitreous to nerve fibres, outer nuclear layer
to photoreceptors); below the pigment epithelium the light fades slowly. Found: t at most 0.19 and e above 0 in 97 to
100 % of the images, over 70 real Spectralis B-scans, the same as home OCT, and both simulated devices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TRANSPOSED_ABOVE = 1.0
UPSIDE_DOWN_BELOW = -0.05
FEWEST = 3  # one B-scan may be odd; the evidence is the median over at least so many
IGNORE = 255


def row_evidence(image: NDArray) -> tuple[float, float]:
    """Measure one grey image (rows, columns): the t and e of the header; NaN where it is constant."""
    from scipy.ndimage import gaussian_filter  # loading it takes longer than most commands

    grey = image.astype(np.float64)
    rows, columns = grey.mean(axis=1), grey.mean(axis=0)
    smooth = gaussian_filter(grey, (max(grey.shape[0] / 128, 0.7), grey.shape[1] / 32))
    step = np.diff(smooth, axis=0)
    if min(step.shape) == 0 or rows.var() + columns.var() == 0:
        return float("nan"), float("nan")
    rise, fall = step.max(axis=0).mean(), (-step).max(axis=0).mean()
    t = columns.var() / rows.var() if rows.var() > 0 else np.inf
    return float(t), float((rise - fall) / (abs(rise) + abs(fall))) if rise or fall else 0.0


def label_evidence(label: NDArray, n_labels: int) -> tuple[float, float]:
    """Correlation of the label value with the row and with the column, over the pixels not ignored (NaN if undefined).

    In a B-scan labels count from the vitreous downwards: the first is near 1, the second near 0.
    """
    rows, columns = np.nonzero(label < min(n_labels, IGNORE))
    values = label[rows, columns].astype(np.float64)
    if values.size < 2 or values.std() == 0:
        return float("nan"), float("nan")
    return tuple(  # type: ignore[return-value]
        float(np.corrcoef(values, at)[0, 1]) if at.std() > 0 else 0.0 for at in (rows, columns)
    )


def judge(images: Sequence[tuple[float, float]], labels: Sequence[tuple[float, float]]) -> tuple[str, str] | None:
    """Weigh the evidence of a data set: `row_evidence` of some images, `label_evidence` of label maps, if any.

    Returns what seems to be wrong ("transposed" or "upside down") and the evidence in words, or None.
    """
    labels, images = ([pair for pair in pairs if np.isfinite(pair).all()] for pairs in (labels, images))
    if len(labels) >= FEWEST:
        down, across = np.median(np.asarray(labels), axis=0)
        words = f"labels correlate {down:.2f} with the row and {across:.2f} with the column (median of {len(labels)})"
        if abs(across) > abs(down) and abs(across) > 0.5:
            return "transposed", words
        if down < -0.5:
            return "upside down", words
        if down > 0.5:
            return None  # the labels lie as they should, and the images agree with them or nothing would train
    if len(images) < FEWEST:
        return None
    ratio, edge = np.median(np.asarray(images), axis=0)
    if ratio > TRANSPOSED_ABOVE:
        words = f"the mean varies {ratio:.1f} times as much across the columns as down the rows"
        return "transposed", f"{words} (median of {len(images)} images)"
    if edge < UPSIDE_DOWN_BELOW:
        words = f"the steepest edges fall from bright to dark on the way down, balance {edge:.2f}, upright 0.15 to 0.35"
        return "upside down", f"{words} (median of {len(images)} images)"
    return None
