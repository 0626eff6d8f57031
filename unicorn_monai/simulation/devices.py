"""From reflectivity to grey levels: the image formation of a clinical scanner and of a home device, in physical order.

    f_j = h * (sqrt(g R) c_j),  c_j ~ CN(0, 1),          complex speckle through the point spread function h, gain g(x)
    I   = 1/N sum_j |f_j + n_j|^2 + P Gamma(M - N) / M,  N looks; noise power P averaged over M >= N frames
    image = display(row and column gain * I)             fourth root (Spectralis) or logarithm (home OCT), area average

R already holds the motion and the haze. The noise is exact for M frames, M / N of each of the N speckle patterns:
n_j ~ CN(0, P N / M) is what averaging leaves of it in a look, the Gamma term what squaring has added.
Every parameter is a range from which each B-scan draws uniformly. `HOME_OCT` (self-examination low-cost full-field OCT)
holds plausible ranges chosen by physics and difficulty; it is NOT calibrated on any image of a home device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates, zoom
from scipy.signal import lfilter

from unicorn_monai.simulation.effects import Effect

Array = NDArray[np.floating]
Range = tuple[float, float]
Settings = dict[str, float]

_FWHM_TO_SIGMA = 1 / (2 * math.sqrt(2 * math.log(2)))
_HAZE_LATERAL_UM = 40.0  # sigma


@dataclass(frozen=True, kw_only=True)
class Device:
    """Ranges of the image formation parameters of one device; a B-scan draws each of them, in this order, uniformly."""

    name: str  # written into data sets
    width_mm: Range  # lateral field of view
    depth_um: Range  # depth window
    offset_mm: Range  # the fovea's distance from the middle of the field
    ilm_position: Range  # mean depth of the inner limiting membrane as a share of the depth window
    axial_fwhm_um: Range  # width of the point spread function in depth (field amplitude)
    lateral_fwhm_um: Range  # its lateral width
    looks: Range  # independent speckle patterns averaged, N; infinite = the expected image without speckle
    frames: Range  # frames averaged against noise, M; at least N is used
    noise_db: Range  # noise power before averaging, dB re RPE band; -inf = none
    haze: Range  # share of the light that is scattered several times and arrives late
    haze_tail_um: Range = (60.0, 140.0)  # decay length of the haze in depth
    vignette_db: Range  # loss of signal at the edge of the field
    column_gain_db: Range  # standard deviation of the signal over columns
    row_gain_db: Range = (0.0, 0.0)  # standard deviation of the brightness over rows
    row_jitter_um: Range = (0.0, 0.0)  # lateral shift of the rows (standard deviation); each is one camera frame
    depth_jitter_um: Range = (0.0, 0.0)  # error of the rows' depth (standard deviation)
    fixed_pattern: Range = (0.0, 0.0)  # relative standard deviation of the fixed column pattern
    black_percentile: Range = (0.0, 0.0)  # of the image, shown as black (logarithmic display)
    white_percentile: Range = (100.0, 100.0)  # shown as white
    saturated_line: float = 0.0  # probability that one row is saturated
    subtract_noise: bool  # the mean noise power
    logarithmic: bool  # instead of fourth-root display
    effects: tuple[Effect, ...] = ()  # what it does to the light, in this order, before speckle and noise
    inverted: bool = False  # dark on bright

    def draw(self, rng: np.random.Generator) -> Settings:
        """Draw the parameters of one B-scan: a number for every range, whole numbers for looks and frames."""
        settings: Settings = {}
        for name, limits in vars(self).items():
            if not isinstance(limits, tuple) or name == "effects":
                continue
            low, high = limits
            if name in ("looks", "frames") and math.isfinite(high):
                settings[name] = int(rng.integers(int(low), int(high) + 1))
            else:
                settings[name] = float(rng.uniform(low, high)) if high > low else float(low)
        settings["saturated_line"] = float(rng.random() < self.saturated_line)
        return settings


# Scanning spectral-domain device with eye tracking; nominal figures of the maker (7 um axial, 14 um lateral, 1.92 mm
# deep, 20-30 degrees), point spread from Spaide (2022); noise, looks and display fitted to grey levels of Tian (2015).
SPECTRALIS = Device(
    name="spectralis",
    width_mm=(5.6, 8.8),  # 20 to 30 degrees
    depth_um=(1920.0, 1920.0),  # 496 pixels of 3.87 um
    offset_mm=(-0.7, 0.7),
    ilm_position=(0.22, 0.45),
    axial_fwhm_um=(8.0, 11.0),  # 7 um in intensity, nominal; correlation of raw data at 3.87 um: 0.7
    lateral_fwhm_um=(16.0, 30.0),  # 14 um nominal, wider after averaging of registered frames
    looks=(3, 8),  # (mean / sd)^2 of averaged raw scans: 3 to 5.4
    frames=(9, 60),  # averaged frames of a scan
    noise_db=(-30.0, -22.0),
    haze=(0.0, 0.004),  # confocal gate
    vignette_db=(0.0, 1.5),
    column_gain_db=(0.0, 0.5),
    subtract_noise=True,
    logarithmic=False,
)

# Off-axis full-field time-domain device (self-operated, 1-3 s per volume, no tracker). Publications give field, depth
# and sensitivity roughly; the rest is what such a device must show. Plausible ranges, not calibrated on any image.
HOME_OCT = Device(
    name="home_oct",
    width_mm=(4.0, 5.0),  # published fields: 3 x 3 to 4.5 x 1.4 mm
    depth_um=(1000.0, 1400.0),
    offset_mm=(-1.0, 1.0),  # no operator
    ilm_position=(0.10, 0.60),
    axial_fwhm_um=(10.0, 14.0),
    lateral_fwhm_um=(18.0, 40.0),  # defocus and aberrations uncorrected
    looks=(1, 2),
    frames=(1, 2),
    noise_db=(-17.0, -9.5),  # sensitivity 75-80 dB against 95 dB
    haze=(0.02, 0.10),  # parallel detection has no confocal gate: cross-talk
    vignette_db=(1.0, 9.0),
    column_gain_db=(0.2, 1.2),
    row_gain_db=(0.15, 0.8),  # one camera frame per row: the source flickers
    row_jitter_um=(3.5, 24.0),  # 0.2 to 1.4 pixels of 17 um: the eye drifts between the frames
    depth_jitter_um=(0.0, 2.4),  # 0 to 0.5 pixels of 4.7 um
    fixed_pattern=(0.015, 0.06),
    black_percentile=(2.0, 12.0),
    white_percentile=(99.3, 99.9),
    saturated_line=0.12,
    subtract_noise=False,
    logarithmic=True,
)


def supersampling(device: Device, spacing_um: tuple[float, float]) -> tuple[int, int]:
    """How many times finer (rows, columns), at most 4, the physics must be computed to resolve the speckle grains."""
    grain = (np.mean(device.axial_fwhm_um), np.mean(device.lateral_fwhm_um))
    rows, columns = (min(max(math.ceil(d / (0.8 * g)), 1), 4) for d, g in zip(spacing_um, grain, strict=True))
    return rows, columns


def area_average(image: Array, factor: tuple[int, int]) -> Array:
    """Average blocks of `factor` pixels, (rows * a, columns * b, ...) -> (rows, columns, ...)."""
    a, b = factor
    h, w = image.shape[0] // a, image.shape[1] // b
    return image.reshape(h, a, w, b, *image.shape[2:]).mean(axis=(1, 3))


def motion_field(settings: Settings, rows: int, row_um: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """Displacement of every row: depth error (white) and lateral shift (random walk without its slow part).

    A drift over the whole retina would only shear it; the walk is therefore high-passed at 60 um of depth. In um.
    """
    dz = settings["depth_jitter_um"] * rng.standard_normal(rows)
    walk = np.cumsum(rng.standard_normal(rows))
    walk -= gaussian_filter1d(walk, 60.0 / row_um, mode="nearest")
    return dz, settings["row_jitter_um"] * walk / (walk.std() + 1e-9)


def move(image: NDArray, dz: Array, dx: Array, order: int) -> NDArray:
    """Resample an image: row i looks at row i + dz[i], its columns shifted by dx[i] (pixels); edges are repeated."""
    if not (np.any(dz) or np.any(dx)):
        return image
    h, w = image.shape
    rows = np.broadcast_to((np.arange(h) + dz)[:, None], (h, w))
    columns = np.arange(w)[None, :] + dx[:, None]
    return map_coordinates(image, (rows, columns), order=order, mode="nearest", output=image.dtype)


def add_haze(reflectivity: Array, settings: Settings, spacing_um: tuple[float, float]) -> Array:
    """Add the share of the light that arrives late: an exponential tail in depth, blurred laterally."""
    if settings["haze"] <= 0:
        return reflectivity
    keep = math.exp(-spacing_um[0] / settings["haze_tail_um"])
    tail = lfilter(np.array([1 - keep], np.float32), np.array([1, -keep], np.float32), reflectivity, axis=0)
    tail = gaussian_filter1d(tail, _HAZE_LATERAL_UM / spacing_um[1], axis=1, mode="nearest", truncate=3.0)
    return reflectivity + np.float32(settings["haze"]) * tail


def speckle(
    reflectivity: Array, settings: Settings, spacing_um: tuple[float, float], rng: np.random.Generator
) -> Array:
    """Return the intensity, equations 1 and 2 of the module header, in units of the reflectivity.

    The point spread function has unit energy, so the expected signal of a uniform medium is its reflectivity. With
    infinitely many looks the expectation itself, |h|^2 * R + P, is returned.
    """
    fwhm = (settings["axial_fwhm_um"], settings["lateral_fwhm_um"])
    sigma = [f * _FWHM_TO_SIGMA / d for f, d in zip(fwhm, spacing_um, strict=True)]
    noise = 10 ** (settings["noise_db"] / 10)
    looks = settings["looks"]
    if not math.isfinite(looks):
        out = reflectivity
        for axis, s in enumerate(sigma):
            if s > 0:
                out = gaussian_filter1d(out, s / math.sqrt(2), axis=axis, mode="nearest", truncate=4.0)
        return out + np.float32(noise)

    looks, frames = int(looks), max(int(settings["frames"]), int(looks))
    pad = [math.ceil(3 * s) for s in sigma]
    amplitude = np.sqrt(0.5 * reflectivity).astype(np.float32)
    amplitude = np.pad(amplitude, ((pad[0], pad[0]), (pad[1], pad[1])), mode="edge")
    field = rng.standard_normal((looks, 2, *amplitude.shape), dtype=np.float32) * amplitude
    for axis, s in enumerate(sigma):
        if s > 0:
            # "wrap" keeps the variance up to the border; what it carries over is cut off with the padding.
            field = gaussian_filter1d(field, s, axis=axis + 2, mode="wrap", truncate=3.0)
            radius = int(3 * s + 0.5)
            kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / s) ** 2)
            field *= np.float32(kernel.sum() / math.sqrt((kernel**2).sum()))
    h, w = reflectivity.shape
    field = field[..., pad[0] : pad[0] + h, pad[1] : pad[1] + w]
    if noise > 0:
        rest = np.float32(math.sqrt(0.5 * noise * looks / frames))
        field = field + rest * rng.standard_normal(field.shape, dtype=np.float32)
    intensity = np.einsum("ncij,ncij->ij", field, field) / np.float32(looks)
    if noise > 0 and frames > looks:
        intensity += np.float32(noise / frames) * rng.standard_gamma(frames - looks, (h, w), dtype=np.float32)
    return intensity


def display(
    intensity: Array, settings: Settings, device: Device, factor: tuple[int, int] = (1, 1)
) -> NDArray[np.uint8]:
    """Map intensity (1 = RPE band) to grey levels and reduce the size by area averaging.

    Fourth root: 255 (0.30 I)^(1/4), as in exports of the Spectralis. Logarithm: stretched between two percentiles.
    """
    if device.logarithmic:
        shown = area_average(np.log10(np.maximum(intensity, 1e-9)), factor)
        black, white = np.percentile(shown, [settings["black_percentile"], settings["white_percentile"]])
        grey = 255 * (shown - black) / max(white - black, 1e-6)
    else:
        grey = area_average(255 * np.sqrt(np.sqrt(0.30 * np.maximum(intensity, 0.0))), factor)
    shown = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return 255 - shown if device.inverted else shown


def _db(value: Array) -> NDArray[np.float32]:
    return np.power(10.0, np.asarray(value) / 10).astype(np.float32)


def acquire(
    reflectivity: Array,
    labels: NDArray[np.uint8],
    spacing_um: tuple[float, float],
    device: Device,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Take a B-scan of a reflectivity map; the motion of the eye moves the labels along with the image.

    Args:
        reflectivity: (rows * a, columns * b) linear reflectivity, 1 = RPE band, a and b whole numbers.
        labels: (rows, columns) label map; its shape is the size of the image.
        spacing_um: (axial, lateral) size of an IMAGE pixel.
        device: ranges of the image formation.
        rng: draws the parameters of this B-scan, speckle and noise.
    """
    h, w = labels.shape
    a, b = reflectivity.shape[0] // h, reflectivity.shape[1] // w
    if a < 1 or b < 1 or reflectivity.shape != (a * h, b * w):
        raise ValueError(
            f"reflectivity of shape {reflectivity.shape} is no whole multiple of the label map's shape {labels.shape}; "
            "compute it on a grid `supersampling(...)` times finer"
        )
    settings = device.draw(rng)
    fine = (spacing_um[0] / a, spacing_um[1] / b)
    if device.effects:
        finely = labels.repeat(a, axis=0).repeat(b, axis=1)
        for effect in device.effects:
            reflectivity, finely = effect(reflectivity, finely, fine, rng)
        labels = finely[a // 2 :: a, b // 2 :: b]
    dz, dx = motion_field(settings, h, spacing_um[0], rng)
    labels = move(labels, dz / spacing_um[0], dx / spacing_um[1], order=0)
    signal = reflectivity.astype(np.float32, copy=False)
    signal = move(signal, np.repeat(dz, a) / fine[0], np.repeat(dx, a) / fine[1], order=1)
    signal = add_haze(signal, settings, fine)

    u = np.linspace(-1, 1, b * w) - rng.uniform(-0.3, 0.3)
    column_db = gaussian_filter1d(rng.standard_normal(b * w), 60.0 / fine[1], mode="wrap")
    column_db *= settings["column_gain_db"] / (column_db.std() + 1e-9)
    signal = signal * _db(column_db - settings["vignette_db"] * u**2)[None, :]

    intensity = speckle(signal, settings, fine, rng)
    if device.subtract_noise:
        intensity = intensity - np.float32(10 ** (settings["noise_db"] / 10))
    row_gain = _db(settings["row_gain_db"] * rng.standard_normal(h))
    pattern = np.maximum(1 + settings["fixed_pattern"] * rng.standard_normal(w), 0.1).astype(np.float32)
    intensity = intensity * np.repeat(row_gain, a)[:, None] * np.repeat(pattern, b)[None, :]
    image = display(intensity, settings, device, (a, b))
    if settings["saturated_line"]:
        image[int(rng.integers(h))] = 255
    return image, labels


def linear_reflectivity(image: Array | NDArray[np.uint8]) -> NDArray[np.float32]:
    """Invert the display curve of the Spectralis, v = (grey / 255)^4 / 0.30, so that the RPE band is about 1."""
    return ((image.astype(np.float32) / 255) ** 4 / np.float32(0.30)).astype(np.float32)


def degrade(
    image: Array | NDArray[np.uint8],
    labels: NDArray[np.uint8],
    spacing_um: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Show a real B-scan as `HOME_OCT` would have seen it, by taking its grey levels for the reflectivity.

    What is left of the first device's speckle would be squared with the second's: the grey levels are smoothed before
    the display curve is inverted. The anatomy stays real, the second device is simulated.

    Args:
        image: (rows, columns), 8-bit Spectralis display image, or floating-point linear reflectivity (1 = RPE band).
        labels: (rows, columns) label map; 255 is moved along like any label.
        spacing_um: (axial, lateral) pixel size.
        rng: source of randomness.
    """
    if image.ndim != 2 or image.shape != labels.shape:
        raise ValueError(f"image {image.shape} and label map {labels.shape}: expected one shape (rows, columns)")
    if image.dtype == np.uint8:
        grey = gaussian_filter(image.astype(np.float32), [5.0 / spacing_um[0], 25.0 / spacing_um[1]])
        linear = linear_reflectivity(grey)
    elif np.issubdtype(image.dtype, np.floating):
        linear = np.maximum(image, 0).astype(np.float32)
    else:
        raise ValueError(f"image of type {image.dtype}: expected uint8 grey levels or floating-point reflectivity")
    fine = zoom(linear, supersampling(HOME_OCT, spacing_um), order=1, mode="nearest", grid_mode=True)
    return acquire(fine, labels, spacing_um, HOME_OCT, rng)
