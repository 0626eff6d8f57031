"""Weights and training states on disk: written atomically, tensors and plain values only, checked when read.

``model.pt`` holds a state dictionary; ``model.json`` beside it the sha256 of that file, the architecture's fingerprint
and what belongs to the weights, such as the scale factor of an autoencoder's latents.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.engines import Evaluator
from safetensors.torch import save_file
from torch import Tensor, nn

from unicorn_monai.datasets import PathLike, write_json
from unicorn_monai.distributed import is_main, rank
from unicorn_monai.networks import fingerprint


def sha256(path: PathLike) -> str:
    """Sha256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_atomically(content: Any, path: PathLike) -> None:
    """``torch.save`` to a temporary name, flushed to the disk, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(tensors: dict[str, Tensor], path: PathLike, **metadata: str) -> None:
    """Write a safetensors file under a temporary name, then rename it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=metadata or None)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_weights(network: nn.Module, path: PathLike, **metadata: Any) -> None:
    """Write a network's weights and their description (``.json`` beside the file)."""
    state = {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}
    bad = [key for key, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise ValueError(f"Weight '{bad[0]}' is NaN or infinite; '{path}' was not written. Lower the learning rate.")
    save_atomically(state, path)
    write_json(
        Path(path).with_suffix(".json"), {"sha256": sha256(path), "architecture": fingerprint(network), **metadata}
    )


def read_metadata(path: PathLike) -> dict[str, Any]:
    """What is known about the weights at ``path``: sha256, architecture, scale factor, ..."""
    description = Path(path).with_suffix(".json")
    if not Path(path).is_file() or not description.is_file():
        raise ValueError(
            f"No trained weights at '{path}' (with '{description.name}' beside them). Train this stage first."
        )
    return json.loads(description.read_text())


def load_weights(network: nn.Module, path: PathLike) -> dict[str, Any]:
    """Load weights written by :func:`save_weights`; returns their metadata.

    Raises:
        ValueError: missing or damaged file, or weights of another architecture.
    """
    metadata = read_metadata(path)
    if sha256(path) != metadata["sha256"]:
        raise ValueError(
            f"'{path}' does not have the sha256 noted beside it; it is damaged or was exchanged. Train again."
        )
    if fingerprint(network) != metadata["architecture"]:
        raise ValueError(
            f"The weights '{path}' belong to a network of another architecture. Use the configuration they were "
            "trained with (channels, attention_levels, number of labels), or train this stage again."
        )
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return metadata


class TrainingState:
    """Ignite handler: the whole state of a training, so that an interrupted one goes on where it stopped.

    Written after every epoch. Holds the given objects (anything with ``state_dict``/``load_state_dict``), the number of
    finished epochs and the random number generators. MONAI's random transforms have generators of their own: they are
    seeded anew at every epoch, so that they need not be saved.

    Args:
        path: e.g. ``models/last.pt``.
        objects: name -> network, optimizer, learning rate schedule, EMA, best metric, ...
        resume: load ``path`` at the start if it is there.
    """

    def __init__(self, path: PathLike, objects: dict[str, Any], resume: bool = False) -> None:
        self.path, self.objects, self.resume = Path(path), objects, resume

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after the handlers whose state is saved."""
        if self.resume and self.path.is_file():
            self.load(engine)
        engine.add_event_handler(Events.EPOCH_STARTED, self._seed_transforms)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def _seed_transforms(self, engine: Engine) -> None:
        set_rnd(
            getattr(engine.state.dataloader, "dataset", None),
            (torch.initial_seed() + 7919 * engine.state.epoch + rank()) % 2**31,
        )

    def save(self, engine: Engine) -> None:
        """Write the state."""
        if not is_main():
            return
        state = {name: thing.state_dict() for name, thing in self.objects.items()}
        version, numbers, position, has_gauss, cached = np.random.get_state()
        rng = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": [version, torch.from_numpy(np.array(numbers, dtype=np.int64)), position, has_gauss, float(cached)],
            "python": list(random.getstate()[1]),
        }
        save_atomically({"objects": state, "epoch": engine.state.epoch, "rng": rng}, self.path)

    def load(self, engine: Engine) -> None:
        """Read the state and move the trainer behind its last finished epoch."""
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            for name, thing in self.objects.items():
                thing.load_state_dict(saved["objects"][name])
        except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"Cannot resume from '{self.path}' ({error}). It was written with other settings or is damaged; "
                "remove it to start again."
            ) from error
        if saved["epoch"] > engine.state.max_epochs:
            raise ValueError(
                f"'{self.path}' has {saved['epoch']} finished epochs, more than max_epochs {engine.state.max_epochs}. "
                "Raise max_epochs to train on, or remove the file to start again."
            )
        engine.state.epoch = saved["epoch"]
        engine.state.iteration = saved["epoch"] * (engine.state.epoch_length or 0)
        rng = saved["rng"]
        torch.set_rng_state(rng["torch"])
        if torch.cuda.is_available() and rng["cuda"]:
            torch.cuda.set_rng_state_all(rng["cuda"])
        version, numbers, position, has_gauss, cached = rng["numpy"]
        np.random.set_state((version, numbers.numpy().astype(np.uint32), position, has_gauss, cached))
        random.setstate((3, tuple(rng["python"]), None))

        def continue_after(engine: Engine) -> None:
            engine.state.epoch = saved["epoch"]
            engine.state.iteration = saved["epoch"] * engine.state.epoch_length

        engine.add_event_handler(Events.STARTED, continue_after)


class BestWeights:
    """Ignite handler: publish the weights with the best validation metric; stop early when it no longer improves.

    Args:
        evaluator: the validation engine, run by MONAI's ``ValidationHandler`` before this handler.
        metric: name of its metric.
        network: whose weights are published (the averaged network where there is one).
        path: e.g. ``models/model.pt``.
        larger_is_better: False for a loss.
        patience: stop after so many validations without improvement; None never stops.
        metadata: stored with the weights.
        always: publish after every validation, whatever the metric says: an adversarially trained autoencoder's error
            rises while its texture improves.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        metric: str,
        network: nn.Module,
        path: PathLike,
        larger_is_better: bool = True,
        patience: int | None = None,
        metadata: dict[str, Any] | None = None,
        always: bool = False,
    ) -> None:
        self.always = always
        self.evaluator, self.metric, self.network, self.path = evaluator, metric, network, path
        self.sign = 1.0 if larger_is_better else -1.0
        self.patience, self.metadata = patience, metadata or {}
        self.best, self.waited, self._seen = -float("inf"), 0, -1

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after ``ValidationHandler``."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Compare the newest validation with the best one so far."""
        if engine.state.epoch == engine.state.max_epochs and self.evaluator.state.epoch != engine.state.epoch:
            self.evaluator.run(engine.state.epoch)  # the last epoch counts, whatever the validation interval
        if self.evaluator.state.epoch == self._seen or self.metric not in self.evaluator.state.metrics:
            return  # no validation in this epoch
        self._seen = self.evaluator.state.epoch
        value = float(self.evaluator.state.metrics[self.metric])
        if not np.isfinite(value):
            raise ValueError(f"Validation metric '{self.metric}' is {value} in epoch {engine.state.epoch}: diverged.")
        if self.always or self.sign * value > self.best:
            self.best, self.waited = max(self.best, self.sign * value), 0
            if is_main():
                save_weights(
                    self.network, self.path, **self.metadata, **{self.metric: value, "epoch": engine.state.epoch}
                )
        else:
            self.waited += 1
            if self.patience is not None and self.waited >= self.patience:
                engine.terminate()

    def state_dict(self) -> dict[str, float]:
        """Best metric so far and validations since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.best, self.waited = state["best"], int(state["waited"])
