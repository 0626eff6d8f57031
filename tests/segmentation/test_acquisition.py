"""Acquisition functions and aggregations: closed forms, limits, and the default that must stay what it was."""

import math

import pytest
import torch
from monai.inferers import SimpleInferer
from monai.networks.nets import UNet
from torch import nn

from unicorn_monai.bundle.installation import install
from unicorn_monai.bundle.references import from_bundle
from unicorn_monai.segmentation.acquisition import (
    AGGREGATIONS,
    SAMPLED,
    SINGLE,
    Measure,
    SampledInferer,
    aggregate,
    entropy_of_mean,
    make_inferer,
    margin,
    max_softmax,
    mutual_information,
)
from unicorn_monai.system.networks import freeze
from unicorn_monai.system.weights import save_weights
from unicorn_monai.uncertainty import image_uncertainty, normalised_entropy

LABELS = 5


def network(dropout=0.0, seed=0):
    torch.manual_seed(seed)
    return freeze(UNet(2, 1, LABELS, channels=(4, 8), strides=(2,), num_res_units=1, dropout=dropout))


def of(*probabilities):
    """Logits (1, labels, 1, 1)."""
    return torch.tensor(probabilities).log().reshape(1, -1, 1, 1)


def test_the_default_is_the_paper_s_bit_by_bit():
    logits = 3 * torch.randn(3, 10, 16, 17)
    assert torch.equal(Measure()(logits), image_uncertainty(logits))
    assert isinstance(make_inferer("entropy"), SimpleInferer)


def test_the_values_worked_out_by_hand():
    logits = of(0.5, 0.3, 0.2)
    assert max_softmax(logits).item() == pytest.approx(0.5 * 3 / 2)
    assert margin(logits).item() == pytest.approx(0.8)


@pytest.mark.parametrize("name", SINGLE)
def test_knowing_nothing_is_one_and_knowing_all_is_zero(name):
    for aggregation in AGGREGATIONS:
        measure = Measure(name, aggregation)
        torch.testing.assert_close(measure(torch.zeros(2, LABELS, 6, 7)), torch.ones(2))
        labels = torch.randint(0, LABELS, (2, 6, 7))
        sure = 1000.0 * nn.functional.one_hot(labels, LABELS).movedim(-1, 1)
        assert measure(sure).eq(0).all()


@pytest.mark.parametrize("name", SAMPLED)
def test_predictions_that_agree_and_are_sure_are_certain(name):
    sure = 1000.0 * nn.functional.one_hot(torch.randint(0, LABELS, (2, 6, 7)), LABELS).movedim(-1, 1)
    for aggregation in AGGREGATIONS:
        assert Measure(name, aggregation)(sure[:, None].repeat(1, 3, 1, 1, 1)).abs().max() < 1e-6


def test_networks_that_are_sure_of_different_labels_disagree_about_everything():
    each = torch.stack(
        [1000.0 * nn.functional.one_hot(torch.full((1, 2, 2), k), 4).movedim(-1, 1) for k in range(4)], 1
    )
    torch.testing.assert_close(mutual_information(each), torch.ones(1, 1, 2, 2))
    torch.testing.assert_close(entropy_of_mean(each), torch.ones(1, 1, 2, 2))


def test_networks_that_agree_on_not_knowing_disagree_about_nothing():
    unsure = torch.zeros(1, 3, LABELS, 2, 2)
    assert mutual_information(unsure).abs().max() < 1e-6
    torch.testing.assert_close(entropy_of_mean(unsure), torch.ones(1, 1, 2, 2))


def test_mutual_information_is_what_is_left_of_the_entropy():
    samples = torch.randn(2, 4, LABELS, 3, 3)
    within = torch.stack([normalised_entropy(samples[:, i]) for i in range(4)]).mean(dim=0)
    torch.testing.assert_close(mutual_information(samples), entropy_of_mean(samples) - within, atol=1e-5, rtol=1e-4)
    assert mutual_information(samples).min() >= 0


def test_one_prediction_repeated_has_its_entropy():
    logits = torch.randn(2, LABELS, 3, 3)
    torch.testing.assert_close(entropy_of_mean(logits[:, None].repeat(1, 3, 1, 1, 1)), normalised_entropy(logits))


def test_the_aggregations_worked_out_by_hand():
    pixels = torch.arange(100.0).reshape(1, 1, 10, 10) / 100
    logits = torch.zeros(1, 3, 10, 10)
    logits[:, 1, 5:], logits[:, 0, :5] = 1000.0, 1000.0  # the lower half is the layer
    assert aggregate(pixels, logits, "mean").item() == pytest.approx(0.495)
    assert aggregate(pixels, logits, "p95").item() == pytest.approx(0.94)
    assert aggregate(pixels, logits, "retina").item() == pytest.approx((0.50 + 0.99) / 2)


def test_an_image_without_retina_still_has_a_number():
    logits = torch.zeros(1, LABELS, 4, 4)
    logits[:, 0] = 1e30
    assert aggregate(torch.full((1, 1, 4, 4), 0.3), logits, "retina").item() == pytest.approx(0.3)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", [*SINGLE, *SAMPLED])
@pytest.mark.parametrize("extreme", [0.0, 1e4, 1e30, torch.finfo(torch.float32).max])
def test_every_measure_is_finite_and_in_the_unit_interval(name, aggregation, extreme):
    logits = torch.randn(2, 3, LABELS, 4, 4)
    logits[:, :, 0, :2], logits[:, :, 1, 1:3] = extreme, -extreme
    u = Measure(name, aggregation)(logits[:, 0] if name in SINGLE else logits)
    assert u.shape == (2,)
    assert u.min() >= 0
    assert u.max() <= 1


# ---------------------------------------------------------------- several predictions


def test_dropout_is_on_for_its_samples_only_and_repeats_with_its_seed():
    net, images = network(dropout=0.3), torch.rand(2, 1, 8, 8)
    inferer = make_inferer("mc_dropout", samples=4)
    state = torch.get_rng_state()
    samples = inferer(images, net)
    assert torch.equal(torch.get_rng_state(), state)
    assert samples.shape == (2, 4, LABELS, 8, 8)
    assert not torch.equal(samples[:, 0], samples[:, 1])
    assert torch.equal(samples, inferer(images, net))
    assert torch.equal(net(images), net(images)), "dropout was left on"
    assert Measure("mc_dropout")(samples).min() > 0


def test_a_network_trained_without_dropout_is_refused():
    with pytest.raises(ValueError, match="needs a network trained with dropout"):
        make_inferer("mc_dropout")(torch.rand(1, 1, 8, 8), network())


def test_an_ensemble_of_equal_networks_agrees_and_of_different_ones_does_not():
    images = torch.rand(2, 1, 8, 8)
    same = SampledInferer("ensemble", networks=[network()])(images, network())
    other = SampledInferer("ensemble", networks=[network(seed=1)])(images, network())
    assert Measure("ensemble")(same).max() < 1e-6 < Measure("ensemble")(other).min()


def test_the_members_of_an_ensemble_come_from_the_bundle(tmp_path):
    changes = {"inference.json": {"num_labels": LABELS, "network_def::channels": [4, 8], "network_def::strides": [2]}}
    root = install("retinal_unet", tmp_path, overrides=changes)
    save_weights(from_bundle(root), tmp_path / "second.pt")
    inferer = make_inferer("ensemble", ensemble=[tmp_path / "second.pt"], bundle_root=root)
    second = from_bundle(root, weights=str(tmp_path / "second.pt"))
    images = torch.rand(1, 1, 8, 8)
    found = inferer(images, network())
    torch.testing.assert_close(found[:, 1], second(images))
    torch.testing.assert_close(found[:, 0], network()(images))


def test_test_time_augmentation_undoes_the_mirror_image():
    position = torch.linspace(0, 1, 8).expand(1, 1, 8, 8)
    views = make_inferer("tta")(position, lambda x: torch.cat([x, -x], dim=1))
    assert views.shape == (1, 6, 2, 8, 8)
    torch.testing.assert_close(views[:, 0], views[:, 3])
    torch.testing.assert_close(views[:, 1, :1], position**0.8)


def test_a_network_that_does_not_care_about_contrast_or_mirroring_has_no_further_uncertainty():
    views = make_inferer("tta")(
        torch.rand(1, 1, 8, 8), lambda x: torch.zeros(1, 2, 8, 8) + torch.tensor([3.0, 0]).reshape(1, 2, 1, 1)
    )
    p = 1 / (1 + math.exp(-3))
    expected = -(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)
    assert Measure("tta")(views).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: Measure("surprise"), r"Unknown acquisition 'surprise'.*'entropy'.*'tta'"),
        (lambda: Measure("entropy", "median"), r"Unknown aggregation 'median'.*'retina'"),
        (lambda: make_inferer("surprise"), "Unknown acquisition 'surprise'"),
        (lambda: make_inferer("ensemble"), "needs further networks"),
        (lambda: make_inferer("ensemble", ensemble=["a.pt"]), "give `bundle_root`"),
        (lambda: make_inferer("mc_dropout", samples=1), "samples is 1; expected at least 2"),
        (lambda: Measure("ensemble")(torch.zeros(2, 1, 3, 3)), r"shape \(2, 1, 3, 3\); expected \(batch, samples >= 2"),
        (lambda: Measure("tta")(torch.zeros(2, 3, 8, 8)), r"shape \(2, 3, 8, 8\).*Use the inferer of `make_inferer`"),
        (lambda: Measure("margin")(torch.full((1, 3, 2, 2), float("nan"))), "NaN or infinite"),
        (lambda: Measure("max_softmax")(torch.zeros(1, 1, 2, 2)), "labels >= 2"),
        (lambda: Measure("tta")(torch.full((1, 2, 3, 2, 2), float("nan"))), "NaN or infinite"),
    ],
)
def test_what_cannot_be_measured_is_refused(work, message):
    with pytest.raises(ValueError, match=message):
        work()
