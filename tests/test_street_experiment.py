"""The whole method on tiny simulated streets: colours, weathers and the comparison with the label map alone."""

import json
import re

import pytest
from conftest import TINY

from data_prep.street_phantom import BAD_WEATHER, write_streets
from unicorn_monai.datasets import check, datalist, read_header
from unicorn_monai.experiment import Experiment
from unicorn_monai.settings import Settings


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Experiment:
    root = tmp_path_factory.mktemp("streets")
    write_streets(root / "A", ["clear"], 4, 3, 32, split=(0.5, 0.25, 0.25))
    write_streets(root / "B", BAD_WEATHER, 12, 1, 32, split=(0.34, 0.33, 0.33))
    settings = Settings(
        str(root / "A"),
        str(root / "B"),
        str(root / "run"),
        preset="quick",
        device="cpu",
        overrides=TINY,
        count=6,
        modes=("paper",),
        baselines=("semantic_only",),
        jobs=1,
    )
    run = Experiment(settings)
    run.run()
    return run


def test_every_setup_is_scored_in_every_weather(finished):
    results = json.loads((finished.run_dir / "results.json").read_text())
    assert results["modality"] == "RGB"
    assert {"semantic_only", "semantic_only+real", "unicorn", "unicorn+real"} <= set(results["segmentation"])
    for scores in results["segmentation"].values():
        assert set(scores["sub_domains"]) == set(BAD_WEATHER)
        assert sum(part["n_test"] for part in scores["sub_domains"].values()) == scores["n_test"]
        assert scores["broken_columns"] is None  # streets have no layers
    assert set(results["differences"]) == {"lower_bound", "semantic_only"}


def test_the_report_has_a_row_per_weather_and_none_for_layers(finished):
    html = (finished.run_dir / "report.html").read_text()
    for weather in BAD_WEATHER:
        assert f"Mean IoU, {weather}" in html
    assert "layers only" not in html
    assert "unlabelled domain" in html
    assert not re.search(r"(unlabelled|labelled) device|same eyes", html, re.IGNORECASE)
    assert "Label map only" in html


def test_label_maps_of_streets_are_not_bent(finished):
    synthetic = finished.run_dir / "synthetic"
    assert check(synthetic, need_labels=True) == []
    assert read_header(synthetic)["colours"] == read_header(finished.labeled)["colours"]
    assert all(item["synthetic"]["augment"] is None for item in datalist(synthetic, "training"))
    alone = datalist(finished.run_dir / "synthetic_semantic_only", "training")
    assert {item["synthetic"]["weight"] for item in alone} == {0.0}


def test_the_label_map_alone_needs_the_mode_it_is_taken_from(finished):
    settings = Settings(
        str(finished.labeled), str(finished.unlabeled), "r", modes=("compositional",), baselines=("semantic_only",)
    )
    with pytest.raises(ValueError, match="'semantic_only' needs the mode 'paper'"):
        settings.validate()
