"""The expected IoU against cases whose truth is known."""

import math

import pytest
import torch
from torch import nn

from unicorn_monai.evaluation.expected_iou import TEMPERATURES, estimate, fit_temperatures
from unicorn_monai.evaluation.verdict import Verdict


def one_hot(label: torch.Tensor, labels: int = 2) -> torch.Tensor:
    return nn.functional.one_hot(label, labels).movedim(-1, 1).float()


class Says(nn.Module):
    """Logits (1, labels, 1, 1) for every pixel, whatever the image shows."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits).reshape(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), -1, *images.shape[2:])


def test_the_temperature_makes_the_confidence_the_share_that_is_right():
    """Nine to one, right in three of four pixels: three to one is honest, T = log 9 / log 3 = 2."""
    label = torch.tensor([0, 0, 0, 1]).repeat(4).reshape(1, 1, 4, 4)
    networks = {"too sure": Says(math.log(9), 0.0), "honest": Says(math.log(3), 0.0)}
    assert fit_temperatures(networks, [(torch.zeros(1, 1, 4, 4), label)]) == {"too sure": 2.0, "honest": 1.0}


def test_pixels_to_ignore_fit_no_temperature():
    label = torch.tensor([0, 0, 0, 1]).repeat(4).reshape(1, 1, 4, 4)
    ignored = torch.full_like(label, 255)
    images, networks = torch.zeros(1, 1, 4, 4), {"a": Says(math.log(9), 0.0)}
    assert fit_temperatures(networks, [(images, label), (images, ignored)]) == {"a": 2.0}
    with pytest.raises(ValueError, match="No labelled pixel"):
        fit_temperatures(networks, [(images, ignored)])


def test_a_network_that_is_always_right_is_believed_and_one_that_is_always_wrong_is_not():
    label = torch.zeros(1, 1, 4, 4)
    found = fit_temperatures({"right": Says(1.0, 0.0), "wrong": Says(0.0, 1.0)}, [(torch.zeros(1, 1, 4, 4), label)])
    assert found == {"right": TEMPERATURES[0], "wrong": TEMPERATURES[-1]}


def test_a_perfect_belief_expects_the_true_mean_iou_in_every_image():
    """One network knows the truth, as do all others but the one asked for: 2/3 and 1/2, four times the same image."""
    truth = torch.tensor([[[0, 0], [1, 1]]]).repeat(4, 1, 1)
    found = {"asked": one_hot(truth), "same": one_hot(truth)}
    verdict = Verdict([*found], 2)
    verdict.update(found, found)
    assert estimate(verdict, "asked") == (1.0, 1.0, 1.0, {"belief": 1.0, "agreement": 1.0, "confidence": 1.0})
    seen = one_hot(torch.tensor([[[0, 0], [0, 1]]]).repeat(4, 1, 1))
    verdict = Verdict(["asked", *map(str, range(10_000, 10_003))], 2)
    found = dict.fromkeys(verdict.names, one_hot(truth)) | {"asked": seen}
    verdict.update(found, found)
    expected = estimate(verdict, "asked")
    # q of the wrong pixel is 3/4 for the truth: M = [[2.25, 0.75], [0, 1]], IoU 2.25 / 3 and 1 / 1.75
    assert expected.estimate == pytest.approx((2.25 / 3 + 1 / 1.75) / 2)
    assert expected.high == pytest.approx(1.0), "its own confidence expects 1"
    assert expected.low == pytest.approx((2 / 3 + 1 / 2) / 2), "the others agree on the truth; no draw differs"
    assert estimate(verdict, "asked", main="agreement").estimate == expected.low


def test_the_interval_holds_the_spread_of_the_subjects_and_of_the_estimators():
    generator = torch.Generator().manual_seed(0)
    found = {name: (3 * torch.randn(8, 3, 8, 8, generator=generator)).softmax(1) for name in "ab"}
    verdict = Verdict("ab", 3)
    verdict.update(found, found)
    expected = estimate(verdict, "a")
    assert expected.low < min(expected.by.values()) <= max(expected.by.values()) < expected.high
    assert expected.estimate == expected.by["belief"]
    eye = estimate(verdict, "a", ["eye"] * 8)
    assert (eye.low, eye.high) == (expected.low, expected.high), "of one subject blocks of images are drawn"


def test_subjects_are_those_of_the_images():
    found = dict.fromkeys("ab", one_hot(torch.zeros(2, 4, 4, dtype=torch.long)))
    verdict = Verdict("ab", 2)
    verdict.update(found, found)
    with pytest.raises(ValueError, match="3 subjects for 2 images"):
        estimate(verdict, "a", ["x", "y", "z"])
