"""Streets: what stands where along a straight street with two lanes, pavements, houses, trees, lamps and signs.

Metres: s to the right of the street's axis, z along it, heights above the ground. A drive is a street; a frame is a
place on it with its own cars and people (``street_view.py``), photographed in some weather (``weather.py``). Sizes are
those of streets in Central Europe, in round numbers; albedos lie in the ranges of Oke (Boundary Layer Climates, 1987).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

# Names and colours of Cityscapes (cityscapesScripts, MIT); of its 19 classes the ten that this world has.
CLASSES: dict[str, tuple[int, int, int]] = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "pole": (153, 153, 153),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "car": (0, 0, 142),
}
STREET_LABELS = dict(enumerate(CLASSES))
ID = {name: value for value, name in STREET_LABELS.items()}

FARTHEST_M = 160.0  # end of the visible street
STEP_M = 9.0  # between two frames of a drive

WALLS = (
    (0.42, 0.36, 0.27), (0.34, 0.17, 0.12), (0.45, 0.44, 0.42), (0.28, 0.27, 0.27), (0.47, 0.42, 0.24),
    (0.3, 0.34, 0.38),
)  # fmt: skip
GLASS, LEAVES = (0.05, 0.06, 0.07), (0.07, 0.13, 0.035)


@dataclass(frozen=True)
class House:
    """A stretch of a side: from z0 to z1, so far behind the pavement, so high; height 0 is a gap with grass."""

    z0: float
    z1: float
    setback_m: float
    height_m: float
    wall: tuple[float, float, float]
    seed: int


@dataclass(frozen=True)
class Upright:
    """A tree, a lamp or a sign: at s metres from the street's axis, z ahead."""

    kind: str
    s: float
    z: float
    height_m: float
    width_m: float
    seed: int


@dataclass(frozen=True)
class Street:
    """What all frames of a drive share; ``houses`` holds the left and the right side."""

    road_m: float
    pavement_m: tuple[float, float]
    houses: tuple[tuple[House, ...], tuple[House, ...]]
    uprights: tuple[Upright, ...]
    backdrop_seed: int


def draw_street(rng: np.random.Generator) -> Street:
    """Draw a street, long enough for any frame of it."""
    length, road = 4 * FARTHEST_M, float(rng.uniform(6.5, 10.0))  # two lanes, with or without parking
    pavement = (float(rng.uniform(1.8, 4.0)), float(rng.uniform(1.8, 4.0)))
    town = rng.uniform(0.55, 0.95)  # share of the sides that is built on
    sides = []
    for _ in range(2):
        z, houses = -20.0, []
        while z < length:
            run = float(rng.uniform(9.0, 26.0))
            built = rng.random() < town
            height = float(rng.choice([6.5, 9.5, 12.5, 15.5, 18.5]) + rng.uniform(-0.8, 0.8)) if built else 0.0
            wall = np.array(WALLS[rng.integers(len(WALLS))]) * rng.uniform(0.75, 1.2)
            setback = float(rng.choice([0.0, 0.0, 1.5, 4.0]))
            houses.append(House(z, z + run, setback, height, tuple(wall.tolist()), int(rng.integers(2**31))))
            z += run
        sides.append(tuple(houses))
    uprights = []
    for side, width in zip((-1, 1), pavement, strict=True):
        kerb = road / 2 + 0.5
        for z in np.arange(rng.uniform(2, 20), length, rng.uniform(22.0, 32.0)):  # lamps, every 22 to 32 m
            uprights.append(Upright("lamp", side * kerb, float(z), float(rng.uniform(6.0, 8.0)), 0.17, 0))
        green = rng.random() < 0.6  # an avenue, or single trees
        z = rng.uniform(3, 15)
        while z < length:
            if rng.random() < (0.85 if green else 0.25):
                s = side * (kerb + rng.uniform(0.3, max(0.4, width - 0.8)))
                crown, height, own = rng.uniform(1.6, 3.2), rng.uniform(5, 9), int(rng.integers(2**31))
                uprights.append(Upright("tree", s, float(z), float(height), float(2 * crown), own))
            z += rng.uniform(8.0, 14.0)
        for z in np.arange(rng.uniform(5, 30), length, rng.uniform(18.0, 40.0)):
            height, across, own = rng.uniform(2.4, 2.9), rng.uniform(0.6, 0.9), int(rng.integers(2**31))
            uprights.append(Upright("sign", side * (kerb + 0.1), float(z), float(height), float(across), own))
    return Street(road, pavement, (sides[0], sides[1]), tuple(uprights), int(rng.integers(2**31)))
