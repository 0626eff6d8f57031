"""What the kill test runs in processes of their own: every kind of stage, so small that it takes a second or two."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data_prep.phantom import write_phantom
from tiny_networks import TINY, build_autoencoder
from tiny_synthesis import label_maps, synthesizer
from unicorn_monai.bundle.installation import install
from unicorn_monai.bundle.run import run_bundle
from unicorn_monai.data.journal import begun
from unicorn_monai.diffusion import latents
from unicorn_monai.experiment.experiment import Experiment
from unicorn_monai.experiment.processes import side_by_side
from unicorn_monai.experiment.settings import Settings
from unicorn_monai.experiment.stages import Stage
from unicorn_monai.images.files import read_array
from unicorn_monai.training.state import read_whole


def simulate(data: Path, folder: Path) -> None:
    """A simulated data set."""
    if begun(folder / "set") or not (folder / "set" / "dataset.json").is_file():
        write_phantom(folder / "set", "spectralis", 3, 4, 32, 0, (0.34, 0.33, 0.33))


def synthesise(data: Path, folder: Path) -> None:
    """A synthetic data set; every batch that is begun leaves a line in a log."""
    work = synthesizer(data / "labels", folder / "set", batch_size=3, count=40, resume=True)
    make = work.generator.__call__
    with Path(f"{folder}.log").open("ab", buffering=0) as log:

        class Logged:
            inferer, steps, labels = work.generator.inferer, work.generator.steps, work.generator.labels
            autocast = work.generator.autocast

            def __call__(self, requests, labels):
                log.write(b"%d\n" % requests[0].index)
                return make(requests, labels)

        work.generator = Logged()  # type: ignore[assignment]
        work.run()


def encode(data: Path, folder: Path) -> None:
    """The latents and label maps of a data set, a few to a file."""
    latents.SHARD = 2
    torch.manual_seed(0)
    latents.LatentDataset(data / "phantom", "training", build_autoencoder(), folder / "cache", num_labels=10)


def train(data: Path, folder: Path, epochs: int = 6) -> None:
    """A training of a bundle, resumed where there is a state."""
    settings = {"max_epochs": epochs, "val_interval": 2, "batch_size": 2, "iterations_per_epoch": 3}
    output = {"ckpt_dir": str(folder / "models"), "output_dir": str(folder / "output")}
    config = data / "bundles" / "retinal_unet" / "configs" / "train.json"
    run_bundle(config, "train", resume=True, dataset_dir=str(data / "phantom"), **settings, **output)


def translate(data: Path, folder: Path) -> None:
    """A training of two generators against two discriminators, with its pool of images."""
    settings = {"max_epochs": 5, "batch_size": 2, "iterations_per_epoch": 3, "pool_size": 3, "sample_interval": 2}
    output = {"ckpt_dir": str(folder / "models"), "output_dir": str(folder / "output")}
    config = data / "bundles" / "style_transfer" / "configs" / "train_cyclegan.json"
    folders = {"dataset_dir": str(data / "phantom"), "unlabeled_dir": str(data / "unlabeled")}
    run_bundle(config, "train", resume=True, **folders, **settings, **output)


def train_long(data: Path, folder: Path) -> None:
    """The same, of some seconds."""
    train(data, folder, 60)


def train_two(data: Path, folder: Path) -> None:
    """Two trainings side by side, in processes of their own."""
    for name in ("one", "two"):
        (folder / f"{name}.begun").unlink(missing_ok=True)
    both = [Stage(name, (), (name,), int) for name in ("one", "two")]
    side_by_side(partial(train_branch, data, folder), both, 2, print)


def train_branch(data: Path, folder: Path, name: str, threads: int) -> None:
    """One of the two, which begins when both are there; its number is left in a file."""
    torch.set_num_threads(threads)
    (folder / f"{name}.begun").write_text(str(os.getpid()))
    while len(list(folder.glob("*.begun"))) < 2:
        time.sleep(0.01)
    train_long(data, folder / name)


def experiment(data: Path, folder: Path) -> None:
    """The whole method."""
    folders = (str(data / "phantom"), str(data / "unlabeled"))
    settings = Settings(
        *folders, str(folder / "run"), preset="quick", device="cpu", overrides=TINY, count=6, jobs=1, tracking=False
    )
    Experiment(settings, resume=True, force=True).run()


STAGES: dict[str, Callable[[Path, Path], None]] = {
    stage.__name__: stage
    for stage in (simulate, synthesise, encode, train, translate, train_long, train_two, experiment)
}


def prepare(data: Path) -> Path:
    """What the stages read."""
    label_maps(data / "labels")
    for name, device in (("phantom", "spectralis"), ("unlabeled", "home_oct")):
        write_phantom(data / name, device, 6, 2, 32, split=(0.5, 0.25, 0.25))
    for name in ("retinal_unet", "style_transfer"):
        install(name, data / "bundles", "small", TINY[name])
    return data


def run(stage: str, data: Path, folder: Path, begun: Any = None) -> None:
    """Run a stage in this process, which was made for it; its messages go to a file."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(f"{folder}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    if begun is not None:
        begun.set()
    STAGES[stage](data, folder)
    sys.stdout.flush()
    os._exit(0)


def unreadable(folder: Path) -> list[str]:
    """Published files that cannot be read; what has a temporary name is not published."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.startswith((".tmp-", ".lock")) for part in path.relative_to(folder).parts):
            try:
                _read(path)
            except FileNotFoundError:
                continue  # a journal that the last line of a data set removes
            except Exception as error:
                found.append(f"{path.relative_to(folder)}: {error}")
    return found


def _read(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        for line in path.read_text().splitlines(keepends=True):
            with contextlib.suppress(ValueError) if not line.endswith("\n") else contextlib.nullcontext():
                json.loads(line)
    elif path.suffix == ".pt":
        read_whole(path)
    elif path.suffix == ".safetensors":
        latents.load_file(path)
    elif path.name.endswith((".nii.gz", ".png")):
        read_array(path)
