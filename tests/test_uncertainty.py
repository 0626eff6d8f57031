"""Eqs. (3) and (4)."""

import math

import pytest
import torch
from torch.distributions import Categorical

from unicorn_monai.uncertainty import image_uncertainty, normalised_entropy, predictive_entropy


@pytest.mark.parametrize("labels", [2, 3, 10])
@pytest.mark.parametrize("offset", [0.0, -50.0, 1e4])
def test_uniform_prediction_has_uncertainty_one(labels, offset):
    logits = torch.full((2, labels, 5, 6), offset)
    torch.testing.assert_close(predictive_entropy(logits), torch.full((2, 1, 5, 6), math.log(labels)))
    torch.testing.assert_close(image_uncertainty(logits), torch.ones(2))


def test_one_hot_prediction_has_uncertainty_zero():
    labels = torch.randint(0, 5, (2, 8, 8))
    logits = 1000.0 * torch.nn.functional.one_hot(labels, 5).movedim(-1, 1)
    assert predictive_entropy(logits).eq(0).all()
    assert image_uncertainty(logits).eq(0).all()


@pytest.mark.parametrize("size", [(7, 9), (4, 5, 6), (11,)], ids=["2D", "3D", "1D"])
def test_entropy_is_that_of_the_categorical_distribution(size):
    logits = 3 * torch.randn(2, 10, *size)
    expected = Categorical(logits=logits.movedim(1, -1)).entropy()
    torch.testing.assert_close(predictive_entropy(logits), expected[:, None])
    torch.testing.assert_close(normalised_entropy(logits), expected[:, None] / math.log(10))
    torch.testing.assert_close(image_uncertainty(logits), expected.flatten(1).mean(dim=1) / math.log(10))


def test_two_labels_at_one_to_three_have_the_entropy_worked_out_by_hand():
    logits = torch.tensor([0.25, 0.75]).log().reshape(1, 2, 1, 1)
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert predictive_entropy(logits).item() == pytest.approx(expected, abs=1e-6)
    assert image_uncertainty(logits).item() == pytest.approx(expected / math.log(2), abs=1e-6)


@pytest.mark.parametrize("extreme", [1e4, 1e30, torch.finfo(torch.float32).max])
def test_extreme_logits_stay_finite_and_in_the_interval(extreme):
    logits = torch.zeros(1, 4, 3, 3)
    logits[:, 0], logits[:, 1] = extreme, -extreme
    entropy = predictive_entropy(logits)
    assert torch.isfinite(entropy).all()
    assert entropy.ge(0).all()
    assert entropy.le(math.log(4)).all()


def test_uncertainty_stays_in_the_unit_interval_for_any_logits():
    u = image_uncertainty(torch.randn(256, 10, 4, 4) * torch.logspace(-6, 3, 256).reshape(-1, 1, 1, 1))
    assert u.min() >= 0
    assert u.max() <= 1


def test_half_precision_logits_are_computed_in_single_precision():
    logits = torch.randn(1, 10, 8, 8).half()
    assert predictive_entropy(logits).dtype == torch.float32
    torch.testing.assert_close(predictive_entropy(logits), predictive_entropy(logits.float()))


def test_each_image_has_its_own_uncertainty():
    logits = torch.randn(4, 10, 8, 8) * torch.tensor([0.1, 1.0, 3.0, 10.0]).reshape(-1, 1, 1, 1)
    together = image_uncertainty(logits)
    alone = torch.cat([image_uncertainty(one) for one in logits.split(1)])
    torch.testing.assert_close(together, alone)
    assert together.diff().lt(0).all()


def test_gradient_of_the_uncertainty_is_finite():
    logits = torch.tensor([200.0, 0.0, -200.0]).reshape(1, 3, 1, 1).requires_grad_()
    image_uncertainty(logits).sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(value):
    logits = torch.zeros(1, 3, 4, 4)
    logits[0, 1, 2, 2] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        image_uncertainty(logits)


@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (3, 4), (4,)])
def test_logits_without_labels_or_pixels_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(batch, labels >= 2"):
        image_uncertainty(torch.zeros(shape))
