"""Layer surfaces <-> label maps: a surface is a sub-pixel row per column, a label the number of surfaces above a pixel.

    label(i, x) = #{k : z_k(x) <= i},      z_target = (z + 1/2) H_target / H_source - 1/2

Rows are 0-based and refer to pixel centres; NaN = not annotated. Rasterising rescaled surfaces at the target size keeps
layers of two pixels that resizing a mask would tear.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
IGNORE = 255


def order_surfaces(surfaces: Array, most: float = 0.20) -> tuple[Array, float]:
    """Repair surfaces, (n, columns) rows, that cross by a running maximum; returns a copy, and the share repaired.

    A column with any NaN is left as it is. ``most``: largest share of crossing columns that may be repaired; where the
    inner layers vanish in the fovea up to a tenth of the columns of a B-scan cross by fractions of a pixel. If more do,
    they are in the wrong order, and refused.
    """
    if surfaces.ndim != 2:
        raise ValueError(f"surfaces of shape {surfaces.shape}: expected (surfaces, columns)")
    valid = ~np.isnan(surfaces).any(axis=0)
    crossing = valid & (np.diff(surfaces, axis=0) < 0).any(axis=0)
    share = float(crossing.sum() / max(valid.sum(), 1))
    if share > most:
        raise ValueError(
            f"surfaces cross in {share:.1%} of the columns, expected at most {most:.1%}; "
            "check that they are listed from vitreous to choroid and that rows count downwards"
        )
    ordered = surfaces.astype(np.float64, copy=True)
    ordered[:, valid] = np.maximum.accumulate(ordered[:, valid], axis=0)
    return ordered, share


def area_weights(source: int, target: int) -> Array:
    """Return (target, source) weights of an area average: row t holds the share of each source pixel in pixel t."""
    edges = np.arange(target + 1) * (source / target)
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(source)[None, :]
    overlap = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0.0, None)
    overlap[overlap < 1e-9] = 0.0  # rounding must not let a missing column reach its neighbours
    return overlap / overlap.sum(axis=1, keepdims=True)


def resize_weights(source: int, target: int) -> Array:
    """Return (target, source) weights: linear interpolation when enlarging, area average when reducing."""
    if target <= source:
        return area_weights(source, target)
    position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    return np.clip(1 - np.abs(position[:, None] - np.arange(source)[None, :]), 0, None)


def resize_image(image: NDArray, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resample an 8-bit image (rows, columns) to a size: area average, linear interpolation where it is enlarged."""
    rows, columns = (resize_weights(n, m) for n, m in zip(image.shape, size, strict=True))
    return np.clip(np.rint(rows @ image.astype(np.float64) @ columns.T), 0, 255).astype(np.uint8)


def resize_surfaces(surfaces: Array, source: tuple[int, int], target: tuple[int, int]) -> Array:
    """Rescale (n, columns) surfaces between sizes (rows, columns) as `resize_image`; NaN where a column is missing."""
    if surfaces.shape[1] != source[1]:
        raise ValueError(f"surfaces with {surfaces.shape[1]} columns for an image with {source[1]}: expected as many")
    weights = resize_weights(source[1], target[1])
    missing = np.isnan(surfaces).astype(float) @ weights.T > 0
    z = np.nan_to_num(surfaces) @ weights.T
    z = (z + 0.5) * target[0] / source[0] - 0.5
    return np.where(missing, np.nan, z)


def label_map(surfaces: Array, rows: int) -> NDArray[np.uint8]:
    """Rasterise ordered surfaces, (n, columns) -> (rows, columns) labels 0..n; 255 in a column with any NaN."""
    missing = np.isnan(surfaces).any(axis=0)
    if (np.diff(surfaces[:, ~missing], axis=0) < 0).any():
        raise ValueError("surfaces cross: expected rows increasing with the surface; repair them with order_surfaces")
    i = np.arange(rows)[None, :, None]
    labels = (np.nan_to_num(surfaces)[:, None, :] <= i).sum(axis=0).astype(np.uint8)
    labels[:, missing] = IGNORE
    return labels


def surfaces_from_labels(labels: NDArray[np.integer], n_surfaces: int) -> Array:
    """(..., rows, columns) labels 0..n_surfaces, 255 = ignore -> (..., n_surfaces, columns) rows, to half a pixel.

    A surface lies half a pixel above the first row that it contains, one outside the image at its border, -1/2 or
    rows - 1/2. NaN in columns with an ignored pixel.
    """
    present = labels[labels != IGNORE]
    if present.size and not 0 <= present.min() <= present.max() <= n_surfaces:
        wrong = present.min() if present.min() < 0 else present.max()
        raise ValueError(f"label {wrong} with {n_surfaces} surfaces: expected labels 0..{n_surfaces} or 255 (ignore)")
    # Counting pixels instead of looking for the first one also orders columns whose labels motion has torn.
    above = np.stack([(labels <= k).sum(axis=-2) for k in range(n_surfaces)], axis=-2) - 0.5
    return np.where((labels == IGNORE).any(axis=-2)[..., None, :], np.nan, above)
