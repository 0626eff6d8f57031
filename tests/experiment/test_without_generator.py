"""An experiment without an image generator of ours: the free opponents, and the network recommended without labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data_prep.phantom import write_phantom
from tiny_networks import TINY
from unicorn_monai.experiment.experiment import Experiment
from unicorn_monai.experiment.settings import Settings
from unicorn_monai.report.trainings import AUGMENTED, FREE, PSEUDO_LABELS
from unicorn_monai.system.files import read_json
from unicorn_monai.system.weights import read_metadata, sha256

OPPONENTS = (*FREE, PSEUDO_LABELS)


@pytest.fixture(scope="module")
def domains(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    for name, device in (("labeled", "spectralis"), ("unlabeled", "swept_source")):
        write_phantom(root / name, device, n_subjects=6, scans_per_subject=2, size=32, split=(0.5, 0.17, 0.33))
    return {name: root / name for name in ("labeled", "unlabeled")}


def settings(domains: dict[str, Path], output: Path, **changes) -> Settings:
    values = {"preset": "quick", "device": "cpu", "overrides": TINY, "modes": (), "jobs": 1, "tracking": False}
    return Settings(str(domains["labeled"]), str(domains["unlabeled"]), str(output), **(values | changes))


def ran(*arguments, **changes) -> dict:
    chosen = settings(*arguments, **changes)
    Experiment(chosen, resume=(Path(chosen.output) / "experiment.json").is_file()).run()
    return read_json(Path(chosen.output) / "results.json")


@pytest.fixture(scope="module")
def finished(domains, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("run") / "r"
    ran(domains, run, baselines=OPPONENTS)
    return run


def changed(domains: dict[str, Path], folder: Path, change) -> dict[str, Path]:
    """The unlabelled data set with another header."""
    other = Path(shutil.copytree(domains["unlabeled"], folder / "other"))
    header = read_json(other / "dataset.json")
    change(header)
    (other / "dataset.json").write_text(json.dumps(header))
    return domains | {"unlabeled": other}


def without_labels(header: dict) -> None:
    for split in ("training", "validation", "test"):
        for item in header[split]:
            item.pop("label")


def test_every_free_opponent_is_scored_on_both_devices(finished):
    scores = read_json(finished / "results.json")["segmentation"]
    assert set(scores) == {"lower_bound", "upper_bound", *OPPONENTS}
    for one in scores.values():
        assert 0 <= one["mean_iou"] <= 1
        assert 0 <= one["labelled_device"]["mean_iou"] <= 1
        assert 0 <= one["ece"] <= 1
    assert not list(finished.glob("synthetic*")), "nothing is drawn"
    assert not (finished / "bundles" / "latent_diffusion").exists()


def test_self_training_takes_the_augmentation_of_the_network_that_was_chosen(finished):
    chosen = read_json(finished / "results.json")["chosen_augmentation"]
    assert set(chosen["candidates"]) == {"lower_bound", *AUGMENTED}
    stage = read_json(finished / "stages" / "self_training+chosen.json")
    (command,) = stage["commands"].values()
    assert f"--augmentation {AUGMENTED.get(chosen['setup'], 'geometry')} " in command


def test_the_teacher_is_one_of_the_free_networks_and_labels_what_the_pupil_learns(finished):
    teacher = read_json(finished / "results.json")["teacher"]
    assert set(teacher["candidates"]) == {"lower_bound", *FREE}
    (guessed,) = (finished / "segmentation" / PSEUDO_LABELS).glob("guessed/dataset.json")
    origin = read_json(guessed)["training"][0]["pseudo_label"]["segmentation_sha256"]
    assert origin == sha256(finished / "segmentation" / teacher["setup"] / "model.pt")
    items = [item["pseudo_label"] for item in read_json(guessed)["training"]]
    assert {(item["threshold"], item["confident"]) for item in items} == {(0.0, 1.0)}


def test_the_recommended_network_is_any_but_the_upper_bound(finished):
    found = read_json(finished / "results.json")["recommendation"]
    assert set(found["candidates"]) == {"lower_bound", *OPPONENTS}
    assert found["setup"] in found["candidates"]
    assert found["low"] <= found["estimate"] <= found["high"]
    assert set(found["scores"]) >= {"agreement", "consistency", "information", "density", "reverse"}
    assert "synthetic" not in found["scores"]
    assert found["criterion"] == "jury"
    assert found["jurors"] == ["lower_bound", *AUGMENTED, "batch_norm"], "who was taught by guesses is none"
    assert found["estimate"] == found["estimators"]["calibrated"] != found["estimators"]["confidence"]


def test_adapted_statistics_are_of_a_network_with_batch_normalisation(finished):
    adapted = read_metadata(finished / "segmentation" / "batch_norm" / "model.pt")
    assert adapted["adapted_from"] == sha256(finished / "segmentation" / "batch_norm_before" / "model.pt")
    config = read_json(finished / "bundles_batch_norm" / "retinal_unet" / "configs" / "inference.json")
    assert config["network_def"]["norm"] == "batch"


def test_without_a_label_of_the_other_device_a_network_is_recommended_and_nothing_scored(domains, tmp_path):
    found = ran(changed(domains, tmp_path, without_labels), tmp_path / "r", baselines=("augmentation", "fda"))
    assert found["segmentation"] == {}
    assert "segmentation" in found["not_computed"]
    assert found["recommendation"]["setup"] in ("lower_bound", "augmentation", "fda")
    assert found["strongest"].get("not_computed")


def test_one_network_has_nothing_to_be_compared_with_and_that_is_said(domains, tmp_path):
    found = ran(domains, tmp_path / "r")
    assert "expected two networks or more" in found["recommendation"]["not_computed"]


def test_fewer_than_eight_unlabelled_images_and_no_validation_images_will_do(domains, tmp_path):
    def few(header: dict) -> None:
        header["training"], header["validation"] = header["training"][:3], []

    found = ran(changed(domains, tmp_path, few), tmp_path / "r", baselines=("augmentation", "histogram"))
    assert "upper_bound" not in found["segmentation"]
    assert found["recommendation"]["images"] == 3
    assert found["segmentation"]["histogram"]["validation"]["not_computed"]


def test_generators_are_added_to_a_run_that_began_without(domains, tmp_path):
    run = tmp_path / "r"
    before = ran(domains, run, baselines=("augmentation",), transfer_minutes=0.02)
    weights = sha256(run / "segmentation" / "augmentation" / "model.pt")
    more = ("augmentation", "cycada", "accut", "tsynd")
    Experiment(settings(domains, run, baselines=more, transfer_minutes=0.02), resume=True, force=True).run()
    found = read_json(run / "results.json")
    assert set(found["segmentation"]) == set(before["segmentation"]) | {
        name + real for name in ("cycada", "accut", "tsynd") for real in ("", "+real")
    }
    assert sha256(run / "segmentation" / "augmentation" / "model.pt") == weights, "not trained again"
    assert found["budget"]["accut"]["core_seconds"] == pytest.approx(1.2)
    assert set(found["recommendation"]["candidates"]) == set(found["segmentation"]) - {"upper_bound"}
    with pytest.raises(ValueError, match="started with other settings: baselines"):
        Experiment(settings(domains, run, baselines=("augmentation",), transfer_minutes=0.02), resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baselines": ("cut",)}, r"\['cut'\] are trained as long as UnIACorN, but modes is empty"),
        ({"baselines": ("pseudo_labels",)}, "'pseudo_labels' guesses by the best of several networks; add one of"),
        ({"baselines": ("self_training+chosen",)}, "'self_training.chosen' chooses an augmentation; add some of"),
        ({"baselines": ("tsynd",), "transfer_minutes": 1}, "add the baseline 'augmentation'"),
        ({"transfer_minutes": 0}, "transfer_minutes is 0; expected a number of minutes, above 0, or null"),
    ],
)
def test_settings_that_cannot_work_are_refused(domains, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(domains, tmp_path / "r", **changes).validate()
