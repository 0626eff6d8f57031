"""Online self-training against small tables computed by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from unicorn_monai.baselines.online_self_training import (
    MixedBatches,
    RareClassSampler,
    SelfTrainingLoss,
    class_mask,
    pixels_of,
    rare_class_probabilities,
)
from unicorn_monai.segmentation.training import SegmentationLoss


class Always(nn.Module):
    """The same logits for every pixel."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images):
        return self.logits.reshape(1, -1, 1, 1).expand(len(images), -1, *images.shape[2:])


# ---------------------------------------------------------------- rare classes


def test_rare_class_probabilities_of_a_small_table():
    """f = (0.7, 0.2, 0.1), T = 0.1: exp(3), exp(8), exp(9)."""
    expected = np.exp([3.0, 8.0, 9.0])
    assert np.allclose(rare_class_probabilities(np.array([0.7, 0.2, 0.1])), expected / expected.sum())


def test_a_hot_temperature_asks_for_all_alike_and_a_cold_one_for_the_rarest():
    shares = np.array([0.7, 0.2, 0.1])
    assert np.allclose(rare_class_probabilities(shares, 1e6), 1 / 3, atol=1e-5)
    assert np.allclose(rare_class_probabilities(shares, 1e-3), [0, 0, 1])


def test_a_class_that_never_occurs_is_not_asked_for():
    assert rare_class_probabilities(np.array([0.5, 0.0, 0.5])).tolist() == [0.5, 0.0, 0.5]


def test_images_with_the_rare_class_are_drawn_as_often_as_it():
    pixels = np.array([[90, 0], [90, 0], [60, 30]])  # the second class in the last image only
    torch.manual_seed(0)
    drawn = np.bincount(list(RareClassSampler(pixels, 6000, 0.5)), minlength=3) / 6000
    rare = rare_class_probabilities(np.array([8 / 9, 1 / 9]), 0.5)
    assert np.allclose(drawn, [rare[0] / 3, rare[0] / 3, rare[0] / 3 + rare[1]], atol=0.02)


def test_pixels_to_ignore_are_of_no_class():
    label = torch.tensor([[[0, 1, 1, 255]]])
    assert pixels_of([label], 3).tolist() == [[1, 2, 0]]
    with pytest.raises(ValueError, match="No labelled pixel"):
        RareClassSampler(pixels_of([torch.full((1, 2, 2), 255)], 3), 1)


# ---------------------------------------------------------------- mixing


@pytest.mark.parametrize(("classes", "chosen"), [(1, 1), (2, 1), (3, 2), (5, 3)])
def test_half_of_the_classes_rounded_up_and_all_their_pixels(classes, chosen):
    label = torch.arange(classes).repeat_interleave(4).reshape(1, classes, 4)
    rows = class_mask(label)[0].float().mean(dim=1)
    assert set(rows.tolist()) <= {0.0, 1.0}
    assert rows.sum() == chosen


def test_pixels_to_ignore_are_not_pasted():
    assert not class_mask(torch.full((1, 3, 3), 255)).any()


def batches(logits, iterations=10, **options):
    unlabeled = DataLoader([{"image": torch.full((1, 4, 4), 0.25)}] * 4, batch_size=2)
    return MixedBatches(Always(logits), unlabeled, iterations, **options)


def labelled():
    label = torch.tensor([0, 0, 1, 1]).reshape(1, 4, 1).expand(1, 4, 4)
    return {"image": torch.full((2, 1, 4, 4), 0.75), "label": label.repeat(2, 1, 1, 1)}


def test_a_mixed_image_is_labelled_pixels_beside_unlabelled_ones_with_guesses():
    prepared = batches([0.0, 0.0, 9.0], warmup=0.0)
    images, targets = prepared(labelled(), torch.device("cpu"))
    assert images.shape == (4, 1, 4, 4)
    assert targets.shape == (4, 2, 4, 4)
    assert torch.equal(images[:2], labelled()["image"])
    assert torch.equal(targets[:2, :1], labelled()["label"].float())
    assert torch.equal(targets[:2, 1], torch.ones(2, 4, 4))
    mixed = images[2:] == 0.75
    assert mixed.flatten(1).sum(dim=1).tolist() == [8, 8]
    assert torch.equal(targets[2:, :1][mixed], labelled()["label"].float()[mixed])
    assert (targets[2:, :1][~mixed] == 2).all()


def test_the_weight_is_the_share_of_confident_pixels_and_rises():
    sure, unsure = [0.0, 9.0], [0.0, 1.0]  # of probability 0.9999 and 0.73
    for logits, share in ((sure, 1.0), (unsure, 0.0)):
        prepared = batches(logits, iterations=10, threshold=0.9, warmup=0.4)
        for step in range(1, 7):
            images, targets = prepared(labelled(), torch.device("cpu"))
            guessed = (images[2:] == 0.25)[:, 0]
            assert torch.allclose(targets[2:, 1][guessed], torch.tensor(share * min(1.0, step / 4)))


def test_no_weight_leaves_the_supervised_loss():
    torch.manual_seed(0)
    logits, label = torch.randn(4, 2, 4, 4), torch.randint(0, 2, (4, 1, 4, 4))
    targets = torch.cat([label.float(), torch.zeros(4, 1, 4, 4)], dim=1)
    supervised = SegmentationLoss(1.0)
    assert torch.equal(SelfTrainingLoss(supervised)(logits, targets), supervised(logits[:2], label[:2]))


def test_the_loss_of_guesses_is_their_weighted_cross_entropy():
    """Logits (0, log 3): probability 3/4 of the second class; half of the pixels count half."""
    logits = torch.tensor([0.0, math.log(3)]).reshape(1, 2, 1, 1).expand(2, 2, 1, 2)
    targets = torch.tensor([[[[1.0, 1.0]], [[1.0, 1.0]]], [[[1.0, 1.0]], [[0.5, 0.0]]]])
    supervised = nn.Module()
    supervised.forward = lambda logits, label: torch.zeros(())
    assert SelfTrainingLoss(supervised)(logits, targets).item() == pytest.approx(0.5 * math.log(4 / 3) / 2)
