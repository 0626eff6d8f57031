"""Surfaces of label maps, counted by hand and against the rasterisation that made them."""

import numpy as np
import pytest

from unicorn_monai.evaluation.boundaries import boundary_errors, broken_columns
from unicorn_monai.images.surfaces import label_map, surfaces_from_labels

NAN = np.nan


def columns(*labels):
    """A label map from its columns, each from top to bottom."""
    return np.array(labels).T


def test_a_surface_lies_half_a_pixel_above_the_first_row_of_the_next_label():
    assert surfaces_from_labels(columns([0, 0, 1, 2], [0, 1, 1, 2]), 2).tolist() == [[1.5, 0.5], [2.5, 2.5]]


def test_surfaces_invert_the_rasterisation_to_half_a_pixel():
    wanted = np.sort(np.random.default_rng(0).uniform(2, 61, (9, 50)), axis=0)
    found = surfaces_from_labels(label_map(wanted, 64), 9)
    assert np.abs(found - wanted).max() <= 0.5
    assert np.array_equal(label_map(found, 64), label_map(wanted, 64))


def test_images_are_independent():
    labels = np.random.default_rng(1).integers(0, 4, (5, 16, 12))
    assert np.array_equal(surfaces_from_labels(labels, 3), np.stack([surfaces_from_labels(one, 3) for one in labels]))


def test_a_stray_pixel_moves_a_surface_by_one_row():
    clean, stray = columns([0, 0, 0, 0, 1, 1]), columns([0, 1, 0, 0, 1, 1])
    assert (surfaces_from_labels(clean, 1) - surfaces_from_labels(stray, 1)).item() == 1


def test_surfaces_of_torn_columns_do_not_cross():
    found = surfaces_from_labels(np.random.default_rng(2).integers(0, 6, (32, 40)), 5)
    assert (np.diff(found, axis=0) >= 0).all()


def test_an_ignored_pixel_leaves_its_column_without_surfaces():
    found = surfaces_from_labels(columns([0, 0, 1, 1], [0, 255, 1, 1]), 1)
    np.testing.assert_array_equal(found, [[1.5, NAN]])


def test_a_shift_by_three_rows_is_an_error_of_three_rows():
    rows = np.tile([[20.0], [30.0], [44.0]], 8)
    assert (boundary_errors(label_map(rows + 3, 64), label_map(rows, 64), 4) == 3).all()


def test_a_true_surface_outside_the_image_is_not_scored():
    truth = columns([1, 1, 2, 2], [0, 0, 1, 1])
    np.testing.assert_array_equal(boundary_errors(truth, truth, 3), [[NAN, 0], [0, NAN]])


def test_a_perfect_prediction_has_no_broken_column():
    labels = label_map(np.sort(np.random.default_rng(0).uniform(2, 61, (3, 20)), axis=0), 64)
    broken, annotated = broken_columns(labels, labels, 4)
    assert not broken.any()
    assert annotated.all()


@pytest.mark.parametrize(
    ("prediction", "truth", "broken"),
    [
        ([0, 0, 2, 2], [0, 1, 2, 2], True),  # layer 1 is missing
        ([0, 1, 2, 2], [0, 0, 2, 2], False),  # one too many is no missing one
        ([0, 2, 1, 2], [0, 1, 2, 2], True),  # layers cross
        ([0, 2, 1, 2], [0, 2, 1, 2], False),  # so do the true ones (torn by motion)
        ([0, 1, 2, 2], [0, 255, 2, 2], False),  # not annotated
    ],
)
def test_missing_and_crossing_layers_are_counted(prediction, truth, broken):
    found, annotated = broken_columns(columns(prediction), columns(truth), 3)
    assert found.tolist() == [broken]
    assert annotated.tolist() == [255 not in truth]


def test_maps_of_different_size_are_refused():
    for compare in (boundary_errors, broken_columns):
        with pytest.raises(ValueError, match=r"shape \(2, 1\), truth \(3, 1\)"):
            compare(columns([0, 1]), columns([0, 1, 1]), 2)
