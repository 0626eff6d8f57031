"""What a user sees of a running stage, and what it leaves behind."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from PIL import Image

from unicorn_monai.images.files import read_array
from unicorn_monai.images.pictures import tile
from unicorn_monai.segmentation.recorders import MetricsWriter, SegmentationWriter, UncertaintyRecorder
from unicorn_monai.system.files import read_json
from unicorn_monai.system.weights import sha256
from unicorn_monai.training.handlers import Progress, SampleImages
from unicorn_monai.uncertainty import image_uncertainty

LOGITS = torch.randn(2, 3, 4, 5)


@pytest.fixture
def lines(caplog):
    """What the library tells; the command line keeps it from the root logger."""
    caplog.set_level(logging.INFO, "unicorn_monai")
    return lambda: caplog.messages


def run(handler, step=lambda engine, batch: {}, batches=(0,), epochs=1):
    engine = Engine(step)
    handler.attach(engine)
    engine.run(list(batches), max_epochs=epochs)
    return engine


def segment(engine, paths):
    engine.state.batch = {"image_path": paths}
    return {"pred": LOGITS[: len(paths)]}


def test_progress_tells_ten_times_how_far_it_is(lines):
    run(Progress("training"), lambda engine, batch: {"loss": 0.5}, batches=range(10), epochs=5)
    assert len(lines()) == 10
    assert lines()[0].startswith("training: 5/50, ")
    assert lines()[-1].startswith("training: 50/50, ")
    assert lines()[-1].endswith("0 s left, loss 0.5000")


def test_progress_of_an_evaluation_needs_no_loss(lines):
    run(Progress("evaluation"), batches=range(3))
    assert lines()[-1].startswith("evaluation: 3/3")
    assert "loss" not in lines()[-1]


def test_a_loss_that_is_not_a_number_ends_the_training():
    with pytest.raises(ValueError, match=r"training: the loss is nan at iteration 2. Lower the learning rate"):
        run(Progress("training"), lambda e, b: {"loss": [0.1, float("nan")][e.state.iteration - 1]}, batches=range(2))


def test_images_are_laid_out_with_gaps():
    assert tile(torch.zeros(2, 3, 1, 4, 5)).shape == (2 * 4 + 2, 3 * 5 + 2 * 2)
    assert tile(torch.zeros(2, 3, 3, 4, 5)).shape == (2 * 4 + 2, 3 * 5 + 2 * 2, 3)
    assert tile(torch.zeros(1, 2, 1, 4, 5))[0, 5] == 255


def test_a_sheet_is_written_at_intervals_and_at_the_end(tmp_path):
    run(SampleImages(lambda: torch.rand(2, 3, 1, 4, 5), tmp_path, interval=2), epochs=5)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [f"epoch_000{i}.png" for i in (2, 4, 5)]
    assert Image.open(tmp_path / "epoch_0005.png").size == (19, 10)


def test_a_training_that_stops_early_has_a_sheet_of_its_last_epoch(tmp_path):
    engine = Engine(lambda engine, batch: {})
    engine.add_event_handler(Events.EPOCH_COMPLETED(once=3), engine.terminate)
    SampleImages(lambda: torch.rand(2, 3, 1, 4, 5), tmp_path, interval=5).attach(engine)
    engine.run([0], max_epochs=10)
    assert [path.name for path in tmp_path.glob("*.png")] == ["epoch_0003.png"]


def test_a_segmentation_is_written_beside_its_entropy_and_uncertainty(tmp_path):
    run(SegmentationWriter(tmp_path, ".png"), segment, [["a/0.nii.gz", "a/1.nii.gz"]])
    assert np.array_equal(read_array(tmp_path / "000001_label.png"), LOGITS[1].argmax(dim=0).numpy())
    table = json.loads((tmp_path / "uncertainty.json").read_text())
    assert list(table.values()) == pytest.approx(image_uncertainty(LOGITS).tolist())
    assert read_array(tmp_path / "000000_entropy.png").mean() / 255 == pytest.approx(table["a/0.nii.gz"], abs=0.002)


def test_segmentations_are_numbered_so_none_overwrites_another(tmp_path):
    run(SegmentationWriter(tmp_path), segment, [["a/0.nii.gz"], ["b/0.nii.gz"]])
    rows = json.loads((tmp_path / "index.json").read_text())
    assert [(row["image"], row["label"]) for row in rows] == [
        ("a/0.nii.gz", "000000_label.nii.gz"),
        ("b/0.nii.gz", "000001_label.nii.gz"),
    ]


def test_uncertainties_are_kept_with_the_weights_that_gave_them(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    run(UncertaintyRecorder(tmp_path / "out" / "u.json", tmp_path / "model.pt"), segment, [["a", "b"], ["c"]])
    record = read_json(tmp_path / "out" / "u.json")
    assert record["segmentation_sha256"] == sha256(tmp_path / "model.pt")
    assert list(record["images"]) == ["a", "b", "c"]
    assert record["images"]["a"] == record["images"]["c"] == pytest.approx(image_uncertainty(LOGITS)[0].item())


def test_only_the_wanted_metrics_are_written(tmp_path):
    engine = Engine(lambda engine, batch: {})
    MetricsWriter(tmp_path / "out" / "metrics.json", ["a"]).attach(engine)
    engine.state.metrics = {"a": torch.tensor([1.0, float("nan"), 2.0]), "b": 3.0}
    engine.run([0])
    assert read_json(tmp_path / "out" / "metrics.json") == {"a": [1.0, None, 2.0]}  # of a label that is absent


def test_a_file_of_a_stage_that_has_not_run_is_missed():
    with pytest.raises(ValueError, match=r"'nowhere.json' does not exist; the stage that writes it has not run"):
        read_json(Path("nowhere.json"))
