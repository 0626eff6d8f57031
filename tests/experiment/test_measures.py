"""The whole method where labels are few and uncertainties are measured in another way: what is left out is said."""

import json
import re

import numpy as np
import pytest

from data_prep.phantom import write_phantom
from tiny_networks import TINY
from unicorn_monai.evaluation import Counts
from unicorn_monai.experiment.experiment import Experiment
from unicorn_monai.experiment.run import Run
from unicorn_monai.experiment.settings import Settings
from unicorn_monai.system.files import parse_json, read_json, write_json
from unicorn_monai.system.weights import sha256


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    """Labels in all but one test images of the unlabelled domain only; an ensemble of two trainings measures (p95)."""
    root = tmp_path_factory.mktemp("few")
    for name, device, scans in (("labeled", "spectralis", 2), ("unlabeled", "home_oct", 10)):
        write_phantom(root / name, device, n_subjects=8, scans_per_subject=scans, size=32, split=(0.5, 0.25, 0.25))
    header = parse_json(root / "unlabeled" / "dataset.json")
    for split in ("training", "validation"):
        for item in header[split]:
            del item["label"]
    del header["test"][3]["label"]
    write_json(root / "unlabeled" / "dataset.json", header)
    second = str(root / "run" / "segmentation" / "lower_bound_training2" / "model.pt")
    measured = {"acquisition": "ensemble", "ensemble": [second], "aggregation": "p95", "distribution": "empirical"}
    run = Experiment(
        Settings(
            str(root / "labeled"),
            str(root / "unlabeled"),
            str(root / "run"),
            preset="quick",
            device="cpu",
            overrides=TINY | {"retinal_unet": TINY["retinal_unet"] | {"uncertainty.json": measured}},
            count=6,
            modes=("compositional",),
            pseudo_labels=False,
            trainings=2,
            features={"iterations": 5},
            jobs=1,
        ),
        force=True,
    )
    run.run()
    return run.folder


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is no JSON")


def test_results_are_json_without_nan(finished):
    results = json.loads((finished.run_dir / "results.json").read_text(), parse_constant=refuse)
    assert set(results["segmentation"]) == {"lower_bound", "unicorn", "unicorn+real"}
    for scores in results["segmentation"].values():
        assert 0 <= scores["per_image"]["mean_iou"] <= 1
        assert scores["boundary"]["ci95"][0] <= scores["boundary"]["all_mean_um"] <= scores["boundary"]["ci95"][1]
        assert 0 <= scores["broken_columns"]["share"] <= 1


def test_every_set_up_is_scored_on_both_devices(finished):
    test = len(parse_json(finished.labeled / "dataset.json")["test"])
    for name, scores in finished.results["segmentation"].items():
        here = scores["labelled_device"]
        assert (here["split"], here["n_test"]) == ("test", test)
        assert (scores["ci_unit"], here["ci_unit"]) == ("image blocks", "image blocks")  # of two subjects each
        for found in (scores, here):
            assert found["ci95"][0] <= found["mean_iou"] <= found["ci95"][1]
            assert 0 <= found["ece"] <= 1
            assert found["nll"] > 0
            assert found["boundary"]["all_mean_um"] >= 0
        for record in (finished.record(name, i, "labelled_device") for i in range(2)):
            assert len(Counts.load(record).images) == test


def test_without_labelled_validation_images_no_opponent_is_the_strongest(finished):
    why = "no opponent was scored on validation images of the unlabelled domain"
    assert read_json(finished.run_dir / "results.json")["strongest"] == {"not_computed": why}
    assert "no validation image" in finished.results["segmentation"]["lower_bound"]["validation"]["not_computed"]


def test_the_judge_s_own_score_is_that_of_the_training_that_judges(finished):
    lower = finished.results["segmentation"]["lower_bound"]
    assert lower["trainings"]["mean_iou"][0] != lower["trainings"]["mean_iou"][1]
    assert finished.results["control"]["oracle_mean_iou"] == lower["trainings"]["mean_iou"][0]


def test_an_incomplete_test_split_is_told_and_the_rest_of_it_scored(finished, caplog):
    finished.tell_label_maps()
    assert "1 of 20 test images of the unlabelled domain have no label map; scores are of the other 19" in caplog.text
    assert finished.results["label_maps"]["test"] == (19, 20)
    assert {scores["n_test"] for scores in finished.results["segmentation"].values()} == {19}
    seen = re.sub("<[^>]+>", " ", (finished.run_dir / "report.html").read_text())
    assert "Test images with a label map, of 20" in seen


def test_without_labels_to_train_on_the_upper_bound_is_left_out_and_that_is_said(finished):
    assert (finished.has_truth, finished.has_upper) == (True, False)
    assert list(finished.results["not_computed"]) == ["upper_bound"]
    assert (
        "here 0 of 40 training and 0 of 20 validation images have one"
        in finished.results["not_computed"]["upper_bound"]
    )
    assert finished.results["gap"] == {}
    assert not finished.weights("upper_bound").exists()
    assert finished.results["control"]["oracle"] == "segmentation network of 'lower_bound'"
    seen = re.sub("<[^>]+>", "", (finished.run_dir / "report.html").read_text())
    assert "closed cannot be computed: no score for Upper bound" in seen
    assert "Upper bound, not computed: the upper bound is trained on label maps" in seen


def test_an_ensemble_measures_the_real_and_the_synthetic_images(finished):
    prior = read_json(finished.prior("compositional"))
    second = finished.weights("lower_bound", 1)
    assert (prior["acquisition"], prior["aggregation"], prior["distribution"]) == ("ensemble", "p95", "empirical")
    assert prior["ensemble"] == {str(second): sha256(second)}
    assert prior["segmentation_sha256"] == sha256(finished.weights("lower_bound"))
    measured = read_json(finished.run_dir / "uncertainties.json")
    assert len(measured["unlabeled"]) == 40
    assert len(measured["unicorn"]) == 6
    table = read_json(finished.bundle_dir("retinal_unet") / "models" / "uncertainties.json")["images"]
    assert set(np.round(measured["unlabeled"], 6)) <= set(np.round(list(table.values()), 6))
