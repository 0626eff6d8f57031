"""From stored pixel values to 8-bit grey levels of a wanted size; nothing is stretched unless the user says how.

grey = 255 v^(1/4)                                      linear reflectivity v in 0..1 (.vol, .e2e)
grey = 255 (v - low) / (high - low)                     other types, with a window that the user or the file states
resized = (rows @ image @ columns.T)                    area average when reducing, linear when enlarging
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep.privacy import Refused
from unicorn_monai.data.checks import FEWEST_LEVELS
from unicorn_monai.images.surfaces import resize_image, resize_weights

INVALID = 3.0e38  # Heidelberg's mark of pixels and surface rows that do not exist (largest float32)


def to_grey(values: NDArray, window: Sequence[float] | None = None) -> NDArray[np.uint8]:
    """Grey levels of an image or a volume of any shape; `window` are the values that become 0 and 255.

    8-bit values stay as they are, floating-point values in 0..1 are taken for shares of white, whole numbers in 0..255
    of any type for grey levels, if they use the range (`require_range_used`). Anything else needs a window.

    Raises:
        ValueError: NaN, infinite or complex values, one bit per pixel, or a range that tells no grey levels.
    """
    if values.dtype == bool:
        raise Refused("pixels: found one bit per pixel; expected grey levels. Export the image, not a mask")
    if values.dtype.kind not in "iuf":
        raise Refused(f"pixels: found type {values.dtype}; expected whole or floating-point numbers")
    if not np.isfinite(values).all():
        raise Refused("pixels: found NaN or infinite values; expected finite ones. Repair them before converting")
    if window is not None:
        if not window[0] < window[1]:
            raise Refused(f"--window {window[0]} {window[1]}: expected the first below the second")
        return scaled(values, window)
    if values.dtype == np.uint8:
        return values
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        return require_range_used(scaled(values, (0, 1)), values)
    if low >= 0 and high <= 255 and (values == np.rint(values)).all():
        return require_range_used(values.astype(np.uint8), values)
    raise Refused(
        f"pixels: found {values.dtype} values {low:g} to {high:g}; expected 8-bit grey levels, or --window LOW HIGH: "
        f"the values that become black and white, the same for the whole data set (e.g. --window 0 {_round_up(high)})"
    )


def scaled(values: NDArray, window: Sequence[float]) -> NDArray[np.uint8]:
    """Grey levels with the values of a window as black and white."""
    low, high = window
    grey = np.empty_like(values, dtype=np.uint8, subok=False)
    axis = int(np.argmax(values.strides)) if values.ndim > 2 else 0
    whole = ([values], [grey]) if values.ndim < 3 else (np.moveaxis(values, axis, 0), np.moveaxis(grey, axis, 0))
    for plane, out in zip(*whole, strict=True):  # one by one: doubles of a volume take a lot of memory
        out[...] = np.clip(np.rint(255 * (plane.astype(np.float64) - low) / (high - low)), 0, 255)
    return grey


def require_range_used(
    grey: NDArray[np.uint8], values: NDArray, valid: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """Grey levels as they are, unless they span so few that the range was not that of the values: 12 bits in 16 do.

    Which it was, nobody but the user knows. A constant image is left to whoever looks for it.
    """
    shown, found = (grey, values) if valid is None else (grey[valid], values[valid])
    if found.size == 0 or found.min() == found.max():
        return grey
    levels = int(shown.max()) - int(shown.min()) + 1
    if levels < FEWEST_LEVELS:
        low, high = float(found.min()), float(found.max())
        whole = high > 1 and -high < low < high / 2  # numbers that begin near 0: of so many bits
        fitting = f"{min(0, np.floor(low)):g} {_round_up(high)}" if whole else f"{low:.6g} {high:.6g}"
        raise Refused(
            f"pixels: found {values.dtype} values {low:g} to {high:g}, {levels} of 256 grey levels of the range that "
            f"they are stored with; expected at least {FEWEST_LEVELS}. Say with --window LOW HIGH which values become "
            f"black and white, the same for the whole data set (e.g. --window {fitting})"
        )
    return grey


def _round_up(value: float) -> int:
    return 2 ** int(np.ceil(np.log2(max(value, 2)))) - 1


def from_reflectivity(values: NDArray[np.floating]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Grey levels of a Heidelberg raw export, and which pixels exist.

    Values in 0..1 are linear reflectivity, shown as v^(1/4). Larger ones (of other software) are grey levels already.
    """
    valid = ~(values >= INVALID)
    real = np.where(valid, values, 0.0)
    if not np.isfinite(real).all() or real.min(initial=0.0) < 0 or real.max(initial=0.0) > 255:
        span = f"{np.nanmin(real):g} to {np.nanmax(real):g}"
        raise Refused(f"pixels: found values {span}, NaN or infinite; expected reflectivity 0 to 1, or 3.4e38")
    shown = real if real.max(initial=0.0) > 1 else 255 * real**0.25
    return np.rint(shown).astype(np.uint8), valid


def resize_grey(
    image: NDArray[np.uint8], size: tuple[int, int], valid: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Resample (rows, columns[, 3]) to a size; pixels that do not exist (`valid`) take no part in the averages.

    Also says which of the new pixels exist: more than half of their area does. The others are 0.
    """
    if image.ndim == 3:
        channels = [resize_grey(image[..., k], size, valid) for k in range(image.shape[2])]
        return np.stack([grey for grey, _ in channels], axis=2), channels[0][1]
    if valid is None or valid.all():
        return resize_image(image, size), np.ones(size, dtype=bool)
    rows, columns = (resize_weights(n, m) for n, m in zip(image.shape, size, strict=True))
    share = rows @ valid.astype(np.float64) @ columns.T
    out = rows @ np.where(valid, image, 0).astype(np.float64) @ columns.T / np.maximum(share, 1e-9)
    exists = share > 0.5
    return np.where(exists, np.clip(np.rint(out), 0, 255), 0).astype(np.uint8), exists


def resize_nearest(labels: NDArray, size: tuple[int, int]) -> NDArray:
    """Resample a label map: the value at each new pixel's centre."""
    rows, columns = (
        np.minimum(((np.arange(m) + 0.5) * n / m).astype(int), n - 1) for n, m in zip(labels.shape, size, strict=True)
    )
    return labels[np.ix_(rows, columns)]


def mask_white_border(image: NDArray[np.uint8], least: int = 8) -> NDArray[np.bool_]:
    """Which pixels exist: display exports fill what lies outside the scanned window with pure white.

    False in runs of at least `least` white pixels that begin at the top or the bottom of a column.
    """
    white = image == 255
    valid = np.ones(image.shape, dtype=bool)
    for flipped in (False, True):
        run = np.logical_and.accumulate(white[::-1] if flipped else white, axis=0)
        run[:, run.sum(axis=0) < least] = False
        valid &= ~(run[::-1] if flipped else run)
    return valid
