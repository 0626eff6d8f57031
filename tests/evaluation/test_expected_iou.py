"""The expected IoU against cases whose truth is known."""

import math

import pytest
import torch
from torch import nn

from unicorn_monai.evaluation.expected_iou import TEMPERATURES, Line, estimate, fit_lines, fit_temperatures
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


def test_a_line_is_that_of_least_squares_where_confidences_differ():
    line = Line.through([0.5, 0.6, 0.7], [0.2, 0.5, 0.5])
    assert (line.mean_confidence, line.mean_iou) == pytest.approx((0.6, 0.4))
    assert line.slope == pytest.approx(1.5, rel=1e-2)
    left = [0.05, 0.1, 0.05]
    assert line.spread == pytest.approx(sum(x**2 for x in left) ** 0.5, rel=1e-2), "one point more than two"
    assert line(0.6) == pytest.approx(0.4)
    assert (line(0.0), line(1.2)) == (0, 1)
    assert line.margin(0.6) == pytest.approx(line.spread * (4 / 3) ** 0.5)
    assert line.margin(0.2) == pytest.approx(line.spread * (4 / 3 + 0.4**2 / 0.02) ** 0.5, rel=1e-2), "far outside"


@pytest.mark.parametrize(
    ("confidence", "truth", "slope"),
    [
        ([0.7, 0.7, 0.7], [0.2, 0.5, 0.5], 1.0),
        ([0.5, 0.6, 0.7], [0.6, 0.4, 0.2], 1.0),
        ([0.9, 0.901, 0.902, 0.903, 0.904, 0.905], [0.8, 0.84, 0.82, 0.88, 0.86, 0.9], 2.8),
        ([0.8, 0.82, 0.84], [0.1, 0.5, 0.9], 6.0),
    ],
)
def test_confidences_that_hardly_differ_or_mislead_lose_as_much_as_they_say(confidence, truth, slope):
    line = Line.through(confidence, truth)
    assert line.slope == pytest.approx(slope, abs=0.1)
    assert line(line.mean_confidence - 0.05) == pytest.approx(line.mean_iou - 0.05 * line.slope)


def test_one_point_is_shifted_as_the_confidence_is():
    line = Line.through([0.7], [0.5])
    assert (line(0.7), line(0.6)) == pytest.approx((0.5, 0.4))
    with pytest.raises(ValueError, match="expected one or more, finite"):
        Line.through([0.7, float("nan")], [0.5, 0.5])


class Bright(nn.Module):
    """Label 1 above one half, and as sure of it whatever the image shows."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = (images - 0.5).sign()
        return torch.cat([-bright, bright], dim=1)


def test_a_network_is_worth_what_it_was_on_disturbed_images():
    """Half of the pixels are of each label; inverted images are seen the wrong way round, black ones as 0 alone."""
    label = torch.tensor([0, 1]).repeat(8).reshape(1, 1, 4, 4)
    ignored = torch.full_like(label, 255)
    batches = [(label.float() * 0.5 + 0.2, label), (torch.ones(1, 1, 4, 4), ignored)]
    changes = {"none": torch.Tensor.float, "inverted": lambda x: 1 - x, "black": torch.zeros_like}
    network = {"a": Bright()}
    sure = torch.tensor([1.0, -1.0]).softmax(0)[0].item()
    each = {}
    for name in changes:
        each[name] = fit_lines(network, lambda: batches, {name: changes[name]}, 2, {"a": 1.0})["a"]
    assert [line.mean_iou for line in each.values()] == [1.0, 0.0, pytest.approx(0.25)]
    found = fit_lines(network, lambda: batches, {"none": torch.Tensor.float}, 2, {"a": 2.0})["a"]
    half = torch.tensor([0.5, -0.5]).softmax(0)[0].item()  # a temperature of 2 halves the logits
    assert found.mean_confidence == pytest.approx(half * 8 / (16 - half * 8))
    both = {name: changes[name] for name in ("none", "black")}
    networks = network | {"b": Says(0.0, 1.0)}  # sees 1 wherever it is, so that it counts
    line = fit_lines(networks, lambda: batches, both, 2, {"a": 1.0, "b": 1.0})["a"]
    expected = sure * 8 / (16 - sure * 8), sure / 2  # all of 0: 16 sure pixels of 16; of 1 nothing
    assert line(expected[0]) == pytest.approx(1.0, abs=1e-3)
    assert line(expected[1]) == pytest.approx(0.25, abs=1e-3)
    with pytest.raises(ValueError, match="No change was given"):
        fit_lines(network, lambda: batches, {}, 2, {"a": 1.0})


def test_the_estimate_is_the_confidence_on_the_line():
    """One network knows the truth, as do all others but the one asked for: 2/3 and 1/2, four times the same image."""
    truth = torch.tensor([[[0, 0], [1, 1]]]).repeat(4, 1, 1)
    found = {"asked": one_hot(truth), "same": one_hot(truth)}
    verdict = Verdict([*found], 2)
    verdict.update(found, found)
    every = {"calibrated": 1.0, "belief": 1.0, "agreement": 1.0, "confidence": 1.0}
    assert estimate(verdict, "asked") == (1.0, 1.0, 1.0, every)
    found = estimate(verdict, "asked", Line(0.5, 0.2, 1.0, 0.05))
    assert found[:3] == pytest.approx((0.7, 0.7 - 0.1 * 2**0.5, 0.7 + 0.1 * 2**0.5))
    assert found.by == pytest.approx(every | {"calibrated": 0.7})
    seen = one_hot(torch.tensor([[[0, 0], [0, 1]]]).repeat(4, 1, 1))
    verdict = Verdict(["asked", *map(str, range(10_000, 10_003))], 2)
    found = dict.fromkeys(verdict.names, one_hot(truth)) | {"asked": seen}
    verdict.update(found, found)
    by = estimate(verdict, "asked").by
    # q of the wrong pixel is 3/4 for the truth: M = [[2.25, 0.75], [0, 1]], IoU 2.25 / 3 and 1 / 1.75
    assert by["belief"] == pytest.approx((2.25 / 3 + 1 / 1.75) / 2)
    assert by["agreement"] == pytest.approx((2 / 3 + 1 / 2) / 2), "the others agree on the truth"


def test_the_range_holds_the_spread_of_the_subjects_and_what_the_line_left():
    generator = torch.Generator().manual_seed(0)
    found = {name: (3 * torch.randn(8, 3, 8, 8, generator=generator)).softmax(1) for name in "ab"}
    verdict = Verdict("ab", 3)
    verdict.update(found, found)
    plain, wide = estimate(verdict, "a"), estimate(verdict, "a", Line(spread=0.1, points=10**9))
    assert plain.low < plain.by["confidence"] == plain.estimate < plain.high
    assert (wide.low, wide.high) == pytest.approx((plain.low - 0.2, plain.high + 0.2))
    eye = estimate(verdict, "a", subjects=["eye"] * 8)
    assert (eye.low, eye.high) == (plain.low, plain.high), "of one subject blocks of images are drawn"


def test_subjects_are_those_of_the_images():
    found = dict.fromkeys("ab", one_hot(torch.zeros(2, 4, 4, dtype=torch.long)))
    verdict = Verdict("ab", 2)
    verdict.update(found, found)
    with pytest.raises(ValueError, match="3 subjects for 2 images"):
        estimate(verdict, "a", subjects=["x", "y", "z"])
