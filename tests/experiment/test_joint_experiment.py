"""An experiment in the default mode, ``joint``, at tiny size: what it measures, draws, keeps, and goes on with."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import zoo_checks
from command_line import CliRunner
from data_prep.phantom import write_phantom
from tiny_networks import TINY
from unicorn_monai.cli import app
from unicorn_monai.data.checks import check
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import read_header
from unicorn_monai.experiment import judging
from unicorn_monai.experiment.experiment import Experiment
from unicorn_monai.experiment.judging import Judging
from unicorn_monai.experiment.run import Run
from unicorn_monai.experiment.settings import ACQUISITIONS, Settings
from unicorn_monai.model import UnIACorN
from unicorn_monai.system.files import read_json
from unicorn_monai.system.weights import sha256

AUGMENTED = ("augmentation", "augmentation+geometry")


@pytest.fixture(scope="module")
def domains(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("data")
    for name, device in (("labeled", "spectralis"), ("unlabeled", "home_oct")):
        write_phantom(root / name, device, n_subjects=6, scans_per_subject=2, size=32, split=(0.5, 0.25, 0.25))
    return [str(root / name) for name in ("labeled", "unlabeled")]


def settings(domains: list[str], output: Path, **changes) -> Settings:
    values = {"preset": "quick", "device": "cpu", "overrides": TINY, "count": 8, "features": {"iterations": 5}}
    values |= {"jobs": 1, "tracking": False, "baselines": AUGMENTED}
    return Settings(*domains, str(output), **(values | changes))


@pytest.fixture(scope="module")
def finished(domains, tmp_path_factory) -> Run:
    run = Experiment(settings(domains, tmp_path_factory.mktemp("run") / "r"), force=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "FEWEST_VALIDATED", 2)  # of real looks more would be needed
        run.run()
    return run.folder


def command(run: Run, name: str) -> str:
    return next(text for key, text in run.results["commands"].items() if key.startswith(f"{name} "))


def test_the_default_mode_has_the_plain_names_and_no_frozen_model(finished):
    assert finished.settings.modes == ("joint",)
    names = ("unicorn", "unicorn+real", *(f"unicorn+real+{name}" for name in AUGMENTED))
    assert set(finished.results["segmentation"]) == {"lower_bound", "upper_bound", *AUGMENTED, *names}
    for stage in ("diffusion", "unicorn_semantic_controlnet", "uncertainty"):
        assert not (finished.run_dir / "stages" / f"{stage}.json").exists(), stage
    assert {"joint_guesses", "joint_uncertainty", "unicorn_joint"} <= set(finished.results["seconds"])


def test_the_acquisition_that_tells_the_devices_apart_best_is_taken(finished):
    found = finished.results["separation"]
    assert set(found["auc"]) == set(ACQUISITIONS)
    assert max(found["auc"].values(), key=lambda auc: max(auc, 1 - auc)) == found["auc"][found["acquisition"]]
    prior = read_json(Path(finished.prior("joint")))
    assert prior["acquisition"] == found["acquisition"]
    header = read_header(finished.run_dir / "synthetic")
    asked = [item["synthetic"]["uncertainty"] for item in header["training"]]
    lowest, *_, highest = prior["quantiles"]
    assert lowest <= min(asked) <= max(asked) <= highest, "none is asked for where no image is"


def test_the_teacher_is_the_network_that_is_chosen_without_labels(finished):
    teacher = finished.results["teacher"]["setup"]
    guessed = read_header(finished.guessed("joint"))
    told = {item["pseudo_label"]["segmentation_sha256"] for item in guessed["training"]}
    assert told == {sha256(finished.weights(teacher))}
    assert {item["pseudo_label"]["threshold"] for item in guessed["training"]} == {0.0}
    assert str(finished.guessed("joint")) in command(finished, "joint/train.json")


def test_the_synthetic_data_set_tells_what_drew_it(finished):
    assert check(finished.run_dir / "synthetic", need_labels=True) == []
    items = datalist(finished.run_dir / "synthetic", "training", ("image", "label"))
    assert len(items) == 8
    told = items[0]["synthetic"]
    assert told["guidance"] == [2.0, 1.5]
    assert set(told["models"]) == {"autoencoder", "joint", "segmentation"}
    assert told["models"]["joint"] == sha256(finished.bundle_dir("joint") / "models" / "model.pt")


def test_look_fidelity_and_control_are_measured(finished):
    looks = finished.results["looks"]
    assert set(looks["sets"]) == {"labeled", "unlabeled", "unicorn"}
    assert looks["sets"]["labeled"]["in_look"] < looks["sets"]["unlabeled"]["in_look"]
    assert 0 <= looks["accuracy"] <= 1
    assert looks["sets"]["unicorn"]["mesh"] is None, "so few images say nothing"
    assert 0 <= looks["real"] <= 1
    assert finished.results["drawn"]["unicorn"]["sampler"]["name"] == "UniPC"
    assert -1 <= finished.results["control"]["spearman"] <= 1
    html = (finished.run_dir / "report.html").read_text()
    assert finished.results["separation"]["acquisition"] in html


def test_the_audit_compares_with_the_image_whose_labels_were_guessed(finished):
    names = Judging(finished, None).guessed_labels()  # type: ignore[arg-type]
    made = {item["synthetic"]["source_data"] for item in datalist(finished.run_dir / "synthetic", "training")}
    assert made == {Path(finished.labeled).name, "guessed_joint"}
    assert set(names) == {Path(item["image"]).name for item in datalist(finished.unlabeled, "training")}
    assert {name.split("/")[0] for name in names.values()} == {"guessed_joint"}


def test_the_first_images_are_looked_at_before_a_weight_is_chosen(finished):
    """And, where validation images are too few to tell looks apart, nothing is said and the run goes on."""
    run = copy.copy(finished)
    run.settings, run.results = (
        replace(finished.settings, uncertainty_weight="auto"),
        finished.results | {"weights": {}},
    )
    found = Judging(run, None).drawn("joint")  # type: ignore[arg-type]
    assert "10 of each device" in found["not_computed"]
    run.results["drawn"] = {"unicorn": found}
    Judging(run, None).refuse_other_look("joint")  # type: ignore[arg-type]


def test_a_printed_command_trains_again_to_the_same_weights(finished, tmp_path):
    words = command(finished, "joint/train.json").replace("python", sys.executable, 1)
    subprocess.run(words, shell=True, cwd=tmp_path, check=True, capture_output=True)
    again = finished.run_dir / "repeated" / "unicorn_joint" / "model.pt"
    assert sha256(again) == sha256(finished.bundle_dir("joint") / "models" / "model.pt")


def test_more_images_from_the_command_line_and_from_python(finished, tmp_path):
    words = ["synthesize", "--run", str(finished.run_dir), "--count", "2", "--output", str(tmp_path / "more")]
    done = CliRunner().invoke(app, [*words, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert len(datalist(tmp_path / "more", "training", ("image", "label"))) == 2
    rows = torch.arange(32).reshape(-1, 1).expand(1, 32, 32) // 4
    images = UnIACorN.from_run(finished.run_dir, "cpu")(rows)
    assert images.shape == (1, 1, 32, 32)
    assert 0 <= images.min() < images.max() <= 1


def test_the_bundle_of_a_finished_run_passes_the_checks_of_monais_model_zoo(finished, tmp_path):
    root = finished.bundle_dir("joint")
    zoo_checks.check_directory(root)
    zoo_checks.check_version(root)
    zoo_checks.check_metadata(root, tmp_path)


def test_the_papers_mode_is_added_to_a_finished_run(finished, domains):
    before = {path: path.stat().st_mtime_ns for path in finished.run_dir.rglob("model.pt")}
    Experiment(settings(domains, finished.run_dir, modes=("joint", "paper")), resume=True, force=True).run()
    results = json.loads((finished.run_dir / "results.json").read_text())
    assert {"unicorn_paper", "unicorn_paper+real"} <= set(results["segmentation"])
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing was trained again"
    prior = read_json(Path(finished.prior("joint")))
    paper = read_json(finished.bundle_dir("retinal_unet") / "models" / "prior_paper.json")
    assert paper["scaling"] == "paper"
    assert prior["scaling"] == "zscore", "each mode has its own"


def test_settings_that_no_stage_has_heeded_yet_are_free(domains, tmp_path):
    plain = settings(domains, tmp_path / "r", modes=(), baselines=())
    Experiment(plain).claim()
    Experiment(settings(domains, tmp_path / "r", guidance=(4.0, 1.0)), resume=True)
    with pytest.raises(ValueError, match="started with other settings: seed"):
        Experiment(settings(domains, tmp_path / "r", guidance=(4.0, 1.0), seed=1), resume=True)
    Experiment(settings(domains, tmp_path / "r"), resume=True).claim()
    with pytest.raises(ValueError, match="started with other settings: guidance"):
        Experiment(settings(domains, tmp_path / "r", guidance=(4.0, 1.0)), resume=True)
