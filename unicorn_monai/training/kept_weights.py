"""Which weights of a training are published: those of the best validation, or their moving average.

The exponential moving average, w' <- d w' + (1 - d) w, samples better images than the last weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from torch import Tensor, nn

from unicorn_monai.system.distributed import is_main
from unicorn_monai.system.errors import NotFinite, trained_on
from unicorn_monai.system.files import PathLike
from unicorn_monai.system.weights import save_weights
from unicorn_monai.training.state import steps_now


class EMA:
    """Ignite handler: the average, which a copy of the network holds, is moved at every step of the optimizer.

    ``decay`` is the share of it that is kept; smaller in the first iterations.
    """

    def __init__(self, network: nn.Module, averaged: nn.Module, decay: float = 0.999) -> None:
        self.network, self.averaged, self.decay = network, averaged.requires_grad_(False), decay
        self.iteration = 0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Move the average."""
        if not steps_now(engine):
            return
        self.iteration += 1
        decay = min(self.decay, (1 + self.iteration) / (10 + self.iteration))
        averages: list[Tensor] = list(self.averaged.parameters())
        torch._foreach_lerp_(averages, list[Tensor](self.network.parameters()), 1 - decay)
        for average, value in zip(self.averaged.buffers(), self.network.buffers(), strict=True):
            average.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """The average and its age."""
        return {"averaged": self.averaged.state_dict(), "iteration": self.iteration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.averaged.load_state_dict(state["averaged"])
        self.iteration = state["iteration"]


class BestWeights:
    """Ignite handler: publish the weights with the best validation metric; stop early when it no longer improves.

    Args:
        evaluator: the validation engine, run by MONAI's ``ValidationHandler`` before this handler.
        network: whose weights are published (the averaged network where there is one).
        patience: stop after so many validations without improvement; None never stops.
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
        self.evaluator, self.metric, self.network, self.path = evaluator, metric, network, path
        self.sign, self.always = 1.0 if larger_is_better else -1.0, always
        self.patience, self.metadata = patience, metadata or {}
        self.best, self.waited, self._seen = -float("inf"), 0, -1

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after ``ValidationHandler``."""
        engine.add_event_handler(Events.STARTED, self._stop_again)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _stop_again(self, engine: Engine) -> None:
        if self._waited_enough():  # a training that had stopped early and was interrupted then
            engine.terminate()

    def _waited_enough(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def __call__(self, engine: Engine) -> None:
        """Compare the newest validation with the best one so far."""
        if engine.state.epoch == engine.state.max_epochs and self.evaluator.state.epoch != engine.state.epoch:
            self.evaluator.run(engine.state.epoch)  # the last epoch counts, whatever the validation interval
        if self.evaluator.state.epoch == self._seen or self.metric not in self.evaluator.state.metrics:
            return  # no validation in this epoch
        self._seen = self.evaluator.state.epoch
        value = float(self.evaluator.state.metrics[self.metric])
        if not np.isfinite(value):
            raise NotFinite(f"Validation metric '{self.metric}' is {value} in epoch {engine.state.epoch}: diverged.")
        if self.always or self.sign * value > self.best:
            self.best, self.waited = max(self.best, self.sign * value), 0
            metadata = self.metadata | {self.metric: value, "epoch": engine.state.epoch}
            if is_main():
                with trained_on(engine):
                    save_weights(self.network, self.path, **metadata)
        else:
            self.waited += 1
            if self._waited_enough():
                engine.terminate()

    def state_dict(self) -> dict[str, float]:
        """Best metric so far and validations since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.best, self.waited = state["best"], int(state["waited"])
