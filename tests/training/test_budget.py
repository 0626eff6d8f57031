"""A budget in seconds ends a training in order, and the learning rate reaches zero with it."""

from __future__ import annotations

import logging
import time

import pytest
import torch
from ignite.engine import Engine, Events

from unicorn_monai.training import budget as module
from unicorn_monai.training.budget import LinearDecay, TimeBudget, clock_of
from unicorn_monai.training.handlers import Progress


@pytest.fixture
def clock(monkeypatch):
    """Time passes where the test says so: one second in every iteration."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def run(clock, budget, batches=10, epochs=5, rates=None, handlers=()):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)

    def step(engine, batch):
        clock[0] += 1
        if rates is not None:
            rates.append(optimizer.param_groups[0]["lr"])
        return {}

    engine = Engine(step)
    events = []
    for event in (Events.EPOCH_COMPLETED, Events.COMPLETED):
        engine.add_event_handler(event, lambda e, name=event.name: events.append((name.lower(), e.state.iteration)))
    for handler in (budget, LinearDecay([optimizer], budget), *handlers):
        handler.attach(engine)
    engine.run(range(batches), max_epochs=epochs)
    return engine, events


def test_without_a_limit_the_iterations_count(clock):
    rates: list[float] = []
    engine, events = run(clock, TimeBudget(), rates=rates)
    assert engine.state.iteration == 50
    assert [name for name, _ in events].count("epoch_completed") == 5
    assert rates[:26] == [0.1] * 26
    assert rates[-1] == pytest.approx(0.1 * (1 / 50) / 0.5)


def test_the_time_ends_the_running_epoch_which_is_the_last_one(clock):
    rates: list[float] = []
    budget = TimeBudget(14)
    engine, events = run(clock, budget, rates=rates)
    assert engine.state.iteration == 14
    assert engine.state.epoch == engine.state.max_epochs == 2
    assert events == [("epoch_completed", 10), ("epoch_completed", 14), ("completed", 14)]
    assert rates[:8] == [0.1] * 8
    assert rates[-1] == pytest.approx(0.1 * (1 / 14) / 0.5)
    assert budget.share == 1
    assert budget.left() == 0


def test_what_was_used_before_an_interruption_counts(clock):
    budget = TimeBudget(14)
    budget.load_state_dict({"seconds": 11.0})
    engine, _ = run(clock, budget)
    assert engine.state.iteration == 3


def test_a_spent_budget_trains_no_more(clock):
    budget = TimeBudget(14)
    budget.load_state_dict({"seconds": 14.5})
    engine, events = run(clock, budget)
    assert engine.state.iteration == 0
    assert events == [("completed", 0)]


def test_a_state_holds_no_time_where_there_is_no_limit(clock):
    budget = TimeBudget()
    run(clock, budget)
    assert budget.seconds == 50
    assert budget.state_dict() == {"seconds": 0.0}


def test_progress_tells_by_the_clock(clock, caplog):
    caplog.set_level(logging.INFO, "unicorn_monai")
    budget = TimeBudget(20)
    run(clock, budget, epochs=1000, handlers=(Progress("training", budget=budget),))
    assert len(caplog.messages) == 10
    assert caplog.messages[4].startswith("training: 10/10000, 1.0 it/s, 10 s left")
    assert caplog.messages[-1].startswith("training: 20/10000")


def test_a_loaded_optimizer_keeps_decaying(clock):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    budget = TimeBudget()
    decay = LinearDecay([optimizer], budget)
    optimizer.load_state_dict(optimizer.state_dict())  # replaces the dictionaries of the groups
    budget.share = 0.75
    decay(Engine(lambda e, b: None))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize("seconds", [0, -3, float("nan")])
def test_no_time_is_refused(seconds):
    with pytest.raises(ValueError, match=r"max_seconds is .*; expected a number above 0"):
        TimeBudget(seconds)


@pytest.mark.parametrize("start", [-0.1, 1.1])
def test_a_decay_outside_the_training_is_refused(start):
    with pytest.raises(ValueError, match=r"start is .*; expected a share"):
        LinearDecay([], TimeBudget(), start)


def test_a_training_need_not_decay(clock):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    budget = TimeBudget()
    budget.share = 0.99
    LinearDecay([optimizer], budget, start=1)(Engine(lambda e, b: None))
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("device", [torch.device("cpu"), "cpu"])
def test_on_a_cpu_only_the_time_counts_in_which_the_training_had_a_core(device):
    clock = clock_of(device)
    began, worked = time.monotonic(), clock()
    time.sleep(0.3)  # as a process does that waits for its turn
    assert clock() - worked < 0.15
    end = time.thread_time() + 0.2
    while time.thread_time() < end:
        pass
    assert clock() - worked >= 0.2
    assert time.monotonic() - began >= 0.3
    assert clock_of("cuda:0") is time.monotonic
