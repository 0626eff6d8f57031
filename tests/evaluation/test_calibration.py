"""Calibration against cases computed by hand, limits, and another implementation."""

import math

import pytest
import torch

from unicorn_monai.evaluation.calibration import Calibration, expected_calibration_error


def logits(*images):
    """Of images with pixels in one row, each the probability of label 1 of two: (images, 2, 1, pixels)."""
    p = torch.tensor(images)
    return torch.stack([1 - p, p], dim=1).log()[:, :, None]


def test_both_measures_by_hand():
    """Sure by 0.9 and right; by 0.7 and wrong; by 0.7 and right; one pixel without a label.

    Bin 14 holds 0.9 * 15 = 13.5, bin 11 both 0.7 * 15 = 10.5: ECE = (|1 - 0.9| + |1 - 1.4|) / 3.
    """
    found = Calibration()
    found.update(logits([0.1, 0.7], [0.3, 0.2]), torch.tensor([[[0, 0]], [[0, 255]]]))
    bins = found.bins.tolist()
    assert bins[13] == pytest.approx([1, 0.9, 1])
    assert bins[10] == pytest.approx([2, 1.4, 1])
    assert found.bins.sum(dim=0).tolist() == pytest.approx([3, 2.3, 2])
    assert expected_calibration_error(bins) == pytest.approx(0.5 / 3)
    assert found.losses[0] == pytest.approx([-math.log(0.9) - math.log(0.3), 2])
    assert found.losses[1] == pytest.approx([-math.log(0.7), 1])


def test_guessing_evenly_is_calibrated_and_costs_the_logarithm_of_the_labels():
    found = Calibration()
    found.update(torch.zeros(1, 4, 2, 2), torch.arange(4).reshape(1, 2, 2))
    assert expected_calibration_error(found.bins) == pytest.approx(0, abs=1e-6)  # right in a quarter of the pixels
    assert found.losses[0] == pytest.approx([4 * math.log(4), 4])


@pytest.mark.parametrize(("label", "error", "loss"), [(1, 0.0, 0.0), (0, 1.0, 400.0)])
def test_a_sure_network_is_perfect_or_as_wrong_as_can_be(label, error, loss):
    found = Calibration()
    found.update(torch.tensor([-200.0, 200.0]).reshape(1, 2, 1, 1).expand(1, 2, 3, 3), torch.full((1, 3, 3), label))
    assert found.bins[-1].tolist() == [9, 9, 9 * label]
    assert expected_calibration_error(found.bins) == pytest.approx(error)
    assert found.losses[0] == pytest.approx([9 * loss, 9])


def test_batches_add_up_to_the_whole_and_an_image_without_labels_counts_nothing():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(5, 3, 4, 4, generator=generator)
    labels = torch.randint(0, 3, (5, 4, 4), generator=generator)
    labels[4] = 255
    whole, parts = Calibration(), Calibration()
    whole.update(outputs, labels)
    for part in (slice(0, 2), slice(2, 5)):
        parts.update(outputs[part], labels[part])
    assert torch.allclose(whole.bins, parts.bins)
    assert [sum(each) for each in whole.losses] == pytest.approx([sum(each) for each in parts.losses])
    assert whole.losses[4] == [0, 0]
    assert whole.bins[:, 0].sum() == 4 * 16
    pixels = torch.nn.functional.cross_entropy(outputs[:4], labels[:4])
    assert sum(loss for loss, _ in whole.losses) / 64 == pytest.approx(pixels.item(), rel=1e-5)


def test_the_error_is_that_of_torchmetrics():
    classification = pytest.importorskip("torchmetrics.classification")
    generator = torch.Generator().manual_seed(1)
    outputs = 2 * torch.randn(4, 5, 16, 16, generator=generator)
    labels = torch.randint(0, 5, (4, 16, 16), generator=generator)
    labels[:, :3] = 255
    found = Calibration()
    found.update(outputs, labels)
    theirs = classification.MulticlassCalibrationError(num_classes=5, n_bins=15, norm="l1", ignore_index=255)
    assert expected_calibration_error(found.bins) == pytest.approx(theirs(outputs, labels).item(), rel=1e-5)


def test_without_a_pixel_there_is_no_error_and_label_maps_of_another_size_are_refused():
    assert math.isnan(expected_calibration_error(Calibration().bins))
    with pytest.raises(ValueError, match=r"Predictions have shape \(1, 2, 2\), label maps \(1, 2, 3\)"):
        Calibration().update(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 3, dtype=torch.long))
