"""B-scans of simulated eyes: an anatomy (`retina`) placed in the depth window of a device (`devices`) and imaged.

Item (seed, subject, scan) is the same whatever was simulated before it, and the same eye may be seen by both devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unicorn_monai.simulation import retina
from unicorn_monai.simulation.devices import Device, acquire, supersampling


@dataclass(frozen=True)
class Scan:
    """A simulated B-scan: image and label (rows, columns) uint8, eye, scan, and (axial, lateral) pixel size in mm."""

    image: NDArray[np.uint8]
    label: NDArray[np.uint8]
    subject: int
    scan: int
    spacing_mm: tuple[float, float]


def simulate_scan(device: Device, subject: int, scan: int, size: int | tuple[int, int] = 256, seed: int = 0) -> Scan:
    """Simulate one B-scan; it depends on (seed, subject, scan), the device and the size, on nothing drawn before.

    The anatomy does not depend on the device or the size: both devices may look at the same eye.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    if min(rows, columns) < 8:
        raise ValueError(
            f"size {size}: expected at least 8 pixels each way; choose 64 or more to tell the layers apart"
        )
    # The last number keeps the three streams apart: numpy pads seeds with zeros, so (1, 2) and (1, 2, 0) are the same.
    eye = retina.draw_subject(np.random.default_rng([seed, subject, 0, 1]))
    cut = retina.draw_slice(np.random.default_rng([seed, subject, scan, 2]))
    rng = np.random.default_rng([seed, subject, scan, 3])

    width, depth = rng.uniform(*device.width_mm), rng.uniform(*device.depth_um)
    centre, share = rng.uniform(*device.offset_mm), rng.uniform(*device.ilm_position)
    spacing = (depth / rows, 1e3 * width / columns)
    a, b = supersampling(device, spacing)
    x = centre + width * ((np.arange(columns) + 0.5) / columns - 0.5)
    x_fine = centre + width * ((np.arange(columns * b) + 0.5) / (columns * b) - 0.5)
    z, z_fine = ((np.arange(n) + 0.5) * depth / n for n in (rows, rows * a))

    surfaces = retina.surfaces(eye, cut, x_fine)
    top = share * depth - surfaces[0].mean()
    # Keep the whole retina in the window where it fits: rather cut the choroid than the layers.
    top = max(min(top, 0.95 * depth - surfaces[-1].max()), 0.03 * depth - surfaces[0].min())
    surfaces += top
    labels = retina.label_map(retina.surfaces(eye, cut, x) + top, z)
    reflectivity = retina.reflectivity(eye, cut, surfaces, x_fine, z_fine)
    image, labels = acquire(reflectivity, labels, spacing, device, rng)
    return Scan(image, labels, subject, scan, (spacing[0] * 1e-3, spacing[1] * 1e-3))


def simulate(
    device: Device,
    n_subjects: int,
    scans_per_subject: int,
    size: int | tuple[int, int] = 256,
    seed: int = 0,
    first_subject: int = 0,
) -> Iterator[Scan]:
    """Simulate the B-scans of several eyes, numbered from ``first_subject``, see `simulate_scan`."""
    for subject in range(first_subject, first_subject + n_subjects):
        for scan in range(scans_per_subject):
            yield simulate_scan(device, subject, scan, size, seed)
