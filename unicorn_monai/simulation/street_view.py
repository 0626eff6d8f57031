"""How a street looks from a car at a place on it: ground, houses, things, traffic and people, painted by distance."""

from __future__ import annotations

import numpy as np

from unicorn_monai.simulation.street import FARTHEST_M, GLASS, LEAVES, WALLS, Array, House, Street
from unicorn_monai.simulation.street_things import paint_car, paint_lamp, paint_person, paint_sign, paint_tree
from unicorn_monai.simulation.zbuffer import CAMERA_HEIGHT_M, DIFFUSE, FACING, FROM_LEFT, FROM_RIGHT, UP, Scene, texture

ASPHALT, PAVING, MARKING = (0.09, 0.09, 0.095), (0.23, 0.22, 0.21), (0.55, 0.55, 0.52)
GRASS = (0.09, 0.15, 0.045)
HORIZON = 0.46  # share of the rows above it


def render(street: Street, rng: np.random.Generator, z: float = 0.0, size: tuple[int, int] = (64, 64)) -> Scene:
    """Look down a street from the place z on it; ``rng`` draws cars, people and where the camera looks."""
    shift = -street.road_m / 4 + rng.uniform(-0.2, 0.4)  # we drive on the right: the axis is left of us
    horizon, yaw = HORIZON + rng.uniform(-0.02, 0.02), float(rng.normal(0, 0.035))
    scene = Scene(street, z, size, horizon, shift, yaw)
    _ground(scene, rng)
    _backdrop(scene)
    for side in (0, 1):
        _houses(scene, side)
    _uprights(scene)
    _traffic(scene, rng)
    _people(scene, rng)
    return scene


def _ground(scene: Scene, rng: np.random.Generator) -> None:
    street = scene.street
    at, z, s = scene.ground()
    on, half = z < FARTHEST_M, street.road_m / 2
    grain = texture(rng, z.shape, 1.0, 0.05) * texture(rng, z.shape, 6.0, 0.05)
    road = np.array(ASPHALT) * rng.uniform(0.8, 1.25)
    middle = (np.abs(s) < 0.09) & ((z + scene.z) % 12.0 < 6.0)
    edge = (np.abs(np.abs(s) - (half - 0.25)) < 0.07) & (street.road_m > 8)
    colour = np.where((middle | edge)[..., None], MARKING, road) * grain[..., None]
    scene.paint(at, on & (np.abs(s) < half), z, "road", colour, UP)
    outer = half + np.where(s < 0, *street.pavement_m)
    slabs = 1 - 0.12 * (((z + scene.z) % 1.0 < 0.06) | (np.abs(s) % 1.0 < 0.05))
    kerb = np.where((np.abs(s) < half + 0.18)[..., None], 1.35, 1.0) * np.array(PAVING)
    walk = on & (np.abs(s) >= half) & (np.abs(s) < outer)
    scene.paint(at, walk, z, "sidewalk", kerb * (slabs * grain)[..., None], UP)
    grass = np.array(GRASS) * (grain * texture(rng, z.shape, 3.0, 0.15))[..., None]
    scene.paint(at, on & (np.abs(s) >= outer), z, "terrain", grass, UP)


def _backdrop(scene: Scene) -> None:
    """Where the street ends: trees or houses."""
    rng = np.random.default_rng(scene.street.backdrop_seed)
    line = 7 + 5 * rng.random() + 2.5 * np.interp(scene.x, np.linspace(-1, 1, 24), rng.standard_normal(24))
    height = CAMERA_HEIGHT_M - scene.y * FARTHEST_M
    trees = rng.random() < 0.6
    albedo = np.array(LEAVES if trees else WALLS[rng.integers(len(WALLS))])
    albedo = albedo * texture(rng, scene.shape, 2.0, 0.2)[..., None].clip(0.3)
    name, looks = ("vegetation", DIFFUSE) if trees else ("building", FACING)
    scene.paint(np.s_[:, :], (height < line) & (height > -1.0), FARTHEST_M, name, albedo, looks)


def _houses(scene: Scene, side: int) -> None:
    """The walls along one side, and the gables of houses that stand in front of others."""
    street, sign = scene.street, (-1, 1)[side]
    for house in street.houses[side]:
        near, far = house.z0 - scene.z, min(house.z1 - scene.z, FARTHEST_M)
        if far < 0.5 or near > FARTHEST_M or house.height_m == 0:
            continue
        s = sign * (street.road_m / 2 + street.pavement_m[side] + house.setback_m)
        if (seen := scene.wall(s, near, far)) is not None:
            at, z, height = seen
            mask = (z >= near) & (z < far) & (height < house.height_m) & (height >= 0)
            colour, glow = _facade(house, z - near, height)
            scene.paint(at, mask, z, "building", colour, (FROM_LEFT, FROM_RIGHT)[side], 0.25, glow)
        if near > 0.5:
            wall, top = np.array(house.wall) * 0.9, house.height_m

            def gable(at, a, b, near=near, wall=wall, top=top) -> None:
                scene.paint(at, (np.abs(a) < 6) & (b >= 0) & (b < top), near, "building", wall, FACING, 0.25)

            scene.upright(s + 6.0 * sign, near, 12.0, top, gable)


def _facade(house: House, along: Array, height: Array) -> tuple[Array, Array]:
    """Albedo and glow of a wall: rows of windows, shops on the ground floor of some."""
    rng = np.random.default_rng(house.seed)
    pitch, wide, storey = rng.uniform(2.2, 3.6), rng.uniform(0.4, 0.6), 3.0
    column, floor = np.floor(along / pitch).astype(int), np.floor(height / storey).astype(int)
    a, b = (along / pitch) % 1.0, (height / storey) % 1.0
    window = (np.abs(a - 0.5) < wide / 2) & (b > 0.3) & (b < 0.82) & (height < house.height_m - 0.8)
    window |= (floor == 0) & (np.abs(a - 0.5) < 0.35) & (b < 0.8) & (rng.random() < 0.5)
    lit = rng.random((32, 8)) < rng.uniform(0.1, 0.5)
    warm = np.array((1.0, 0.75, 0.4)) * rng.uniform(0.5, 1.2)
    shade = np.where(height < 0.6, 0.7, np.where(height > house.height_m - 0.5, 0.75, 1.0))
    albedo = np.where(window[..., None], np.array(GLASS), np.array(house.wall) * shade[..., None])
    return albedo, (window & lit[column % 32, floor % 8])[..., None] * warm


def _uprights(scene: Scene) -> None:
    painters = {"tree": paint_tree, "lamp": paint_lamp, "sign": paint_sign}
    for thing in scene.street.uprights:
        z = thing.z - scene.z
        if thing.kind == "lamp" and -15 < z < FARTHEST_M:
            inward = thing.s - 1.2 * np.sign(thing.s)
            scene.lamps.append((float(inward), thing.height_m, z))
        if 1.5 < z < FARTHEST_M:
            painters[thing.kind](scene, thing, z)


def _traffic(scene: Scene, rng: np.random.Generator) -> None:
    """Parked cars at both kerbs, driving ones ahead of us and towards us."""
    half = scene.street.road_m / 2
    for side in (-1, 1):
        z, density = rng.uniform(1.5, 9.0), rng.uniform(0.1, 0.8) if half > 3.7 else 0.0
        while z < 60:
            if rng.random() < density:
                paint_car(scene, side * (half - 1.05), z, rng, lights=0)
            z += rng.uniform(5.2, 7.5)
    if rng.random() < 0.6:
        paint_car(scene, half / 2 - 0.3, rng.uniform(9.0, 45.0), rng, lights=1)
    for z in rng.uniform(10.0, 70.0, rng.integers(0, 3)):
        paint_car(scene, -half / 2 + 0.3, float(z), rng, lights=2)


def _people(scene: Scene, rng: np.random.Generator) -> None:
    """People on the pavements, now and then one on the road."""
    street = scene.street
    for _ in range(rng.poisson(3.5)):
        side = int(rng.integers(2))
        s = (-1, 1)[side] * (street.road_m / 2 + rng.uniform(0.3, street.pavement_m[side] - 0.2))
        if rng.random() < 0.12:
            s = rng.uniform(-0.5, 0.5) * street.road_m
        paint_person(scene, float(s), float(rng.gamma(2.5, 4.5) + 4.0), rng)
