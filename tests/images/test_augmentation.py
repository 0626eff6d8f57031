"""Strong intensity augmentation changes grey values, never labels, and depends on its seed only."""

import numpy as np
import pytest
import torch
from monai.data import CacheDataset
from monai.transforms import Compose, RandFlipd

from unicorn_monai.data.augmented import write_augmented
from unicorn_monai.data.checks import check
from unicorn_monai.data.items import datalist
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.images.augmentation import RandSpeckle, RandStrongIntensityd, strong_intensity, training_augmentation
from unicorn_monai.images.files import read_array
from unicorn_monai.images.warping import RandGeometryd


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
        tmp_path / "a", About(name="a", device="d", labels={0: "x", 1: "y"}, modality=modality, suffix=suffix)
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


# ---------------------------------------------------------------- on the fly


def item(seed: int = 0) -> dict:
    random = torch.Generator().manual_seed(seed)
    return {"image": torch.rand(1, 32, 32, generator=random), "label": torch.arange(1024).reshape(1, 32, 32)}


def test_on_the_fly_images_change_at_every_call_stay_in_range_and_labels_do_not_change():
    transform, data = RandStrongIntensityd(["image"]), item()
    results = [transform(data) for _ in range(20)]
    images = torch.stack([torch.as_tensor(r["image"]) for r in results])
    assert images.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 1
    assert len({tuple(image.flatten()[:50].tolist()) for image in images}) > 15
    assert all(torch.equal(r["label"], data["label"]) for r in results)
    assert torch.equal(data["image"], item()["image"])


def test_on_the_fly_augmentation_is_repeated_by_its_seed():
    def drawn(seed: int) -> torch.Tensor:
        transform = RandStrongIntensityd(["image"]).set_random_state(seed)
        return torch.stack([torch.as_tensor(transform(item())["image"]) for _ in range(5)])

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_a_cached_data_set_caches_the_image_not_its_augmentation():
    transform = Compose([RandStrongIntensityd(["image"])])
    data = CacheDataset([item()], transform, progress=False)
    first, second = data[0]["image"], data[0]["image"]
    assert not torch.equal(first, second)


def test_none_changes_nothing_and_draws_nothing():
    with_none = Compose([RandFlipd(["image"], prob=0.5), training_augmentation("none")]).set_random_state(3)
    without = Compose([RandFlipd(["image"], prob=0.5)]).set_random_state(3)
    for _ in range(10):
        assert torch.equal(with_none(item())["image"], without(item())["image"])


def test_the_augmentation_of_a_training_is_named():
    assert isinstance(training_augmentation("strong"), RandStrongIntensityd)
    kinds = [type(one) for one in training_augmentation("strong+geometry").transforms]
    assert kinds == [RandGeometryd, RandStrongIntensityd], "intensities last: speckle is not stretched with the image"
    with pytest.raises(ValueError, match=r"Unknown augmentation 'weak'; expected one of \['none', 'strong', "):
        training_augmentation("weak")


def test_an_image_is_bent_with_its_label_map():
    label = torch.zeros(1, 48, 64)
    label[:, 20:] = 1
    change = RandGeometryd(prob=1.0).set_random_state(0)
    for _ in range(10):
        bent = change({"image": label.clone(), "label": label.to(torch.uint8)})
        assert bent["label"].dtype == torch.uint8
        assert not torch.equal(bent["label"], label.to(torch.uint8))
        assert ((bent["image"] > 0.5) == (bent["label"] == 1)).float().mean() > 0.97, "but for half a pixel"
    left = RandGeometryd(prob=0.0)({"image": label, "label": label})
    assert torch.equal(left["image"], label)
