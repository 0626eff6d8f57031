"""Limit cases of the simulated streets: geometry, light, water, fog, rain, snow, and the data sets made of them."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep import street_phantom
from unicorn_monai.data.checks import check, problems
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import SPLITS, read_header
from unicorn_monai.images.files import read_array
from unicorn_monai.simulation import weather as w
from unicorn_monai.simulation.drives import simulate_drives, simulate_frame
from unicorn_monai.simulation.street import ID, STREET_LABELS, draw_street
from unicorn_monai.simulation.street_view import render
from unicorn_monai.simulation.zbuffer import CAMERA_HEIGHT_M, SUPERSAMPLING, UP

SIZE = (32, 48)


@pytest.fixture(scope="module")
def scene():
    return render(draw_street(np.random.default_rng(0)), np.random.default_rng(1), 9.0, SIZE)


def drawn(name: str, **changes: float) -> dict[str, float]:
    return w.WEATHERS[name].draw(np.random.default_rng(0)) | changes


# ---------------------------------------------------------------- geometry


def test_every_sample_has_a_depth_that_fits_its_label(scene):
    sky = scene.label == ID["sky"]
    assert np.isinf(scene.depth_m[sky]).all()
    assert np.isfinite(scene.depth_m[~sky]).all()
    road = (scene.label == ID["road"]) & (scene.looks == UP)
    _, height, _ = scene.position()
    assert np.abs(height[road]).max() < 1e-9  # Z = f h / (v - v_0)
    assert CAMERA_HEIGHT_M / scene.y.max() == pytest.approx(scene.depth_m[road].min(), rel=0.05)


def test_what_is_nearer_hides_what_is_farther(scene):
    everything, before = (slice(None), slice(None)), scene.label.copy()
    scene.paint(everything, np.ones(scene.shape, bool), 1e5, "car", (1, 1, 1), UP)
    changed = scene.label != before
    assert (before[changed] == ID["sky"]).all()
    scene.label[changed], scene.depth_m[changed] = ID["sky"], np.inf


def test_the_label_of_a_pixel_is_what_covers_most_of_it(scene):
    labels, k = scene.label_map(), SUPERSAMPLING
    assert labels.shape == SIZE
    for row, column in ((5, 7), (20, 20), (31, 47)):
        block = scene.label[row * k : (row + 1) * k, column * k : (column + 1) * k]
        values, counts = np.unique(block, return_counts=True)
        assert counts[values == labels[row, column]] == counts.max()


def test_all_classes_occur_and_roads_are_below_the_sky():
    frames = list(simulate_drives(["clear"], range(6), 2, SIZE))
    counts = np.bincount(np.concatenate([f.label.ravel() for f in frames]), minlength=len(STREET_LABELS))
    assert (counts > 0).all()
    for frame in frames:
        rows = {name: np.nonzero(frame.label == ID[name])[0] for name in ("road", "sky")}
        assert rows["road"].mean() > rows["sky"].mean() + 8


def test_a_frame_depends_on_its_numbers_only():
    one, two = (
        simulate_frame("rain", 3, 2, SIZE, seed=5),
        list(simulate_drives(["fog", "rain"], range(4), 3, SIZE, 5))[11],
    )
    assert (one.image == two.image).all()
    other = simulate_frame("night", 3, 2, SIZE, seed=5)
    assert (one.label == other.label).all()  # the weather changes nothing but the picture
    assert np.abs(one.image.astype(int) - other.image).mean() > 20
    assert (simulate_frame("rain", 3, 2, SIZE, seed=6).label != one.label).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hail", 0, 0), "Unknown weather 'hail'"),
        (("fog", 0, 40), "frame 40: expected 0 to 39"),
        (("fog", 0, 0, 8), "at least 16 pixels"),
    ],
)
def test_nonsense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate_frame(*arguments)


# ---------------------------------------------------------------- image formation


def test_thick_fog_hides_everything_and_clear_air_nothing(scene):
    rng = np.random.default_rng
    fog = w.photograph(scene, w.WEATHERS["fog"], rng(0), drawn("fog", visual_range_m=0.1, wet=0.0))
    assert fog.astype(float).std() < 6  # noise of the sensor
    thin = w.photograph(scene, w.WEATHERS["fog"], rng(0), drawn("fog", visual_range_m=1e9, wet=0.0))
    assert thin.astype(float).std() > 25


def test_contrast_at_the_visual_range_is_a_twentieth():
    assert np.exp(-3.0) == pytest.approx(0.05, abs=0.001)  # Koschmieder


@pytest.mark.parametrize("rate", [1.0, 10.0, 50.0])
def test_extinction_of_rain_is_the_integral_over_its_drops(rate):
    d = np.linspace(0, 20, 20_001)  # mm
    number = 8000 * np.exp(-4.1 * rate**-0.21 * d)  # per m^3 and mm
    area = 2 * np.pi / 4 * (1e-3 * d) ** 2
    assert w.rain_extinction(rate) == pytest.approx(np.trapezoid(number * area, d), rel=1e-3)
    assert w.rain_extinction(0) == 0


def test_snow_lies_on_what_looks_up(scene):
    white = w.snow_cover(scene, 1.0, np.random.default_rng(0))
    walls = np.isin(scene.label, (ID["building"], ID["person"], ID["pole"], ID["sky"]))
    assert (white[walls] == scene.albedo[walls]).all()
    lawn = (scene.label == ID["terrain"]) | (scene.label == ID["sidewalk"])
    assert white[lawn].mean() > 0.6
    assert 0 <= white.min() <= white.max() <= 1.0


def test_the_sun_in_the_zenith_casts_no_shade_and_a_low_one_does():
    town = render(draw_street(np.random.default_rng(1)), np.random.default_rng(1), 9.0, SIZE)
    ground = (town.label == ID["road"]) | (town.label == ID["sidewalk"])
    assert w.sunlit(town, np.array((0.01, 1.0, 0.0)))[ground].mean() > 0.99
    for side in (-1.0, 1.0):
        assert w.sunlit(town, np.array((side, 0.05, 0.0)))[ground].mean() < 0.2


def test_a_dry_road_mirrors_nothing_and_a_wet_one_the_sky(scene):
    luminance = np.where((scene.label == ID["sky"])[..., None], 5.0, 1.0) * np.ones(3)
    dry = np.zeros(scene.shape)
    assert w.reflect(scene, luminance, dry) is luminance
    film = ((scene.label == ID["road"]) & (scene.looks == UP)).astype(float)
    wet = w.reflect(scene, luminance, film)
    assert (wet[film == 0] == luminance[film == 0]).all()
    assert wet[film == 1].mean() > 1.02


def test_exposure_follows_the_light_until_it_cannot():
    rng, scale = np.random.default_rng, np.linspace(0.2, 3.0, 64 * 64).reshape(64, 64, 1) * np.ones(3)
    day, cloudy = (w.expose(level * scale, rng(0)).mean() for level in (3.0, 0.5))
    assert day == pytest.approx(cloudy, rel=0.02)
    assert w.expose(1e-5 * scale, rng(0)).mean() < 0.5 * day  # the gain is limited: night stays dark
    dim = w.expose(1e-3 * np.ones((64, 64, 3)), rng(0)).astype(float)
    bright = w.expose(np.ones((64, 64, 3)), rng(0)).astype(float)
    assert dim.std() > 3 * bright.std()  # fewer electrons, more noise


@pytest.mark.parametrize("name", w.WEATHERS)
def test_parameters_lie_in_their_ranges(name):
    for seed in range(20):
        for key, value in w.WEATHERS[name].draw(np.random.default_rng(seed)).items():
            low, high = getattr(w.WEATHERS[name], key)
            assert low - 1e-9 <= value <= high + 1e-9


# ---------------------------------------------------------------- data sets


def test_a_simulated_data_set_is_sound_and_knows_its_weather(tmp_path):
    folder = street_phantom.write_streets(tmp_path / "a", ["fog", "night"], 8, 2, SIZE, 3, (0.5, 0.25, 0.25))
    assert check(folder, need_labels=True) == []
    header = read_header(folder)
    assert (header["modality"], header["simulated_device"], len(header["colours"])) == ("RGB", True, 10)
    for split in SPLITS:
        assert {item["sub_domain"] for item in datalist(folder, split)} == {"fog", "night"}
    assert read_array(datalist(folder, "training")[0]["image"]).shape == (*SIZE, 3)
    bare = street_phantom.write_streets(tmp_path / "b", ["clear"], 3, 1, SIZE, 3, labels=False)
    assert all("label" not in item for item in datalist(bare, SPLITS))
    subjects = [{item["subject"] for item in datalist(f, SPLITS)} for f in (folder, bare)]
    assert not subjects[0] & subjects[1]


def test_sides_that_no_generator_halves_are_warned_about(tmp_path):
    folder = street_phantom.write_streets(tmp_path / "a", ["clear"], 3, 1, (36, 64))
    (found,) = problems(folder)
    assert not found.fatal
    assert "size: found (36, 64); expected sides that are multiples of 64" in str(found)


def test_the_script_refuses_nonsense(tmp_path, capsys):
    with pytest.raises(ValueError, match="Unknown weather"):
        street_phantom.write_streets(tmp_path / "a", ["hail"], 3, 1)
    with pytest.raises(ValueError, match="at least 1"):
        street_phantom.write_streets(tmp_path / "a", ["fog"], 3, 0)
    assert street_phantom.main([str(tmp_path / "a"), "--drives", "2", "--weather", "fog"]) == 1
    assert "2 subjects cannot fill" in capsys.readouterr().err
