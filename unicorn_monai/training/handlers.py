"""Ignite handlers that every training has: progress, and sample images at intervals."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from torch import Tensor
from tqdm import tqdm

from unicorn_monai.images.files import write_array
from unicorn_monai.images.pictures import tile
from unicorn_monai.system.distributed import RankSeeds, is_active, is_main
from unicorn_monai.system.errors import NotFinite, of_batch, on_failure
from unicorn_monai.system.files import PathLike, sweep
from unicorn_monai.system.terminal import printable
from unicorn_monai.training.budget import TimeBudget
from unicorn_monai.training.settings import TrainingSettings
from unicorn_monai.training.state import TrainingState

logger = logging.getLogger("unicorn_monai")


def shared(handler: Any) -> Any:
    """A handler that other entries of a configuration refer to as well, such as the best weights.

    MONAI's ``check_properties`` wants every entry of ``train::handlers`` to be a dictionary with a ``_target_``.
    """
    return handler


def last_handlers(settings: TrainingSettings, path: PathLike, objects: dict[str, Any]) -> list[Any]:
    """What every training's handlers end with: its state, and in several processes random numbers of each one's own."""
    state = TrainingState(path, objects, settings.resume, settings.save_minutes)
    return [state, *([RankSeeds(settings.seed)] if is_active() else [])]


def scalars(engine: Engine) -> dict[str, float]:
    """The numbers an engine gave at its last iteration, e.g. its losses.

    A trainer of MONAI gives a list with a dictionary for every image (decollated), each with the same loss.
    """
    output: Any = engine.state.output
    first = output[0] if isinstance(output, list) and output else output
    if not isinstance(first, dict):
        return {}
    values = {k: v.item() if isinstance(v, Tensor) and v.numel() == 1 else v for k, v in first.items()}
    pictures = ("image", "label", "pred")  # of a single pixel they would look like a number
    return {k: float(v) for k, v in values.items() if isinstance(v, int | float) and k not in pictures}


def on_terminal() -> bool:
    """Whether progress is shown as bars: on a terminal, unless ``TQDM_DISABLE`` is set."""
    return sys.stderr.isatty() and not os.environ.get("TQDM_DISABLE")


class Progress:
    """Progress of a training or evaluation: a bar with rate and time left on a terminal, plain lines elsewhere.

    With a ``budget``, attached before, the plain lines follow the clock too.
    """

    lines = 10  # over the whole run

    def __init__(self, description: str, budget: TimeBudget | None = None) -> None:
        self.description, self.budget = description, budget
        self.bar: tqdm | None = None
        self.loss: float | None = None

    def attach(self, engine: Engine) -> None:
        """Register with an engine."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._require_finite)
        if not is_main():
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED, self._close)
        on_failure(engine, self._close)

    def _start(self, engine: Engine) -> None:
        self.total = int(engine.state.max_epochs or 1) * int(engine.state.epoch_length or 1)
        self.first, self.started = engine.state.iteration, time.monotonic()
        self.told = self._line(self.first)
        timed = self.budget is not None and self.budget.max_seconds is not None
        total = None if timed else self.total  # the clock ends it, not the iterations
        about = {"desc": printable(self.description), "disable": not on_terminal(), "leave": False}
        self.bar = tqdm(total=total, initial=self.first, **about)

    def _require_finite(self, engine: Engine) -> None:
        values = scalars(engine)
        self.loss = values.get("loss")
        for name, value in values.items():
            if not np.isfinite(value):
                raise NotFinite(
                    f"{self.description}: the {name} is {value} at iteration {engine.state.iteration}"
                    f"{of_batch(engine)}. Lower the learning rate, or check the images for extreme values."
                )

    def _step(self, engine: Engine) -> None:
        done = engine.state.iteration
        if self.bar is None:
            return
        self.bar.update()
        if self.bar.total is None and self.budget is not None:
            self.bar.set_postfix_str(f"{self.budget.left():.0f} s left", refresh=False)
        before, self.told = self.told, self._line(done)
        if on_terminal() or self.told == before:
            return
        rate = (done - self.first) / max(1e-9, time.monotonic() - self.started)
        left = min((self.total - done) / rate, self.budget.left() if self.budget else float("inf"))
        text = f"{self.description}: {done}/{self.total}, {rate:.1f} it/s, {left:.0f} s left"
        logger.info(text if self.loss is None else f"{text}, loss {self.loss:.4f}")

    def _line(self, done: int) -> int:
        """Number of plain lines due by now."""
        return done * self.lines // self.total if self.budget is None else int(self.budget.share * self.lines)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class SampleImages:
    """Write a sheet of images at intervals of a training, and at its end: ``epoch_0010.png``, and to TensorBoard.

    The trainer's ``state.sample_sheet`` is the newest file, which a tracker attached behind this handler picks up.
    """

    def __init__(self, sampler: Callable[[], Tensor], output_dir: PathLike, interval: int) -> None:
        self.sampler, self.output_dir, self.interval = sampler, Path(output_dir), interval

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if is_main():
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write a sheet if it is time."""
        epoch = engine.state.epoch
        last = epoch == engine.state.max_epochs or engine.should_terminate
        if epoch % self.interval and not last:
            return
        sheet, path = tile(self.sampler()), self.output_dir / f"epoch_{epoch:04d}.png"
        self.output_dir.mkdir(parents=True, exist_ok=True)
        sweep(self.output_dir)
        write_array(path, sheet)
        engine.state.sample_sheet = path  # type: ignore[attr-defined]
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # optional; the PNG above is there in any case
            return
        with SummaryWriter(str(self.output_dir / "tensorboard")) as writer:
            writer.add_image("samples", sheet, epoch, dataformats="HW" if sheet.ndim == 2 else "HWC")
