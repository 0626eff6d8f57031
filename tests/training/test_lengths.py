"""How long a training is does not depend on how many images there are, and no batch is too small to train on."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from monai.data import DataLoader
from monai.networks.nets import UNet

from data_prep.phantom import write_phantom
from unicorn_monai.baselines.unpaired import UnpairedDataset, UnpairedLoader
from unicorn_monai.bundle.installation import BUNDLES, bundle_root, install, load_config
from unicorn_monai.bundle.run import run_bundle
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import read_header
from unicorn_monai.diffusion.latents import LatentLoader
from unicorn_monai.experiment.experiment import Experiment
from unicorn_monai.experiment.image_counts import require_images
from unicorn_monai.experiment.settings import Settings
from unicorn_monai.system.distributed import SharedOrder
from unicorn_monai.system.errors import root_cause
from unicorn_monai.system.files import write_json
from unicorn_monai.training.batches import check_batches, require_trainable
from unicorn_monai.training.steps import WarmupCosine, random_order

TRAININGS = [
    (bundle, path.name)
    for bundle in BUNDLES
    for path in sorted((Path(bundle_root(bundle)) / "configs").glob("train*.json"))
]


@pytest.mark.parametrize(("bundle", "file"), TRAININGS)
def test_every_training_says_how_many_iterations_it_has(bundle, file):
    config = load_config(bundle_root(bundle), file)
    assert isinstance(config["iterations_per_epoch"], int)
    if "settings" in config:  # one of `diffusion.recipes` or of the baselines makes the loader
        assert config["settings"]["iterations_per_epoch"] == "@iterations_per_epoch"
        return
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


@pytest.fixture(scope="module")
def domains(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name, device in (("A", "spectralis"), ("B", "home_oct")):
        write_phantom(root / name, device, n_subjects=3, scans_per_subject=1, size=16, split=(0.34, 0.33, 0.33))
    return root


def asked(domains: Path, **changes) -> Settings:
    """An experiment on one image in every split."""
    return Settings(str(domains / "A"), str(domains / "B"), str(domains / "run"), preset="quick", **changes)


def without(source: Path, target: Path, *splits: str) -> Path:
    shutil.copytree(source, target)
    write_json(target / "dataset.json", {k: [] if k in splits else v for k, v in read_header(source).items()})
    return target


def overrides(bundle: str, file: str, **settings) -> dict:
    return {"overrides": {bundle: {file: settings}}}


def test_one_image_in_every_split_is_enough_to_train_and_what_is_left_out_is_told(domains, caplog):
    with caplog.at_level("INFO", "unicorn_monai"):
        require_images(asked(domains))
    assert "distances: will not be computed; they need 2 training images" in caplog.text
    assert "search for copies: will not be computed; it needs 40 validation and test images, there are 4" in caplog.text


TOO_FEW = {
    "a batch": (
        overrides("latent_diffusion", "train_autoencoder.json", iterations_per_epoch=None),
        r"autoencoder's training needs 4 training images \(batch_size\), there are 2.* Lower batch_size to 2",
    ),
    "uncertainties": (
        overrides("retinal_unet", "uncertainty.json", split="training"),
        "uncertainty: needs 2 images of the labelled domain in training, there is 1",
    ),
}


@pytest.mark.parametrize("case", TOO_FEW)
def test_too_few_images_are_refused_by_stage_before_anything_is_trained(domains, case):
    changes, message = TOO_FEW[case]
    with pytest.raises(ValueError, match=message):
        Experiment(asked(domains, **changes))
    assert not (domains / "run").exists()


def test_a_split_without_images_is_refused(domains, tmp_path):
    for name in "AB":
        empty = without(domains / name, tmp_path / name, "validation")
        changes = {("labeled" if name == "A" else "unlabeled"): str(empty)}
        with pytest.raises(ValueError, match=r"needs validation images of the (un)?labelled domain, there is none"):
            require_images(replace(asked(domains), **changes))


SMALL: dict[str, tuple[dict, int, bool]] = {
    "batches of one": ({}, 1, False),
    "batches of two": ({}, 2, True),
    "instances": ({"norm": "instance"}, 8, False),
    "a pixel more": ({"strides": (2, 2, 2)}, 1, True),
}


@pytest.mark.parametrize("case", SMALL)
def test_images_that_leave_a_single_value_are_refused(domains, case):
    changes, batch_size, fits = SMALL[case]
    arguments = {"channels": (8, 8, 8, 8, 8), "strides": (2, 2, 2, 2), "norm": "batch"} | changes
    arguments["channels"] = arguments["channels"][: len(arguments["strides"]) + 1]
    network = UNet(2, 1, 3, num_res_units=1, **arguments)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with (
        nullcontext() if fits else pytest.raises(ValueError, match=f"Images of 16 x 16 in batches of {batch_size} can")
    ):
        require_trainable(network, datalist(domains / "A", "training"), batch_size)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_bundle_trains_on_an_image_more_than_its_batches_hold(tmp_path):
    """17 images of 16 x 16, halved to one pixel, in batches of 16; one pass, or iterations."""
    write_phantom(tmp_path / "set", "spectralis", 3, 17, size=16, split=(0.34, 0.33, 0.33))
    inference = {"network_def::channels": [4, 4, 4, 4, 4], "network_def::num_res_units": 1}
    inference["network_def::norm"] = "batch"
    train = {"max_epochs": 1, "iterations_per_epoch": None, "sample_interval": 9}
    root = install("retinal_unet", tmp_path, None, {"inference.json": inference, "train.json": train})
    data = {"dataset_dir": str(tmp_path / "set"), "device": "cpu"}
    run_bundle(root / "configs" / "train.json", **data)
    assert (root / "models" / "model.pt").is_file()
    with pytest.raises(RuntimeError) as refused:
        run_bundle(root / "configs" / "train.json", **data, batch_size=1)
    message = str(root_cause(refused.value))
    assert "Images of 16 x 16 in batches of 1 cannot be trained on" in message
    assert "Raise batch_size to 2" in message
    inference["network_def::norm"] = "instance"
    alone = install("retinal_unet", tmp_path / "alone", None, {"inference.json": inference, "train.json": train})
    with pytest.raises(RuntimeError) as refused:
        run_bundle(alone / "configs" / "train.json", **data)
    message = str(root_cause(refused.value))
    assert "Images of 16 x 16 in batches of 16 cannot be trained on" in message
    assert "Convert with a larger `--size`" in message


def test_the_check_of_the_batches_changes_neither_weights_nor_random_numbers(tmp_path):
    domains = tmp_path
    for name, device in (("A", "spectralis"), ("B", "home_oct")):
        write_phantom(domains / name, device, n_subjects=3, scans_per_subject=1, size=32, split=(0.34, 0.33, 0.33))
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    check_batches(bundle_root("retinal_unet"), datalist(domains / "A", "training"), 2)
    require_images(asked(domains))
    assert torch.equal(torch.random.get_rng_state(), before)
    checks = load_config(bundle_root("retinal_unet"), "train.json")["checks"]
    assert "@network_def" not in json.dumps(checks), "the network is built once the training is seeded"
