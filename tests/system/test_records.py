"""What runs and data sets of other people hold beside what is known: read by nobody, and nobody's argument."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from command_line import CliRunner
from unicorn_monai.cli import app
from unicorn_monai.data.journal import JOURNAL
from unicorn_monai.data.layout import index_of, layout_of, read_header
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.evaluation.copies import write_without
from unicorn_monai.experiment.settings import settings_begun_with
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.system import records
from unicorn_monai.system.records import read_flagged, read_record, read_run_id, read_spent, read_stage, take

ARGUMENTS = {  # of the writer and of its `add`
    "share": ["0", "/../../outside/thesis.tex"],
    "root": "/elsewhere",
    "resume": True,
    "total": 10**12,
    "suffix": "/../../x.png",
    "entries": {"labels": {}},
    "fields": 1,
    "self": 1,
}


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "run"
    with DatasetWriter(
        folder / "synthetic", About(name="n", device="d", labels={0: "a", 1: "b"}, suffix=".png")
    ) as writer:
        for k in range(3):
            writer.add("training", np.full((8, 8), k, np.uint8), np.zeros((8, 8), np.uint8), subject=f"s{k}", scan=k)
    write(folder / "results.json", {"memorization": {"flagged": ["images/000001.png"]}})
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "thesis.tex").write_text("years of work")
    return folder


def write(path: Path, content) -> Path:
    path.write_text(json.dumps(content))
    return path


def change(run: Path, **entries) -> None:
    path = run / "synthetic" / "dataset.json"
    write(path, json.loads(path.read_text()) | entries)


def clean(run: Path) -> dict:
    result = CliRunner().invoke(app, ["clean", str(run), "--output", str(run.parent / "out")])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return json.loads((run.parent / "out" / "dataset.json").read_text())


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_entry_of_a_header_is_no_argument(run, monkeypatch, name):
    told = []
    monkeypatch.setattr(records.logger, "warning", told.append)
    change(run, **{name: ARGUMENTS[name]})
    kept = clean(run)
    assert kept[name] == ARGUMENTS[name]
    assert [line for line in told if f"Nothing reads the entries ['{name}']" in line] == told
    assert len(told) == 1
    assert [item["image"] for item in kept["training"]] == ["images/000000.png", "images/000002.png"]
    assert (run.parent / "outside" / "thesis.tex").read_text() == "years of work"
    assert sorted(path.name for path in run.parent.iterdir()) == ["out", "outside", "run"]


@pytest.mark.parametrize("name", [*ARGUMENTS, "index", "split", "dataset", "image_path", "writer"])
def test_an_entry_of_an_item_is_no_argument(run, name):
    items = read_header(run / "synthetic")["training"]
    change(run, training=[item | {name: "../../outside/thesis.tex"} for item in items])
    kept = clean(run)["training"]
    assert [item["image"] for item in kept] == ["images/000000.png", "images/000002.png"]
    assert [item["scan"] for item in kept] == [0, 2]
    own = ("index", "split", "dataset")  # what the place of an item decides
    assert all((name in item) == (name not in own) for item in kept)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"name": 3}, "'name' of .* is '3'; expected a text"),
        ({"device": {"_target_": "os.system"}}, "'device' of .*; expected a text"),
        ({"modality": ["OCT"]}, "'modality' of .*; expected a text"),
        ({"spacing_mm": "ab"}, r"'spacing_mm' of .*; expected \[axial, lateral\]"),
        ({"spacing_mm": [0.1, float("nan")]}, r"expected \[axial, lateral\]"),
        ({"settings": "x"}, "'settings' of .*; expected an object"),
        ({"colours": {"a": 1}}, "expected a list of"),
        ({"labels": {"0": 1, "1": "b"}}, "names .*; expected texts"),
        ({"training": [{"image": "images/000000.png", "subject": ["x"]}]}, "is not a list of items"),
        ({"training": [{"image": "images/000000.png", "synthetic": "x"}]}, "is not a list of items"),
        ({"training": [{"image": "images/000000.png", "sub_domain": {"a": 1}}]}, "is not a list of items"),
        ({"training": [{"image": "images/../../../outside/thesis.tex"}]}, "leaves the data set folder"),
    ],
)
def test_a_known_entry_of_another_type_is_refused(run, entries, message):
    change(run, **entries)
    write(run / "results.json", {"memorization": {"flagged": []}})
    with pytest.raises(ValueError, match=message):
        clean(run)
    assert (run.parent / "outside" / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["x.png", "-1.png", "².png", "1e3.png", f"{'9' * 30}.png"])
def test_an_item_without_a_number_is_refused(name):
    with pytest.raises(ValueError, match="expected a name that is a number"):
        index_of({"image": f"images/{name}"}, "dataset.json")


def test_a_synthetic_data_set_outside_of_its_run_is_refused(run, tmp_path):
    (run / "synthetic").rename(tmp_path / "elsewhere")
    (run / "synthetic").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="leaves the"):
        clean(run)


@pytest.mark.parametrize("flagged", ["images/000001.png", [1], {"images/000001.png": 1}, None])
def test_flagged_images_are_names(run, flagged):
    write(run / "results.json", {"memorization": {"flagged": flagged}})
    with pytest.raises(ValueError, match=r"'flagged' of .*; expected a list of texts"):
        read_flagged(run)
    write(run / "results.json", [1])
    with pytest.raises(ValueError, match="expected a JSON object"):
        read_flagged(run)


@pytest.mark.parametrize(
    "row",
    [
        {"split": "tset"},
        {"image": "../../outside/thesis.tex"},
        {"image": "images/../../x.png"},
        {"image": "images/.."},
        {"image": "/etc/hostname"},
        {"image": ["images/000000.png"]},
        {"label": "labels/a/../../b.png"},
        {"index": True},
        {"index": "0"},
    ],
)
def test_a_line_of_a_journal_that_no_writer_wrote_is_refused(tmp_path, row):
    item = {"index": 0, "split": "training", "image": "images/000000.png", "subject": "s"}
    (tmp_path / JOURNAL).write_text(
        f"{json.dumps({'labels': {'0': 'a'}, 'settings': None})}\n{json.dumps(item | row)}\n"
    )
    with pytest.raises(ValueError, match="expected an item with"):
        DatasetWriter(tmp_path, About(name="n", device="d", labels={0: "a"}), resume=True)


# ---------------------------------------------------------------- records of a run

SETTINGS = {"labeled": "a", "unlabeled": "b", "output": "c"}


def test_unknown_settings_of_a_run_are_told_once_and_left_out(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(records.logger, "warning", told.append)
    write(tmp_path / "experiment.json", {"settings": SETTINGS | {"share": [0, 1]}, "more": 1})
    assert settings_begun_with(tmp_path).keys() == settings_begun_with(tmp_path).keys() == SETTINGS.keys()
    assert len(told) == 1
    assert "['share']" in told[0]
    assert read_record(tmp_path)["more"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a JSON object"),
        ({}, "has no entry 'settings'"),
        ({"settings": 3}, "'settings' of .*; expected an object"),
        ({"settings": {}}, "has no entry 'labeled'"),
        ({"settings": SETTINGS | {"labeled": 3}}, "'labeled' of .*; expected the path of a folder"),
        ({"settings": SETTINGS | {"baselines": "cut"}}, "'baselines' of .*; expected a list"),
        ({"settings": SETTINGS | {"seed": float("nan")}}, "'seed' of .*; expected a whole number"),
        ({"settings": SETTINGS, "resumed": "x"}, "'resumed' of .*; expected a list of objects"),
    ],
)
def test_a_record_of_another_form_is_refused(tmp_path, content, message):
    write(tmp_path / "experiment.json", content)
    with pytest.raises(ValueError, match=message):
        settings_begun_with(tmp_path)


STAGE = {"seconds": 1.5, "core_seconds": 3, "threads": 2, "result": None, "commands": {"a": "b"}}


def test_a_stage_has_its_known_entries_only(tmp_path):
    path = write(tmp_path / "stage.json", STAGE | {"more": 1})
    assert read_stage(path) == STAGE
    assert read_spent(path) == {"seconds": 1.5, "core_seconds": 3, "threads": 2}


@pytest.mark.parametrize(
    ("name", "value"),
    [("seconds", "1"), ("seconds", -1), ("seconds", float("inf")), ("commands", {"a": 1}), ("commands", ["a"])],
)
def test_a_stage_of_another_form_is_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"'{name}' of .*stage.json' is .*; expected"):
        read_stage(write(tmp_path / "stage.json", STAGE | {name: value}))


@pytest.mark.parametrize("run_id", ["' or 1 = 1 --", "../x", 3, None, "F" * 32])
def test_the_id_of_an_mlflow_run_is_no_condition(tmp_path, run_id):
    with pytest.raises(ValueError, match=r"'run_id' of .*; expected 32 digits"):
        read_run_id(write(tmp_path / "mlflow_run.json", {"run_id": run_id}))


@pytest.mark.parametrize(
    ("name", "value"), [("mean", "$1"), ("std", None), ("quantiles", ["a"]), ("ensemble", {"a": 1})]
)
def test_a_prior_of_another_form_is_refused(tmp_path, name, value):
    prior = UncertaintyPrior(0.2, 0.05, "zscore", 0.1, 0.1, "x")
    prior.save(tmp_path / "prior.json")
    content = json.loads((tmp_path / "prior.json").read_text())
    assert UncertaintyPrior.load(write(tmp_path / "prior.json", content | {"more": 1})) == prior
    with pytest.raises(ValueError, match=f"is no uncertainty prior .*'{name}'"):
        UncertaintyPrior.load(write(tmp_path / "prior.json", content | {name: value}))


def test_what_is_taken_is_known():
    assert take({"a": 1, "b": 2}, {"a": (lambda v: v == 1, "1")}, "x.json") == {"a": 1}
    assert layout_of({"labels": {"0": "a"}, "share": (1, 2)}).keys() == {"labels", "modality", "spacing_mm", "suffix"}


def test_a_flagged_image_that_is_not_there_is_named(run, tmp_path):
    with pytest.raises(ValueError, match=r"has no image 'images/9\.png'"):
        write_without(run / "synthetic", tmp_path / "out", ["images/9.png"])
