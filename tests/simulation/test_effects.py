"""Each effect of a device against what physics says in a limit that can be computed by hand."""

import math

import numpy as np
import pytest

from unicorn_monai.simulation.effects import (
    BELOW,
    RNFL,
    RPE,
    Choroid,
    Contrast,
    Fringes,
    Mirror,
    Retardation,
    RollOff,
    Shadows,
    Steps,
    depth_below,
)

UM = (10.0, 20.0)


@pytest.fixture
def labels():
    """50 rows: 10 vitreous, 5 of each layer, the rest below; 40 columns."""
    column = np.concatenate([np.zeros(10), np.repeat(np.arange(1, 8), 3), np.full(4, RPE), np.full(15, BELOW)])
    return np.repeat(column.astype(np.uint8)[:, None], 40, axis=1)


@pytest.fixture
def light(labels):
    return np.random.default_rng(0).uniform(0.1, 1.0, labels.shape).astype(np.float32)


def run(effect, light, labels, seed=0):
    return effect(light, labels, UM, np.random.default_rng(seed))


def same(value):
    return (value, value)


def test_depth_is_counted_from_the_first_pixel_of_a_layer(labels):
    assert np.array_equal(depth_below(labels, BELOW, 10.0)[:, 0], (np.arange(50) - 35) * 10.0)
    assert (depth_below(np.zeros((5, 2), np.uint8), BELOW, 1.0) < 0).all()


def test_contrast_of_3_db_doubles_its_layer_only(light, labels):
    changed, kept = run(Contrast({RNFL: same(10 * math.log10(2))}), light, labels)
    assert np.allclose(changed, np.where(labels == RNFL, 2 * light, light), rtol=1e-6)
    assert kept is labels


def test_a_choroid_without_loss_is_flat_and_the_sclera_a_step(labels):
    dark = np.full(labels.shape, 1e-6, np.float32)
    changed, _ = run(Choroid(same(-3.0), same(0.0), same(80.0), same(3.0)), dark, labels)
    assert np.allclose(changed[labels < BELOW], 1e-6)
    found = np.unique(np.round(10 * np.log10(changed[labels == BELOW]), 3))
    assert np.allclose(found, [-3.0, 0.0], atol=1e-3)


def test_a_choroid_leaves_what_is_brighter(light, labels):
    changed, _ = run(Choroid(same(-90.0), same(0.0), same(80.0), same(0.0)), light, labels)
    assert np.array_equal(changed, light)


def test_roll_off_of_10_db_a_mm_is_a_tenth_after_100_rows_of_10_um(labels):
    light = np.ones((101, 3), np.float32)
    changed, _ = run(RollOff(same(10.0)), light, np.zeros((101, 3), np.uint8))
    assert changed[0, 0] == 1
    assert changed[100, 0] == pytest.approx(0.1, rel=1e-5)


def test_fringes_are_at_their_depth_in_every_scan(light, labels):
    found = [run(Fringes((-6.0, -3.0), (0.25,)), light, labels, seed)[0] - light for seed in (0, 1)]
    assert all(abs(x[:, 0].argmax() - 12) <= 1 for x in found)
    assert not np.allclose(found[0], found[1])


def test_a_quarter_turn_loses_what_is_polarised_but_not_of_the_pigment(light, labels):
    effect = Retardation(same(1.0), same(math.pi / 2), same(0.0), same(0.0), same(0.0))
    changed, _ = run(effect, light, labels)
    assert np.allclose(changed[labels != RPE], 0, atol=1e-6)
    assert np.allclose(changed[labels == RPE], light[labels == RPE] / 2)


def test_nerve_fibres_of_30_um_turn_what_lies_behind_by_twice_their_retardation(light, labels):
    effect = Retardation(same(1.0), same(0.0), same(0.0), same(math.pi / 4 / 2 / 30.0), same(0.0))
    changed, _ = run(effect, light, labels)
    behind = (labels > RNFL) & (labels < RPE)
    assert np.allclose(changed[behind], light[behind] / 2, rtol=1e-5)
    assert np.array_equal(changed[labels == 0], light[labels == 0])


@pytest.mark.parametrize(("vitreous", "first"), [(True, 1), (False, 2)])
def test_shadows_fall_behind_what_casts_them(light, labels, vitreous, first):
    changed, _ = run(Shadows((1, 1), same(10.0), same(60.0), vitreous), light, labels)
    assert np.array_equal(changed[labels < first], light[labels < first])
    loss = 10 * np.log10(light[labels == BELOW] / changed[labels == BELOW])
    assert 0 <= loss.min() < loss.max() <= 10.001


def test_the_mirror_image_about_the_middle_is_the_image_upside_down(light, labels):
    changed, _ = run(Mirror(same(10.0), same(0.5)), light, labels)
    assert np.allclose(changed, light + 0.1 * light[::-1], rtol=1e-6)


def test_what_lies_outside_of_the_window_has_no_mirror_image(light, labels):
    changed, _ = run(Mirror(same(10.0), same(0.25)), light, labels)
    assert np.array_equal(changed[25:], light[25:])


def test_steps_move_light_and_labels_alike(labels):
    light = labels.astype(np.float32)
    moved, moved_labels = run(Steps((4, 4), same(40.0)), light, labels)
    assert np.array_equal(moved, moved_labels)
    borders = np.flatnonzero((moved_labels[:, 1:] != moved_labels[:, :-1]).any(axis=0))
    assert 1 <= len(borders) <= 3


def test_one_group_of_no_width_stays(light, labels):
    moved, moved_labels = run(Steps((1, 1), same(0.0)), light, labels)
    assert np.array_equal(moved, light)
    assert np.array_equal(moved_labels, labels)
