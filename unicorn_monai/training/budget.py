"""A training's budget in seconds, for comparisons at equal compute: the learning rate and the end follow the clock.

    share = max(iteration / all iterations, seconds / max_seconds)          in [0, 1]; the training ends at 1

Without ``max_seconds`` only iterations count, and a training is the same at every repetition. On a CPU only those
seconds count in which the training had a core, so that a busy machine takes nothing from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.optim import Optimizer

from unicorn_monai.system.distributed import from_main


def clock_of(device: torch.device | str) -> Callable[[], float]:
    """The seconds of a budget: on a CPU, those in which the thread that trains had a core, whoever else wanted it.

    On an idle machine they are the clock's, however well further threads are used, since this one takes part in all
    that they do. Elsewhere they are the clock's too: the thread waits for its device without working.
    """
    return time.thread_time if torch.device(device).type == "cpu" else time.monotonic


class TimeBudget:
    """Ignite handler: when the time is up, the running epoch ends and is the last one.

    So everything that is written at the end of an epoch or of the training still is. Attach it before all handlers that
    ask for ``share`` or save it. The seconds are those between the trainer's start and now, sheets and checkpoints
    included; an interrupted training goes on with what was left at its last checkpoint.
    """

    def __init__(self, max_seconds: float | None = None, clock: Callable[[], float] | None = None) -> None:
        if max_seconds is not None and not max_seconds > 0:
            raise ValueError(f"max_seconds is {max_seconds}; expected a number above 0, or null for no limit.")
        self.max_seconds, self.clock = max_seconds, clock or time.monotonic
        self.seconds, self.share = 0.0, 0.0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._tick)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._update)

    def _start(self, engine: Engine) -> None:
        self._began = self.clock() - self.seconds
        self._total = int(engine.state.max_epochs or 1) * int(engine.state.epoch_length or 1)
        self._update(engine)
        if self._spent():
            engine.terminate()

    def _update(self, engine: Engine) -> None:
        self.seconds = self.clock() - self._began
        self.share = min(1.0, engine.state.iteration / self._total)
        if self.max_seconds is not None:
            self.seconds = from_main(self.seconds)  # processes that stop at different iterations wait for ever
            self.share = max(self.share, min(1.0, self.seconds / self.max_seconds))

    def _tick(self, engine: Engine) -> None:
        self._update(engine)
        if self._spent():
            engine.state.max_epochs = engine.state.epoch
            engine.terminate_epoch()

    def _spent(self) -> bool:
        return self.max_seconds is not None and self.seconds >= self.max_seconds

    def left(self) -> float:
        """Seconds until the time is up; infinite without a limit."""
        return float("inf") if self.max_seconds is None else max(0.0, self.max_seconds - self.seconds)

    def state_dict(self) -> dict[str, float]:
        """Seconds used, counted while there is a limit."""
        return {"seconds": 0.0 if self.max_seconds is None else self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.seconds = state["seconds"]


class LinearDecay:
    """Ignite handler: constant learning rates, then a straight line to zero at the end of the budget.

    The decay begins at a share ``start`` of the budget, which is attached before.
    """

    def __init__(self, optimizers: Sequence[Optimizer], budget: TimeBudget, start: float = 0.5) -> None:
        if not 0 <= start <= 1:
            raise ValueError(f"start is {start}; expected a share of the training, 0 to 1 (1 never decays).")
        self.budget, self.start = budget, start
        self.groups: list[tuple[Any, int]] = []
        for optimizer in optimizers:
            for i, group in enumerate(optimizer.param_groups):
                group.setdefault("initial_lr", group["lr"])
                self.groups.append((optimizer, i))

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the learning rates of the coming step."""
        left = 1.0 - self.budget.share
        factor = 1.0 if self.start == 1 else min(1.0, left / (1 - self.start))
        for optimizer, i in self.groups:  # the groups are other dictionaries after loading a state
            group = optimizer.param_groups[i]
            group["lr"] = group["initial_lr"] * factor
