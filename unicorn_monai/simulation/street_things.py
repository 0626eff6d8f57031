"""Things on a street and their looks: trees, lamps, signs, cars, people; each painted into a scene at its place."""

from __future__ import annotations

import numpy as np

from unicorn_monai.simulation.street import GLASS, ID, LEAVES, Upright
from unicorn_monai.simulation.zbuffer import DIFFUSE, FACING, FROM_LEFT, FROM_RIGHT, UP, Scene, texture

PAINTS = (
    (0.04, 0.04, 0.05), (0.55, 0.56, 0.57), (0.3, 0.31, 0.33), (0.4, 0.04, 0.04), (0.05, 0.1, 0.3), (0.6, 0.6, 0.58),
    (0.07, 0.2, 0.12),
)  # fmt: skip
CLOTHES = (
    (0.05, 0.05, 0.08), (0.35, 0.08, 0.08), (0.1, 0.15, 0.35), (0.4, 0.38, 0.33), (0.12, 0.28, 0.15), (0.5, 0.35, 0.08)
)  # fmt: skip
SKIN, TYRE = (0.42, 0.28, 0.22), (0.03, 0.03, 0.03)
METAL, WHITE = (0.25, 0.26, 0.26), (0.65, 0.65, 0.65)
LAMP_GLOW, REAR_GLOW, HEAD_GLOW = (60.0, 50.0, 36.0), (40.0, 2.0, 1.0), (400.0, 380.0, 340.0)  # lit windows


def paint_tree(scene: Scene, tree: Upright, z: float) -> None:
    """A trunk with a rough, mottled crown."""
    rng = np.random.default_rng(tree.seed)
    radius, wave = tree.width_m / 2, rng.standard_normal(6)
    colour = np.array(LEAVES) * rng.uniform(0.7, 1.5) * np.array((rng.uniform(0.8, 1.6), 1.0, rng.uniform(0.7, 1.1)))

    def draw(at, a, b) -> None:
        v = (b - (tree.height_m - radius)) / radius
        angle = np.arctan2(v, a / radius)
        rough = 1 + 0.06 * sum(w * np.cos((k + 2) * angle + 7 * w) for k, w in enumerate(wave))
        patch = texture(rng, np.broadcast_shapes(a.shape, b.shape), 1.2, 0.3)
        leaves = colour * (patch * (0.75 + 0.3 * v)).clip(0.25)[..., None]
        shade = 0.3 - 0.2 * np.clip(v, -1, 1)
        scene.paint(at, np.hypot(a / radius, v) < rough, z, "vegetation", leaves, DIFFUSE, shade)
        trunk = (np.abs(a) < 0.17) & (b > 0) & (b < tree.height_m - radius)
        scene.paint(at, trunk, z, "vegetation", (0.09, 0.07, 0.05), FACING, 0.3)

    scene.upright(tree.s, z, tree.width_m * 1.3, tree.height_m + 0.4 * radius, draw)


def paint_lamp(scene: Scene, lamp: Upright, z: float) -> None:
    """A pole with an arm over the road."""

    def draw(at, a, b) -> None:
        inward = -np.sign(lamp.s) * a
        pole = (np.abs(a) < lamp.width_m / 2) & (b > 0) & (b < lamp.height_m)
        arm = (inward > 0) & (inward < 1.5) & (np.abs(b - lamp.height_m) < 0.07)
        scene.paint(at, pole | arm, z, "pole", METAL, FACING)
        head = (np.abs(inward - 1.25) < 0.35) & (np.abs(b - lamp.height_m + 0.1) < 0.1)
        scene.paint(at, head, z - 0.01, "pole", METAL, FACING, 0.0, LAMP_GLOW)

    scene.upright(lamp.s, z, 3.4, lamp.height_m + 0.3, draw)


def paint_sign(scene: Scene, sign: Upright, z: float) -> None:
    """A prohibition (red ring), an order (blue disk) or a priority road (yellow diamond) on a post."""
    kind, radius = sign.seed % 3, sign.width_m / 2

    def draw(at, a, b) -> None:
        v = b - sign.height_m + radius
        r = np.abs(a) + np.abs(v) if kind == 2 else np.hypot(a, v)
        border, middle, colour = (
            (0.68, WHITE, (0.45, 0.02, 0.03)), (0.3, WHITE, (0.02, 0.1, 0.4)), (0.65, (0.6, 0.42, 0.02), WHITE)
        )[kind]  # fmt: skip
        face = np.where((r < border * radius)[..., None], middle, colour)
        scene.paint(at, r < radius, z - 0.02, "traffic sign", face, FACING)
        post = (np.abs(a) < 0.045) & (b > 0) & (b < sign.height_m)
        scene.paint(at, post, z, "pole", METAL, FACING)

    scene.upright(sign.s, z, 1.2 * sign.width_m, sign.height_m + 0.2, draw)


def paint_car(scene: Scene, s: float, z: float, rng: np.random.Generator, lights: int) -> None:
    """A car as a box with a cabin: the end that faces us, a flank, the shade below; lights: 0 off, 1 rear, 2 head."""
    paint = np.array(PAINTS[rng.integers(len(PAINTS))]) * rng.uniform(0.8, 1.2)
    width, height, length = rng.uniform(1.7, 1.9), rng.uniform(1.4, 1.65), rng.uniform(3.8, 4.7)
    belt, glowing = 0.62 * height, np.array(((0.0, 0.0, 0.0), REAR_GLOW, HEAD_GLOW)[lights])

    def end(at, a, b) -> None:
        taper = np.clip((b - belt) / (height - belt), 0, 1)
        shape = (np.abs(a) < width / 2 * (1 - 0.25 * taper)) & (b > 0.18) & (b < height)
        pane = (b > belt + 0.04) & (b < height - 0.1) & (np.abs(a) < width / 2 * (0.86 - 0.25 * taper))
        dark = (b < 0.32) | ((np.abs(a) < 0.27) & (np.abs(b - 0.5) < 0.06))
        lamp = (np.abs(np.abs(a) - 0.4 * width) < 0.16) & (np.abs(b - 0.72) < 0.09)
        colour = np.where((pane | dark)[..., None], GLASS, paint)
        colour = np.where(lamp[..., None], (0.6, 0.6, 0.6) if lights == 2 else (0.4, 0.02, 0.02), colour)
        looks = np.where(b > height - 0.12, UP, FACING)
        scene.paint(at, shape, z, "car", colour, looks, 0.15, lamp[..., None] * glowing)
        wheel = (np.abs(np.abs(a) - 0.4 * width) < 0.12) & (b >= 0) & (b < 0.35)
        scene.paint(at, wheel, z + 0.05, "car", TYRE, FACING, 0.5)

    scene.upright(s, z, width, height, end)
    edge = s - np.sign(scene.axis(z) + s) * width / 2  # the flank that looks towards our lane
    if (seen := scene.wall(float(edge), z, z + length)) is not None:
        at, at_z, b = seen
        t = (at_z - z) / length
        roof = np.where((t > 0.08) & (t < 0.72), height, np.where(t < 0.8, belt + 0.15, belt))
        pane = (b > belt + 0.04) & (b < height - 0.1) & (t > 0.12) & (t < 0.68) & (np.abs(t - 0.42) > 0.02)
        tyre = np.hypot(np.minimum(np.abs(t - 0.18), np.abs(t - 0.82)) * length, b - 0.31) < 0.31
        shape = (t >= 0) & (t < 1) & (b >= 0) & (tyre | ((b > 0.2) & (b < roof)))
        colour = np.where(tyre[..., None], TYRE, np.where(pane[..., None], GLASS, paint * 0.9))
        looks = np.where(b > roof - 0.08, UP, FROM_RIGHT if edge < s else FROM_LEFT)
        scene.paint(at, shape, at_z, "car", colour, looks, 0.2)
    at, ground, right = scene.ground()
    away = np.maximum(np.abs(right - s) - width / 2, np.maximum(z - ground, ground - z - length))
    below = np.isin(scene.label[at], (ID["road"], ID["sidewalk"]))
    np.maximum(scene.sheltered[at], np.where(below, np.clip(0.85 - away / 0.5, 0, 0.85), 0), out=scene.sheltered[at])


def paint_person(scene: Scene, s: float, z: float, rng: np.random.Generator) -> None:
    """Somebody standing or walking: head, coat, two legs."""
    height, stride = rng.uniform(1.55, 1.9), rng.uniform(0.0, 0.22)
    coat, legs = (np.array(CLOTHES[rng.integers(len(CLOTHES))]) * rng.uniform(0.7, 1.4) for _ in range(2))

    def draw(at, a, b) -> None:
        h = b / height
        head = np.hypot(a, b - 0.93 * height) < 0.13
        torso = (np.abs(a) < 0.24 - 0.2 * np.clip(h - 0.7, 0, 1)) & (h > 0.45) & (h < 0.86)
        spread = stride * (0.5 - h) / 0.5
        leg = (np.minimum(np.abs(a - spread - 0.06), np.abs(a + spread + 0.06)) < 0.1) & (h >= 0) & (h < 0.5)
        colour = np.where(head[..., None], SKIN, np.where((h > 0.47)[..., None], coat, legs))
        scene.paint(at, head | torso | leg, z, "person", colour, FACING, 0.1)

    scene.upright(s, z, 0.9, height + 0.1, draw)
