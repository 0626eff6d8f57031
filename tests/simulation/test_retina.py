"""Limit cases of the simulated retina and of the two image formation models."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from unicorn_monai.simulation import retina
from unicorn_monai.simulation.devices import (
    HOME_OCT,
    SPECTRALIS,
    Device,
    acquire,
    area_average,
    degrade,
    display,
    linear_reflectivity,
    motion_field,
    move,
    speckle,
    supersampling,
)
from unicorn_monai.simulation.other_devices import DEVICES
from unicorn_monai.simulation.retina import LABELS
from unicorn_monai.simulation.scans import simulate, simulate_scan

NONE = (0.0, 0.0)
ONE = (1, 1)


def perfect(device: Device, **fields: object) -> Device:
    """Return a device without noise, haze, gain variations and motion; one look, no blur unless told otherwise."""
    silent = {
        "noise_db": (-math.inf, -math.inf),
        "looks": ONE,
        "frames": ONE,
        **dict.fromkeys(("axial_fwhm_um", "lateral_fwhm_um", "haze", "vignette_db", "column_gain_db"), NONE),
        **dict.fromkeys(("row_gain_db", "row_jitter_um", "depth_jitter_um", "fixed_pattern"), NONE),
        "saturated_line": 0.0,
    }
    return replace(device, **{**silent, **fields})


def eye(seed: int = 0) -> retina.Subject:
    return retina.draw_subject(np.random.default_rng(seed))


def cut(seed: int = 0) -> retina.Slice:
    return retina.draw_slice(np.random.default_rng(seed))


GOLDEN_SURFACES = np.array([[-359.106, -243.557, -334.602], [-185.745, -219.994, -148.977], [-48.479, -5.429, -9.092]])
GOLDEN_IMAGE = np.array([117, 70, 203, 124])
GOLDEN_LABELS = [927, 66, 156, 70, 60, 78, 48, 39, 79, 2573]


# Geometry


@pytest.mark.parametrize("seed", range(5))
def test_surfaces_never_cross(seed):
    x = np.linspace(-4.4, 4.4, 200)
    s = retina.surfaces(eye(seed), cut(seed), x)
    assert s.shape == (9, 200)
    assert (np.diff(s, axis=0) >= 1.0 - 1e-9).all()


def test_thickness_of_a_normal_macula():
    # Mean of the seven traced foveal B-scans (data_prep/spectralis_healthy.py): 220 um in the foveola, 242 at 0.25 mm,
    # 278 at 0.5 mm, 310 at 1 mm, 296 at 2 mm.
    x = np.array([0.0, 0.25, 0.5, 1.0, 2.0])
    mean = np.mean([retina.thickness(eye(i), s * x, 0.0).sum(axis=0) for i in range(60) for s in (-1, 1)], axis=0)
    assert mean == pytest.approx([220, 242, 278, 310, 296], abs=20)


def test_geometry_does_not_depend_on_the_grid():
    coarse, fine = np.linspace(-2, 2, 5), np.linspace(-2, 2, 401)
    assert np.allclose(retina.surfaces(eye(), cut(), coarse), retina.surfaces(eye(), cut(), fine)[:, ::100])


def test_scans_of_a_subject_share_its_anatomy():
    x = np.linspace(-2, 2, 100)
    same = [retina.thickness(eye(1), x, 0.0, c.roughness[:, :100]) for c in (cut(1), cut(2))]
    other = retina.thickness(eye(2), x, 0.0)
    relative = np.abs(same[0] - same[1]).mean() / same[0].mean()
    assert relative < 0.08  # roughness of 3.5 % only
    assert np.abs(same[0] - other).mean() / same[0].mean() > relative


def test_golden_surfaces():
    s = retina.surfaces(eye(7), cut(7), np.array([-1.5, 0.0, 1.5]))
    assert np.allclose(s[[0, 4, 8]], GOLDEN_SURFACES, atol=1e-3)


def test_label_map_counts_the_surfaces_above():
    s = np.array([[10.0, 15.0], [20.0, 15.0], [30.0, 40.0]])
    labels = retina.label_map(s, np.array([5.0, 10.0, 19.9, 20.0, 35.0]))
    assert labels[:, 0].tolist() == [0, 1, 1, 2, 3]
    assert labels[:, 1].tolist() == [0, 0, 2, 2, 2]  # a layer without thickness gets no pixel
    assert labels.dtype == np.uint8


def test_label_map_and_reflectivity_agree():
    x, z = np.linspace(-2, 2, 60), np.arange(0, 600, 4.0)
    subject = replace(eye(3), vessels=(), jitter_db=np.zeros(16), henle=0)
    plain = replace(cut(3), gain_db=0.0, choroid_vessels=np.zeros((0, 5)))
    s = retina.surfaces(subject, plain, x) + 420
    db = 10 * np.log10(retina.reflectivity(subject, plain, s, x, z))
    labels = retina.label_map(s, z)
    assert db[labels == 0] == pytest.approx(-60.0, abs=1e-3)
    assert db[labels == 3] == pytest.approx(retina.TISSUES["INL"], abs=1e-3)
    assert db[labels == 7].min() >= retina.TISSUES["OS"] - 1e-3
    assert np.unique(labels).tolist() == sorted(LABELS)


def test_vessels_cast_shadows_to_the_bottom():
    x, z = np.linspace(-2, 2, 401), np.arange(0, 600, 4.0)
    vessel = retina.Vessel(x0_mm=1.0, slope=0.0, bend=0.0, diameter_um=100.0, shadow_db=6.0)
    bare = replace(eye(3), vessels=())
    flat = replace(cut(3), y_mm=0.0)
    s = retina.surfaces(bare, flat, x) + 420
    pair = [retina.reflectivity(e, flat, s, x, z) for e in (bare, replace(bare, vessels=(vessel,)))]
    loss = 10 * np.log10(pair[1] / pair[0])
    assert loss[-1, 300] == pytest.approx(-6.0, abs=0.1)
    assert not loss[:, 280].any()


# Speckle and noise


def settings(device: Device, **values: float) -> dict[str, float]:
    return device.draw(np.random.default_rng(0)) | values


@pytest.mark.parametrize("looks", [1, 4])
def test_speckle_contrast_falls_with_the_root_of_the_looks(looks):
    # One look without blur: exponential intensity, standard deviation = mean; N looks: 1 / sqrt(N).
    p = settings(perfect(HOME_OCT), looks=looks)
    out = speckle(np.full((200, 200), 0.5, np.float32), p, (4.0, 10.0), np.random.default_rng(1))
    assert out.mean() == pytest.approx(0.5, rel=0.03)
    assert out.std() / out.mean() == pytest.approx(1 / math.sqrt(looks), rel=0.03)


def test_point_spread_keeps_energy_and_correlates_neighbours():
    p = settings(perfect(HOME_OCT), axial_fwhm_um=12.0, lateral_fwhm_um=30.0)
    out = speckle(np.ones((300, 300), np.float32), p, (4.0, 10.0), np.random.default_rng(1))
    assert out.mean() == pytest.approx(1.0, rel=0.05)
    assert out.std() == pytest.approx(1.0, rel=0.05)  # still fully developed
    assert out[:3].mean() == pytest.approx(1.0, rel=0.2)  # up to the border
    fluctuation = out - out.mean()
    # Intensity correlation of a Gaussian h: exp(-d^2 / (2 s^2)), s = FWHM / 2.355.
    expected = math.exp(-(4.0**2) / (2 * (12 / 2.3548) ** 2))
    assert (fluctuation[1:] * fluctuation[:-1]).mean() / out.var() == pytest.approx(expected, abs=0.08)


def test_noise_is_averaged_over_the_frames():
    dark = np.zeros((200, 200), np.float32)
    for looks, frames in ((1, 1), (2, 2), (3, 48)):
        p = settings(perfect(HOME_OCT), looks=looks, frames=frames, noise_db=-10.0)
        out = speckle(dark, p, (4.0, 10.0), np.random.default_rng(2))
        assert out.mean() == pytest.approx(0.1, rel=0.03)
        assert out.std() / out.mean() == pytest.approx(1 / math.sqrt(frames), rel=0.03)


def test_infinitely_many_looks_give_the_expectation():
    step = np.zeros((80, 40), np.float32)
    step[40:] = 1
    p = settings(perfect(HOME_OCT), axial_fwhm_um=12.0, lateral_fwhm_um=30.0)
    many = speckle(step, p | {"looks": 2000}, (4.0, 10.0), np.random.default_rng(0))
    assert np.allclose(many, speckle(step, p | {"looks": math.inf}, (4.0, 10.0), np.random.default_rng(0)), atol=0.12)


@pytest.mark.parametrize("device", [SPECTRALIS, HOME_OCT])
def test_perfect_device_shows_reflectivity_monotonically(device):
    device = perfect(device, looks=(math.inf, math.inf))
    r = np.linspace(0.001, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    image, labels = acquire(r, np.zeros((64, 64), np.uint8), (8.0, 50.0), device, np.random.default_rng(0))
    assert (np.diff(image.ravel().astype(int)) >= 0).all()
    assert image.max() > image.min() + 100
    assert not labels.any()


def test_display_inverts():
    grey = np.arange(256, dtype=np.uint8)[None]
    shown = display(linear_reflectivity(grey), settings(SPECTRALIS), SPECTRALIS)
    assert (shown == grey).all()
    assert linear_reflectivity(np.array([[189]], np.uint8)).item() == pytest.approx(1.0, abs=0.02)


# Motion, haze, size


def test_motion_moves_image_and_label_together():
    device = perfect(HOME_OCT, looks=(math.inf, math.inf), row_jitter_um=(80.0, 80.0))
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 32:] = 1
    r = np.where(labels, 1.0, 0.01).astype(np.float32)
    image, moved = acquire(r, labels, (8.0, 50.0), device, np.random.default_rng(3))
    assert (moved != labels).any()
    bright = image > 128
    assert (bright == moved.astype(bool)).mean() > 0.97


def test_motion_field_has_the_requested_size():
    dz, dx = motion_field({"depth_jitter_um": 2.0, "row_jitter_um": 20.0}, 4000, 5.0, np.random.default_rng(0))
    assert dz.std() == pytest.approx(2.0, rel=0.05)
    assert dx.std() == pytest.approx(20.0, rel=0.05)
    assert abs(dx.mean()) < 2.0


def test_move_by_whole_pixels():
    image = np.arange(12.0).reshape(3, 4)
    assert (move(image, np.zeros(3), np.array([0.0, 1.0, 0.0]), 1)[1] == [5, 6, 7, 7]).all()
    assert move(image, np.zeros(3), np.zeros(3), 1) is image


def test_area_average_and_supersampling():
    assert area_average(np.array([[0.0, 2.0], [4.0, 6.0]]), (2, 2)).item() == 3.0
    assert area_average(np.ones((6, 9, 3)), (3, 3)).shape == (2, 3, 3)
    assert supersampling(SPECTRALIS, (1.0, 1.0)) == (1, 1)
    assert supersampling(SPECTRALIS, (10.0, 1000.0)) == (2, 4)


def test_home_device_is_darker_noisier_and_less_certain_than_the_clinical_one():
    def contrast(device):
        values = []
        for scan in simulate(device, 4, 1, 128, 0):
            a, b = (scan.image[scan.label == k].astype(float) for k in (2, 3))
            values.append((a.mean() - b.mean()) / math.sqrt((a.var() + b.var()) / 2))
        return np.mean(values)

    assert contrast(SPECTRALIS) > 2 * contrast(HOME_OCT) > 0


# Items


@pytest.mark.parametrize("device", sorted(DEVICES))
def test_item_depends_on_its_own_seed_only(device):
    whole = list(simulate(DEVICES[device], 2, 2, 64, 5))
    alone = simulate_scan(DEVICES[device], 1, 1, 64, 5)
    assert (whole[3].image == alone.image).all()
    assert (whole[3].label == alone.label).all()
    assert not (whole[2].image == alone.image).all()
    assert not (simulate_scan(DEVICES[device], 1, 1, 64, 6).image == alone.image).all()
    assert (whole[3].subject, whole[3].scan) == (1, 1)


@pytest.mark.parametrize("size", [32, (48, 96)])
def test_any_size(size):
    scan = simulate_scan(HOME_OCT, 0, 0, size)
    shape = (size, size) if isinstance(size, int) else size
    assert scan.image.shape == scan.label.shape == shape
    assert scan.image.dtype == scan.label.dtype == np.uint8
    assert scan.spacing_mm[0] * shape[0] == pytest.approx(1.2, abs=0.21)
    with pytest.raises(ValueError, match="at least 8"):
        simulate_scan(HOME_OCT, 0, 0, 4)


def test_window_and_field_are_those_of_the_device():
    scan = next(simulate(replace(SPECTRALIS, depth_um=(640.0, 640.0), width_mm=(4.8, 4.8)), 1, 1, 64))
    assert scan.spacing_mm == pytest.approx((0.010, 0.075))


def test_retina_stays_in_the_window():
    for scan in simulate(replace(SPECTRALIS, depth_um=(660.0, 660.0), width_mm=(5.0, 5.0)), 10, 1, 64, 1):
        assert (scan.label[0] == 0).mean() > 0.9
        assert (scan.label[-1] == 9).mean() > 0.9


def test_golden_image():
    scan = simulate_scan(SPECTRALIS, 0, 0, 64, 0)
    # Float rounding may differ between processors: the grey levels to within one, the labels exactly.
    assert np.abs(scan.image[20:28:2, 32].astype(int) - GOLDEN_IMAGE).max() <= 1
    assert np.bincount(scan.label.ravel(), minlength=10).tolist() == GOLDEN_LABELS


# Real B-scans through the home device


def test_degrade_accepts_grey_levels_and_reflectivity():
    scan = simulate_scan(SPECTRALIS, 0, 0, 64)
    um = (scan.spacing_mm[0] * 1e3, scan.spacing_mm[1] * 1e3)
    image, label = degrade(scan.image, scan.label, um, np.random.default_rng(0))
    again, _ = degrade(scan.image, scan.label, um, np.random.default_rng(0))
    linear, _ = degrade(linear_reflectivity(scan.image), scan.label, um, np.random.default_rng(0))
    assert image.shape == linear.shape == scan.image.shape
    assert (image == again).all()
    assert image[label == 8].mean() > image[label == 0].mean() + 30


def test_degrade_refuses_what_it_cannot_use():
    image = np.zeros((16, 16), np.uint8)
    with pytest.raises(ValueError, match="one shape"):
        degrade(image, image[:8], (4.0, 10.0), np.random.default_rng(0))
    with pytest.raises(ValueError, match="int32"):
        degrade(image.astype(np.int32), image, (4.0, 10.0), np.random.default_rng(0))
    with pytest.raises(ValueError, match="whole multiple"):
        acquire(np.ones((17, 16), np.float32), image, (4.0, 10.0), HOME_OCT, np.random.default_rng(0))
