"""From a street to a picture of it in clear weather, fog, night, rain or snow: image formation in physical order.

    E   = E_sun cos + E_sky + sum_lamps I cos / r^2          light on every surface, klx
    L   = albedo E / pi + glow                               luminance, kcd/m^2; albedo below snow or water
    L  <- (1 - R) L + R L(mirrored)                          water film on the ground, R by Schlick from F0 = 0.02
    L  <- L t + L_air (1 - t),  t = exp(-beta Z)             Koschmieder; beta = 3 / visual range, plus that of the rain
    L  <- rain streaks, snow flakes, drops on the windscreen, veiling glare
    n   = Poisson(k N L) + read noise                        k: exposure, limited; N: electrons of white, fewer at gain
    image = sRGB(n / N)

Every parameter is a range from which a picture draws. Ranges of physics carry their source; the rest is plausible and
NOT calibrated on pictures of any camera.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from unicorn_monai.simulation.devices import area_average
from unicorn_monai.simulation.street import ID, Array
from unicorn_monai.simulation.zbuffer import DIFFUSE, FACING, FROM_LEFT, FROM_RIGHT, SUPERSAMPLING, UP, Scene

Range = tuple[float, float]

FULL_WELL = 20_000.0  # electrons of white at the lowest gain
READ_NOISE = 3.0  # electrons
AIR_M = 1000.0  # thickness of the layer of haze or fog in front of the sky
LONGEST_K = 1.2  # exposure (white per kcd/m^2) at the longest shutter; beyond it gain
LARGEST_K = 150.0  # and at the largest gain
MID_GREY = 0.2  # share of white that the mean luminance is exposed to


@dataclass(frozen=True)
class Weather:
    """Ranges of one kind of weather; a picture draws each uniformly, (log): uniformly in its logarithm."""

    sun_klx: Range = (0.0, 0.0)  # illuminance of a surface that faces the sun. Clear noon 100, overcast 0
    sun_elevation_deg: Range = (15.0, 60.0)
    sky_klx: Range = (
        8.0,
        20.0,
    )  # of the ground by the sky alone. Clear 10 to 20, overcast 1 to 20, city at night 0.001
    visual_range_m: Range = (10_000.0, 50_000.0)  # (log) where contrast is 0.05 (WMO No. 8). Fog: below 1000
    lamp_cd: Range = (0.0, 0.0)  # street lamp downwards. 500 to 1500 cd at 7 m: 10 to 30 lx (EN 13201)
    headlamp_cd: Range = (0.0, 0.0)  # own low beam, straight on. About 20000 (ECE R112: 32 lx at 25 m)
    rain_mm_h: Range = (0.0, 0.0)  # moderate 2.5, heavy above 10, violent above 50 (WMO)
    wet: Range = (0.0, 0.0)  # share of the ground under a film of water
    snow: Range = (0.0, 0.0)  # share of the ground that is white
    flakes_mm: Range = (0.0, 0.0)  # diameter of the snow flakes; 0: it does not snow
    drops: Range = (0.0, 0.0)  # on the windscreen
    glare: Range = (0.01, 0.02)  # share of the light scattered in lens and windscreen

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draw the parameters of one picture."""
        drawn = {name: float(rng.uniform(*limits)) for name, limits in vars(self).items()}
        low, high = self.visual_range_m
        return drawn | {"visual_range_m": float(np.exp(rng.uniform(math.log(low), math.log(high))))}


WEATHERS = {
    "clear": Weather(sun_klx=(40.0, 100.0)),
    "fog": Weather(sky_klx=(4.0, 20.0), visual_range_m=(35.0, 150.0), wet=(0.0, 0.4), glare=(0.02, 0.05)),
    "night": Weather(
        sky_klx=(0.0003, 0.002),
        lamp_cd=(500.0, 1500.0),
        headlamp_cd=(12_000.0, 25_000.0),
        wet=(0.0, 0.3),
        glare=(0.02, 0.05),
    ),
    "rain": Weather(
        sky_klx=(1.5, 8.0),
        visual_range_m=(800.0, 5000.0),
        rain_mm_h=(5.0, 50.0),
        wet=(0.6, 1.0),
        drops=(6.0, 30.0),
        glare=(0.03, 0.08),
    ),
    "snow": Weather(
        sky_klx=(3.0, 15.0),
        visual_range_m=(150.0, 1500.0),
        snow=(0.35, 1.0),
        flakes_mm=(2.0, 8.0),
        wet=(0.0, 0.5),
        glare=(0.02, 0.05),
    ),
}


def photograph(
    scene: Scene, weather: Weather, rng: np.random.Generator, settings: dict[str, float] | None = None
) -> NDArray[np.uint8]:
    """Take a picture of a scene: (rows, columns, 3) uint8, sRGB; ``settings`` are drawn from the weather by default."""
    s = weather.draw(rng) if settings is None else settings
    dark = s["sky_klx"] < 0.1
    albedo = snow_cover(scene, s["snow"], rng) if s["snow"] > 0 else scene.albedo
    film = puddles(scene, s["wet"], rng) if s["wet"] > 0 else np.zeros(scene.label.shape)
    albedo = albedo * (1 - 0.5 * film)[..., None]  # wetting darkens to about a half (Lekner and Dorf 1988)
    light = daylight(scene, s, rng) + (lamplight(scene, s, rng) if dark else 0.0)
    luminance = albedo * light / np.pi
    if dark:
        luminance += scene.glow * 0.02  # a lit window: about 20 cd/m^2
    sky, air = skylight(scene, s, rng)
    luminance = np.where((scene.label == ID["sky"])[..., None], sky, luminance)
    luminance = reflect(scene, luminance, film)
    beta = 3.0 / s["visual_range_m"] + rain_extinction(s["rain_mm_h"])
    t = np.exp(-beta * np.minimum(scene.depth_m, AIR_M))[..., None]
    luminance = luminance * t + air * (1 - t)
    luminance = falling(scene, luminance, s, rng)
    if s["drops"] >= 1:
        luminance = windscreen(luminance, int(s["drops"]), rng)
    pixels = area_average(luminance, (SUPERSAMPLING, SUPERSAMPLING))
    spread = gaussian_filter(pixels, (0.12 * pixels.shape[0],) * 2 + (0,), mode="nearest")
    near = gaussian_filter(pixels, (0.025 * pixels.shape[0],) * 2 + (0,), mode="nearest")
    pixels = (1 - s["glare"]) * pixels + s["glare"] * (0.6 * spread + 0.4 * near)
    return expose(pixels, rng)


# ---------------------------------------------------------------------- light


def daylight(scene: Scene, s: dict[str, float], rng: np.random.Generator) -> Array:
    """Illuminance by sun and sky, klx, (rows, columns, 3)."""
    elevation, azimuth = np.deg2rad(s["sun_elevation_deg"]), rng.uniform(0, 2 * np.pi)
    sun = np.array((np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)))
    cosine = np.full(5, 0.45)  # of a leaf, on average
    for looks, towards in ((UP, sun[1]), (FROM_LEFT, sun[0]), (FROM_RIGHT, -sun[0]), (FACING, -sun[2])):
        cosine[looks] = max(0.0, towards)
    warm = np.array((1.0, 0.94, 0.84)) if s["sun_elevation_deg"] > 25 else np.array((1.0, 0.86, 0.66))
    cool = np.array((0.85, 0.95, 1.15)) if s["sun_klx"] > 0 else np.ones(3)
    direct = s["sun_klx"] * cosine[scene.looks] * sunlit(scene, sun) * (1 - 0.9 * scene.sheltered)
    open_sky = np.array((1.0, 0.55, 0.55, 0.55, 0.7))[scene.looks] * (1 - scene.sheltered)  # a wall sees half of it
    bounce = 0.12 * s["sun_klx"] * np.sin(elevation) * (scene.looks != UP)  # from the sunlit ground
    return direct[..., None] * warm + (s["sky_klx"] * open_sky)[..., None] * cool + bounce[..., None] * warm


def sunlit(scene: Scene, sun: Array) -> Array:
    """1 where the sun is seen, 0 in the shade of the houses on its side; the sun as (right, up, ahead)."""
    right, height, z = scene.position()
    side = int(sun[0] > 0)
    s = (-1, 1)[side] * right  # metres from the axis towards the sun's side
    houses = scene.street.houses[side]
    starts = np.array([house.z0 for house in houses])
    tops = np.array([house.height_m for house in houses])
    wall = scene.street.road_m / 2 + scene.street.pavement_m[side]
    steps = np.clip(wall - s, 0, None) / max(1e-3, abs(float(sun[0])))
    at = np.clip(np.searchsorted(starts, scene.z + z + steps * sun[2], side="right") - 1, 0, len(houses) - 1)
    return np.where((height + steps * sun[1] < tops[at]) & (s < wall - 0.01), 0.0, 1.0)


def lamplight(scene: Scene, s: dict[str, float], rng: np.random.Generator) -> Array:
    """Illuminance by street lamps and our own low beam, klx, (rows, columns, 3): I cos / r^2."""
    right, height, z = scene.position()
    total = np.zeros((*z.shape, 3))
    colour = np.array((1.0, 0.62, 0.28)) if rng.random() < 0.6 else np.array((1.0, 0.9, 0.75))  # sodium or LED
    for lamp_s, lamp_height, lamp_z in scene.lamps:
        drop = np.clip(lamp_height - height, 0.05, None)
        square = (right - lamp_s) ** 2 + (z - lamp_z) ** 2 + drop**2
        down = drop / np.sqrt(square)  # the lamp shines downwards
        cosine = np.where(scene.looks == UP, down, 0.35)
        total += (s["lamp_cd"] * down * cosine / square)[..., None] * colour
    square = z**2 * (1 + scene.x**2) + 1.0
    aside = np.exp(-((scene.x / 0.3) ** 2)) * np.where(height / z > 0.02, 0.08, 1.0)  # cut-off of the low beam
    cosine = np.where(scene.looks == UP, np.minimum(1.0, 0.65 / z), np.where(scene.looks == FACING, 1.0, 0.5))
    beam = s["headlamp_cd"] * aside * cosine / square
    return 1e-3 * (total + beam[..., None] * np.array((1.0, 0.94, 0.84)))


def skylight(scene: Scene, s: dict[str, float], rng: np.random.Generator) -> tuple[Array, Array]:
    """Luminance of the sky (rows, columns, 3) and of the air, kcd/m^2."""
    rows, columns = scene.label.shape
    up = np.clip(1 - (np.arange(rows) + 0.5) / scene.horizon, 0, 1)[:, None, None]
    level = s["sky_klx"] / np.pi
    if s["sky_klx"] < 0.1:  # the city's own light, stronger at the horizon
        sky = level * (0.5 + 1.5 * (1 - up)) * np.array((1.0, 0.75, 0.55))
        return np.broadcast_to(sky, (rows, columns, 3)), level * np.array((1.0, 0.75, 0.55))
    if s["sun_klx"] == 0:  # overcast: zenith three times as bright as the horizon (Moon and Spencer 1942)
        clouds = 1 + 0.08 * _clouds(rng, (rows, columns))[..., None]
        return level * 9 / 7 * (1 + 2 * np.sqrt(up)) / 3 * clouds * np.array((0.97, 0.99, 1.03)), level * np.ones(3)
    blue = np.array((0.42, 0.66, 1.15)) * up + np.array((0.95, 1.0, 1.08)) * (1 - up)
    cover = np.clip(_clouds(rng, (rows, columns)) - rng.uniform(-0.3, 1.5), 0, 1)[..., None]
    sky = level * (1.4 * blue * (1 - cover) + 2.6 * cover)
    return sky, level * np.array((0.95, 1.0, 1.08))


def _clouds(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Smooth noise of unit variance in three octaves, flat as clouds are."""
    total = np.zeros(shape)
    for cells, weight in ((4, 1.0), (9, 0.5), (20, 0.25)):
        coarse = rng.standard_normal((cells + 1, cells // 2 + 1))
        y, x = (np.linspace(0, n - 1, m) for n, m in zip(coarse.shape, shape, strict=True))
        total += weight * map_coordinates(coarse, np.meshgrid(y, x, indexing="ij"), order=2, mode="nearest")
    return (total - total.mean()) / (total.std() + 1e-9)


# ---------------------------------------------------------------------- water and snow


def snow_cover(scene: Scene, share: float, rng: np.random.Generator) -> Array:
    """Albedo after snowfall: 0.8 to 0.9 where it lies (Wiscombe and Warren 1980); wheels keep two tracks clear."""
    rows, columns = scene.label.shape
    right, _, _ = scene.position()
    lane = scene.street.road_m / 4
    tracks = np.minimum(np.abs(np.abs(right) - lane - 0.75), np.abs(np.abs(right) - lane + 0.75))
    road = np.clip(1.6 * share - 0.9 + 0.8 * np.clip(tracks / 0.5, 0, 1), 0, 1)  # the more snow, the whiter the tracks
    patches = _clouds(rng, (rows, columns)) * 0.25
    cover = np.zeros((rows, columns))
    for name, amount in (("road", road), ("sidewalk", 0.3 + share), ("terrain", 0.6 + share), ("car", 1.3 * share)):
        where = scene.label == ID[name]
        cover = np.where(where, np.clip(amount + patches, 0, 1) * (scene.looks == UP), cover)
    leaves = (scene.label == ID["vegetation"]) & (scene.looks == DIFFUSE)
    cover = np.where(leaves, np.clip(share * (0.55 - 1.2 * scene.sheltered) + 0.3 * patches, 0, 0.7), cover)
    cover *= 1 - 0.8 * np.clip(scene.sheltered - 0.4, 0, 1)  # none below cars
    white = rng.uniform(0.8, 0.9) * np.array((0.97, 0.985, 1.0)) * (1 + 0.03 * _clouds(rng, (rows, columns)))[..., None]
    return scene.albedo * (1 - cover[..., None]) + white * cover[..., None]


def puddles(scene: Scene, wet: float, rng: np.random.Generator) -> Array:
    """Share of the ground below a film of water, (rows, columns)."""
    ground = np.isin(scene.label, (ID["road"], ID["sidewalk"])) & (scene.looks == UP)
    return ground * np.clip(wet + 0.25 * _clouds(rng, scene.label.shape), 0, 1)


def reflect(scene: Scene, luminance: Array, film: Array) -> Array:
    """What the water film mirrors: the scene above the horizon, turned over, blurred downwards by the ripples."""
    if not film.any():
        return luminance
    rows = scene.label.shape[0]
    mirrored = np.clip(np.rint(2 * scene.horizon - np.arange(rows) - 0.5), 0, rows - 1).astype(int)
    image = gaussian_filter(np.minimum(luminance, 30 * np.median(luminance) + 1e-9), (0.03 * rows, 0.008 * rows, 0))
    cosine = np.clip(scene.y / np.sqrt(1 + scene.y**2), 0, 1)
    share = (0.02 + 0.98 * (1 - cosine) ** 5) * film * np.exp(-((1 - film) ** 2))
    share = np.clip(share, 0, 0.75)[..., None]  # ripples tilt the surface: less than a perfect mirror
    return luminance * (1 - share) + image[mirrored] * share


def rain_extinction(rate_mm_h: float) -> float:
    """Extinction of rain, 1/m: drops of Marshall and Palmer (1948), N(D) = 8000 exp(-D L) / (m^3 mm), twice their area.

    The integral of 2 pi / 4 D^2 N(D) is pi 8000 / L^3 with L = 4.1 rate^-0.21 per mm.
    """
    return 0.0 if rate_mm_h <= 0 else 1e-6 * math.pi * 8000.0 / (4.1 * rate_mm_h**-0.21) ** 3


# ---------------------------------------------------------------------- in the air, on the glass, on the sensor


def falling(scene: Scene, luminance: Array, s: dict[str, float], rng: np.random.Generator) -> Array:
    """Rain streaks and snow flakes near the camera, each as wide and long as its distance makes it.

    A drop covers a pixel for a part of the exposure only: it adds a share 0.15 to 0.3 of the sky's light over its
    streak (Garg and Nayar 2007). A flake is opaque and hardly moves.
    """
    if s["rain_mm_h"] <= 0 and s["flakes_mm"] <= 0:
        return luminance
    rows, columns = scene.label.shape
    cover, sky = np.zeros((rows, columns)), np.array(s["sky_klx"] / np.pi)
    count = int(rng.uniform(0.5, 1.5) * (8 * s["rain_mm_h"] + 160 * (s["flakes_mm"] > 0)))
    tilt = rng.normal(0, 0.15)
    for z, u, v in zip(1.2 * rng.random(count) ** -0.5, rng.random(count), rng.random(count), strict=True):
        if s["rain_mm_h"] > 0:  # 1 to 4 mm wide, falling at 7 m/s for 1/100 s
            wide, tall, opacity = rng.uniform(0.001, 0.004), 0.07, rng.uniform(0.15, 0.3)
        else:
            wide = tall = 1e-3 * s["flakes_mm"] * rng.uniform(0.6, 1.4)
            opacity = 0.9
        a, b = wide * scene.focal / z / 2, tall * scene.focal / z / 2
        top, bottom = int(v * rows - b - 1), int(v * rows + b + 2)
        left, right = int(u * columns - b - 2), int(u * columns + b + 3)
        y, x = np.mgrid[max(0, top) : min(rows, bottom), max(0, left) : min(columns, right)]
        if y.size == 0:
            continue
        across = np.abs(x + 0.5 - u * columns - tilt * (y - v * rows))
        part = np.clip(a + 0.5 - across, 0, min(1.0, 2 * a)) * np.clip(b + 0.5 - np.abs(y + 0.5 - v * rows), 0, 1)
        region = cover[y[0, 0] : y[-1, 0] + 1, x[0, 0] : x[0, -1] + 1]
        np.maximum(region, opacity * part, out=region)
    return luminance * (1 - cover[..., None]) + sky * cover[..., None]


def windscreen(luminance: Array, count: int, rng: np.random.Generator) -> Array:
    """Drops on the glass: small lenses out of focus, each shows its surroundings upside down and blurred."""
    rows, columns = luminance.shape[:2]
    y, x = np.mgrid[:rows, :columns].astype(float)
    weight = np.zeros((rows, columns))
    source_y, source_x = y.copy(), x.copy()
    for _ in range(count):
        radius = rng.uniform(0.012, 0.05) * rows
        cy, cx = rng.uniform(0, rows), rng.uniform(0, columns)
        r = np.hypot((y - cy) / 1.15, x - cx) / radius
        inside = r < 1
        source_y[inside], source_x[inside] = (cy - 2.5 * (y - cy))[inside], (cx - 2.5 * (x - cx))[inside]
        np.maximum(weight, np.clip(1.6 * (1 - r), 0, 0.85), out=weight)
    soft = gaussian_filter(luminance, (0.012 * rows, 0.012 * rows, 0))
    seen = [map_coordinates(soft[..., k], (source_y, source_x), order=1, mode="mirror") for k in range(3)]
    seen = gaussian_filter(np.stack(seen, axis=-1), (0.006 * rows, 0.006 * rows, 0))
    weight = gaussian_filter(weight, 0.006 * rows)[..., None]
    return luminance * (1 - weight) + seen * weight


def expose(luminance: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Automatic exposure within its limits, shot and read noise, sRGB: (rows, columns, 3) kcd/m^2 -> uint8."""
    level = float(np.minimum(luminance, 8 * np.median(luminance) + 1e-9).mean())
    k = min(LARGEST_K, MID_GREY * math.exp(rng.normal(0, 0.15)) / max(level, 1e-9))
    electrons = FULL_WELL * min(1.0, LONGEST_K / k)
    counted = rng.poisson(np.clip(k * luminance, 0, 4) * electrons) + READ_NOISE * rng.standard_normal(luminance.shape)
    linear = np.clip(counted / electrons, 0, 1)
    shown = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)
    return np.rint(255 * shown).astype(np.uint8)
