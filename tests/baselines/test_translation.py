"""A translated data set: colour, sizes and spacings of single images, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer
from torch import nn

from unicorn_monai.baselines.networks import ResnetGenerator
from unicorn_monai.baselines.translation import Translator
from unicorn_monai.data.checks import check
from unicorn_monai.data.items import datalist
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.images.files import read_array
from unicorn_monai.system.networks import AppliedNetwork
from unicorn_monai.system.weights import save_weights

LABELS = {0: "above", 1: "below"}


class Negative(nn.Module):
    """A translation that can be checked by hand: white becomes black."""

    def __init__(self) -> None:
        super().__init__()
        self.white = nn.Parameter(torch.ones(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.white - image


def write(root, sizes=((8, 8), (8, 8)), channels=1, labelled=True):
    random = np.random.default_rng(0)
    colour = {"modality": "RGB", "suffix": ".png"} if channels == 3 else {"spacing_mm": (0.01, 0.02)}
    with DatasetWriter(root, About(name="a", device="a", labels=LABELS, **colour)) as writer:
        for i, size in enumerate(sizes):
            image = random.integers(0, 256, (*size, 3) if channels == 3 else size, dtype=np.uint8)
            label = random.integers(0, 2, size, dtype=np.uint8) if labelled else None
            extra = {"spacing_mm": [0.01 * (i + 1), 0.02]} if channels == 1 else {}
            writer.add("training", image, label, subject=f"s{i}", **extra)
    return root


def translator(tmp_path, network=None, inferer=None, **settings):
    network = network or Negative()
    save_weights(network, tmp_path / "model.pt", method="negative")
    arguments = {"dataset_dir": tmp_path / "a", "output_dir": tmp_path / "b", "split": "training"}
    applied = AppliedNetwork(network, tmp_path / "model.pt", inferer or SimpleInferer())
    return Translator(applied, **(arguments | settings))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_is_translated_and_every_label_map_kept(tmp_path, channels):
    write(tmp_path / "a", channels=channels)
    translator(tmp_path, num_channels=channels).run()
    assert check(tmp_path / "b", need_labels=True) == []
    pairs = zip(*(datalist(tmp_path / d, "training", ("image", "label")) for d in "ab"), strict=True)
    for source, item in pairs:
        assert np.array_equal(read_array(item["image"]), 255 - read_array(source["image"]))
        assert np.array_equal(read_array(item["label"]), read_array(source["label"]))
        assert item.get("spacing_mm") == source.get("spacing_mm")


def test_images_of_different_sizes_are_translated_one_by_one(tmp_path):
    write(tmp_path / "a", sizes=((8, 8), (8, 12), (8, 8)))
    translator(tmp_path).run()
    assert [read_array(i["image"]).shape for i in datalist(tmp_path / "b", "training")] == [(8, 8), (8, 12), (8, 8)]


def test_large_images_can_be_translated_window_by_window(tmp_path):
    write(tmp_path / "a", sizes=((16, 32),))
    translator(tmp_path, inferer=SlidingWindowInferer((8, 8), overlap=0.5)).run()
    source, item = (datalist(tmp_path / d, "training")[0] for d in "ab")
    difference = read_array(item["image"]).astype(int) - (255 - read_array(source["image"]).astype(int))
    assert np.abs(difference).max() <= 1


def test_the_batch_does_not_matter(tmp_path):
    write(tmp_path / "a", sizes=[(8, 8)] * 5)
    network = ResnetGenerator(channels=4, num_blocks=1)
    for size in (1, 4):
        translator(tmp_path, network, output_dir=tmp_path / f"b{size}", batch_size=size).run()
    pairs = zip(*(datalist(tmp_path / f"b{size}", "training") for size in (1, 4)), strict=True)
    for one, other in pairs:
        difference = read_array(one["image"]).astype(int) - read_array(other["image"]).astype(int)
        assert np.abs(difference).max() <= 1  # the order of a sum, rounded


class Broken(Negative):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * float("nan")


@pytest.mark.parametrize(
    ("data", "network", "settings", "message"),
    [
        ({"labelled": False}, Negative, {}, "has no 'label', which this stage needs"),
        ({}, Negative, {"split": "tset"}, "Unknown split 'tset'"),
        ({}, Negative, {"num_channels": 3}, "has 1 channel.*expected 3"),
        ({}, Broken, {}, "A translated image holds NaN"),
        ({"sizes": ((9, 8),)}, lambda: ResnetGenerator(channels=4), {}, "multiples of 4"),
    ],
    ids=["no labels", "split", "channels", "NaN", "odd size"],
)
def test_a_fault_is_refused_and_leaves_no_data_set(tmp_path, data, network, settings, message):
    write(tmp_path / "a", **data)
    with pytest.raises(ValueError, match=message):
        translator(tmp_path, network(), **settings).run()
    assert not (tmp_path / "b" / "dataset.json").exists()
