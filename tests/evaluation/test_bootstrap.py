"""Intervals over subjects against closed forms, scipy and the case of no variation."""

import numpy as np
import pytest
from scipy import stats

from unicorn_monai.evaluation.bootstrap import (
    by_subject,
    closed_gap,
    confidence,
    over_seeds,
    paired_difference,
    resample,
)


def mean(pairs):
    """Of (..., [sum, number])."""
    return pairs[..., 0] / pairs[..., 1]


def pairs(values):
    return np.stack([values, np.ones_like(values)], axis=-1)


@pytest.fixture
def values():
    return np.random.default_rng(3).normal(0.6, 0.1, 60)


def test_every_resample_draws_as_many_subjects_as_there_are():
    drawn = resample(7, seed=0, resamples=500)
    assert drawn.shape == (500, 7)
    assert (drawn.sum(axis=1) == 7).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(7), abs=5 / np.sqrt(500))


def test_the_draws_are_those_of_drawing_indices_one_resample_at_a_time():
    indices = np.random.default_rng(5).integers(0, 4, (30, 4))
    assert np.array_equal(resample(4, 5, 30), [np.bincount(row, minlength=4) for row in indices])


def test_images_are_summed_within_their_subject():
    counts = np.arange(8.0).reshape(4, 2)
    assert by_subject(counts, ["b", "a", "b", "a"]).tolist() == [[8, 10], [4, 6]]


def test_the_interval_of_a_mean_is_that_of_scipy(values):
    ours = confidence(pairs(values), mean, seed=0)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(1))
    standard_error = values.std() / np.sqrt(len(values))
    assert ours == pytest.approx(list(theirs.confidence_interval), abs=0.15 * standard_error)


def test_images_of_one_subject_do_not_make_the_interval_narrower(values):
    images = np.repeat(values, 10)
    by_image = confidence(pairs(images), mean, seed=0)
    subjects = by_subject(pairs(images), [f"{i:02d}" for i in np.repeat(np.arange(60), 10)])
    assert confidence(subjects, mean, seed=0) == pytest.approx(confidence(pairs(values), mean, seed=0))
    assert np.diff(by_image) < 0.5 * np.diff(confidence(subjects, mean, seed=0))


def test_one_subject_has_no_interval(values):
    assert confidence(pairs(values[:1]), mean, seed=0) is None


def test_the_difference_of_a_set_up_with_itself_is_exactly_zero(values):
    found = paired_difference([pairs(values)], [pairs(values)], mean, seed=0)
    assert found == {"difference": 0.0, "ci95": [0.0, 0.0], "n_subjects": 60}


def test_a_constant_gain_is_certain_however_much_subjects_vary(values):
    found = paired_difference([pairs(values + 0.02)], [pairs(values)], mean, seed=0)
    assert [found["difference"], *found["ci95"]] == pytest.approx([0.02] * 3)


def test_the_share_of_a_gap_by_hand():
    """Two subjects: both are drawn in half of the resamples, the first or the second alone in a quarter each.

    (0.5 - 0.2) / (0.6 - 0.2) = 3/4 for the first, (0.7 - 0.4) / (1.0 - 0.4) = 1/2 for the second and
    (0.6 - 0.3) / (0.8 - 0.3) = 3/5 for both. With the bounds taken as exact, the interval would be
    (0.5 - 0.3) / 0.5 = 2/5 to (0.7 - 0.3) / 0.5 = 4/5.
    """
    setup, lower, upper = (pairs(np.array(scores)) for scores in ((0.5, 0.7), (0.2, 0.4), (0.6, 1.0)))
    found = closed_gap([setup], [lower], [upper], mean, seed=0)
    assert found == {"share": pytest.approx(3 / 5), "ci95": pytest.approx([1 / 2, 3 / 4]), "n_subjects": 2}


def test_a_constant_share_is_certain_however_much_subjects_vary(values):
    lower, upper = pairs(values), pairs(values + np.linspace(0.1, 0.3, len(values)))
    setup = pairs(0.3 * lower[:, 0] + 0.7 * upper[:, 0])
    found = closed_gap([setup, setup], [lower], [upper, upper], mean, seed=0)
    assert [found["share"], *found["ci95"]] == pytest.approx([0.7] * 3)
    assert closed_gap([lower], [lower], [upper], mean, seed=0)["ci95"] == [0.0, 0.0]
    assert closed_gap([upper], [lower], [upper], mean, seed=0)["ci95"] == [1.0, 1.0]


def test_without_a_gap_there_is_no_share_and_with_too_many_draws_without_one_no_interval(values):
    both = pairs(values)
    assert closed_gap([both], [both], [both], mean, seed=0) == {"share": None, "ci95": None, "n_subjects": 60}
    lower, upper = pairs(np.array([0.5, 0.2])), pairs(np.array([0.4, 0.9]))  # none in a quarter of the draws
    found = closed_gap([upper], [lower], [upper], mean, seed=0)
    assert found == {"share": pytest.approx(1), "ci95": None, "n_subjects": 2}
    one = closed_gap([both[:1]], [both[:1] * [0.5, 1]], [both[:1] * [2, 1]], mean, seed=0)
    assert one == {"share": pytest.approx(1 / 3), "ci95": None, "n_subjects": 1}


def test_several_trainings_are_averaged_and_their_spread_is_told(values):
    parts = [pairs(values + shift) for shift in (-0.01, 0.0, 0.01)]
    found = over_seeds(parts, mean, seed=0)
    assert found["mean"] == pytest.approx(values.mean())
    assert found["seeds"] == pytest.approx([values.mean() + s for s in (-0.01, 0.0, 0.01)])
    assert found["std_seeds"] == pytest.approx(0.01)
    assert found["ci95"] == pytest.approx(confidence(pairs(values), mean, seed=0))
    assert paired_difference(parts, [pairs(values)], mean, seed=0)["difference"] == pytest.approx(0)


def test_one_training_has_no_spread(values):
    assert over_seeds([pairs(values)], mean, seed=0)["std_seeds"] is None


@pytest.mark.parametrize("parts", [[], [np.zeros((0, 2))], [np.ones((3, 2)), np.ones((4, 2))]])
def test_other_subjects_or_none_are_refused(parts):
    with pytest.raises(ValueError, match="expected the same subjects"):
        over_seeds(parts, mean, seed=0)
