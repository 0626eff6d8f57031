"""Pictures of simulated drives: a street (``street``), seen from a place on it (``street_view``), in some weather.

Item (seed, drive, frame) is the same whatever was simulated before it; the same frame may be seen in any weather.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unicorn_monai.simulation.street import STEP_M, draw_street
from unicorn_monai.simulation.street_view import render
from unicorn_monai.simulation.weather import WEATHERS, photograph


@dataclass(frozen=True)
class Frame:
    """A simulated picture: image (rows, columns, 3) and label (rows, columns) uint8, drive, frame and weather."""

    image: NDArray[np.uint8]
    label: NDArray[np.uint8]
    drive: int
    frame: int
    weather: str


def simulate_frame(
    weather: str, drive: int, frame: int, size: int | tuple[int, int] = (64, 64), seed: int = 0
) -> Frame:
    """Simulate one picture; it depends on (seed, drive, frame), the weather and the size, on nothing drawn before."""
    rows, columns = (size, size) if isinstance(size, int) else size
    if weather not in WEATHERS:
        raise ValueError(f"Unknown weather '{weather}'; expected one of {list(WEATHERS)}.")
    if min(rows, columns) < 16:
        raise ValueError(f"size {size}: expected at least 16 pixels each way; choose 64 or more to tell things apart.")
    if not 0 <= frame < 40:
        raise ValueError(f"frame {frame}: expected 0 to 39, the street ends there. Drive on another one.")
    # The last number keeps the three streams apart: numpy pads seeds with zeros, so (1, 2) and (1, 2, 0) are the same.
    street = draw_street(np.random.default_rng([seed, drive, 0, 1]))
    scene = render(street, np.random.default_rng([seed, drive, frame, 2]), frame * STEP_M, (rows, columns))
    image = photograph(scene, WEATHERS[weather], np.random.default_rng([seed, drive, frame, 3]))
    return Frame(image, scene.label_map(), drive, frame, weather)


def simulate_drives(
    weathers: Sequence[str], drives: Sequence[int], frames: int, size: int | tuple[int, int] = 64, seed: int = 0
) -> Iterator[Frame]:
    """Simulate the drives of these numbers, each in the next weather of the list, see :func:`simulate_frame`."""
    for i, drive in enumerate(drives):
        for frame in range(frames):
            yield simulate_frame(weathers[i % len(weathers)], drive, frame, size, seed)
