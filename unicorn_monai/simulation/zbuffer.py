"""A z-buffer under a pinhole camera: of everything painted, what is nearest is seen.

    u = c_x + f X / Z,   v = v_0 + f Y / Z            X right, Y down from the camera, Z ahead, metres

Painted finer than the image. The label of a pixel is what covers most of it; colours are averaged.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from unicorn_monai.simulation.street import ID, STREET_LABELS, Array, Street

CAMERA_HEIGHT_M = 1.6
FIELD_OF_VIEW = np.deg2rad(58.0)  # horizontal; of Cityscapes' camera about 50 degrees
SUPERSAMPLING = 3
UP, FROM_LEFT, FROM_RIGHT, FACING, DIFFUSE = range(5)  # where a surface looks; FROM_LEFT: a wall on the left

Region = tuple[slice, slice]


class Scene:
    """What is seen of a street: fields of samples, filled by ``paint``.

    Args:
        street: the street.
        z: place of the camera on it, metres.
        size: rows and columns of the image.
        horizon: its row as a share of the rows.
        shift: X of the street's axis at the camera, metres.
        yaw: by how much the axis moves to the right per metre.
    """

    def __init__(
        self, street: Street, z: float, size: tuple[int, int], horizon: float, shift: float, yaw: float
    ) -> None:
        self.street, self.z, self.size, self.shift, self.yaw = street, z, size, shift, yaw
        self.shape = rows, columns = SUPERSAMPLING * size[0], SUPERSAMPLING * size[1]
        self.focal, self.horizon = columns / 2 / np.tan(FIELD_OF_VIEW / 2), horizon * rows
        self.x = (np.arange(columns) + 0.5 - columns / 2)[None, :] / self.focal  # X / Z, (1, columns)
        self.y = (np.arange(rows) + 0.5 - self.horizon)[:, None] / self.focal  # Y / Z, (rows, 1)
        self.label = np.full(self.shape, ID["sky"], np.uint8)
        self.depth_m = np.full(self.shape, np.inf)  # along the optical axis
        self.albedo = np.zeros((*self.shape, 3))  # linear
        self.glow = np.zeros((*self.shape, 3))  # what shines by itself at night, 1 = a lit window
        self.looks = np.full(self.shape, DIFFUSE, np.uint8)  # where the surface looks
        self.sheltered = np.zeros(self.shape)  # share of the sky's light that something close by takes away
        self.lamps: list[tuple[float, float, float]] = []  # (metres right of the axis, above the ground, ahead)

    def paint(
        self,
        at: Region,
        mask: NDArray[np.bool_],
        depth: ArrayLike,
        label: str,
        albedo: ArrayLike,
        looks: ArrayLike,
        sheltered: ArrayLike = 0.0,
        glow: ArrayLike = 0.0,
    ) -> None:
        """Paint a part of the image where ``mask`` holds and nothing nearer is there."""
        mask = mask & (depth < self.depth_m[at])
        if not mask.any():
            return
        fields = (self.label, self.depth_m, self.looks, self.sheltered, self.albedo, self.glow)
        for field, value in zip(fields, (ID[label], depth, looks, sheltered, albedo, glow), strict=True):
            field[at][mask] = np.broadcast_to(value, (*mask.shape, *field.shape[2:]))[mask]

    def upright(
        self, s: float, z: float, width: float, top: float, draw: Callable[[Region, Array, Array], None]
    ) -> None:
        """Call ``draw(at, metres right of the middle, metres above the ground)`` for a flat thing that faces us."""
        if z < 1.0:
            return
        middle, columns = self.axis(z) + s, self.shape[1] / 2
        left, right = ((middle + side * width / 2) / z * self.focal + columns for side in (-1, 1))
        up, down = ((CAMERA_HEIGHT_M - h) / z * self.focal + self.horizon for h in (top, 0.0))
        rows = slice(max(0, int(up)), min(self.shape[0], int(down) + 2))
        across = slice(max(0, int(left)), min(self.shape[1], int(right) + 2))
        if rows.start < rows.stop and across.start < across.stop:
            a = self.x[:, across] * z - middle
            draw((rows, across), a, CAMERA_HEIGHT_M - self.y[rows] * z)

    def wall(self, s: float, near: float, far: float) -> tuple[Region, Array, Array] | None:
        """Where the rays meet a wall along the street from ``near`` to ``far``: region, Z, metres above the ground."""
        near = max(near, 0.5)
        if far <= near:
            return None
        ends = sorted((s + self.shift) / z + self.yaw for z in (near, far))
        first, last = (int(np.clip(e * self.focal + self.shape[1] / 2, -1, self.shape[1] + 1)) for e in ends)
        at = (slice(None), slice(max(0, first - 1), max(0, last + 2)))
        slope = self.x[:, at[1]] - self.yaw
        if slope.size == 0:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (s + self.shift) / slope
        z = np.where((np.abs(slope) > 1e-6) & (z > 0.4), z, 1e6)
        return at, np.broadcast_to(z, (self.shape[0], z.shape[1])), CAMERA_HEIGHT_M - self.y * z

    def ground(self) -> tuple[Region, Array, Array]:
        """Where the rays meet the ground: the region below the horizon, Z, and metres to the right of the axis."""
        at = (slice(int(np.argmax(self.y[:, 0] > 1e-3)), None), slice(None))
        z = np.broadcast_to(CAMERA_HEIGHT_M / self.y[at[0]], (self.shape[0] - at[0].start, self.shape[1]))
        return at, z, self.x * z - self.axis(z)

    def axis(self, z):
        """X of the street's axis at a distance."""
        return self.shift + self.yaw * z

    def position(self) -> tuple[Array, Array, Array]:
        """Metres right of the axis, above the ground and ahead of every sample; the sky is 10 km away."""
        z = np.minimum(self.depth_m, 1e4)
        return self.x * z - self.axis(z), CAMERA_HEIGHT_M - self.y * z, z

    def label_map(self) -> NDArray[np.uint8]:
        """(rows, columns) of the image: the class that covers most of a pixel."""
        (rows, columns), k = self.size, SUPERSAMPLING
        blocks = self.label.reshape(rows, k, columns, k).swapaxes(1, 2).reshape(rows, columns, k * k)
        return np.stack([(blocks == v).sum(axis=2) for v in STREET_LABELS], axis=2).argmax(axis=2).astype(np.uint8)


def texture(rng: np.random.Generator, shape: tuple[int, ...], smooth: float, strength: float) -> Array:
    """Smooth noise around 1 with the given standard deviation."""
    noise = gaussian_filter(rng.standard_normal(shape), smooth, mode="wrap")
    return 1 + strength * noise / (noise.std() + 1e-9)
