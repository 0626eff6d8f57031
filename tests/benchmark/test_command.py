"""`unicorn-monai benchmark` on tiny shifts: run, gone on with, collected, written as a table and a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import CliRunner
from tiny_networks import TINY
from unicorn_monai.benchmark import asked
from unicorn_monai.cli import app
from unicorn_monai.system.files import read_json
from unicorn_monai.system.weights import sha256

EYES = ["phantom", "--size", "{size}", "--subjects", "4", "--scans-per-subject", "1", "--split", "0.5", "0.25", "0.25"]
TINY_SHIFT = {"labelled": EYES, "other": [*EYES, "--device", "swept_source"], "ci_unit": "subjects"}
STREET = ["street_phantom", "--size", "{size}", "--drives", "8", "--frames", "1", "--split", "0.5", "0.25", "0.25"]
WEATHERS = {
    "labelled": [*STREET, "--weather", "clear"],
    "other": [*STREET, "--weather", "fog", "snow"],
    "ci_unit": "subjects",
    "sub_domains": True,
}


def benchmark(folder: Path, *words: str, **entries: object) -> dict:
    """Run the command in a folder; the table."""
    shifts = {"eyes": TINY_SHIFT | {"seeds": [0, 1]}, "absent": TINY_SHIFT | {"needs": ["nowhere"]}} | entries
    (folder / "shifts.json").write_text(json.dumps({"size": 64, "shifts": shifts, "overrides": TINY}))
    places = ["--config", folder / "shifts.json", "--output", folder / "runs", "--results", folder / "results"]
    done = CliRunner().invoke(app, ["benchmark", *map(str, places), "--jobs", "1", *words])
    assert done.exit_code == 0, done.output
    assert not entries or "'absent' is left out" not in done.output
    return read_json(folder / "results" / "table.json")


def test_runs_are_gone_on_with_and_every_seed_counts(tmp_path, monkeypatch):
    monkeypatch.delenv("UNICORN_DATA", raising=False)
    first = benchmark(tmp_path, "--methods", "augmentation")["shifts"]
    assert set(first) == {"eyes"}, "what has no data is left out"
    assert set(first["eyes"]["methods"]) == {"lower_bound", "upper_bound", "augmentation"}
    weights = tmp_path / "runs" / "eyes" / "seed0" / "segmentation" / "augmentation" / "model.pt"
    before = sha256(weights)
    second = benchmark(tmp_path, "--methods", "fda", "--seeds", "0", "1")["shifts"]["eyes"]["methods"]
    assert sha256(weights) == before, "what is there is not trained again"
    assert {name: one["trainings"] for name, one in second.items()} == {
        "lower_bound": 2, "upper_bound": 2, "augmentation": 1, "fda": 2
    }  # fmt: skip
    assert second["fda"]["ci_unit"] == "image blocks", "of one test subject"
    third = benchmark(tmp_path, "--methods", "fda")["shifts"]["eyes"]["methods"]
    assert third["fda"] == second["fda"], "the other seed is still there"
    assert "| eyes |" in (tmp_path / "results" / "README.md").read_text()


def test_every_weather_is_a_row_and_nothing_pooled_is_told_of_it(tmp_path):
    table = benchmark(tmp_path, "--shifts", "streets", "--methods", "augmentation", "histogram", streets=WEATHERS)
    assert set(table["shifts"]) == {"fog", "snow"}
    for shift in table["shifts"].values():
        assert shift["methods"]["histogram"]["ece"] is None
        assert shift["methods"]["histogram"]["validation_mean_iou"] is not None
        assert shift["recommendation"]["estimate"] is None
        assert shift["recommendation"]["method"] in ("lower_bound", "augmentation", "histogram")


def test_rows_of_synthetic_images_are_made_by_their_modes():
    """The joint mode is always there, since the first mode has the plain name."""
    assert asked(["unicorn", "lower_bound"]) == {"baselines": [], "modes": ["joint"]}
    assert asked(["unicorn_paper"]) == {"baselines": [], "modes": ["joint", "paper"]}
    assert asked(["semantic_only"])["modes"] == ["joint", "paper"]
    assert asked(["cut+real", "fda"]) == {"baselines": ["fda", "cut"], "modes": []}
    with pytest.raises(ValueError, match=r"Unknown method\(s\) \['magic'\]"):
        asked(["magic"])
