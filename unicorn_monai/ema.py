"""Exponential moving average of the weights, w' <- d w' + (1 - d) w, which samples better images than the last ones."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from unicorn_monai.checkpoints import steps_now


class EMA:
    """Ignite handler: the average is moved at every step of the optimizer.

    Args:
        network: being trained.
        averaged: a copy of it, which holds the average.
        decay: share of the average kept at each iteration; smaller in the first iterations.
    """

    def __init__(self, network: nn.Module, averaged: nn.Module, decay: float = 0.999) -> None:
        self.network, self.averaged, self.decay = network, averaged.requires_grad_(False), decay
        self.iteration = 0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """One update after every step of the optimizer."""
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
