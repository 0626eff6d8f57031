"""Pseudo-labels by hand."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer
from torch import nn

from unicorn_monai.data.checks import check
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import label_names, read_header
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.images.files import IGNORE_LABEL, read_array
from unicorn_monai.segmentation.pseudo_labels import PseudoLabeller, pseudo_label
from unicorn_monai.system.networks import AppliedNetwork
from unicorn_monai.system.weights import save_weights, sha256

LABELS = {0: "above", 1: "below"}


def logits(*probabilities: tuple[float, ...]) -> torch.Tensor:
    """One image of one column, (1, labels, pixels, 1), from the probabilities of each pixel."""
    return torch.tensor(probabilities).log().T[None, :, :, None]


def test_only_confident_pixels_keep_their_label():
    found = pseudo_label(logits((0.95, 0.05), (0.2, 0.8), (0.05, 0.95), (0.5, 0.5)), threshold=0.9)
    assert found.dtype == torch.uint8
    assert found[0, :, 0].tolist() == [0, IGNORE_LABEL, 1, IGNORE_LABEL]


def test_a_threshold_of_zero_keeps_the_whole_prediction_and_one_what_is_certain():
    some = torch.randn(2, 4, 8, 8)
    assert torch.equal(pseudo_label(some, 0.0), some.argmax(dim=1).to(torch.uint8))
    assert (pseudo_label(some, 1.0) == IGNORE_LABEL).all()
    certain = 200 * (some == some.amax(dim=1, keepdim=True)).float()
    assert (pseudo_label(certain, 1.0) == some.argmax(dim=1)).all()


def test_a_higher_threshold_keeps_fewer_pixels_and_changes_no_label():
    some = torch.randn(2, 4, 16, 16)
    low, high = (pseudo_label(some, t) for t in (0.4, 0.7))
    kept = high != IGNORE_LABEL
    assert 0 < kept.sum() < (low != IGNORE_LABEL).sum()
    assert torch.equal(high[kept], low[kept])


@pytest.mark.parametrize("threshold", [-0.1, 1.1, 90, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    with pytest.raises(ValueError, match=r"threshold is .*; expected a probability"):
        pseudo_label(torch.zeros(1, 2, 1), threshold)


def test_an_output_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="The output of the segmentation network holds NaN"):
        pseudo_label(torch.full((1, 2, 3, 3), float("nan")), 0.5)


def bright_is_below() -> nn.Conv2d:
    """A network that knows: the logit of "below" is 20 (grey value - 0.5)."""
    network = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([0.0, 20.0]).reshape(2, 1, 1, 1))
        network.bias.copy_(torch.tensor([0.0, -10.0]))
    return network


@pytest.fixture
def labeller(tmp_path):
    with DatasetWriter(
        tmp_path / "b", About(name="b", device="home", labels=LABELS, spacing_mm=(0.01, 0.02))
    ) as writer:
        for i, split in enumerate(("training", "training", "validation", "test")):
            image = np.full((4, 4), 10 * i, np.uint8)
            image[2], image[3] = 250, 127  # certain, uncertain
            writer.add(split, image, subject=f"s{i}")
    with DatasetWriter(tmp_path / "a", About(name="a", device="clinic", labels=LABELS)) as writer:
        writer.add("training", np.eye(4, dtype=np.uint8), np.eye(4, dtype=np.uint8), subject="other")
    network = bright_is_below()
    save_weights(network, tmp_path / "model.pt")

    def make(**settings):
        arguments = {"dataset_dir": tmp_path / "b", "output_dir": tmp_path / "c", "labeled_dir": tmp_path / "a"}
        applied = AppliedNetwork(network, tmp_path / "model.pt", SimpleInferer())
        return PseudoLabeller(applied, **(arguments | settings))

    return make


def test_the_data_set_has_the_images_the_confident_labels_and_their_origin(labeller, tmp_path):
    labeller().run()
    assert check(tmp_path / "c", need_labels=True) == []
    header, real = read_header(tmp_path / "c"), read_header(tmp_path / "b")
    assert [header[key] for key in ("device", "spacing_mm")] == [real[key] for key in ("device", "spacing_mm")]
    assert label_names(tmp_path / "c") == list(LABELS.values())
    assert [len(header[split]) for split in ("training", "validation", "test")] == [2, 1, 0]
    for split in ("training", "validation"):
        pairs = zip(datalist(tmp_path / "c", split, ("image", "label")), datalist(tmp_path / "b", split), strict=True)
        for item, source in pairs:
            assert np.array_equal(read_array(item["image"]), read_array(source["image"]))
            assert read_array(item["label"])[:, 0].tolist() == [0, 0, 1, IGNORE_LABEL]
            assert item["subject"] == source["subject"]
            origin = item["pseudo_label"]
            assert (origin["confident"], origin["threshold"]) == (0.75, 0.9)
            assert origin["segmentation_sha256"] == sha256(tmp_path / "model.pt")


def test_an_unlabelled_data_set_needs_the_names_of_the_labelled_domain(labeller, tmp_path):
    with pytest.raises(ValueError, match=r"/b' names no labels.*Give labeled_dir, the data set that the segm"):
        labeller(labeled_dir=None)


def test_what_is_finished_is_left_alone(labeller, tmp_path, caplog):
    labeller().run()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "c" / "labels").iterdir()}
    caplog.set_level(logging.INFO, "unicorn_monai")
    labeller().run()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "c" / "labels").iterdir()} == before
    assert "75.0% of the pixels of 3 images" in caplog.text


def test_another_threshold_does_not_go_into_the_same_folder(labeller):
    labeller().run()
    with pytest.raises(ValueError, match=r"made with \{'threshold': 0.9.*choose another output_dir"):
        labeller(threshold=0.5).run()
