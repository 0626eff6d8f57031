"""A training that goes on from any iteration ends as the uninterrupted one, bit for bit."""

from __future__ import annotations

import copy
import os
import random
import signal
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.networks.nets import UNet
from monai.transforms import Compose, RandFlipd, RandGaussianNoised
from monai.utils import set_determinism

from unicorn_monai.system.errors import NotFinite
from unicorn_monai.training.handlers import Progress
from unicorn_monai.training.kept_weights import EMA, BestWeights
from unicorn_monai.training.state import TrainingState, random_state, read_whole, set_random_state
from unicorn_monai.training.steps import ClipGradients, WarmupCosine, loss_metric

EPOCHS, LENGTH = 3, 4
loss = torch.nn.MSELoss()


class Training:
    """A training as the bundles have it: random order, random transforms, dropout, averages, early stopping."""

    def __init__(
        self,
        folder: Path,
        resume: bool = False,
        minutes: float = 0.0,
        workers: int = 0,
        several: int = 1,
        **options,
    ) -> None:
        set_determinism(7)
        random_numbers = np.random.default_rng(0)
        items = [
            {
                key: torch.from_numpy(random_numbers.standard_normal((1, 8, 8)).astype(np.float32))
                for key in ("image", "label")
            }
            for _ in range(8)
        ]
        change = Compose([RandFlipd(["image"], 0.5, 1), RandGaussianNoised(["image"], 0.5)])
        loader = DataLoader(CacheDataset(items, change, progress=False), workers, batch_size=2, shuffle=True)
        network = UNet(2, 1, 1, (4, 8), (2,), dropout=0.2)
        average = copy.deepcopy(network)
        optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
        rate = WarmupCosine(optimizer, EPOCHS, loader)
        ema = EMA(network, average, 0.9)
        evaluator = SupervisedEvaluator(
            torch.device("cpu"),
            DataLoader(CacheDataset(items, progress=False), batch_size=4),
            average,
            key_val_metric={"loss": loss_metric(loss)},
            decollate=False,
        )
        best = BestWeights(evaluator, "loss", average, folder / "model.pt", larger_is_better=False, **options)
        self.objects = {"network": network, "optimizer": optimizer, "lr": rate, "ema": ema, "best": best}
        self.state = TrainingState(folder / "last.pt", self.objects, resume, minutes)
        handlers: list[Any] = [
            LrScheduleHandler(rate, print_lr=False, epoch_level=False),
            ClipGradients(network),
            ema,
            ValidationHandler(1, evaluator),
            best,
            Progress("training"),
            self.state,
        ]
        self.trainer = SupervisedTrainer(
            torch.device("cpu"), EPOCHS, loader, network, optimizer, loss, train_handlers=handlers,
            accumulation_steps=several,
        )  # fmt: skip

    def run(self, until: int | None = None, by: Any = None) -> None:
        """Train, to the end or until iteration ``until`` is done, and then ``by()``."""
        if until is not None:
            self.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=until), lambda: by())
        self.trainer.run()


def lights_out() -> None:
    raise ConnectionAbortedError("the lights went out")


def told_to_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Any]:
    """The last state of an uninterrupted training."""
    folder = tmp_path_factory.mktemp("whole")
    Training(folder, minutes=10).run()
    return read_whole(folder / "last.pt")


@pytest.mark.parametrize("until", sorted(random.Random(3).sample(range(1, EPOCHS * LENGTH), 5)))
def test_a_training_interrupted_anywhere_ends_as_if_it_had_not_been(whole, tmp_path, until):
    with pytest.raises(ConnectionAbortedError):
        Training(tmp_path).run(until, lights_out)
    state = read_whole(tmp_path / "last.pt")
    assert state["epoch"] * LENGTH + state["position"] == until - (until % LENGTH == 0)  # an epoch's end comes later
    Training(tmp_path, resume=True).run()
    assert same(read_whole(tmp_path / "last.pt"), whole)


def test_a_training_interrupted_again_and_again_ends_the_same(whole, tmp_path):
    for i in range(1, EPOCHS * LENGTH):
        with pytest.raises(ConnectionAbortedError):
            Training(tmp_path, resume=True).run(i, lights_out)
    Training(tmp_path, resume=True).run()
    assert same(read_whole(tmp_path / "last.pt"), whole)


def interrupted_after_six(folder: Path, **settings: int) -> bool:
    """Whether a training that was interrupted after its sixth batch ends as one that was not."""
    Training(folder / "whole", **settings).run()
    with pytest.raises(ConnectionAbortedError):
        Training(folder, **settings).run(6, lights_out)
    Training(folder, resume=True, **settings).run()
    return same(read_whole(folder / "last.pt"), read_whole(folder / "whole" / "last.pt"))


def test_gradients_of_a_step_that_was_not_taken_are_not_lost(tmp_path):
    """Steps after batches 3 and 4 of an epoch: after the second of the second epoch, the sixth, one is half done."""
    assert interrupted_after_six(tmp_path, several=3)


def test_loader_processes_change_nothing_about_that(tmp_path):
    assert interrupted_after_six(tmp_path, workers=2)


def test_a_training_that_is_told_to_end_saves_its_state_first(whole, tmp_path):
    with pytest.raises(SystemExit) as ended:
        Training(tmp_path, minutes=10).run(6, told_to_end)
    assert ended.value.code == 143
    assert read_whole(tmp_path / "last.pt")["position"] == 3  # when the next iteration is done
    Training(tmp_path, resume=True, minutes=10).run()
    assert same(read_whole(tmp_path / "last.pt"), whole)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("harm", ["cut", "flipped", "missing"])
def test_the_state_before_is_taken_where_the_newest_is_damaged(whole, tmp_path, harm, caplog, monkeypatch):
    with pytest.raises(ConnectionAbortedError):
        Training(tmp_path).run(7, lights_out)
    path, before = tmp_path / "last.pt", tmp_path / "last_before.pt"
    assert read_whole(before)["position"] == read_whole(path)["position"] - 1
    with zipfile.ZipFile(path) as file:
        largest = max(file.infolist(), key=lambda part: part.file_size)
    content = bytearray(path.read_bytes())
    lengths = struct.unpack_from("<HH", content, largest.header_offset + 26)  # of name and padding, before the data
    content[largest.header_offset + 30 + sum(lengths) + largest.file_size // 2] ^= 1
    path.unlink()
    if harm != "missing":
        path.write_bytes(content if harm == "flipped" else content[: len(content) // 2])
        with pytest.raises(ValueError, match=r"last.pt' is damaged"):
            read_whole(path)
    Training(tmp_path, resume=True).run()
    assert same(read_whole(tmp_path / "last.pt"), whole)
    assert any("goes on from the state before" in message for message in caplog.messages) == (harm != "missing")


def test_a_training_that_stopped_early_does_not_go_on(tmp_path):
    Training(tmp_path, patience=1, always=False).run()
    first = read_whole(tmp_path / "last.pt")
    assert first["objects"]["best"]["waited"] in (0, 1)
    state = copy.deepcopy(first)
    state["objects"]["best"]["waited"], state["epoch"] = 1, 1
    torch.save(state, tmp_path / "last.pt")
    again = Training(tmp_path, resume=True, patience=1)
    again.run()
    assert again.trainer.state.epoch == 1


def test_another_batch_size_is_refused_within_an_epoch(tmp_path):
    with pytest.raises(ConnectionAbortedError):
        Training(tmp_path).run(6, lights_out)
    other = Training(tmp_path)
    other.trainer.state.epoch_length = 8
    with pytest.raises(ValueError, match=r"within an epoch of 4 iterations, this one has 8\. Resume with the same"):
        other.state.load(other.trainer)


def test_a_second_training_in_the_folder_is_refused_and_leaves_the_first_alone(whole, tmp_path):
    def try_too():
        with pytest.raises(ValueError, match=r"Another process is working in '.*last.pt'"):
            Training(tmp_path).run()

    state = torch.random.get_rng_state, torch.random.set_rng_state
    first = Training(tmp_path, minutes=10)
    numbers = []

    def second():
        numbers.append((state[0](), np.random.get_state(), random.getstate()))
        try_too()
        state[1](numbers[0][0])
        np.random.set_state(numbers[0][1])
        random.setstate(numbers[0][2])

    first.run(5, second)
    assert same(read_whole(tmp_path / "last.pt"), whole)
    assert not list(tmp_path.glob(".lock*"))


def test_a_random_state_holds_the_second_number_of_a_pair():
    """Python and NumPy draw two normal numbers at a time and keep one."""
    random.gauss(0, 1), np.random.standard_normal(1)
    state = random_state()
    drawn = random.gauss(0, 1), np.random.standard_normal()
    set_random_state(state)
    assert (random.gauss(0, 1), np.random.standard_normal()) == drawn
    del state["gauss"]  # written before it was kept
    set_random_state(state)


class Scaler:
    """Stands in for a GradScaler, which needs a GPU to do anything."""

    def __init__(self) -> None:
        self.scale = 2.0

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale = state["scale"]


def test_the_scaler_of_mixed_precision_is_part_of_the_state(tmp_path):
    training = Training(tmp_path)
    training.trainer.state.epoch, training.trainer.state.iteration = 1, 4
    training.trainer.scaler = Scaler()
    training.trainer.scaler.scale = 512.0
    training.state._start(training.trainer)
    training.state.save(training.trainer)
    training.state._held.close()
    again = Training(tmp_path, resume=True)
    again.trainer.scaler = Scaler()
    again.state._start(again.trainer)
    again.state._held.close()
    assert again.trainer.scaler.scale == 512.0


@pytest.mark.parametrize("where", ["image", "loss", "weights"])
def test_numbers_that_are_not_finite_end_a_training_before_they_are_saved(tmp_path, where):
    training = Training(tmp_path)

    def factor() -> float:
        return float("inf") if training.trainer.state.iteration > 4 else 1.0

    if where == "weights":

        def spoil():
            with torch.no_grad():
                next(training.trainer.network.parameters()).fill_(float("nan"))

        training.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), spoil)
    elif where == "loss":
        training.trainer.loss_function = lambda a, b: (
            loss(a, b) * float("inf" if training.trainer.state.iteration > 4 else 1)
        )
    else:
        training.trainer.data_loader.dataset._cache[3]["image"].fill_(float("nan"))
    with pytest.raises(NotFinite, match=r"NaN or infinite|is nan|is inf"):
        training.run()
    for path in tmp_path.glob("*.pt"):
        state = read_whole(path)
        tensors = state["objects"]["network"] if "objects" in state else state
        assert all(torch.isfinite(value).all() for value in tensors.values())
