"""Online self-training against small tables computed by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data_prep.phantom import write_phantom
from tiny_networks import TINY
from unicorn_monai.baselines.online_self_training import (
    MixedBatches,
    RandUnlabeledd,
    RareClassSampler,
    SelfTrainingLoss,
    class_mask,
    pixels_of,
    rare_class_order,
    rare_class_probabilities,
)
from unicorn_monai.bundle.installation import configured, install
from unicorn_monai.bundle.run import run_bundle
from unicorn_monai.data.items import datalist, images_only
from unicorn_monai.images.files import write_array
from unicorn_monai.images.transforms import read_image
from unicorn_monai.segmentation.training import SegmentationLoss
from unicorn_monai.system.weights import read_metadata


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
    return MixedBatches(Always(logits), 1, range(iterations), **options)


def labelled():
    label = torch.tensor([0, 0, 1, 1]).reshape(1, 4, 1).expand(1, 4, 4)
    images = {"image": 0.75, "unlabeled": 0.5, "seen": 0.25}
    same = {key: torch.full((2, 1, 4, 4), value) for key, value in images.items()}
    return {**same, "label": label.repeat(2, 1, 1, 1)}


def test_a_mixed_image_is_labelled_pixels_beside_unlabelled_ones_with_guesses():
    prepared = batches([0.0, 0.0, 9.0], rising=0.0)
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
        prepared = batches(logits, iterations=10, threshold=0.9, rising=0.4)
        for step in range(1, 7):
            images, targets = prepared(labelled(), torch.device("cpu"))
            guessed = (images[2:] == 0.25)[:, 0]
            assert torch.allclose(targets[2:, 1][guessed], torch.tensor(share * min(1.0, step / 4)))


class Bright(nn.Module):
    """Sure of label 1 where a pixel is above 0.4."""

    def forward(self, images):
        return 100 * torch.cat([0.4 - images, images - 0.4], dim=1)


def test_labels_are_guessed_of_the_image_as_it_is_and_learned_on_the_augmented_one():
    prepared = MixedBatches(Bright(), 1, range(10), rising=0.0)
    images, targets = prepared(labelled(), torch.device("cpu"))
    pasted = images[2:] == 0.75
    assert (images[2:][~pasted] == 0.25).all()
    assert (targets[2:, :1][~pasted] == 1).all()


def test_the_weight_goes_on_rising_after_an_interruption():
    whole, first, second = (batches([0.0, 9.0], iterations=10, rising=0.6) for _ in range(3))
    for prepared in (whole, whole, first):
        prepared(labelled(), torch.device("cpu"))
    second.load_state_dict(first.state_dict())
    weights = [prepared(labelled(), torch.device("cpu"))[1][2:, 1].min().item() for prepared in (second, whole)]
    assert weights == pytest.approx([2 / 6, 3 / 6])


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


# ---------------------------------------------------------------- unlabelled images


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    root = tmp_path_factory.mktemp("domains")
    for name, device in (("A", "spectralis"), ("B", "home_oct")):
        write_phantom(root / name, device, n_subjects=4, scans_per_subject=2, size=32, split=(0.5, 0.25, 0.25))
    return root


def test_every_item_gets_an_unlabelled_image_half_of_them_mirrored(domains):
    items = images_only(domains / "B", "training")
    known = [read_image(item["image"]) for item in items]
    transform = RandUnlabeledd(items, augmentation="geometry").set_random_state(0)
    item = {"image": known[0]}
    drawn = [transform(item) for _ in range(200)]
    kinds = [known, [image.flip(-1) for image in known]]
    counts = [[sum(torch.equal(one["unlabeled"], image) for one in drawn) for image in kind] for kind in kinds]
    assert np.sum(counts) == 200
    assert np.min(counts) > 0.5 * 200 / (2 * len(known))
    assert all(torch.equal(one["seen"], one["unlabeled"]) for one in drawn)


def test_the_other_network_sees_strong_augmentation_where_the_labelled_images_have_some(domains):
    items = images_only(domains / "B", "training")[:1]
    clean = read_image(items[0]["image"])
    transform = RandUnlabeledd(items, augmentation="strong").set_random_state(0)
    drawn = [transform({"image": clean}) for _ in range(20)]
    assert all(any(torch.equal(one["unlabeled"], image) for image in (clean, clean.flip(-1))) for one in drawn)
    assert sum(not torch.equal(one["seen"], one["unlabeled"]) for one in drawn) >= 15
    assert all(0 <= one["seen"].min() <= one["seen"].max() <= 1 for one in drawn)
    again = RandUnlabeledd(items, augmentation="strong").set_random_state(0)
    assert all(torch.equal(again({"image": clean})["seen"], one["seen"]) for one in drawn)


def test_images_of_another_size_are_refused_by_name(domains):
    items = images_only(domains / "B", "training")
    with pytest.raises(ValueError, match=r"is \(32, 32\), a labelled one \(16, 32\); expected one size"):
        RandUnlabeledd(items)({"image": torch.zeros(1, 16, 32)})
    with pytest.raises(ValueError, match="needs unlabelled images"):
        RandUnlabeledd([])


def test_the_order_is_by_the_label_maps(tmp_path):
    """The second class fills one of 32 pixels, all of them in the last image: with T so small nothing else is drawn."""
    for i, last in enumerate((0, 0, 1)):
        write_array(tmp_path / f"{i}.png", np.array([[0, 0, 0, last]] * 4, np.uint8))
    items = [{"label": str(tmp_path / f"{i}.png")} for i in range(3)]
    assert list(rare_class_order(items, 2, 4, 5, temperature=1e-3)) == [2] * 20
    assert len(rare_class_order(items, 2, 2)) == 2, "a last batch of one image is left out"


# ---------------------------------------------------------------- the bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return install("retinal_unet", tmp_path_factory.mktemp("bundles"), "small", TINY["retinal_unet"])


def self_train(bundle, domains, folder, **more):
    folders = {"ckpt_dir": str(folder), "output_dir": str(folder), "device": "cpu"}
    data = {"dataset_dir": str(domains / "A"), "unlabeled_dir": str(domains / "B")}
    run_bundle(bundle / "configs" / "self_train.json", **data, **folders, **more)
    return read_metadata(Path(folder) / "model.pt")


def test_it_publishes_the_averaged_weights_of_the_last_epoch_as_any_training(bundle, domains, tmp_path):
    metadata = self_train(bundle, domains, tmp_path, max_epochs=2, augmentation="strong+geometry")
    assert metadata["epoch"] == 2
    state = torch.load(tmp_path / "resume.pt", weights_only=True)["objects"]
    published = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(published[key], value) for key, value in state["ema"]["averaged"].items())
    config = configured("retinal_unet", "small", TINY["retinal_unet"], "self_train.json")
    assert state["mixing"] == {"iteration": 2 * config["iterations_per_epoch"]}


def test_an_interrupted_one_goes_on_to_the_same_weights(bundle, domains, tmp_path, monkeypatch):
    whole = self_train(bundle, domains, tmp_path / "whole", max_epochs=3, augmentation="strong")
    original, calls = MixedBatches.__call__, []

    def stops(self, *args, **options):
        calls.append(1)
        if len(calls) == 1 + 2 * length:
            raise KeyboardInterrupt
        return original(self, *args, **options)

    length = configured("retinal_unet", "small", TINY["retinal_unet"], "self_train.json")["iterations_per_epoch"]
    monkeypatch.setattr(MixedBatches, "__call__", stops)
    with pytest.raises(KeyboardInterrupt):
        self_train(bundle, domains, tmp_path / "stopped", max_epochs=3, augmentation="strong")
    monkeypatch.setattr(MixedBatches, "__call__", original)
    assert not (tmp_path / "stopped" / "model.pt").is_file() or read_metadata(tmp_path / "stopped/model.pt") != whole
    again = self_train(bundle, domains, tmp_path / "stopped", max_epochs=3, augmentation="strong", resume=True)
    assert again == whole


def test_true_labels_of_the_unlabelled_images_are_not_read(bundle, domains, tmp_path):
    metadata = self_train(bundle, domains, tmp_path / "with", max_epochs=1)
    labels = [Path(item["label"]) for item in datalist(domains / "B", "training", ("image", "label"))]
    kept = [path.read_bytes() for path in labels]
    try:
        for path in labels:
            path.write_bytes(b"no label map")
        assert self_train(bundle, domains, tmp_path / "without", max_epochs=1) == metadata
    finally:
        for path, content in zip(labels, kept, strict=True):
            path.write_bytes(content)


@pytest.mark.parametrize(("name", "value"), [("threshold", 2.0), ("rising", -0.1), ("rare_temperature", 0)])
def test_wrong_settings_are_refused(bundle, domains, tmp_path, name, value):
    with pytest.raises(RuntimeError) as caught:
        self_train(bundle, domains, tmp_path, **{name: value})
    assert f"{name} is {value}; expected" in str(caught.value.__cause__)


def test_what_is_set_for_the_training_holds_for_self_training():
    overrides = {"train.json": {"max_epochs": 7, "learning_rate": 0.5}, "self_train.json": {"learning_rate": 0.25}}
    own = configured("retinal_unet", ["small", "paper"], overrides, "self_train.json")
    small = configured("retinal_unet", "small", None, "train.json")
    assert (own["max_epochs"], own["learning_rate"], own["ce_weight"]) == (7, 0.25, 0.0)
    assert own["iterations_per_epoch"] == small["iterations_per_epoch"]
