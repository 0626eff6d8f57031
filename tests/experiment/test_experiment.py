"""The whole method at tiny size through the experiment and the command line."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from monai.bundle.scripts import _get_fake_spatial_shape

import zoo_checks
from command_line import CliRunner
from data_prep.phantom import write_phantom
from tests.system.test_files import _HOST, ENVIRONMENT, HOLD, ended
from tiny_networks import TINY
from unicorn_monai.bundle.references import from_bundle
from unicorn_monai.bundle.settings import check_overrides
from unicorn_monai.cli import app
from unicorn_monai.data.checks import check
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import label_names, read_header
from unicorn_monai.experiment import pictures
from unicorn_monai.experiment.experiment import Experiment, parts
from unicorn_monai.experiment.judging import Judging
from unicorn_monai.experiment.run import Run
from unicorn_monai.experiment.settings import SETTINGS, Settings, settings_of
from unicorn_monai.experiment.stages import needed, ordered
from unicorn_monai.report.checks import image_checks
from unicorn_monai.report.results import Results
from unicorn_monai.system.errors import explain, root_cause
from unicorn_monai.system.files import write_json
from unicorn_monai.system.weights import sha256

NAN, INFINITE = float("nan"), float("inf")
OPPONENTS = ("augmentation", "augmentation+geometry", "self_training+geometry", "pseudo_labels", "cyclegan", "cut")
COMPARED = {"baselines": OPPONENTS, "confidence": 0.11}  # a network of one epoch is sure of nothing


@pytest.fixture(scope="module")
def domains(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    for name, device, scans in (("labeled", "spectralis", 2), ("unlabeled", "home_oct", 10)):  # 40 held out to audit
        write_phantom(root / name, device, n_subjects=8, scans_per_subject=scans, size=32, split=(0.5, 0.25, 0.25))
    return {name: root / name for name in ("labeled", "unlabeled")}


def settings(domains: dict[str, Path], output: Path, **changes) -> Settings:
    values = {"preset": "quick", "device": "cpu", "overrides": TINY, "count": 8, "features": {"iterations": 5}}
    values["modes"] = ("compositional", "paper")  # ``joint`` mode: test_joint_experiment.py
    return Settings(str(domains["labeled"]), str(domains["unlabeled"]), str(output), **(values | changes))


@pytest.fixture(scope="module")
def finished(domains, tmp_path_factory) -> Run:
    run = Experiment(settings(domains, tmp_path_factory.mktemp("run") / "r", **COMPARED), force=True)
    run.run()
    return run.folder


def judging(run: Run) -> Judging:
    return Judging(run, parts(run)[0])


def marker(run: Run, stage: str) -> Path:
    return run.run_dir / "stages" / f"{stage}.json"


@pytest.mark.parametrize(("jobs", "beside"), [(1, False), (2, False), (3, True)])
def test_where_there_is_room_the_diffusion_model_waits_for_the_autoencoder_only(
    domains, tmp_path, monkeypatch, jobs, beside
):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    run = Experiment(settings(domains, tmp_path / "r", jobs=jobs))
    (diffusion,) = (stage for stage in run.stages if stage.name == "diffusion")
    assert [stage.name for stage in needed(run.stages, ["diffusion"])] == [
        "autoencoder", "reconstructions", "usable images", "diffusion"
    ]  # fmt: skip
    assert diffusion.alone is not beside


def test_the_stages_of_a_run_are_declared_in_the_order_that_one_process_takes(domains, tmp_path):
    values = COMPARED | {"rounds": 2, "trainings": 2}
    stages = Experiment(settings(domains, tmp_path / "r", **values)).stages
    assert ordered(stages) == stages
    names = [stage.name for stage in stages]
    assert names.index("uncertainty") < names.index("diffusion") < names.index("unicorn_uncertainty_controlnet")
    assert names.index("cut_training") < names.index("unicorn_round2_uncertainty") < names.index("distances")
    every = {stage.name: stage for stage in stages}
    assert {"lower_bound", "lower_bound_training2", "labeled_augmented", "guessed"} <= set(every["uncertainty"].needs)
    assert every["unicorn_evaluation"].needs == ("unicorn", "unicorn_training2")
    assert set(every["distances"].needs) >= {"synthetic", "synthetic_paper", "synthetic_cut", "synthetic_round2"}


def test_pictures_have_as_many_columns_as_there_are_validation_images(finished, monkeypatch):
    images, drawn = pictures.examples, list[pictures.Sheet]()
    monkeypatch.setattr(
        pictures, "examples", lambda folder, *more: images(folder, *more)[: 2 if folder == finished.unlabeled else 8]
    )
    monkeypatch.setattr(pictures, "write_all", lambda folder, sheets: drawn.extend(sheets))
    judging(finished).pictures()
    sheets = {sheet.name: sheet.images for sheet in drawn}
    assert sheets["side_by_side_compositional"].shape[:2] == (5, 2)
    assert sheets["rising_uncertainty_compositional"].shape[:2] == (2, 8)


def test_after_ctrl_c_the_command_tells_how_to_go_on(domains, tmp_path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Experiment, "run", interrupted)
    words = [f"--{name}={folder}" for name, folder in domains.items()]
    done = CliRunner().invoke(app, ["experiment", *words, "--preset=quick", f"--output={tmp_path / 'r'}"])
    assert done.exit_code == 130
    assert "interrupted; go on with --resume" in done.stderr


def test_images_that_are_not_kept_are_warned_of(finished, caplog):
    outside = [
        (expected, found) for expected, found, good in image_checks(Results.of(finished.results)) if good is False
    ]
    assert outside  # networks of seconds keep neither speckle nor spread
    judging(finished).warn_of_images()
    for expected, found in outside:
        assert f"{expected}; found {found}. What follows rests on it" in caplog.text


def test_self_training_sees_the_unlabelled_images_and_augments_as_its_name_says(finished):
    (command,) = json.loads(marker(finished, "self_training+geometry").read_text())["commands"].values()
    assert f"--unlabeled_dir {finished.unlabeled} " in command
    assert "--augmentation strong+geometry " in command
    assert "--threshold 0.11 " in command


def test_results_hold_every_key_of_the_contract(finished):
    results = json.loads((finished.run_dir / "results.json").read_text())
    assert set(results["segmentation"]) == {
        "lower_bound", "upper_bound", "unicorn", "unicorn+real", "unicorn_paper", "unicorn_paper+real",
        "augmentation", "augmentation+geometry", "unicorn+real+augmentation", "unicorn+real+augmentation+geometry",
        "self_training+geometry", "pseudo_labels", "cyclegan", "cyclegan+real", "cut", "cut+real",
    }  # fmt: skip
    for scores in results["segmentation"].values():
        assert len(scores["iou"]) == 10
        assert 0 <= scores["ci95"][0] <= scores["mean_iou"] + 1e-9 <= scores["ci95"][1] + 0.2
    assert set(results["uncertainty"]) == {"labeled", "unlabeled", "unicorn", "unicorn_paper", "cyclegan", "cut"}
    for key in ("control", "control_paper"):
        assert -1 <= results[key]["spearman"] <= 1
        assert 0 <= results[key]["label_fidelity_mean_iou"] <= 1
    assert set(results["gap"]) == set(results["segmentation"]) - {"lower_bound", "upper_bound"}
    opponents = {k: v["validation"]["mean_iou"] for k, v in results["segmentation"].items() if "unicorn" not in k}
    del opponents["upper_bound"]
    strongest = results["strongest"]["setup"]
    assert opponents[strongest] == results["strongest"]["validation_mean_iou"] == max(opponents.values())
    references = {"lower_bound", "cut+real", "augmentation", "augmentation+geometry"}
    assert set(results["differences"]) == references | {strongest}
    for reference, differences in results["differences"].items():
        assert set(differences) == set(results["segmentation"]) - {reference}
        for setup, difference in differences.items():
            scores = results["segmentation"]
            assert difference["difference"] == pytest.approx(
                scores[setup]["mean_iou"] - scores[reference]["mean_iou"], abs=1e-6
            )
    sets = {"labeled", "unlabeled", "unicorn", "unicorn_paper", "cyclegan", "cut"}
    for domain in ("labeled", "unlabeled"):
        assert {k for k, v in results["fid"][domain].items() if v is None or v >= 0} == sets
    assert "MONAI U-Net" in results["fid"]["features"]
    audit = results["memorization"]
    assert audit["sets"]["synthetic"]["residual"]["99"]["n"] == 8
    assert audit["planted"]["exact"]["residual"]["99"]["share"] == 1
    assert {name: len(value["table"]) for name, value in results["weights"].items()} == {
        "unicorn": 5,
        "unicorn_paper": 5,
    }
    for name in ("cyclegan", "cut"):
        budget = results["budget"][name]
        spent = [json.loads(marker(finished, stage).read_text()) for stage in budget["stages"]]
        assert budget["core_seconds"] == pytest.approx(sum(one["seconds"] * one["threads"] for one in spent), abs=0.5)
        assert f"--max_seconds {round(budget['core_seconds'] / budget['threads'], 1)}" in " ".join(
            json.loads(marker(finished, f"{name}_training").read_text())["commands"].values()
        )
    assert results["simulated"] == "devices and anatomy"
    assert results["diffusion"]["latent_std"] > 0
    assert results["seconds"]["diffusion"] > 0


def test_the_synthetic_data_set_looks_like_a_real_one(finished):
    assert check(finished.run_dir / "synthetic", need_labels=True) == []
    header = read_header(finished.run_dir / "synthetic")
    assert header["labels"] == read_header(finished.labeled)["labels"]
    items = datalist(finished.run_dir / "synthetic", "training", ("image", "label"))
    assert len(items) == 8
    provenance = items[0]["synthetic"]
    assert 0 <= provenance["uncertainty"] <= 1
    assert set(provenance["models"]) == {"autoencoder", "diffusion", "semantic", "uncertainty", "segmentation"}
    assert all(len(digest) == 64 for digest in provenance["models"].values())


def test_the_semantic_controlnet_sees_the_unlabelled_images_with_guessed_labels(finished):
    guessed = read_header(finished.run_dir / "guessed")
    assert len(guessed["training"]) == len(datalist(finished.unlabeled, "training"))
    teacher = {item["pseudo_label"]["segmentation_sha256"] for item in guessed["training"]}
    assert teacher == {sha256(finished.weights("augmentation"))}
    commands = {
        key: text for key, text in finished.results["commands"].items() if key.startswith("semantic_controlnet")
    }
    for text in commands.values():
        assert (str(finished.run_dir / "guessed") in text) == ("--mode compositional" in text)
    assert len(commands) == 2


@pytest.mark.parametrize("change", [{"pseudo_labels": False}, {"modes": ("paper",)}])
def test_no_labels_are_guessed_and_no_network_trained_for_it_where_nobody_is_taught(domains, tmp_path, change):
    asked = settings(domains, tmp_path, **change)
    assert (asked.teaches, asked.with_augmentation) == (False, False)
    asked.baselines = ("augmentation",)
    assert (asked.teaches, asked.with_augmentation) == (False, True)


@pytest.mark.parametrize("scaling", ["paper", "zscore", "quantile"])
def test_the_scaling_of_the_hint_does_not_depend_on_the_mode(domains, tmp_path, scaling):
    run = Run(settings(domains, tmp_path, scaling=scaling))
    assert Path(run.prior("compositional")).name == f"prior_{scaling}.json"
    assert Path(run.prior("paper")).name == "prior_paper.json"
    run = Run(settings(domains, tmp_path, paper_scaling=scaling))
    assert Path(run.prior("compositional")).name == "prior_zscore.json"
    assert Path(run.prior("paper")).name == f"prior_{scaling}.json"


def test_the_report_is_one_file_with_the_pictures(finished):
    html = (finished.run_dir / "report.html").read_text()
    assert html.count("data:image/png;base64") >= 5
    captions = json.loads((finished.run_dir / "pictures" / "captions.json").read_text())
    caption = next(c["caption"] for c in captions if c["file"] == "by_uncertainty.png")
    for told in re.findall(r"(?:synthetic|real) ([\d., ]+\d)", caption.split("Measured uncertainty: ")[1]):
        values = [float(value) for value in told.split(", ")]
        assert len(values) == 8
        assert values == sorted(values)
    assert "simulated" in html.lower()


def test_a_data_set_without_the_flagged_images(finished, tmp_path):
    done = cli("clean", finished.run_dir, "--output", tmp_path / "clean")
    flagged = finished.results["memorization"]["flagged"]
    kept = 8 - len(flagged)
    if kept:
        assert done.returncode == 0, done.stderr
        assert len(datalist(tmp_path / "clean", "training")) == kept
    else:
        assert "nothing would be left" in done.stderr


def test_rounds_trainings_and_the_chosen_weight(domains, tmp_path):
    values = {"modes": ("compositional",), "baselines": ("augmentation",), "uncertainty_weight": "auto"}
    values |= {"rounds": 2, "trainings": 2, "count": None, "samples_per_label": 2, "scaling": "quantile", "jobs": 1}
    whole = Experiment(settings(domains, tmp_path / "r", **values), force=True)
    whole.run()
    run = whole.folder
    more = values | {"baselines": ("self_training", "augmentation"), "confidence": 0.11}
    with pytest.raises(ValueError, match="started with other settings: confidence"):
        Experiment(settings(domains, tmp_path / "r", **more), resume=True)
    assert marker(run, "distances").is_file()
    for baselines, kept in (
        (("self_training", "augmentation"), True),
        (("self_training", "augmentation", "cut"), False),
    ):
        Experiment(settings(domains, tmp_path / "r", **(values | {"baselines": baselines})), resume=True).claim()
        assert marker(run, "distances").exists() is kept  # computed again with the images of a new baseline
        assert marker(run, "memorization").exists()
    results = run.results
    assert len(datalist(run.run_dir / "synthetic", "training")) == 2 * len(datalist(run.labeled, "training"))
    assert {"unicorn_round2", "unicorn_round2+real"} <= set(results["segmentation"])
    for setup, scores in results["segmentation"].items():
        assert scores["mean_iou"] == pytest.approx(sum(scores["trainings"]["mean_iou"]) / 2), setup
        assert scores["trainings"]["mean_iou"][0] != scores["trainings"]["mean_iou"][1]
    chosen = read_header(run.run_dir / "synthetic")["training"][0]["synthetic"]
    assert chosen["weight"] == results["weights"]["unicorn"]["weight"]
    guessed = read_header(run.run_dir / "guessed_round2")
    assert guessed["pseudo_labels"] is True
    assert all(item["pseudo_label"]["confident"] == 1 for item in guessed["training"])
    second = read_header(run.run_dir / "synthetic_round2")["training"][0]["synthetic"]["models"]
    assert second["segmentation"] == sha256(run.weights("unicorn+real"))
    assert second["uncertainty"] != chosen["models"]["uncertainty"]
    assert second["diffusion"] == chosen["models"]["diffusion"]
    prior = json.loads((run.run_dir / "bundles_round2/retinal_unet/models/prior_quantile.json").read_text())
    assert prior["segmentation_sha256"] == second["segmentation"]
    copied = run.run_dir / "bundles_round2" / "retinal_unet" / "models" / "model.safetensors"
    assert sha256(copied) == sha256(run.weights("unicorn+real").with_suffix(".safetensors"))


def mlflow_runs(folder: Path) -> tuple[list, dict]:
    """The parent runs, and the children by name."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs(client.get_experiment_by_name("unicorn_monai").experiment_id)
    children = {r.data.tags["mlflow.runName"]: r for r in runs if "mlflow.parentRunId" in r.data.tags}
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert len(runs) == len(children) + len(parents)
    return parents, children


def test_mlflow_holds_a_parent_run_and_a_child_per_stage(finished):
    parents, children = mlflow_runs(finished.run_dir)
    assert len(parents) == 1
    assert set(children) == {path.stem for path in (finished.run_dir / "stages").glob("*.json")}
    assert {run.info.status for run in [*parents, *children.values()]} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parents[0].info.run_id}
    scores = finished.results["segmentation"]["unicorn+real"]
    assert parents[0].data.metrics["unicorn_real.mean_iou"] == pytest.approx(scores["mean_iou"])
    assert children["unicorn+real_evaluation"].data.metrics["mean_iou"] == pytest.approx(scores["mean_iou"])


@pytest.mark.parametrize(
    ("stage", "metric"),
    [
        ("lower_bound", "validation.mean_iou"),
        ("autoencoder", "validation.reconstruction"),
        ("diffusion", "validation.val_loss"),
        ("unicorn_semantic_controlnet", "validation.val_loss"),
        ("unicorn_control", "spearman"),
        ("memorization", "sets.synthetic.residual.99.share"),
        ("distances", "unlabeled.unicorn"),
        ("uncertainty", "seconds"),
    ],
)
def test_mlflow_holds_validation_metrics_and_the_numbers_of_every_stage(finished, stage, metric):
    assert metric in mlflow_runs(finished.run_dir)[1][stage].data.metrics


def test_mlflow_holds_settings_and_sheets_of_samples(finished):
    client, children = MlflowClient(f"sqlite:///{finished.run_dir / 'mlflow.db'}"), mlflow_runs(finished.run_dir)[1]
    assert children["diffusion"].data.params["seed"] == "0"
    assert {"scaling", "2.scaling"} <= set(children["uncertainty"].data.params)
    for stage in ("autoencoder", "diffusion", "unicorn_uncertainty_controlnet"):
        sheets = client.list_artifacts(children[stage].info.run_id, "samples")
        assert [sheet.path for sheet in sheets] == ["samples/epoch_0001.png"], stage


def repeat(run: Run, name: str, cwd: Path) -> Path:
    """Run a command as it was printed; the folder it writes into."""
    command = next(text for key, text in run.results["commands"].items() if key.startswith(f"{name} "))
    words = command.replace("python", sys.executable, 1)
    subprocess.run(words, shell=True, cwd=cwd, check=True, capture_output=True)
    return run.run_dir / "repeated" / name.split()[1]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("retinal_unet/train.json lower_bound", "bundles/retinal_unet/models/model.pt"),
        ("semantic_controlnet/train.json unicorn_semantic_controlnet", "bundles/semantic_controlnet/models/model.pt"),
    ],
)
def test_a_printed_command_trains_again_to_the_same_weights_and_leaves_the_run_as_it_is(finished, tmp_path, name, file):
    before = {path: path.stat().st_mtime_ns for path in finished.run_dir.rglob("model.*")}
    again = repeat(finished, name, tmp_path) / "model.pt"
    assert sha256(again) == sha256(finished.run_dir / file)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_printed_command_measures_guesses_synthesises_and_evaluates_again(finished, tmp_path):
    models = finished.run_dir / "bundles/retinal_unet/models"
    folder = repeat(finished, "retinal_unet/uncertainty.json uncertainty", tmp_path)
    for name in ("uncertainties.json", "prior_zscore.json"):
        assert json.loads((folder / name).read_text()) == json.loads((models / name).read_text())
    folder = repeat(finished, "retinal_unet/evaluate.json unicorn_evaluation", tmp_path)
    scores = finished.results["segmentation"]["unicorn"]
    assert json.loads((folder / "metrics.json").read_text())["mean_iou"] == pytest.approx(scores["mean_iou"])
    folder = repeat(finished, "synthesis/inference.json unicorn_synthesis", tmp_path)
    images = [path.relative_to(folder) for path in folder.rglob("*.nii.gz")]
    assert len(images) == len(list((finished.run_dir / "synthetic").rglob("*.nii.gz"))) > 0
    assert all((folder / p).read_bytes() == (finished.run_dir / "synthetic" / p).read_bytes() for p in images)


def test_stages_without_a_command_are_named(finished):
    results = json.loads((finished.run_dir / "results.json").read_text())
    named = {key.split()[1] for key in results["commands"]}
    assert set(results["without_command"]) | named == set(results["seconds"])
    assert not set(results["without_command"]) & named
    assert {"styles", "unicorn_control", "memorization", "pictures"} <= set(results["without_command"])


def test_resuming_a_finished_run_trains_nothing_and_keeps_the_record_of_its_start(finished, domains):
    record = finished.run_dir / "experiment.json"
    start = json.loads(record.read_text())
    again = Experiment(settings(domains, finished.run_dir, **COMPARED), resume=True)
    before = {p: p.stat().st_mtime_ns for p in finished.run_dir.rglob("model.pt")}
    again.run()
    assert {p: p.stat().st_mtime_ns for p in finished.run_dir.rglob("model.pt")} == before
    assert again.results["segmentation"] == finished.results["segmentation"]
    assert again.results["gap"] == finished.results["gap"]
    now = json.loads(record.read_text())
    assert len(now.pop("resumed")) == len(start.pop("resumed", [])) + 1
    assert now == start
    parents, children = mlflow_runs(finished.run_dir)
    assert [run.info.status for run in parents] == ["FINISHED"]
    assert set(children) == set(again.results["seconds"])


def test_a_run_is_found_from_anywhere_and_after_it_was_moved_with_its_data(tmp_path, monkeypatch):
    (tmp_path / "begun" / "demo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "begun")
    begun = Settings("../others", "demo/data/unlabeled", "demo")
    assert begun.labeled == str(tmp_path / "others")
    write_json(tmp_path / "begun" / "demo" / "experiment.json", {"settings": asdict(begun)})
    (tmp_path / "begun" / "demo").rename(tmp_path / "moved")
    monkeypatch.chdir("/")
    found, _ = settings_of(tmp_path / "moved")
    assert found.labeled == str(tmp_path / "others")
    assert found.unlabeled == str(tmp_path / "moved" / "data" / "unlabeled")
    assert found.output == str(tmp_path / "moved")


def test_what_a_run_has_measured_names_its_files_after_it_was_moved(domains, tmp_path):
    before, now = tmp_path / "begun" / "run", tmp_path / "more" / "begun" / "run"
    for name, folder in domains.items():
        shutil.copytree(folder, before / "data" / name)
    begun = {name: before / "data" / name for name in domains}
    run = Run(settings(begun, before))
    run.claim()
    image, other = str(before / "data" / "unlabeled" / "images" / "0.nii.gz"), f"/of{before}/0.nii.gz"
    measured = run.bundle_dir("retinal_unet") / "models" / "uncertainties.json"
    for path in (run.record("unicorn"), measured, marker(run, "unicorn")):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"images": [image, other], "commands": f"run --dataset_dir {image} '{image}'"})
    finished_at = marker(run, "unicorn").stat().st_mtime_ns
    now.parent.mkdir(parents=True)
    before.rename(now)
    found, _ = settings_of(now)
    for _ in range(2):  # the second resumption has nothing to do
        again = Run(found)
        assert again.goes_on(resume=True)
        again.claim()
        assert marker(again, "unicorn").stat().st_mtime_ns == finished_at
        measured, moved = (
            again.bundle_dir("retinal_unet") / "models" / "uncertainties.json",
            image.replace("/begun/", "/more/begun/"),
        )
        for path in (again.record("unicorn"), measured, marker(again, "unicorn")):
            assert json.loads(path.read_text()) == {
                "images": [moved, other],
                "commands": f"run --dataset_dir {moved} '{moved}'",
            }


def test_data_sets_and_weights_are_told_by_their_sha256(finished):
    results = json.loads((finished.run_dir / "results.json").read_text())
    assert results["sha256"]["labeled/dataset.json"] == sha256(finished.labeled / "dataset.json")
    names = {
        "bundles/latent_diffusion/models/autoencoder.pt",
        "segmentation/unicorn+real/model.pt",
        "features/model.pt",
    }
    names |= {"bundles/style_transfer/models/cut/model.pt", "bundles_paper/semantic_controlnet/models/model.pt"}
    assert names <= set(results["sha256"])
    for name in names:
        assert results["sha256"][name] == sha256(finished.run_dir / name)
    assert not [name for name in results["sha256"] if "latents" in name]


def test_a_labelled_data_set_needs_no_test_images(finished, tmp_path, monkeypatch):
    labeled = tmp_path / "labeled"
    shutil.copytree(finished.labeled, labeled)
    header = json.loads((labeled / "dataset.json").read_text())
    left_out = len(header.pop("test"))
    (labeled / "dataset.json").write_text(json.dumps(header))
    monkeypatch.setattr(finished, "labeled", labeled)
    monkeypatch.setitem(finished.domains, "labeled", labeled)
    assert judging(finished).copies()["n_held_out"] == finished.results["memorization"]["n_held_out"] - left_out


def test_more_images_from_a_finished_run(finished, tmp_path):
    done = cli("synthesize", "--run", finished.run_dir, "--count", 4, "--output", tmp_path / "more", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert len(datalist(tmp_path / "more", "training", ("image", "label"))) == 4


def test_more_images_by_a_process_that_is_told_to_be_one_of_several(finished, tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["synthesize", "--run", str(finished.run_dir), "--device", "cpu"]
    monkeypatch.setenv("RANK", "1")
    done = CliRunner().invoke(app, [*words, "--count", "4", "--output", str(tmp_path / "none")])
    assert done.exit_code == 1
    assert "there is nothing for it to make" in str(root_cause(done.exception))  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()
    monkeypatch.setenv("RANK", "0")
    done = CliRunner().invoke(app, [*words, "--count", "18", "--output", str(tmp_path / "half")])
    assert done.exit_code == 0, done.output
    assert "the share of process 1 of 2" in done.stderr
    assert "The data set is not complete" in done.stderr
    assert "dataset.json\n" not in done.stderr
    monkeypatch.setenv("RANK", "1")
    done = CliRunner().invoke(app, [*words, "--count", "18", "--output", str(tmp_path / "half")])
    assert done.exit_code == 0, done.output
    assert len(datalist(tmp_path / "half", "training")) == 18


def test_more_images_of_a_run_that_was_moved(finished, tmp_path):
    for name in ("bundles", "experiment.json", "results.json"):
        copy = shutil.copytree if (finished.run_dir / name).is_dir() else shutil.copy2
        copy(finished.run_dir / name, tmp_path / name)
    for path in (tmp_path / "bundles").glob("*/configs/*.json"):
        path.write_text(path.read_text().replace(str(finished.run_dir), "/nowhere"))
    words = ["synthesize", "--run", str(tmp_path), "--count", "2", "--output", str(tmp_path / "more")]
    done = CliRunner().invoke(app, [*words, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert len(datalist(tmp_path / "more", "training", ("image", "label"))) == 2


def test_more_images_at_a_url(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("UNICORN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    words = ["synthesize", "--run", str(finished.run_dir), "--count", "4", "--output", "memory://more/set"]
    done = CliRunner().invoke(app, [*words, "--device", "cpu"])  # in this process, where the memory is
    assert done.exit_code == 0, done.output
    assert len(datalist("memory://more/set", "training", ("image", "label"))) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_the_summary_of_runs_gives_the_share_of_the_gap(finished):
    from unicorn_monai.report.tables import summarise

    segmentation = finished.results["segmentation"]
    low, high = (segmentation[name]["mean_iou"] for name in ("lower_bound", "upper_bound"))
    text = summarise([finished.run_dir])
    assert f"| lower_bound | {low:.3f} |" in text
    if high > low:
        share = 100 * (segmentation["unicorn"]["mean_iou"] - low) / (high - low)
        assert f"{share:.0f} %" in next(line for line in text.splitlines() if line.startswith("| unicorn |"))
    with pytest.raises(ValueError, match="does not exist"):
        summarise(["/nowhere"])


def test_a_summary_of_a_run_and_its_copy_is_refused_also_if_the_copy_went_on(finished, tmp_path):
    from unicorn_monai.report.tables import summarise

    results = json.loads((finished.run_dir / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(results | {"wall_seconds": 1.0}))
    with pytest.raises(ValueError, match=r"are one run \(the same networks, by sha256\)"):
        summarise([finished.run_dir, tmp_path])


def test_a_summary_tells_what_only_some_runs_have(finished, tmp_path):
    from unicorn_monai.report.tables import summarise

    results = json.loads((finished.run_dir / "results.json").read_text())
    for part in ("segmentation", "uncertainty"):
        results[part]["another"] = results[part]["unicorn" if part == "uncertainty" else "lower_bound"]
    (tmp_path / "results.json").write_text(json.dumps(results | {"sha256": {}}))  # of other networks
    for order in ([finished.run_dir, tmp_path], [tmp_path, finished.run_dir]):
        text = summarise(order)
        assert "\n| another (1 of 2 runs) |" in text
        assert "| mean uncertainty, another (1 of 2 runs) |" in text
        assert "| lower_bound |" in text


def test_a_summary_has_a_column_for_every_set_up_whose_control_was_measured(finished, tmp_path):
    from unicorn_monai.report.tables import summarise

    assert "\n| measured | unicorn | unicorn_paper |\n" in summarise([finished.run_dir])
    results = json.loads((finished.run_dir / "results.json").read_text())
    results["control_round2"] = results.pop("control_paper")
    results["control"]["spearman"], results["control_round2"]["spearman"] = 0.25, 0.75
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = summarise([tmp_path])
    assert "\n| measured | unicorn | unicorn_round2 |\n|---|---|---|\n" in text
    assert "| Spearman of requested and measured uncertainty | 0.250 | 0.750 |" in text


def test_a_folder_on_the_command_line_wins_over_that_of_the_settings(domains, tmp_path):
    for name in ("given", "configured"):  # both hold a run, so that nothing begins
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "experiment.json", {"settings": {}})
    config = {"output": str(tmp_path / "configured"), "preset": "quick", "device": "cpu", "overrides": TINY}
    config |= {name: str(folder) for name, folder in domains.items()}
    write_json(tmp_path / "settings.json", config)
    words = ["experiment", "--config", str(tmp_path / "settings.json")]
    for name, more in (("given", ["--output", str(tmp_path / "given")]), ("configured", [])):
        done = CliRunner().invoke(app, [*words, *more])
        assert f"'{tmp_path / name}' already holds a run" in str(done.exception)


def cli(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", "-m", "unicorn_monai.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "huge"}, "preset is 'huge'; expected"),
        ({"preset": ["quick"]}, r"preset is \['quick'\]; expected"),
        ({"modes": ("paper", "additive")}, r"modes is \('paper', 'additive'\); expected a list of some of"),
        ({"modes": "paper"}, "modes is 'paper'; expected a list of some of"),
        ({"modes": ("paper", "paper")}, "each at most once"),
        ({"modes": 3}, "modes is 3; expected a list of some of"),
        ({"baselines": ("gan",)}, r"baselines is \('gan',\); expected a list of some of \['augmentation', "),
        ({"baselines": "cut"}, "baselines is 'cut'; expected a list of some of"),
        ({"baselines": [["cut"]]}, r"baselines is \[\['cut'\]\]; expected a list of some of"),
        ({"paper_weight": 1.5}, "paper_weight is 1.5; expected a number, 0 to 1, or 'auto'"),
        ({"paper_weight": NAN}, "paper_weight is nan; expected a number, 0 to 1, or 'auto'"),
        ({"uncertainty_weight": "most"}, "uncertainty_weight is 'most'; expected a number, 0 or more, or 'auto'"),
        ({"uncertainty_weight": -1.0}, "uncertainty_weight is -1.0; expected a number, 0 or more"),
        ({"uncertainty_weight": NAN}, "uncertainty_weight is nan; expected"),
        ({"uncertainty_weight": INFINITE}, "uncertainty_weight is inf; expected"),
        ({"uncertainty_weight": True}, "uncertainty_weight is True; expected"),
        ({"uncertainty_weight": None}, "uncertainty_weight is None; expected"),
        ({"count": 0}, "count is 0; expected at least one, a whole number, or null"),
        ({"count": -5}, "count is -5; expected"),
        ({"count": "many"}, "count is 'many'; expected"),
        ({"seed": "x"}, "seed is 'x'; expected a whole number, 0 to 4294967295"),
        ({"seed": -1}, "seed is -1; expected"),
        ({"seed": None}, "seed is None; expected"),
        ({"rounds": 1.5}, "rounds is 1.5; expected at least one, a whole number"),
        ({"augment": "no"}, "augment is 'no'; expected true or false"),
        ({"tracking": 1}, "tracking is 1; expected true or false"),
        ({"pseudo_labels": None}, "pseudo_labels is None; expected true or false"),
        ({"style_augmentation": "yes"}, "style_augmentation is 'yes'; expected true or false"),
        ({"confidence": 5}, "confidence is 5; expected a number, 0 to 1"),
        ({"confidence": "high"}, "confidence is 'high'; expected a number, 0 to 1"),
        ({"device": "gpu"}, "device is 'gpu'; expected cpu, cuda or cuda:0"),
        ({"device": "cuda:99"}, "device is 'cuda:99', but PyTorch sees"),
        ({"device": 0}, "device is 0; expected cpu, cuda:0"),
        ({"jobs": "x"}, "jobs is 'x'; expected at least one, a whole number, or null"),
        ({"jobs": 0}, "jobs is 0; expected"),
        ({"features": 5}, "features is 5; expected an object of settings, or null"),
        ({"guidance": 3}, "guidance is 3; expected"),
        ({"guidance": ("a", "b")}, r"guidance is \('a', 'b'\); expected"),
        ({"unlabeled": ""}, "unlabeled is ''; expected the path of a folder"),
        ({"overrides": [1]}, r"overrides is \[1\]; expected an object"),
        ({"overrides": {"retinal_unnet": {}}}, "overrides names the bundle 'retinal_unnet'; expected some of"),
        ({"overrides": {"rgb_2d": {}}}, "overrides names the bundle 'rgb_2d'; expected some of"),
        ({"overrides": {"retinal_unet": 3}}, "overrides of 'retinal_unet' is 3; expected"),
        ({"overrides": {"retinal_unet": {"trian.json": {}}}}, "names the configuration 'trian.json'; expected one of"),
        ({"overrides": {"retinal_unet": {"../x.json": {}}}}, "names the configuration '../x.json'; expected one of"),
        ({"overrides": {"retinal_unet": {"train.json": [3]}}}, r"overrides of 'retinal_unet/train.json' is \[3\];"),
        (
            {"overrides": {"semantic_controlnet": {"train.json": {"max_epoch": 3}}}},
            "'semantic_controlnet/configs/train.json' has no entry 'max_epoch' to set. Check the spelling",
        ),
        (
            {"overrides": {"semantic_controlnet": {"train.json": {"max_epochs": "ten"}}}},
            r"max_epochs \(overrides of semantic_controlnet/train.json\) is 'ten'; expected at least one",
        ),
        (
            {"overrides": {"latent_diffusion": {"train_diffusion.json": {"precision": "half"}}}},
            r"Unknown precision 'half' \(overrides of latent_diffusion/train_diffusion.json\); expected one of",
        ),
        ({"uncertainty_weight": "auto", "pseudo_labels": False}, "needs the baseline 'augmentation'"),
        ({"modes": ("paper",), "rounds": 2}, "rounds is 2; further rounds need the first mode to be 'compositional'"),
        (
            {"modes": ("paper",), "guidance": (2, 1.5)},
            r"guidance is \[2, 1.5\], but the mode 'paper', the only one, has",
        ),
        ({"modes": ("paper",), "maps": "labeled"}, "maps is 'labeled', but modes are .* expected joint among them"),
        ({"overrides": {"joint": {"train.json": {"left_out": [0.1]}}}}, r"left_out .* is \[0.1\]; expected two shares"),
        (
            {"overrides": {"joint": {"train.json": {"hint_noise": "x"}}}},
            "hint_noise .* is 'x'; expected a number, 0 or",
        ),
        ({"overrides": {"joint": {"inference.json": {"form": "heavy"}}}}, "Unknown form 'heavy' .*; expected one of"),
        ({"trainings": 0}, "trainings is 0; expected at least one"),
        ({"trainings": "three"}, "trainings is 'three'; expected at least one"),
        ({"samples_per_label": 0}, "samples_per_label is 0; expected at least one"),
        ({"scaling": "log"}, "scaling is 'log'; expected one of"),
        ({"paper_scaling": "log"}, "paper_scaling is 'log'; expected one of"),
        ({"features": {"path": "x.pt"}}, "expected path, sha256, preprocessing"),
        ({"features": {"iteration": 5}}, r"or iterations \(at least one\) for one trained here"),
        ({"features": {"iterations": 0}}, r"or iterations \(at least one\) for one trained here"),
        ({"features": {"path": 5, "sha256": "0", "preprocessing": "unit"}}, "features is {'path': 5"),
        (
            {"features": {"path": "/nowhere.pt", "sha256": "0", "preprocessing": "unit"}},
            "No feature network at '/nowhere.pt'",
        ),
        (
            {"features": {"path": "/nowhere.pt", "sha256": "0", "preprocessing": "bogus"}},
            "Unknown preprocessing 'bogus'",
        ),
        (
            {"features": {"path": __file__, "sha256": "0" * 64, "preprocessing": "unit"}},
            "expected 0000.*it was not opened",
        ),
        ({"labeled": "/nowhere"}, "'/nowhere' does not exist"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(domains, tmp_path, change, message):
    values = settings(domains, tmp_path / "r")
    for key, value in change.items():
        setattr(values, key, value)
    with pytest.raises(ValueError, match=message):
        Experiment(values)
    assert not (tmp_path / "r").exists()


def test_every_setting_has_a_rule_and_every_default_obeys_it():
    usual = Settings("a", "b", "c")
    assert set(SETTINGS) == {field.name for field in fields(Settings)}
    assert [name for name, (obeys, _) in SETTINGS.items() if not obeys(getattr(usual, name))] == []
    values = {"labeled": "a", "unlabeled": "b", "output": None}
    with pytest.raises(ValueError, match="output is None; expected the path of a folder"):
        Settings.from_dict(values).validate()


def test_overrides_may_refer_to_other_entries_and_to_bundles_that_a_run_does_not_need():
    check_overrides(TINY)
    check_overrides({"latent_diffusion": {"train_diffusion.json": {"sample_interval": "@val_interval"}}})


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match=r"Unknown setting\(s\) \['sede'\]"):
        Settings.from_dict({"labeled": "a", "unlabeled": "b", "output": "c", "sede": 1})


def test_a_run_folder_in_use_is_refused_and_other_settings_too(finished, domains):
    with pytest.raises(ValueError, match=r"already holds a run\. Use --resume"):
        Experiment(settings(domains, finished.run_dir, **COMPARED))
    with pytest.raises(ValueError, match="started with other settings: seed"):
        Experiment(settings(domains, finished.run_dir, **COMPARED, seed=5), resume=True)
    with pytest.raises(ValueError, match="started with other settings: baselines"):
        Experiment(settings(domains, finished.run_dir, **(COMPARED | {"baselines": ("cut",)})), resume=True)
    with (
        parts(finished)[0].guard(),
        pytest.raises(ValueError, match="Another process is working"),
        Experiment(settings(domains, finished.run_dir, **COMPARED), resume=True).runner.guard(),
    ):
        pass


def test_a_second_process_is_refused_before_it_changes_anything(domains, tmp_path):
    begun = Experiment(settings(domains, tmp_path / "r", baselines=("augmentation",)))
    run = begun.folder
    assert not run.run_dir.exists(), "nothing is written before the folder is locked"
    with begun.runner.guard():
        begun.claim()
    write_json(marker(run, "distances"), {})
    (run.run_dir / f".tmp-{_HOST}-{ended()}-a").write_text("")  # is swept by the process that is let in
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.run_dir / ".lock")], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.run_dir.rglob("*.*")}
        more = Experiment(settings(domains, run.run_dir, baselines=("augmentation", "self_training")), resume=True)
        with pytest.raises(ValueError, match=rf"Another process is working in '{run.run_dir}' \(process {holder.pid}"):
            more.run()
        assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.run_dir.rglob("*.*")} == before
    finally:
        holder.kill()
        holder.wait()


def test_a_run_waits_for_branches_that_a_killed_one_has_left(domains, tmp_path):
    run = Experiment(settings(domains, tmp_path / "r")).folder
    left = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.run_dir / ".lock-branch-7"), "2"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert left.stdout is not None
    assert left.stdout.readline() == "held\n"
    with parts(run)[0].guard():
        assert left.wait(60) == 0
        assert [path.name for path in run.run_dir.iterdir()] == [".lock"]


def test_the_command_line_explains_itself():
    done = cli("--help")
    assert done.returncode == 0
    for command in ("demo", "experiment", "synthesize", "clean", "report", "summary", "prepare", "check"):
        assert command in done.stdout


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["check", "/nowhere"], 1, "does not exist"),
        (["demo", "--preset", "big"], 2, 'Invalid value "big" for --preset'),
        (["demo", "--scene", "moon"], 2, 'Invalid value "moon" for --scene'),
        (["demo", "--size", "100"], 2, "--size is 100; expected 64 or 256"),
        (["experiment", "--labeled", "x"], 2, "missing --unlabeled"),
        (["experiment", "--labeled", "/nowhere", "--unlabeled", "/elsewhere"], 1, "'/nowhere' does not exist"),
        (["prepare", "polaroid"], 2, "unknown source 'polaroid'"),
        (["demo", "--sed", "1"], 2, "Unknown option: --sed"),
        (["report", "/nowhere"], 1, "/nowhere"),
        (["clean", "/nowhere", "--output", "x"], 1, "/nowhere"),
        (["experiment", "--labeled", "x", "--unlabeled", "y", "--weight", "much"], 1, "--weight is 'much'"),
    ],
)
def test_mistakes_on_the_command_line(words, status, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = cli(*words)
    assert done.returncode == status
    assert message in " ".join((done.stdout + done.stderr).replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_the_root_of_a_wrapped_error_is_shown():
    wrapped = RuntimeError("Failed to evaluate ConfigExpression")
    wrapped.__cause__ = ValueError("the label map is empty")
    assert str(root_cause(wrapped)) == "the label map is empty"


def test_a_full_disk_and_a_read_only_folder_are_explained():
    text = explain(OSError(28, "No space left on device", "runs/demo/synthetic"))
    assert text.startswith("No space left on device: 'runs/demo/synthetic'.")
    assert "--resume" in text
    assert "--debug" in explain(KeyError("x"))


@pytest.fixture(params=sorted(zoo_checks.NO_TORCHSCRIPT.keys() - {"rgb_2d", "joint"} | {"retinal_unet"}))
def finished_bundle(request, finished) -> Path:
    return finished.bundle_dir(request.param)


def test_a_bundle_of_a_finished_run_passes_the_checks_of_monais_model_zoo(finished_bundle, tmp_path):
    name = finished_bundle.name
    zoo_checks.check_directory(finished_bundle)
    zoo_checks.check_version(finished_bundle)
    zoo_checks.check_metadata(finished_bundle, tmp_path)
    if name not in zoo_checks.NO_SINGLE_TENSOR:
        zoo_checks.check_shapes(finished_bundle)
        zoo_checks.check_shapes(finished_bundle, n=3)
    if name == "latent_diffusion":
        zoo_checks.check_autoencoder(finished_bundle, tmp_path)
    if name not in zoo_checks.NO_TORCHSCRIPT:
        zoo_checks.check_torchscript(finished_bundle, tmp_path)


def test_the_metadata_of_a_finished_run_name_its_own_labels_and_channels(finished):
    labels = [f"{i} {name}" for i, name in enumerate(label_names(finished.labeled))]
    unet = zoo_checks.network_format(finished.bundle_dir("retinal_unet"))["outputs"]["pred"]
    assert list(unet["channel_def"].values()) == labels
    condition = zoo_checks.network_format(finished.bundle_dir("semantic_controlnet"))["inputs"]["controlnet_cond"]
    assert list(condition["channel_def"].values()) == labels
    latent = zoo_checks.network_format(finished.bundle_dir("latent_diffusion"))["inputs"]["image"]
    assert latent["num_channels"] == from_bundle(finished.bundle_dir("latent_diffusion")).in_channels == 8


@pytest.mark.parametrize("name", ["semantic_controlnet", "uncertainty_controlnet"])
def test_a_controlnet_of_a_finished_run_takes_and_gives_what_its_metadata_say(finished, name):
    """What MONAI's check of shapes, for one tensor in and one out, cannot ask."""
    root = finished.bundle_dir(name)
    told = zoo_checks.network_format(root)
    inputs = {key: told["inputs"][key] for key in ("image", "controlnet_cond")}
    image, condition = (
        torch.rand(1, tensor["num_channels"], *_get_fake_spatial_shape(tensor["spatial_shape"], n=2))
        for tensor in inputs.values()
    )
    residuals, middle = from_bundle(root).eval()(image, torch.zeros(1), condition)
    pred = told["outputs"]["pred"]
    assert middle.shape == (1, pred["num_channels"], *_get_fake_spatial_shape(pred["spatial_shape"], n=2))
    assert residuals[0].shape[2:] == image.shape[2:]
