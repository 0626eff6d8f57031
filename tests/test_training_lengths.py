"""How long a training is does not depend on how many images there are, and no batch is too small to train on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.data import DataLoader

from unicorn_monai.baselines.unpaired import UnpairedDataset, UnpairedLoader
from unicorn_monai.bundle import BUNDLES, bundle_root, load_config
from unicorn_monai.distributed import SharedOrder
from unicorn_monai.latents import LatentLoader
from unicorn_monai.training import WarmupCosine, random_order

TRAININGS = [
    (bundle, path.name)
    for bundle in BUNDLES
    for path in sorted((Path(bundle_root(bundle)) / "configs").glob("train*.json"))
]


@pytest.mark.parametrize(("bundle", "file"), TRAININGS)
def test_every_training_says_how_many_iterations_it_has(bundle, file):
    config = load_config(bundle_root(bundle), file)
    assert isinstance(config["iterations_per_epoch"], int)
    loader = config["train"]["dataloader"]
    assert "@iterations_per_epoch" in (loader.get("iterations"), loader.get("sampler", {}).get("iterations"))
    several = Path(bundle_root(config.get("base_bundle", bundle))) / "configs" / f"multi_gpu_{file}"
    if several.is_file():
        sampler = json.loads(several.read_text()).get("train::dataloader::sampler", {})
        assert sampler.get("iterations", "@iterations_per_epoch") == "@iterations_per_epoch"
        assert "DistributedSampler" not in sampler.get("_target_", "")


def loaders(images: int, batch_size: int, iterations: int):
    """The loaders of all trainings, for a data set of so many images."""
    items = [{"image": torch.zeros(1, 4, 4)} for _ in range(images)]
    order = random_order(items, batch_size, iterations)
    yield DataLoader(items, batch_size=batch_size, sampler=order, drop_last=True)  # type: ignore[arg-type]
    yield LatentLoader(items, batch_size, shuffle=True, iterations=iterations)  # type: ignore[arg-type]
    yield UnpairedLoader(UnpairedDataset(items, items), batch_size, iterations)


@pytest.mark.parametrize("images", [1, 5, 17, 400])
def test_few_images_take_as_many_steps_as_many(images):
    for loader in loaders(images, 8, 12):
        assert len(loader) == 12
        schedule = WarmupCosine(torch.optim.SGD([torch.zeros(1)], lr=1.0), 3, loader)
        for _ in range(36):
            schedule.optimizer.step()
            schedule.step()
        assert schedule.get_last_lr()[0] == pytest.approx(0.01)


@pytest.mark.parametrize(("images", "batch_size", "drawn"), [(17, 16, 16), (18, 16, 18), (16, 16, 16), (1, 16, 1)])
def test_a_last_batch_of_one_is_left_out(images, batch_size, drawn):
    assert len(random_order(range(images), batch_size)) == drawn
    shared = SharedOrder(range(2 * images), batch_size, processes=2, number=0)
    assert len(list(shared)) == len(shared) == drawn


def test_every_image_has_its_turn_where_one_is_left_out():
    order = random_order(range(5), 2)
    assert {position for _ in range(20) for position in order} == set(range(5))


def test_batches_of_one_stay_where_they_were_asked_for():
    assert len(random_order(range(5), 1)) == 5
