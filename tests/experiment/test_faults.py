"""What the machine may do to a run: no space, no memory, no store, no permission; told by name, and gone on from.

More of the same kind: interrupted and damaged states (`test_resume.py`), two writers (`test_journal.py`), kills
(`test_crash.py`), bad places for data sets (`test_bad_inputs.py`), folders of a bundle (`test_bundles.py`).
"""

from __future__ import annotations

import contextlib
import json
import re
import resource
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from killed_stages import unreadable
from tests.synthesis.test_identity import content
from tests.training.test_resume import Training, read_whole, same
from tiny_synthesis import label_maps, synthesizer
from unicorn_monai.bundle.settings import check_settings
from unicorn_monai.data.items import datalist
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.diffusion.latents import LatentDataset
from unicorn_monai.experiment.tracking import Tracker
from unicorn_monai.images.files import read_array, write_array
from unicorn_monai.system.distributed import share
from unicorn_monai.system.errors import explain, root_cause
from unicorn_monai.system.files import atomic, write_json
from unicorn_monai.system.weights import save_tensors, save_weights
from unicorn_monai.training.state import save_atomically

NOWHERE = Path("/proc/nowhere")  # nobody may write there, not even the superuser


@contextlib.contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file may be larger than ``room`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    return label_maps(tmp_path_factory.mktemp("labels") / "labels")


@pytest.fixture
def messages(caplog):
    """What the library tells; the command line keeps it from the root logger."""
    return lambda: " ".join(caplog.messages)


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.name.startswith((".tmp-", ".lock"))]


# ---------------------------------------------------------------- a full disk


def test_a_full_disk_ends_a_training_but_not_its_states(tmp_path):
    Training(tmp_path / "whole", minutes=10).run()
    size = (tmp_path / "whole" / "last.pt").stat().st_size
    with full_disk(size // 2), pytest.raises(OSError, match=re.escape(str(tmp_path / "last.pt"))):
        Training(tmp_path, minutes=10).run()
    assert not (tmp_path / "last.pt").exists()
    assert leftovers(tmp_path) == unreadable(tmp_path) == []
    Training(tmp_path, resume=True, minutes=10).run()
    assert same(read_whole(tmp_path / "last.pt"), read_whole(tmp_path / "whole" / "last.pt"))


@pytest.mark.parametrize("room", [60, 700], ids=["image", "journal"])
def test_a_full_disk_ends_a_synthesis_but_not_its_data_set(labels, tmp_path, room):
    synthesizer(labels, tmp_path / "whole").run()
    with full_disk(room), pytest.raises(OSError, match=rf"File too large: '{tmp_path}"):
        synthesizer(labels, tmp_path / "set").run()
    assert leftovers(tmp_path) == unreadable(tmp_path / "set") == []
    synthesizer(labels, tmp_path / "set").run()
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_a_full_disk_ends_an_encoding_and_leaves_no_half_of_it(labels, autoencoder, tmp_path):
    with full_disk(500), pytest.raises(OSError, match=rf"File too large: '{tmp_path}"):
        LatentDataset(labels, "training", autoencoder, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(LatentDataset(labels, "training", autoencoder, tmp_path)) == 6


NOISE = np.random.default_rng(0).integers(0, 256, (90, 90), np.uint8)  # cannot be packed
FILES = {
    "a.json": lambda path: write_json(path, list(range(3000))),
    "a.png": lambda path: write_array(path, NOISE),
    "a.nii.gz": lambda path: write_array(path, NOISE),
    "last.pt": lambda path: save_atomically({"w": torch.zeros(3000)}, path),
    "latents.safetensors": lambda path: save_tensors({"w": torch.zeros(3000)}, path),
    "model.safetensors": lambda path: save_weights(torch.nn.Linear(50, 50), path.with_name("model.pt")),
}


@pytest.mark.parametrize("name", FILES)
def test_a_full_disk_is_told_with_the_file_that_did_not_fit(tmp_path, name):
    with full_disk(2000), pytest.raises(OSError, match="File too large") as caught:
        FILES[name](tmp_path / name)
    assert explain(root_cause(caught.value)).startswith(f"File too large: '{tmp_path / name}'. Check the space")
    assert list(tmp_path.iterdir()) == []


def test_errors_that_are_no_failures_to_write_stay_what_they_are(tmp_path):
    for error in (RuntimeError("diverged"), OSError("cannot write mode F as PNG"), OSError(2, "none", "other.json")):
        with pytest.raises(type(error), match=re.escape(str(error))), atomic(tmp_path / "a"):
            raise error


# ---------------------------------------------------------------- places


def test_a_place_that_cannot_be_written_is_named(labels, autoencoder):
    attempts = {
        "state": lambda: save_atomically({}, NOWHERE / "last.pt"),
        "image": lambda: write_array(NOWHERE / "a.png", np.zeros((2, 2), np.uint8)),
        "synthesis": lambda: synthesizer(labels, NOWHERE / "set").run(),
        "latents": lambda: LatentDataset(labels, "training", autoencoder, NOWHERE),
        "training": lambda: Training(NOWHERE, minutes=10).run(),
    }
    for attempt in attempts.values():
        with pytest.raises((OSError, RuntimeError)) as caught:
            attempt()
        cause = root_cause(caught.value)
        assert isinstance(cause, OSError)
        assert str(NOWHERE) in explain(cause)


def test_a_file_that_vanishes_meanwhile_is_named(labels, tmp_path):
    with DatasetWriter(tmp_path / "set", About(name="n", device="d", labels={0: "a", 1: "b"})) as writer:
        writer.add("training", np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8), subject="s")
    work = synthesizer(labels, tmp_path / "out")
    gone = Path(datalist(labels, "training", ("image", "label"))[0]["label"])
    kept = gone.read_bytes()
    gone.unlink()
    try:
        with pytest.raises((ValueError, OSError), match=re.escape(str(gone))):
            work.run()
    finally:
        gone.write_bytes(kept)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_missed():
    with pytest.raises(ValueError, match="device is 'cuda:0', but PyTorch sees no GPU here"):
        check_settings(device="cuda:0")


@pytest.mark.parametrize(("rank", "processes"), [("2", "2"), ("-1", "2"), ("one", "2"), ("0", "0")])
def test_a_share_that_makes_no_sense_is_refused(monkeypatch, rank, processes):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", processes)
    with pytest.raises(ValueError, match=r"expected numbers, 0 <= RANK < WORLD_SIZE"):
        share()


def test_a_damaged_cache_of_latents_is_made_again(labels, autoencoder, tmp_path, messages):
    first = LatentDataset(labels, "training", autoencoder, tmp_path).mean
    file = next(tmp_path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(LatentDataset(labels, "training", autoencoder, tmp_path).mean, first)
    assert "is damaged" in messages()


# ---------------------------------------------------------------- memory


def test_memory_that_runs_out_in_the_decoder_costs_time_but_no_image(labels, tmp_path, messages):
    synthesizer(labels, tmp_path / "whole").run()
    work = synthesizer(labels, tmp_path / "set")
    autoencoder = work.generator.ldm.autoencoder
    decode = autoencoder.decode_stage_2_outputs

    def crowded(z: torch.Tensor) -> torch.Tensor:
        if len(z) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(z)

    autoencoder.decode_stage_2_outputs = crowded
    work.run()
    assert "going on with 1 image(s) at a time" in messages()
    splits = ("training", "validation")
    for ours, theirs in zip(datalist(tmp_path / "set", splits), datalist(tmp_path / "whole", splits), strict=True):
        difference = read_array(ours["image"]).astype(int) - read_array(theirs["image"]).astype(int)
        assert abs(difference).max() <= 1


# ---------------------------------------------------------------- tracking


def tracked(tracker: Tracker, folder: Path) -> list[dict]:
    """A training of 100 iterations is tracked; what the local log holds."""
    stage = tracker.stage("autoencoder")
    stage.parameters({"seed": 1})
    engine = Engine(lambda *_: {"loss": 0.5})
    stage.attach(engine)
    engine.run([0] * 100)
    stage.close("FINISHED")
    tracker.close({"unicorn.mean_iou": 0.7}, [])
    local = folder / "tracking.jsonl"
    return [json.loads(line) for line in local.read_text().splitlines()] if local.exists() else []


def complete(rows: list[dict]) -> bool:
    """Whether the losses, the status and the result of the run are there."""
    return (
        [row["step"] for row in rows if "loss" in row] == [50, 100]
        and [row["status"] for row in rows if "status" in row] == ["FINISHED"]
        and any(row.get("unicorn.mean_iou") == 0.7 for row in rows)
    )


def test_a_store_that_works_needs_no_local_log(tmp_path):
    assert tracked(Tracker(tmp_path, "run"), tmp_path) == []


def test_a_damaged_store_does_not_stop_a_training(tmp_path, messages):
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    assert complete(tracked(Tracker(tmp_path, "run"), tmp_path))
    assert "MLflow tracking stopped" in messages()
    assert str(tmp_path / "tracking.jsonl") in messages()


def test_a_locked_store_does_not_stop_a_training(tmp_path, messages):
    tracker = Tracker(tmp_path, "run")
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert complete(tracked(tracker, tmp_path))
        other.execute("ROLLBACK")
    assert "locked" in messages()


def test_a_server_that_is_down_does_not_stop_a_training(tmp_path, monkeypatch, messages):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert complete(tracked(Tracker(tmp_path, "run"), tmp_path))
    assert "MLflow tracking stopped" in messages()


def test_neither_store_nor_log_is_needed(tmp_path, messages):
    tracker = Tracker(NOWHERE, "run")
    assert tracked(tracker, tmp_path) == []
    assert "cannot be written either" in messages()
