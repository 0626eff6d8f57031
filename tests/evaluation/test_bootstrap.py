"""Intervals over subjects against closed forms, scipy and the case of no variation."""

import numpy as np
import pytest
from scipy import stats

from unicorn_monai.evaluation.bootstrap import (
    BLOCKS,
    SUBJECTS,
    Units,
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


def pairs(values, unit=SUBJECTS):
    return Units(np.stack([values, np.ones_like(values)], axis=-1), unit, len(values))


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
    counts = np.arange(12.0).reshape(6, 2)
    found = by_subject(counts, ["b", "a", "b", "a", "c", "c"], list("012345"))
    assert found.counts.tolist() == [[8, 10], [4, 6], [18, 20]]
    assert (found.unit, found.subjects) == (SUBJECTS, 3)


def test_of_two_subjects_up_to_ten_blocks_of_consecutive_images_are_drawn():
    images = [f"images/{i}.png" for i in reversed(range(22))]  # "9.png" comes before "10.png"
    subjects = ["b"] * 2 + ["a"] * 20
    found = by_subject(np.arange(22.0)[::-1, None], subjects, images)
    assert found.counts[:, 0].tolist() == [*range(1, 40, 4), 20, 21]  # 0 + 1, 2 + 3, ..., 18 + 19 of a; both of b
    assert (found.unit, found.subjects) == (BLOCKS, 2)


def test_the_interval_of_a_mean_is_that_of_scipy(values):
    ours = confidence(pairs(values), mean, seed=0)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(1))
    standard_error = values.std() / np.sqrt(len(values))
    assert ours == pytest.approx(list(theirs.confidence_interval), abs=0.15 * standard_error)


def test_images_of_one_subject_do_not_make_the_interval_narrower(values):
    images = pairs(np.repeat(values, 10))
    by_image = confidence(images, mean, seed=0)
    names = [f"{i:02d}" for i in np.repeat(np.arange(60), 10)]
    subjects = by_subject(images.counts, names, [str(i) for i in range(600)])
    assert confidence(subjects, mean, seed=0) == pytest.approx(confidence(pairs(values), mean, seed=0))
    assert np.diff(by_image) < 0.5 * np.diff(confidence(subjects, mean, seed=0))


def test_one_image_and_one_training_have_no_interval(values):
    assert confidence(pairs(values[:1], BLOCKS), mean, seed=0) is None
    assert over_seeds([pairs(values[:1], BLOCKS)], mean, seed=0)["ci95"] is None


def test_of_blocks_the_trainings_are_drawn_too():
    """Two trainings of one block, 0.4 and 0.8: a quarter of the draws has the first or the second alone."""
    trainings = [pairs(np.array([score]), BLOCKS) for score in (0.4, 0.8)]
    found = over_seeds(trainings, mean, seed=0)
    assert (found["ci95"], found["ci_unit"]) == (pytest.approx([0.4, 0.8]), BLOCKS)
    subjects = [pairs(np.array([score] * 3)) for score in (0.4, 0.8)]
    assert over_seeds(subjects, mean, seed=0)["ci95"] == pytest.approx([0.6, 0.6])  # trainings are fixed there


def test_the_interval_over_blocks_of_one_subject_is_that_of_scipy(values):
    found = confidence(by_subject(pairs(values[:10]).counts, ["s"] * 10, [str(i) for i in range(10)]), mean, seed=0)
    theirs = stats.bootstrap((values[:10],), np.mean, n_resamples=20000, method="percentile", rng=1)
    standard_error = values[:10].std() / np.sqrt(10)
    assert found == pytest.approx(list(theirs.confidence_interval), abs=0.15 * standard_error)


def test_a_pupil_is_drawn_with_its_teacher():
    """Trainings scatter by 0.6; each pupil is 0.1 above its teacher on one of two blocks, as good on the other."""
    teachers, pupils = ([pairs(np.array([s + gain, s]), BLOCKS) for s in (0.2, 0.5, 0.8)] for gain in (0.0, 0.1))
    assert np.ptp(over_seeds(teachers, mean, seed=0)["ci95"]) > 0.3
    found = paired_difference(pupils, teachers, mean, seed=0)  # one of two blocks gains 0.1
    assert [found["difference"], *found["ci95"]] == pytest.approx([0.05, 0, 0.1])
    assert found["ci_unit"] == BLOCKS


def test_the_difference_of_a_set_up_with_itself_is_exactly_zero(values):
    found = paired_difference([pairs(values)], [pairs(values)], mean, seed=0)
    assert found == {"difference": 0.0, "ci95": [0.0, 0.0], "ci_unit": SUBJECTS, "n_subjects": 60}


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
    assert found["share"] == pytest.approx(3 / 5)
    assert found["ci95"] == pytest.approx([1 / 2, 3 / 4])


def test_a_constant_share_is_certain_however_much_subjects_vary(values):
    best = values + np.linspace(0.1, 0.3, len(values))
    lower, upper, setup = pairs(values), pairs(best), pairs(0.3 * values + 0.7 * best)
    found = closed_gap([setup, setup], [lower], [upper, upper], mean, seed=0)
    assert [found["share"], *found["ci95"]] == pytest.approx([0.7] * 3)
    assert closed_gap([lower], [lower], [upper], mean, seed=0)["ci95"] == [0.0, 0.0]
    assert closed_gap([upper], [lower], [upper], mean, seed=0)["ci95"] == [1.0, 1.0]


def test_without_a_gap_there_is_no_share_and_with_too_many_draws_without_one_no_interval(values):
    both = pairs(values)
    none = {"share": None, "ci95": None, "ci_unit": SUBJECTS, "n_subjects": 60}
    assert closed_gap([both], [both], [both], mean, seed=0) == none
    lower, upper = pairs(np.array([0.5, 0.2])), pairs(np.array([0.4, 0.9]))  # none in a quarter of the draws
    found = closed_gap([upper], [lower], [upper], mean, seed=0)
    assert (found["share"], found["ci95"]) == (pytest.approx(1), None)
    setup, lower, upper = (pairs(values[:1] * factor) for factor in (1, 0.5, 2))
    found = closed_gap([setup], [lower], [upper], mean, seed=0)
    assert (found["share"], found["ci95"]) == (pytest.approx(1 / 3), None)


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


@pytest.mark.parametrize("parts", [[], [pairs(np.zeros(0))], [pairs(np.ones(3)), pairs(np.ones(4))]])
def test_other_subjects_or_none_are_refused(parts):
    with pytest.raises(ValueError, match="expected the same subjects"):
        over_seeds(parts, mean, seed=0)
