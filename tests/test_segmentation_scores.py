"""Scores against cases counted by hand."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from unicorn_monai.evaluation.segmentation import PooledIoU, confusion_matrix, scores


def logits(prediction, labels=3):
    return functional.one_hot(prediction, labels).movedim(-1, 1).float()


# true 0 0 0 1 1 2, predicted 0 0 1 1 2 2: IoU 2/3, 1/3, 1/2; Dice 4/5, 2/4, 2/3
TRUE = torch.tensor([[[0, 0, 0], [1, 1, 2]]])
PREDICTED = torch.tensor([[[0, 0, 1], [1, 2, 2]]])
IOU, DICE = [2 / 3, 1 / 3, 1 / 2], [4 / 5, 2 / 4, 2 / 3]


def test_a_confusion_matrix_counts_true_labels_in_rows():
    assert confusion_matrix(PREDICTED, TRUE, 3).tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]


def test_the_scores_are_those_counted_by_hand():
    result = scores(confusion_matrix(PREDICTED, TRUE, 3))
    assert result["iou"] == pytest.approx(IOU)
    assert result["dice"] == pytest.approx(DICE)
    assert result["mean_iou"] == pytest.approx(0.5)
    assert result["mean_dice"] == pytest.approx(sum(DICE) / 3)


def test_the_layers_are_all_labels_but_the_first_and_the_last():
    matrix = np.array([[10, 0, 0, 0], [0, 2, 2, 0], [0, 0, 4, 0], [0, 0, 0, 10]])
    result = scores(matrix)
    assert result["iou"] == pytest.approx([1, 2 / 4, 4 / 6, 1])
    assert result["mean_iou_layers"] == pytest.approx((2 / 4 + 4 / 6) / 2)


def test_a_perfect_and_a_wrong_segmentation():
    assert scores(confusion_matrix(TRUE, TRUE, 3))["mean_iou"] == 1
    assert scores(confusion_matrix((TRUE + 1) % 3, TRUE, 3))["mean_dice"] == 0


def test_a_label_that_neither_occurs_nor_is_predicted_has_no_score():
    result = scores(confusion_matrix(PREDICTED, TRUE, 4))
    assert math.isnan(result["iou"][3])
    assert math.isnan(result["dice"][3])
    assert result["mean_iou"] == pytest.approx(0.5)


def test_a_label_that_is_predicted_but_does_not_occur_counts_as_missed():
    result = scores(confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]), 2))
    assert result["iou"] == pytest.approx([2 / 3, 0])


def test_ignored_pixels_do_not_count():
    ignored = TRUE.clone()
    ignored[0, 0, 2] = 255
    assert confusion_matrix(PREDICTED, ignored, 3).tolist() == [[2, 0, 0], [0, 1, 1], [0, 0, 1]]


def test_nothing_but_ignored_pixels_cannot_be_scored():
    with pytest.raises(ValueError, match="No labelled pixel to score"):
        scores(confusion_matrix(PREDICTED, torch.full_like(TRUE, 255), 3))


def test_batches_are_pooled_before_they_are_scored():
    metric = PooledIoU(3)
    metric.update((logits(PREDICTED[:, :1]), TRUE[:, None, :1]))
    metric.update((logits(PREDICTED[:, 1:]), TRUE[:, None, 1:]))
    assert metric.compute() == pytest.approx(0.5)
    metric.reset()
    metric.update((logits(TRUE), TRUE[:, None]))
    assert metric.compute() == 1


def test_the_metric_gives_any_score_or_the_matrix_itself():
    for key, wanted in (("mean_dice", sum(DICE) / 3), ("confusion", [[2, 1, 0], [0, 1, 1], [0, 0, 1]])):
        metric = PooledIoU(3, key)
        metric.update((logits(PREDICTED), TRUE[:, None]))
        assert metric.compute() == pytest.approx(wanted) if key == "mean_dice" else metric.compute() == wanted


def test_logits_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        PooledIoU(3).update((torch.full((1, 3, 2, 3), float("nan")), TRUE[:, None]))
