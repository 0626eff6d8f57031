"""Layer geometry and reflectivity of a healthy macula, in micrometres and decibels, independent of any device.

A subject is a set of thickness, shape and vessel parameters; a slice is one B-scan through that anatomy at a distance
y from the fovea. Both can be evaluated on any grid, so that 64 and 512 columns show the same eye.

Thickness of layer i at (x, y), r = hypot(x, y) in mm, with a pit p, a lognormal factor s_i and smooth roughness n_i:

    t_i(x, y) = s_i * s * T_i(r / p) * (1 + n_i(x)),        z_k(x) = z_BM(x) - sum_{i >= k} t_i(x, y)

T_i follow the published ring means of Spectralis normals (Nieves-Moreno et al., PLoS ONE 12:e0180450, 2017; pit shape:
Dubis et al., IOVS 53:1628, 2012); the reflectivities were measured in the B-scans of Tian et al., PLoS ONE 10:e0133908
(2015), assuming the display curve grey = v^(1/4). Healthy eyes only: no drusen, no fluid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

Array = NDArray[np.floating]

_LAYERS = ("vitreous", "RNFL", "GCL+IPL", "INL", "OPL", "ONL", "IS", "OS", "RPE", "choroid and below")
LABELS: dict[int, str] = dict(enumerate(_LAYERS))
N_SURFACES = len(LABELS) - 1  # surface k (0-based) is the upper border of label k + 1: ILM, ..., Bruch's membrane

# Spread of the lognormal thickness factor of each layer RNFL..RPE between subjects (healthy ring means vary 5-25 %).
_FACTOR_SD = np.array([0.20, 0.10, 0.10, 0.10, 0.10, 0.06, 0.08, 0.06])
_MIN_THICKNESS_UM = 1.0  # the nerve fibre layer vanishes in the foveola; surfaces may touch but must not cross

# What reflects, from front to back: apparent reflectivity in dB relative to the RPE band. Labels lump some of these:
# RNFL | GCL, IPL | INL | OPL | Henle fibres, ONL | ELM, myoid | EZ, OS | IZ, RPE | choriocapillaris, choroid.
TISSUES: dict[str, float] = {
    "vitreous": -60.0,
    "RNFL": -2.0,
    "GCL": -9.0,
    "IPL": -6.8,
    "INL": -12.5,
    "OPL": -9.5,
    "HFL": -18.5,
    "ONL": -18.5,
    "ELM": -14.0,
    "myoid": -17.5,
    "EZ": 0.0,
    "OS": -2.8,
    "IZ": -1.2,
    "RPE": -0.2,
    "choriocapillaris": -5.0,
    "choroid": -9.5,
}
_TISSUE = {name: i for i, name in enumerate(TISSUES)}

# Roughness and waviness live on this fixed grid (mm), hence do not depend on the number of columns of the image.
_GRID_STEP_MM = 0.02
_GRID_MM = np.arange(-7.0, 7.0 + _GRID_STEP_MM / 2, _GRID_STEP_MM)


@dataclass(frozen=True)
class Vessel:
    """A retinal vessel: crosses the slice y (mm) at x = x0 + slope * y + bend * y^2."""

    x0_mm: float
    slope: float
    bend: float
    diameter_um: float
    shadow_db: float


@dataclass(frozen=True)
class Subject:
    """The anatomy all B-scans of one eye share."""

    factors: Array  # (8,) of the thickness of each layer RNFL..RPE
    pit: float  # width of the foveal pit relative to the mean
    floor_um: Array  # (3,) thickness of GCL+IPL, INL and OPL left in the foveola
    nasal: int  # +1 or -1, the side of the optic disc (right or left eye)
    tilt: float  # inclination of Bruch's membrane, um per mm
    curvature: float  # its curvature, um per mm^2 (negative: edges up)
    jitter_db: Array  # (16,) deviation of each tissue's reflectivity
    henle: int  # -1, 0 or +1, the side on which the Henle fibre layer is lit up by oblique incidence
    choroid_slope: float  # loss of signal in the choroid, dB per um
    vessels: tuple[Vessel, ...]


@dataclass(frozen=True)
class Slice:
    """What belongs to a single B-scan: its place in the eye and the small-scale texture found there."""

    y_mm: float  # distance from the fovea
    tilt: float  # inclination on top of the subject's (how the pupil was entered), um per mm
    gain_db: float  # brightness of the whole scan
    roughness: Array  # (8, grid) relative thickness deviation on the fixed lateral grid
    waviness_um: Array  # (grid,) undulation of Bruch's membrane
    choroid_vessels: Array  # (n, 5) rows of x mm, depth below Bruch's membrane um, half width um, half height um, dB


def _smooth_noise(rng: np.random.Generator, rows: int, length_um: float) -> Array:
    """Unit-variance noise on the fixed grid, (rows, grid), with the given correlation length."""
    sigma = length_um * 1e-3 / _GRID_STEP_MM
    noise = gaussian_filter1d(rng.standard_normal((rows, _GRID_MM.size)), sigma, axis=-1, mode="wrap")
    return noise / noise.std(axis=-1, keepdims=True)


def draw_subject(rng: np.random.Generator) -> Subject:
    """Draw the anatomy of one eye."""
    vessels = tuple(
        Vessel(
            x0_mm=float(rng.uniform(-4.0, 4.0)),
            slope=float(rng.normal(0.0, 0.3)),
            bend=float(rng.normal(0.0, 0.1)),
            diameter_um=float(rng.uniform(20.0, 110.0)),
            shadow_db=float(rng.uniform(2.0, 9.0)),
        )
        for _ in range(rng.poisson(5.0))  # 5 in 8 mm: about 3.5 in the field of a typical scan
    )
    return Subject(
        factors=np.exp(rng.normal(0.0, 0.05) + rng.normal(0.0, _FACTOR_SD)),
        pit=float(np.exp(rng.normal(0.0, 0.15))),
        floor_um=rng.uniform([2.0, 1.0, 2.0], [16.0, 6.0, 9.0]),
        nasal=int(rng.choice([-1, 1])),
        tilt=float(rng.normal(0.0, 12.0)),
        curvature=float(rng.normal(-5.0, 6.0)),
        jitter_db=rng.normal(0.0, 1.2, len(TISSUES)),
        henle=int(rng.choice([-1, 1])) if rng.random() < 0.4 else 0,
        choroid_slope=float(rng.uniform(0.055, 0.10)),
        vessels=vessels,
    )


def draw_slice(rng: np.random.Generator) -> Slice:
    """Draw one B-scan position: through the fovea (35 %), close to it (35 %), anywhere within 2.2 mm (30 %)."""
    kind = rng.random()
    y_mm = 0.0 if kind < 0.35 else rng.normal(0.0, 0.15) if kind < 0.70 else rng.uniform(-2.2, 2.2)
    n = int(rng.integers(25, 61))
    limits = ((-5.0, 5.0), (40.0, 300.0), (30.0, 150.0), (15.0, 60.0), (-8.0, -3.0))
    choroid_vessels = np.stack([rng.uniform(low, high, n) for low, high in limits], axis=1)
    return Slice(
        y_mm=float(y_mm),
        tilt=float(rng.normal(0.0, 13.0)),
        gain_db=float(rng.normal(0.0, 2.0)),
        roughness=0.035 * _smooth_noise(rng, N_SURFACES - 1, 120.0),
        waviness_um=3.0 * _smooth_noise(rng, 1, 400.0)[0],
        choroid_vessels=choroid_vessels,
    )


def thickness(subject: Subject, x_mm: Array, y_mm: float, roughness: Array | float = 0.0) -> Array:
    """Thickness of the layers RNFL..RPE, (8, columns) in um, at least 1 um everywhere; ``roughness`` is relative."""
    x = np.asarray(x_mm, dtype=np.float64)
    r = np.hypot(x, y_mm)
    rp = r / subject.pit
    nasal = np.clip(subject.nasal * x - 0.7, 0.0, None)
    gcipl, inl, opl = subject.floor_um
    layers = np.stack(
        [
            22 * (1 - np.exp(-((rp / 0.9) ** 2))) + 17 * nasal * np.exp(-((y_mm / 3) ** 2)),
            gcipl + 82 * (1 - np.exp(-((rp / 0.55) ** 2))) * (0.55 + 0.45 * np.exp(-(((r - 1) / 1.25) ** 2))),
            inl + 33 * (1 - np.exp(-((rp / 0.5) ** 2))) * (0.78 + 0.22 * np.exp(-(((r - 1) / 1.2) ** 2))),
            opl + 25 * (1 - np.exp(-((rp / 0.45) ** 2))),
            45 + 40 * np.exp(-((r / 0.6) ** 2)) + 14 * np.exp(-((r / 1.7) ** 2)),
            24 + 6 * np.exp(-((r / 0.35) ** 2)),
            22 + 15 * np.exp(-((r / 0.35) ** 2)),
            np.full_like(r, 41.0),
        ]
    )
    return np.maximum(layers * subject.factors[:, None] * (1 + roughness), _MIN_THICKNESS_UM)


def surfaces(subject: Subject, cut: Slice, x_mm: Array) -> Array:
    """Depth of the nine surfaces ILM..Bruch's membrane, (9, columns) in um; 0 is Bruch's membrane at the fovea.

    ``x_mm``: (columns,) lateral positions relative to the fovea, within +-7 mm.
    """
    x = np.asarray(x_mm, dtype=np.float64)
    rough = np.stack([np.interp(x, _GRID_MM, row) for row in cut.roughness])
    layers = thickness(subject, x, cut.y_mm, rough)
    bruch = (subject.tilt + cut.tilt) * x + subject.curvature * x**2 + np.interp(x, _GRID_MM, cut.waviness_um)
    above = np.concatenate([np.cumsum(layers[::-1], axis=0)[::-1], np.zeros((1, x.size))])
    return bruch - above


def label_map(surfaces_um: Array, depth_um: Array) -> NDArray[np.uint8]:
    """Rasterise surfaces: the label of a pixel is the number of surfaces at or above its centre.

    ``surfaces_um``: (9, columns); ``depth_um``: (rows,) of the pixel centres; the labels (rows, columns) are 0..9.
    """
    return (surfaces_um[:, None] <= depth_um[:, None]).sum(axis=0, dtype=np.uint8)


def reflectivity(subject: Subject, cut: Slice, surfaces_um: Array, x_mm: Array, depth_um: Array) -> NDArray[np.float32]:
    """Apparent reflectivity of the slice on a grid, (rows, columns), linear, above zero, 1 = the RPE band.

    ``surfaces_um``: (9, columns) from `surfaces` plus the position of the eye in the depth window; ``depth_um``:
    (rows,) of the pixel centres.
    """
    s = surfaces_um
    t = np.diff(s, axis=0)
    borders = np.stack(  # upper border of every tissue after the vitreous
        [
            s[0],
            s[1],
            s[1] + 0.45 * t[1],
            s[2],
            s[3],
            s[4],
            s[4] + 0.4 * t[4],
            s[5],
            s[5] + np.minimum(6.0, 0.4 * t[5]),
            s[6],
            s[6] + np.minimum(13.0, 0.7 * t[6]),
            s[7],
            s[7] + 0.4 * t[7],
            s[8],
            s[8] + 14.0,
        ]
    )
    db = np.repeat((np.array(list(TISSUES.values())) + subject.jitter_db)[:, None], s.shape[1], axis=1) + cut.gain_db
    db[_TISSUE["RNFL"]] -= 1.2 * np.exp(-t[0] / 15.0)  # thin nerve fibre layer: -3.2 dB
    # Henle fibres are seen only where the beam meets them obliquely, on one side of the pit.
    db[_TISSUE["HFL"]] += 3.5 * (subject.henle * x_mm > 0.3)

    z = np.asarray(depth_um, dtype=np.float32)
    index = (borders.astype(np.float32)[:, None] <= z[:, None]).sum(axis=0)
    out = np.take_along_axis(db.astype(np.float32), index, axis=0)

    below = np.clip(z[:, None] - borders[-1][None, :].astype(np.float32), 0.0, None)
    out -= np.float32(subject.choroid_slope) * below
    _add_choroid_vessels(out, cut.choroid_vessels, s[8], x_mm, z)
    _add_vessels(out, subject, cut.y_mm, s, x_mm, z)
    return np.power(np.float32(10), out / np.float32(10))


def _add_choroid_vessels(db: Array, ellipses: Array, bruch_um: Array, x_mm: Array, z_um: Array) -> None:
    """Darken the lumina of the choroidal vessels in place; each only touches its own columns."""
    for x0, depth, half_width, half_height, loss in ellipses:
        lo, hi = np.searchsorted(x_mm, [x0 - half_width * 1e-3, x0 + half_width * 1e-3])
        if lo == hi:
            continue
        u = (x_mm[lo:hi] - x0) * 1e3 / half_width
        v = (z_um[:, None] - (bruch_um[lo:hi] + depth)[None, :]) / half_height
        db[:, lo:hi] += loss * (u[None, :] ** 2 + v**2 < 1)


def _add_vessels(db: Array, subject: Subject, y_mm: float, s: Array, x_mm: Array, z_um: Array) -> None:
    """Add the bright lumen and the shadow (down to the bottom) of the retinal vessels in place."""
    for vessel in subject.vessels:
        x0, radius = vessel.x0_mm + vessel.slope * y_mm + vessel.bend * y_mm**2, vessel.diameter_um / 2
        if np.hypot(x0, y_mm) < 0.45:  # the foveal avascular zone
            continue
        lo, hi = np.searchsorted(x_mm, [x0 - radius * 1e-3, x0 + radius * 1e-3])
        if lo == hi:
            continue
        u = (x_mm[lo:hi] - x0) * 1e3 / radius
        chord = np.sqrt(np.clip(1 - u**2, 0.0, 1.0))
        centre = 0.5 * (s[0, lo:hi] + s[1, lo:hi])
        offset = z_um[:, None] - centre[None, :]
        db[:, lo:hi] -= vessel.shadow_db * chord * (offset > radius)
        lumen = (np.abs(offset) < chord * min(radius, 35.0)) & (z_um[:, None] > s[0, lo:hi])
        db[:, lo:hi] = np.where(lumen, np.maximum(db[:, lo:hi], -2.0), db[:, lo:hi])
