"""The label map of a B-scan or picture at the size wanted, from its surfaces or its label image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep.grey import resize_nearest
from data_prep.label_schemes import Scheme
from data_prep.scan import Report, Scan
from unicorn_monai.images.surfaces import IGNORE, label_map, order_surfaces, resize_surfaces


def draw(scan: Scan, scheme: Scheme | None, size: tuple[int, int], report: Report) -> NDArray[np.uint8] | None:
    """The label map of a scan, None where there is none.

    Raises:
        ValueError: label of another shape or unknown value, surfaces that cross or leave the image.
    """
    shape, surfaces = scan.image.shape[:2], scan.surfaces
    if isinstance(surfaces, Mapping):
        if scheme is None:
            raise ValueError("label: the file names its surfaces; say with --labels which of them to use")
        surfaces = scheme.pick(surfaces)
        if surfaces is None:
            lacking = [n for n in scheme.surfaces or () if n not in scan.surfaces]  # type: ignore[operator]
            report.note(f"no label map: the file lacks the surfaces {lacking}, it has {sorted(scan.surfaces)}")  # type: ignore[arg-type]
    if surfaces is not None:
        return _rasterise(surfaces, scheme, shape, size, report)
    if scan.label is None:
        return None
    require_same_shape(scan.label, shape)
    if scheme is None:
        raise ValueError("label: found a label image; say with --labels FILE what its values mean")
    values = scheme.replace(scan.label)
    label = resize_nearest(values, size)
    _count_vanished(values, label, report)
    return label


def require_same_shape(label: NDArray, shape: Sequence[int]) -> None:
    """Refuse a label image of another shape than its picture, with a hint where one of them lies on its side."""
    found, expected = tuple(label.shape[:2]), tuple(shape[:2])
    if found == expected:
        return
    turned = found == expected[::-1]
    hint = ". One lies on its side: pictures are taken as viewers show them (EXIF orientation)" if turned else ""
    raise ValueError(f"label: found shape {found}; expected that of the image, {expected}{hint}")


def _count_vanished(before: NDArray, after: NDArray, report: Report) -> None:
    held = set(np.unique(before).tolist()) - {IGNORE}
    report.held.update(held)
    report.vanished.update(held - set(np.unique(after).tolist()))


def _rasterise(
    surfaces: NDArray[np.floating], scheme: Scheme | None, shape: tuple[int, int], size: tuple[int, int], report: Report
) -> NDArray[np.uint8]:
    """Surfaces of the input -> label map of the output; for the rules see `unicorn_monai.images.surfaces`."""
    if scheme is not None and len(surfaces) != len(scheme.names) - 1:
        raise ValueError(f"surfaces: found {len(surfaces)}; expected {len(scheme.names) - 1}, one between two labels")
    if surfaces.shape[1] != shape[1]:
        raise ValueError(f"surfaces: found {surfaces.shape[1]} columns; expected {shape[1]}, those of the image")
    low, high = np.nanmin(surfaces, initial=np.inf), np.nanmax(surfaces, initial=-np.inf)
    margin = 0.1 * shape[0]
    if np.isfinite(low) and (low < -margin or high > shape[0] - 1 + margin):
        raise ValueError(
            f"surfaces: found rows {low:.1f} to {high:.1f}; expected pixels of an image with {shape[0]} rows, counted "
            "from the top. Are they micrometres, or counted from the bottom?"
        )
    ordered, share = order_surfaces(surfaces)
    report.crossing.append(share)
    label = label_map(resize_surfaces(ordered, shape, size), size[0])
    _count_vanished(label_map(ordered, shape[0]), label, report)
    return label
