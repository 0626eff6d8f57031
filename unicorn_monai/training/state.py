"""Training states on disk: written atomically, tensors and plain values only, checked when read."""

from __future__ import annotations

import logging
import os
import pickle
import random
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from torch import Tensor, distributed

from unicorn_monai.system.distributed import is_main, rank
from unicorn_monai.system.errors import STOPPED, NotFinite, on_failure, on_sigterm, trained_on
from unicorn_monai.system.files import Occupied, PathLike, atomic, flush, sweep
from unicorn_monai.system.intake import require_regular

logger = logging.getLogger("unicorn_monai")

SHARE = 0.05  # of the time, at most, for states at the end of epochs; but
QUICK = 0.5  # seconds: one that is written as fast is written always


def save_atomically(content: Any, path: PathLike, keep: Path | None = None) -> None:
    """``torch.save`` to a temporary name, flushed to the disk, then renamed; ``keep``: the name of the file before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        with temporary.open("wb") as file:
            torch.save(content, file)
        if keep is not None and path.exists():
            flush(temporary)
            keep.unlink(missing_ok=True)
            try:
                os.link(path, keep)
            except OSError:  # a file system without links
                path.replace(keep)


def read_whole(path: PathLike) -> Any:
    """What ``torch.save`` wrote, if every part has the checksum noted in it, which ``torch.load`` does not look at."""
    try:
        with zipfile.ZipFile(require_regular(path)) as file:
            damaged = file.testzip()
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True)
        error: object = f"wrong checksum of {damaged}"
    except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as problem:
        error = problem
    raise ValueError(f"'{path}' is damaged ({error}).")


class TrainingState:
    """Ignite handler: the whole state of a training, so that an interrupted one goes on where it stopped.

    Written at the end of every epoch, after ``minutes`` within one, and when the process is told to end (SIGTERM); the
    one before, ``last_before.pt`` beside ``last.pt``, is kept, and taken where the newest is damaged. Where writing is
    slow for the length of an epoch (large networks on a GPU), epochs are passed over, so that it takes a twentieth of
    the time at most. Trainings of several processes are saved at the end of an epoch only.

    Holds the given objects (anything with ``state_dict`` and ``load_state_dict``), the trainer's GradScaler if it has
    one, the position in the data and the random number generators: on a CPU a training that goes on ends as the
    uninterrupted one, bit for bit. A batch that was seen before the interruption is loaded again, not trained on: so
    the data come in the same order. MONAI's random transforms have generators of their own, seeded anew at every epoch.
    """

    def __init__(self, path: PathLike, objects: dict[str, Any], resume: bool = False, minutes: float = 10.0) -> None:
        self.path, self.objects, self.resume, self.minutes = Path(path), objects, resume, minutes
        self.before = self.path.with_stem(f"{self.path.stem}_before")
        self.saved: dict[str, Any] | None = None
        self._held = ExitStack()
        self._told_to_end = False

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after the handlers whose state is saved."""
        if self.resume:
            self.load(engine)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._seed_transforms)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._within_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self._held.close)
        on_failure(engine, self._held.close)

    def _start(self, engine: Engine) -> None:
        self.alone = not (distributed.is_available() and distributed.is_initialized())
        if is_main():
            self._held.enter_context(Occupied(self.path.with_name(f".lock-{self.path.name}"), self.path))
            sweep(self.path.parent)
            if self.saved is None:
                self.before.unlink(missing_ok=True)
        if self.alone:
            self._held.enter_context(on_sigterm(self._end))
        self.seed = torch.initial_seed() if self.saved is None else self.saved.get("seed", torch.initial_seed())
        self._last, self._cost, self._told_to_end = time.monotonic(), 0.0, False
        self._own = self.saved is not None  # whether the file at `path` is of this training
        if self.saved is not None:
            self._go_on(engine, self.saved)
        if not engine.has_event_handler(self._remember, Events.EPOCH_STARTED):
            engine.add_event_handler(Events.EPOCH_STARTED, self._remember)  # behind all that draw when an epoch starts

    def _end(self) -> None:
        self._told_to_end = True

    def _seed_transforms(self, engine: Engine) -> None:
        data = getattr(engine.state.dataloader, "dataset", None)
        set_rnd(data, (self.seed + 7919 * engine.state.epoch + rank()) % 2**31)

    def _remember(self, engine: Engine) -> None:
        """Keep the generators as they are before the order of the epoch's data is drawn."""
        if self.saved is not None and self.saved.get("position"):
            set_random_state(self.saved["epoch_rng"])
        self.saved = None
        self._epoch_rng = random_state()

    def _within_epoch(self, engine: Engine) -> None:
        due = time.monotonic() - self._last >= 60 * self.minutes or self._told_to_end
        due = due and steps_now(engine)  # else gradients of the batches before would be lost
        if due and self.alone and engine.state.iteration < engine.state.epoch * _epoch_length(engine):
            self._save(engine, engine.state.iteration - (engine.state.epoch - 1) * _epoch_length(engine))
            self._end_if_told()

    def save(self, engine: Engine) -> None:
        """Write the state at the end of an epoch."""
        last = engine.should_terminate or self._told_to_end or engine.state.epoch == engine.state.max_epochs
        quick = self._cost < QUICK or time.monotonic() - self._last >= self._cost / SHARE
        if is_main() and (last or quick):
            self._save(engine, 0)
        self._end_if_told()

    def _end_if_told(self) -> None:
        if self._told_to_end:
            logger.warning(f"Told to end; the state is in '{self.path}', go on with resume (--resume).")
            raise SystemExit(STOPPED)

    def _save(self, engine: Engine, position: int) -> None:
        started, scaler = time.monotonic(), getattr(engine, "scaler", None)
        objects = self.objects if scaler is None else self.objects | {"scaler": scaler}
        state = {name: thing.state_dict() for name, thing in objects.items()}
        with trained_on(engine):
            for name, value in _tensors(state):
                if not torch.isfinite(value).all():
                    raise NotFinite(f"'{name}' of the training is NaN or infinite; '{self.path}' was not written.")
        content = {
            "objects": state,
            "epoch": engine.state.epoch - bool(position),
            "position": position,
            "epoch_length": _epoch_length(engine),
            "seed": self.seed,
            "rng": random_state(),
            "epoch_rng": self._epoch_rng if position else None,
        }
        save_atomically(content, self.path, keep=self.before if self._own else None)
        self._own, self._last = True, time.monotonic()
        self._cost = self._last - started

    def load(self, engine: Engine) -> None:
        """Read the newest state that is whole, and move the trainer behind what it has done."""
        saved, path = None, self.path
        damage: list[str] = []
        for path in filter(Path.is_file, (self.path, self.before)):
            try:
                saved = read_whole(path)
                break
            except ValueError as error:
                damage.append(str(error))
        if saved is None and not damage:
            return
        try:
            if saved is None:
                raise ValueError("; ".join(damage))
            for name, thing in self.objects.items():
                thing.load_state_dict(saved["objects"][name])
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(
                f"Cannot resume from '{self.path}' ({error}). It was written with other settings or is damaged; "
                "remove it to start again."
            ) from error
        if damage:
            logger.warning(f"{damage[0]} The training goes on from the state before, '{path}'.")
        if saved["epoch"] > engine.state.max_epochs:
            raise ValueError(
                f"'{path}' has {saved['epoch']} finished epochs, more than max_epochs {engine.state.max_epochs}. "
                "Raise max_epochs to train on, or remove the file to start again."
            )
        position, length = saved.get("position", 0), engine.state.epoch_length
        if position and length is not None and saved["epoch_length"] != length:
            raise ValueError(
                f"'{path}' was written within an epoch of {saved['epoch_length']} iterations, this one has {length}. "
                "Resume with the same data and batch_size."
            )
        self.saved = saved
        engine.state.epoch = saved["epoch"]
        engine.state.iteration = saved["epoch"] * (length or 0) + position

    def _go_on(self, engine: Engine, saved: dict[str, Any]) -> None:
        engine.state.epoch = saved["epoch"]
        engine.state.iteration = saved["epoch"] * _epoch_length(engine) + saved.get("position", 0)
        scaler = getattr(engine, "scaler", None)
        if scaler is not None and "scaler" in saved["objects"]:
            scaler.load_state_dict(saved["objects"]["scaler"])
        set_random_state(saved["rng"])
        if saved.get("position"):
            loader: Any = engine.state.dataloader

            def caught_up() -> None:
                engine.state.dataloader = loader
                set_random_state(saved["rng"])

            engine.state.dataloader = _Behind(loader, saved["position"], caught_up)


class _Behind:
    """A data loader whose first pass begins behind the batches that were trained on before."""

    def __init__(self, loader: Any, seen: int, caught_up: Callable[[], None]) -> None:
        self.loader, self.seen, self.caught_up = loader, seen, caught_up
        self.dataset = getattr(loader, "dataset", None)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        for _ in range(self.seen):
            next(batches)
        self.caught_up()
        return batches


def steps_now(engine: Engine) -> bool:
    """Whether the optimizer steps in this iteration: MONAI's trainer may add up the gradients of several batches."""
    several = getattr(engine, "accumulation_steps", 1)
    if several == 1:
        return True
    length = _epoch_length(engine)
    position = (engine.state.iteration - 1) % length + 1 if length else engine.state.iteration
    return position % several == 0 or position == length


def random_state() -> dict[str, Any]:
    """All generators that a training draws from, in what ``weights_only`` loading accepts."""
    version, numbers, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [version, torch.from_numpy(np.array(numbers, dtype=np.int64)), position, has_gauss, float(cached)],
        "python": list(random.getstate()[1]),
        "gauss": random.getstate()[2],  # the second of two normal numbers, or None
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what :func:`random_state` gave."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])  # there may have been more GPUs
    version, numbers, position, has_gauss, cached = state["numpy"]
    np.random.set_state((version, numbers.numpy().astype(np.uint32), position, has_gauss, cached))
    random.setstate((3, tuple(state["python"]), state.get("gauss")))


def _epoch_length(engine: Engine) -> int:
    return int(engine.state.epoch_length or 0)


def _tensors(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every floating-point tensor in nested dictionaries and lists, with its name."""
    if isinstance(state, Tensor):
        if state.is_floating_point():
            yield name, state
    elif isinstance(state, dict | list | tuple):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from _tensors(value, f"{name}.{key}".removeprefix("."))
