"""The whole method on tiny simulated streets: colours, weathers in words, the comparison with label map and words."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from command_line import CliRunner
from data_prep import demo
from data_prep.street_phantom import BAD_WEATHER, write_streets
from tiny_networks import TINY
from unicorn_monai import cli
from unicorn_monai.bundle.installation import bundle_root
from unicorn_monai.bundle.settings import check_overrides
from unicorn_monai.cli import app
from unicorn_monai.data.checks import check
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import WEATHER, read_header
from unicorn_monai.experiment.experiment import Experiment, parts
from unicorn_monai.experiment.judging import Judging
from unicorn_monai.experiment.run import Run
from unicorn_monai.experiment.settings import Settings
from unicorn_monai.report.trainings import BASELINES


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
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
        words=True,
        jobs=1,
    )
    run = Experiment(settings, force=True)
    run.run()
    return run.folder


def test_every_setup_is_scored_in_every_weather(finished):
    results = json.loads((finished.run_dir / "results.json").read_text())
    assert results["modality"] == "RGB"
    assert {"semantic_only", "semantic_only+real", "unicorn", "unicorn+real"} <= set(results["segmentation"])
    for scores in results["segmentation"].values():
        assert set(scores["sub_domains"]) == set(BAD_WEATHER)
        assert sum(part["n_test"] for part in scores["sub_domains"].values()) == scores["n_test"]
        assert scores["broken_columns"] is None  # streets have no layers
    assert set(results["differences"]) == {"lower_bound", "semantic_only", results["strongest"]["setup"]}


def test_the_report_has_a_row_per_weather_and_none_for_layers(finished):
    html = (finished.run_dir / "report.html").read_text()
    for weather in BAD_WEATHER:
        assert f"Mean IoU, {weather}" in html
    assert "layers only" not in html
    assert "unlabelled domain" in html
    assert not re.search(r"(unlabelled|labelled) device|same eyes", html, re.IGNORECASE)
    assert "Label map and weather words" in html
    assert "Label map only" not in html


def test_label_maps_of_streets_are_not_bent(finished):
    synthetic = finished.run_dir / "synthetic"
    assert check(synthetic, need_labels=True) == []
    assert read_header(synthetic)["colours"] == read_header(finished.labeled)["colours"]
    assert all(item["synthetic"]["augment"] is None for item in datalist(synthetic, "training"))


def test_both_controls_and_the_label_map_alone_are_asked_for_the_same_weathers_in_turn(finished):
    sets = [datalist(finished.run_dir / name, "training") for name in ("synthetic", "synthetic_semantic_only")]
    asked = [[item["synthetic"]["prompt"] for item in items] for items in sets]
    in_turn = [f"an image, {words}" for words in WEATHER.values()] * 2
    assert asked == [in_turn[:6]] * 2
    assert [{item["synthetic"]["weight"] for item in items} for items in sets] == [{0.7}, {0.0}]
    assert json.loads((finished.run_dir / "results.json").read_text())["words"] == WEATHER


def test_more_images_of_the_run_name_the_weathers_too(finished, tmp_path):
    words = ["synthesize", "--run", str(finished.run_dir), "--count", "4", "--output", str(tmp_path), "--device", "cpu"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    prompts = [item["synthetic"]["prompt"] for item in datalist(tmp_path, "training")]
    assert prompts == [f"an image, {words}" for words in WEATHER.values()]


def test_pictures_and_measures_name_the_weathers_too(finished):
    runner, _ = parts(finished)
    named = [request.prompt.partition(", ")[2] for request in Judging(finished, runner).examples(8)]
    assert set(named) <= set(WEATHER.values())
    assert len(set(named)) > 1
    captions = (finished.run_dir / "pictures" / "captions.json").read_text()
    assert "the image of the label map alone and the words;" in captions


def test_a_run_with_words_is_not_resumed_without_and_one_from_before_there_were_any_not_with(finished, tmp_path):
    assert finished.goes_on(resume=True)
    with pytest.raises(ValueError, match="started with other settings: words"):
        Experiment(replace(finished.settings, words=False), resume=True)
    kept = json.loads((finished.run_dir / "experiment.json").read_text())["settings"]
    before = {key: value for key, value in kept.items() if key != "words"} | {"output": str(tmp_path)}
    (tmp_path / "experiment.json").write_text(json.dumps({"settings": before}))
    with pytest.raises(ValueError, match="started with other settings: words"):
        Experiment(replace(finished.settings, output=str(tmp_path)), resume=True)


def test_the_label_map_alone_needs_the_mode_it_is_taken_from(finished):
    settings = Settings(
        str(finished.labeled), str(finished.unlabeled), "r", modes=("compositional",), baselines=("semantic_only",)
    )
    with pytest.raises(ValueError, match="'semantic_only' needs the mode 'paper'"):
        settings.validate()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["augmentation", "augmentation+geometry"]),
        (["--preset", "full"], list(BASELINES)),
        (["--size", "256"], ["augmentation", "augmentation+geometry"]),
        (["--scene", "street"], ["augmentation", "augmentation+geometry", "semantic_only"]),
        (["--scene", "street", "--preset", "full"], [*BASELINES, "semantic_only"]),
    ],
)
def test_what_the_demo_compares_with(words, expected, monkeypatch, tmp_path):
    asked: dict[str, Any] = {}
    monkeypatch.setattr(cli, "_run", lambda settings, *_: asked.update(settings))
    monkeypatch.setattr(demo.Demo, "simulate", lambda _: ["simulated nothing"])
    done = CliRunner().invoke(cli.app, ["demo", *words, "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert asked["baselines"] == expected
    assert asked["overrides"] == (None if words else demo.BRIEF)
    assert asked["trainings"] == (3 if "full" in words else 1)


def test_the_quick_demo_trains_for_a_shorter_time_than_the_experiments():
    check_overrides(demo.BRIEF)
    for bundle, files in demo.BRIEF.items():
        usual = json.loads((Path(bundle_root(bundle)) / "presets" / "small.json").read_text())
        for file, changes in files.items():
            assert changes.keys() == {"max_epochs"}
            assert changes["max_epochs"] < usual[file]["max_epochs"]
