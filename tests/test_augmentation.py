"""Strong intensity augmentation changes grey values, never labels, and depends on its seed only."""

import numpy as np
import pytest
import torch

from unicorn_monai.augmentation import RandSpeckle, strong_intensity, write_augmented
from unicorn_monai.datasets import DatasetWriter, check, datalist, read_array


def test_one_look_speckle_of_the_linear_intensity_has_contrast_one():
    speckle = RandSpeckle(looks=(1.0, 1.0), prob=1.0)
    speckle.set_random_state(0)
    linear = speckle(torch.full((1, 400, 400), 0.5)) ** 4 / 0.5**4
    assert linear.mean().item() == pytest.approx(1.0, abs=0.01)
    assert linear.std().item() == pytest.approx(1.0, abs=0.02)


def test_many_looks_change_little_and_no_probability_nothing():
    image = torch.rand(1, 32, 32)
    many = RandSpeckle(looks=(1e6, 1e6), prob=1.0)
    assert torch.allclose(many(image), image, atol=5e-3)
    assert torch.equal(RandSpeckle(prob=0.0)(image), image)


def test_black_stays_black():
    speckle = RandSpeckle(prob=1.0)
    assert torch.equal(speckle(torch.zeros(1, 8, 8)), torch.zeros(1, 8, 8))


def test_the_augmentation_depends_on_its_seed_only():
    image = torch.rand(1, 32, 32)
    first, again, other = (torch.as_tensor(strong_intensity(seed)(image.clone())) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == image.shape
    assert torch.isfinite(first).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_augmented_data_set_keeps_labels_subjects_and_splits(tmp_path, channels):
    random = np.random.default_rng(0)
    shape = (16, 16) if channels == 1 else (16, 16, 3)
    modality, suffix = ("OCT", ".nii.gz") if channels == 1 else ("RGB", ".png")
    with DatasetWriter(
        tmp_path / "a", name="a", device="d", labels={0: "x", 1: "y"}, modality=modality, suffix=suffix
    ) as writer:
        for i in range(6):
            image = random.integers(0, 255, shape, dtype=np.uint8)
            label = random.integers(0, 2, (16, 16), dtype=np.uint8)
            writer.add("training" if i < 4 else "validation", image, label, subject=f"s{i}")
    write_augmented(tmp_path / "a", tmp_path / "b")
    assert check(tmp_path / "b", need_labels=True) == []
    for split in ("training", "validation"):
        pairs = zip(*(datalist(tmp_path / x, split, ("image", "label")) for x in "ab"), strict=True)
        for before, after in pairs:
            assert after["subject"] == before["subject"]
            assert np.array_equal(read_array(after["label"]), read_array(before["label"]))
            assert read_array(after["image"]).shape == shape
    changed = [
        not np.array_equal(read_array(a["image"]), read_array(b["image"]))
        for a, b in zip(*(datalist(tmp_path / x, "training") for x in "ab"), strict=True)
    ]
    assert any(changed)
