"""Training states: whole or not there, checked when read; the best weights are kept."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from unicorn_monai.system.weights import read_metadata, sha256
from unicorn_monai.training import state as checkpoints
from unicorn_monai.training.kept_weights import BestWeights
from unicorn_monai.training.state import TrainingState, save_atomically


@pytest.fixture
def network():
    return nn.Linear(3, 2)


# ---------------------------------------------------------------- training states


def cut_off(content, file):
    """``torch.save`` on a full disk."""
    file.write(b"the first half")
    raise OSError(28, "No space left on device")


def test_a_first_write_that_fails_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.torch, "save", cut_off)
    with pytest.raises(OSError, match="No space left"):
        save_atomically({}, tmp_path / "last.pt")
    assert list(tmp_path.iterdir()) == []


def engine(batches=2, step=lambda *_: {}):
    return Engine(step), [0] * batches


def train(path, network, epochs, resume=False, stop=None):
    """A training that adds random numbers from all three generators to the weights."""

    def step(trainer, batch):
        with torch.no_grad():
            network.weight += torch.rand(()) + np.random.rand() + random.random()

    trainer, data = engine(step=step)
    trainer.state.max_epochs, trainer.state.epoch_length = epochs, len(data)
    TrainingState(path, {"network": network}, resume).attach(trainer)
    if stop is not None:
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=stop), lambda trainer: trainer.terminate())
    trainer.run(data, max_epochs=epochs)
    return trainer.state


def same_start():
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    network = nn.Linear(2, 2)
    return network


def test_an_interrupted_training_goes_on_with_its_weights_epoch_and_random_numbers(tmp_path):
    whole, parts = same_start(), None
    train(tmp_path / "whole.pt", whole, 3)
    parts = same_start()
    train(tmp_path / "parts.pt", parts, 3, stop=1)
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    again = nn.Linear(2, 2)
    state = train(tmp_path / "parts.pt", again, 3, resume=True)
    assert (state.epoch, state.iteration) == (3, 6)
    assert torch.equal(again.weight, whole.weight)


def test_without_resume_a_training_begins_anew(tmp_path):
    train(tmp_path / "last.pt", same_start(), 2)
    before = sha256(tmp_path / "last.pt")
    train(tmp_path / "last.pt", network := same_start(), 2)
    assert sha256(tmp_path / "last.pt") == before
    train(tmp_path / "last.pt", network, 2)
    assert sha256(tmp_path / "last.pt") != before


@pytest.mark.parametrize(("seconds", "expected"), [(0.4, [*range(1, 13)]), (10.0, [1, 8, 12])])
def test_states_take_a_twentieth_of_the_time_at_most(seconds, expected, tmp_path, monkeypatch):
    now, saved = [0.0], []

    def write(content, path, keep=None):
        now[0] += seconds
        saved.append(content["epoch"])

    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(checkpoints, "save_atomically", write)
    trainer, data = engine()
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda _: now.__setitem__(0, now[0] + 30.0))
    trainer.state.max_epochs, trainer.state.epoch_length = 12, len(data)
    TrainingState(tmp_path / "last.pt", {"network": nn.Linear(2, 2)}).attach(trainer)
    trainer.run(data, max_epochs=12)
    assert saved == expected


def test_the_state_of_a_training_that_stops_early_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "QUICK", -1.0)
    monkeypatch.setattr(checkpoints, "SHARE", 1e-12)  # no state pays
    trainer, data = engine()
    trainer.state.max_epochs, trainer.state.epoch_length = 9, len(data)
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=3), lambda trainer: trainer.terminate())
    TrainingState(tmp_path / "last.pt", {"network": nn.Linear(2, 2)}).attach(trainer)
    trainer.run(data, max_epochs=9)
    assert checkpoints.read_whole(tmp_path / "last.pt")["epoch"] == 3


def test_resuming_without_a_state_begins_anew(tmp_path):
    assert train(tmp_path / "last.pt", nn.Linear(2, 2), 2, resume=True).epoch == 2


@pytest.mark.parametrize("fault", ["damaged", "other settings"])
def test_a_state_that_does_not_fit_is_refused(tmp_path, fault):
    train(tmp_path / "last.pt", nn.Linear(2, 2), 1)
    if fault == "damaged":
        (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"(?s)Cannot resume from .* written with other settings or is damaged"):
        train(tmp_path / "last.pt", nn.Linear(2, 2 if fault == "damaged" else 3), 2, resume=True)


def test_a_state_of_more_epochs_than_wanted_is_refused(tmp_path):
    train(tmp_path / "last.pt", nn.Linear(2, 2), 3)
    with pytest.raises(ValueError, match="has 3 finished epochs, more than max_epochs 2"):
        train(tmp_path / "last.pt", nn.Linear(2, 2), 2, resume=True)


# ---------------------------------------------------------------- best weights


class Validation:
    """Stands in for an evaluator: gives one value after the other."""

    def __init__(self, values):
        self.values, self.state = list(values), SimpleNamespace(epoch=0, metrics={})

    def run(self, epoch):
        self.state.epoch = epoch
        self.state.metrics = {"score": self.values.pop(0)}


def validate(values, path, network, interval=1, epochs=None, **options):
    """A training with a validation every ``interval`` epochs; the weight is the number of the epoch."""
    validation = Validation(values)

    def step(trainer, batch):
        nn.init.constant_(network.weight, float(trainer.state.epoch))

    trainer, data = engine(1, step)
    trainer.add_event_handler(Events.EPOCH_COMPLETED(every=interval), lambda t: validation.run(t.state.epoch))
    best = BestWeights(validation, "score", network, path, **options)
    best.attach(trainer)
    trainer.run(data, max_epochs=epochs or len(values))
    return trainer.state.epoch, best


def published(path):
    return read_metadata(path)["epoch"], torch.load(path, weights_only=True)["weight"].mean().item()


@pytest.mark.parametrize(
    ("larger_is_better", "values", "epoch"),
    [(True, [0.2, 0.5, 0.3, 0.5], 2), (False, [0.4, 0.1, 0.3], 2), (True, [-5.0], 1), (False, [9.0, 8.0], 2)],
)
def test_the_best_weights_are_kept(tmp_path, network, larger_is_better, values, epoch):
    validate(values, tmp_path / "model.pt", network, larger_is_better=larger_is_better, metadata={"mode": "paper"})
    assert published(tmp_path / "model.pt") == (epoch, epoch)
    assert read_metadata(tmp_path / "model.pt")["score"] == values[epoch - 1]
    assert read_metadata(tmp_path / "model.pt")["mode"] == "paper"


def test_patience_counts_validations_without_improvement(tmp_path, network):
    stopped, _ = validate([0.5, 0.4, 0.6, 0.6, 0.5, 0.9], tmp_path / "model.pt", network, patience=2)
    assert stopped == 5
    assert published(tmp_path / "model.pt") == (3, 3)


def test_the_newest_weights_are_kept_where_the_metric_does_not_decide(tmp_path, network):
    validate([0.5, 0.4], tmp_path / "model.pt", network, always=True)
    assert published(tmp_path / "model.pt") == (2, 2)


def test_epochs_without_validation_do_not_count_but_the_last_one_is_validated(tmp_path, network):
    epoch, best = validate([0.5, 0.4, 0.9], tmp_path / "model.pt", network, interval=2, epochs=5, patience=2)
    assert epoch == 5
    assert published(tmp_path / "model.pt") == (5, 5)
    assert best.waited == 0


def test_a_diverged_validation_stops_the_training(tmp_path, network):
    with pytest.raises(ValueError, match="Validation metric 'score' is nan in epoch 2: diverged"):
        validate([0.5, float("nan")], tmp_path / "model.pt", network)
    assert published(tmp_path / "model.pt") == (1, 1)


def test_the_best_score_outlives_an_interruption(tmp_path, network):
    _, before = validate([0.5, 0.4], tmp_path / "model.pt", network)
    after = BestWeights(Validation([]), "score", network, tmp_path / "model.pt")
    after.load_state_dict(before.state_dict())
    assert (after.best, after.waited) == (0.5, 1)
