"""Strong intensity augmentation changes grey values, never labels, and depends on its seed only."""

from collections import Counter

import numpy as np
import pytest
import torch
from monai import transforms
from monai.data import CacheDataset
from monai.transforms import Compose, GaussianSmooth, RandFlipd

from unicorn_monai.data.augmented import write_augmented
from unicorn_monai.data.checks import check
from unicorn_monai.data.items import datalist
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.images import augmentation
from unicorn_monai.images.augmentation import (
    STRONG,
    RandStrongIntensityd,
    bias_field,
    contrast,
    grey_values,
    low_resolution,
    noise,
    speckle,
    strong_intensity,
    training_augmentation,
)
from unicorn_monai.images.files import read_array
from unicorn_monai.images.random_contrast import blurred
from unicorn_monai.images.warping import RandGeometryd


def generator(seed=0):
    return np.random.default_rng(seed)


def test_one_look_speckle_of_the_linear_intensity_has_contrast_one():
    linear = speckle(torch.full((1, 400, 400), 0.5), generator(), looks=(1.0, 1.0)) ** 4 / 0.5**4
    assert linear.mean().item() == pytest.approx(1.0, abs=0.01)
    assert linear.std().item() == pytest.approx(1.0, abs=0.02)


def test_many_looks_change_little():
    image = torch.rand(1, 32, 32)
    assert torch.allclose(speckle(image, generator(), looks=(1e6, 1e6)), image, atol=5e-3)


def test_black_stays_black():
    assert torch.equal(speckle(torch.zeros(1, 8, 8), generator()), torch.zeros(1, 8, 8))


@pytest.mark.parametrize("channels", [1, 3])
def test_blur_is_that_of_monai(channels):
    image = torch.rand(channels, 17, 24)
    expected = GaussianSmooth((0.4, 0.9))(image)
    assert torch.allclose(blurred(image, (0.4, 0.9)), torch.as_tensor(expected), atol=1e-6)


class Given:
    """In place of random numbers those that MONAI's transform drew."""

    def __init__(self, *values):
        self.values = list(values)

    def uniform(self, *_):
        return self.values.pop(0)

    integers = uniform


@pytest.mark.parametrize("channels", [1, 3])
def test_the_parts_are_those_of_monai_for_the_same_numbers(channels):
    image = torch.rand(channels, 20, 30)
    field = transforms.RandBiasField(degree=2, coeff_range=(0.0, 0.2), prob=1.0).set_random_state(0)
    gamma = transforms.RandAdjustContrast(gamma=(0.6, 1.6), prob=1.0).set_random_state(0)
    shift = transforms.RandHistogramShift(num_control_points=(5, 10), prob=1.0).set_random_state(0)
    low = transforms.RandSimulateLowResolution(prob=1.0, zoom_range=(0.6, 1.0), upsample_mode="bilinear")
    low.set_random_state(0)
    wanted = [torch.as_tensor(one(image)) for one in (field, gamma, shift, low)]
    points = shift.floating_control_points
    drawn = [
        bias_field(image, Given(field._coeff)),
        contrast(image, Given(gamma.gamma_value)),
        grey_values(image, Given(len(points), *points[1:-1])),
        low_resolution(image, Given(low.zoom_factor)),
    ]
    for one, other in zip(drawn, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
        assert not torch.allclose(one, image, atol=1e-3)


def test_noise_has_a_spread_of_0_to_015():
    spreads = [noise(torch.zeros(1, 64, 64), generator(seed)).std().item() for seed in range(100)]
    assert np.mean(spreads) == pytest.approx(0.075, abs=0.015)
    assert max(spreads) < 0.16


def test_an_image_of_one_grey_value_is_left_by_the_curves():
    flat = torch.full((1, 8, 8), 0.25)
    for change in (grey_values, contrast):
        assert torch.allclose(change(flat, generator()), flat)


def test_every_part_is_applied_as_often_as_it_should_be():
    """Nothing is left of a part's trace when the others are: counted by what each is called with."""
    counted, (transform, image) = Counter(), (strong_intensity(0), torch.rand(1, 8, 8))
    with pytest.MonkeyPatch.context() as patch:
        names = [(share, change.__name__) for share, change in STRONG]
        patch.setattr(augmentation, "STRONG", [(s, lambda x, r, n=n: counted.update([n]) or x) for s, n in names])
        for _ in range(2000):
            transform(image)
    for share, change in names:
        assert counted[change] / 2000 == pytest.approx(share, abs=0.04)


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
    with pytest.raises(ValueError, match=r"Unknown augmentation 'weak'; expected one of \['none', 'geometry', "):
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
