"""What other devices do to the light that comes back, one effect at a time, before speckle and noise.

    contrast     R *= 10^(c_k / 10) in layer k                        another wavelength
    choroid      R = max(R, 10^((c - a z) / 10)) below Bruch's membrane, z deep, and a bright sclera behind it
    roll-off     R *= 10^(-s z / 10), z depth in the window           finite coherence of a swept source
    fringes      R += 10^(f / 10) in a few rows, always the same      residual of the reference arm
    retardation  R *= 1 - m sin^2 d,  d = d_0 + d_x x + 2 b t         one polarisation; t of nerve fibres
    shadows      R *= 10^(-s g(x) / 10) below a floater or vessel     less light reaches what lies behind
    mirror       R += 10^(-l / 10) R(2 z_0 - z)                       conjugate term of a full-range system
    steps        R(x, z) -> R(x, z + d_j) in group j of the A-scans   the eye moves between the groups

An effect has the labels of the pixels: it knows the layers, and steps move both. Every parameter is a range from which
each B-scan draws uniformly; sources stand at the devices that use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

Array = NDArray[np.floating]
Labels = NDArray[np.uint8]
Range = tuple[float, float]

RNFL, RPE, BELOW = 1, 8, 9  # labels of `retina.LABELS`


class Effect(Protocol):
    """Changes the light of one B-scan."""

    def __call__(
        self, light: Array, labels: Labels, spacing_um: tuple[float, float], rng: np.random.Generator
    ) -> tuple[Array, Labels]:
        """Linear reflectivity and labels (rows, columns) of one shape, pixels of (axial, lateral) um -> the same."""
        ...


def linear(db: Array | float) -> NDArray[np.float32]:
    """Decibels as a factor."""
    return np.power(10.0, np.asarray(db) / 10).astype(np.float32)


def depth_below(labels: Labels, label: int, axial_um: float) -> Array:
    """How deep every pixel lies below the first of ``label`` in its column, um; negative above it or without one."""
    here = labels >= label
    first = np.where(here.any(axis=0), here.argmax(axis=0), labels.shape[0])
    return (np.arange(labels.shape[0])[:, None] - first[None, :]) * axial_um


@dataclass(frozen=True)
class Contrast:
    """Layers reflect more or less than at 870 nm: label -> dB."""

    db: Mapping[int, Range]

    def __call__(
        self, light: Array, labels: Labels, spacing_um: tuple[float, float], rng: np.random.Generator
    ) -> tuple[Array, Labels]:
        """Each layer by its own draw."""
        table = np.zeros(256)
        for label, drawn in self.db.items():
            table[label] = rng.uniform(*drawn)
        return light * linear(table)[labels], labels


@dataclass(frozen=True)
class Choroid:
    """Light reaches the choroid, and the sclera behind it.

    Args:
        db: of the choroid below Bruch's membrane, dB re RPE band.
        loss_db_mm: how fast it fades, dB per mm.
        thickness_um: of the choroid.
        sclera_db: what the sclera adds, dB.
    """

    db: Range
    loss_db_mm: Range
    thickness_um: Range
    sclera_db: Range

    def __call__(
        self, light: Array, labels: Labels, spacing_um: tuple[float, float], rng: np.random.Generator
    ) -> tuple[Array, Labels]:
        """The border to the sclera undulates smoothly; what is brighter already, or darkened by vessels, stays."""
        db, loss, thickness, sclera = (
            rng.uniform(*r) for r in (self.db, self.loss_db_mm, self.thickness_um, self.sclera_db)
        )
        wave = gaussian_filter1d(rng.standard_normal(labels.shape[1]), 400.0 / spacing_um[1], mode="wrap")
        border = thickness * (1 + 0.12 * (wave - wave.mean()) / (wave.std() + 1e-9))
        deep = depth_below(labels, BELOW, spacing_um[0])
        level = linear(db - loss * deep * 1e-3 + sclera * (deep > border))
        return np.where(deep >= 0, np.maximum(light, level), light).astype(np.float32), labels


@dataclass(frozen=True)
class RollOff:
    """Sensitivity falls with depth, dB per mm."""

    db_mm: Range

    def __call__(
        self, light: Array, labels: Labels, spacing_um: tuple[float, float], rng: np.random.Generator
    ) -> tuple[Array, Labels]:
        """From the first row on."""
        depth = np.arange(light.shape[0]) * spacing_um[0] * 1e-3
        return light * linear(-rng.uniform(*self.db_mm) * depth)[:, None], labels


@dataclass(frozen=True)
class Fringes:
    """Bright rows at depths that belong to the device.

    Args:
        db: of a row, dB re RPE band.
        depths: shares of the depth window.
        thickness_um: of each.
    """

    db: Range
    depths: tuple[float, ...]
    thickness_um: float = 8.0

    def __call__(
        self, light: Array, labels: Labels, spacing_um: tuple[float, float], rng: np.random.Generator
    ) -> tuple[Array, Labels]:
        """Every row with a brightness of its own."""
        z = (np.arange(light.shape[0]) + 0.5) * spacing_um[0]
        lines = np.zeros(light.shape[0])
        for share in self.depths:
            near = (z - share * light.shape[0] * spacing_um[0]) / self.thickness_um
            lines += linear(rng.uniform(*self.db)) * np.exp(-0.5 * near**2)
        return (light + lines[:, None]).astype(np.float32), labels


@dataclass(frozen=True)
class Retardation:
    """One polarisation is detected: what birefringent tissue has turned away is lost.

    Args:
        mixed: share m of the light that is polarised; the pigment epithelium depolarises its own.
        start: d_0, of cornea and alignment, rad.
        slope: d_x over half the field, rad.
        rad_um: b, of the nerve fibres, rad per um, passed twice.
        below_rad_um: of choroid and sclera, rad per um.
    """

    mixed: Range
    start: Range
    slope: Range
    rad_um: Range
    below_rad_um: Range

    def __call__(
        self, light: Array, labels: Labels, spacing_um: tuple[float, float], rng: np.random.Generator
    ) -> tuple[Array, Labels]:
        """Fibres above a pixel turn its light too."""
        mixed, start, slope, fibres, below = (
            rng.uniform(*r) for r in (self.mixed, self.start, self.slope, self.rad_um, self.below_rad_um)
        )
        passed = spacing_um[0] * (
            fibres * np.cumsum(labels == RNFL, axis=0) + below * np.cumsum(labels == BELOW, axis=0)
        )
        angle = start + slope * np.linspace(-1, 1, labels.shape[1])[None, :] + 2 * passed
        lost = np.where(labels == RPE, 0.5, np.sin(angle) ** 2)
        return (light * (1 - mixed * lost)).astype(np.float32), labels


@dataclass(frozen=True)
class Shadows:
    """Floaters and vessels darken what lies behind them.

    Args:
        count: of shadows in a B-scan.
        db: loss in the middle of each, dB.
        width_um: standard deviation across, um.
        vitreous: whether they begin above the retina (floaters), else below the nerve fibres (vessels).
    """

    count: tuple[int, int]
    db: Range
    width_um: Range
    vitreous: bool

    def __call__(
        self, light: Array, labels: Labels, spacing_um: tuple[float, float], rng: np.random.Generator
    ) -> tuple[Array, Labels]:
        """Each at a place of its own."""
        x, loss = np.arange(labels.shape[1]) * spacing_um[1], np.zeros(labels.shape[1])
        for _ in range(rng.integers(self.count[0], self.count[1] + 1)):
            distance = (x - rng.uniform(0, x[-1])) / rng.uniform(*self.width_um)
            loss += rng.uniform(*self.db) * np.exp(-0.5 * distance**2)
        behind = labels > (0 if self.vitreous else RNFL)
        return np.where(behind, light * linear(-loss)[None, :], light), labels


@dataclass(frozen=True)
class Mirror:
    """The conjugate image of a full-range system, upside down about zero delay.

    Args:
        loss_db: how much weaker it is, dB.
        zero_delay: share of the depth window.
    """

    loss_db: Range
    zero_delay: Range

    def __call__(
        self, light: Array, labels: Labels, spacing_um: tuple[float, float], rng: np.random.Generator
    ) -> tuple[Array, Labels]:
        """What lies outside of the window has no mirror image in it."""
        factor, middle = linear(-rng.uniform(*self.loss_db)), rng.uniform(*self.zero_delay)
        source = round(2 * middle * light.shape[0]) - 1 - np.arange(light.shape[0])
        inside = (source >= 0) & (source < light.shape[0])
        return light + factor * np.where(inside[:, None], light[source.clip(0, light.shape[0] - 1)], 0), labels


@dataclass(frozen=True)
class Steps:
    """The eye moves in depth between groups of A-scans.

    Args:
        groups: of a B-scan.
        depth_um: standard deviation of the step, um.
    """

    groups: tuple[int, int]
    depth_um: Range

    def __call__(
        self, light: Array, labels: Labels, spacing_um: tuple[float, float], rng: np.random.Generator
    ) -> tuple[Array, Labels]:
        """Light and labels by the same whole pixels; the edges are repeated."""
        rows, columns = labels.shape
        borders = np.sort(
            rng.choice(np.arange(1, columns), rng.integers(self.groups[0], self.groups[1] + 1) - 1, False)
        )
        group = np.searchsorted(borders, np.arange(columns), side="right")
        moved = rng.normal(0, rng.uniform(*self.depth_um) / spacing_um[0], len(borders) + 1).round().astype(int)
        source = (np.arange(rows)[:, None] + moved[group][None, :]).clip(0, rows - 1)
        return np.take_along_axis(light, source, axis=0), np.take_along_axis(labels, source, axis=0)
