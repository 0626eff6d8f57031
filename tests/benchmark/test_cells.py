"""Cells of the benchmark, from run folders whose counts are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from unicorn_monai.benchmark.cells import Row, Trained, cell
from unicorn_monai.benchmark.runner import collect, weathers
from unicorn_monai.benchmark.table import make_table
from unicorn_monai.evaluation.scoring import Counts, scores
from unicorn_monai.system.files import read_json, write_json

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "benchmark"
HOME = {"mean_iou": 0.8, "ece": 0.02, "nll": 0.3}


def confusion(right: int, wrong: int) -> list[list[int]]:
    return [[right, wrong], [wrong, right]]


def a_run(folder: Path, subjects: dict[str, int], trainings: int = 1, **more) -> Path:
    """A run that scored "fda": of each subject two images, with so many pixels wrong of 100 of each label."""
    names = [f"{subject}_{i}.png" for subject in subjects for i in range(2)]
    whose = [subject for subject in subjects for _ in range(2)]
    for i in range(trainings):
        counts = [confusion(100 - wrong - i, wrong + i) for wrong in subjects.values() for _ in range(2)]
        Counts(names, whose, counts).save(folder / "evaluation" / f"fda{f'_training{i + 1}' if i else ''}.json")
    score = {"ece": 0.1, "nll": 0.5, "validation": {"mean_iou": 0.6}, "labelled_device": HOME, "boundary": None}
    found = {
        "segmentation": {"fda": score | more},
        "labels": ["a", "b"],
        "seconds": {"fda": 60.0, "fda_training2": 30.0},
    }
    write_json(folder / "results.json", found | {"seconds": found["seconds"] | {"fda_evaluation": 5.0, "cut": 7.0}})
    settings = {"trainings": trainings, "unlabeled": str(folder)}
    write_json(folder / "experiment.json", {"settings": settings, "git_revision": "abc", "command": "unicorn-monai x"})
    return folder


def test_a_cell_has_the_pooled_score_of_each_training_and_an_interval_over_subjects(tmp_path):
    run = a_run(tmp_path, {"s1": 10, "s2": 20, "s3": 30}, trainings=2)
    found = cell(Row("s"), "fda", [Trained(0, (run,))])
    pooled = [np.sum([confusion(100 - wrong - i, wrong + i) for wrong in (10, 20, 30)], axis=0) for i in range(2)]
    assert [one["mean_iou"] for one in found["trainings"]] == pytest.approx([scores(m)["mean_iou"] for m in pooled])
    assert found["mean_iou"] == pytest.approx(np.mean([one["mean_iou"] for one in found["trainings"]]))
    assert found["ci95"][0] < found["mean_iou"] < found["ci95"][1]
    assert (found["ci_unit"], found["subjects"], found["fold_units"]) == ("subjects", 3, [3])
    assert np.shape(found["counts"]) == (2, 3, 3, 2), "trainings, units, [hit, true, seen], labels"
    assert found["counts"][0][0] == [[180, 180], [200, 200], [200, 200]]
    assert found["mean_iou_labelled_device"] == 0.8
    assert found["validation_mean_iou"] == 0.6
    assert found["minutes"] == 1.5, "its own trainings, not their evaluation"
    assert (found["commit"], found["command"]) == ("abc", "unicorn-monai x")


def test_few_subjects_have_blocks_of_images_and_folds_are_put_together_by_subject(tmp_path):
    alone = a_run(tmp_path / "a", {"s1": 10})
    assert cell(Row("s"), "fda", [Trained(0, (alone,))])["ci_unit"] == "image blocks"
    folds = tuple(a_run(tmp_path / name, {name: wrong}) for name, wrong in (("k1", 10), ("k2", 20), ("k3", 40)))
    found = cell(Row("s"), "fda", [Trained(0, folds)])
    two = a_run(tmp_path / "two", {"p": 10, "q": 20})
    assert cell(Row("s"), "fda", [Trained(0, (two, alone))])["fold_units"] == [2, 1]
    assert (found["ci_unit"], found["subjects"], found["fold_units"]) == ("subjects", 3, [1, 1, 1])
    assert found["mean_iou"] == pytest.approx(scores(confusion(230, 70))["mean_iou"])
    assert found["minutes"] == 4.5


def test_trainings_are_those_of_every_seed(tmp_path):
    runs = [a_run(tmp_path / str(seed), {"s1": 10, "s2": 20, "s3": 30}, trainings=2) for seed in (0, 1)]
    found = cell(Row("s"), "fda", [Trained(seed, (run,)) for seed, run in enumerate(runs)])
    assert [(one["seed"], one["training"]) for one in found["trainings"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_what_was_not_run_is_named(tmp_path):
    run = a_run(tmp_path, {"s1": 10})
    with pytest.raises(ValueError, match=r"'cut' has no scores in .*; run it there first"):
        cell(Row("s"), "cut", [Trained(0, (run,))])


def test_a_weather_has_the_images_of_its_own(tmp_path):
    run = a_run(tmp_path, {"fog1": 10, "fog2": 20, "fog3": 30, "snow1": 90}, sub_domains={"fog": {}, "snow": {}})
    items = [
        {"image": f"{name}_{i}.png", "subject": name, "sub_domain": name[:-1]}
        for name in ("fog1", "fog2", "fog3", "snow1")
        for i in range(2)
    ]
    counts = Counts.load(run / "evaluation" / "fda.json")
    Counts([str(run / name) for name in counts.images], counts.subjects, counts.confusion).save(
        run / "evaluation" / "fda.json"
    )
    for item in items:
        (run / item["image"]).touch()
    header = {"labels": {"0": "a", "1": "b"}, "test": items}
    write_json(run / "dataset.json", header)
    trained = [Trained(0, (run,))]
    assert weathers(trained) == ["fog", "snow"]
    assert cell(Row("fog", sub_domain="fog"), "fda", trained)["mean_iou"] == pytest.approx(
        scores(confusion(240, 60))["mean_iou"]
    )


def test_cells_verdict_and_table_are_written_and_made_again(tmp_path):
    run = a_run(tmp_path / "run", {"s1": 10, "s2": 20, "s3": 30})
    assert collect(Row("s", "groups"), [Trained(0, (run,))], tmp_path / "results") == ["fda"]
    assert read_json(tmp_path / "results" / "s" / "verdict.json") == {"not_computed": "no network was recommended"}
    assert read_json(tmp_path / "results" / "s" / "fda" / "results.json")["ci_unit"] == "groups"
    table = make_table(tmp_path / "results")
    assert table["shifts"]["s"]["methods"]["fda"]["mean_iou"] == pytest.approx(scores(confusion(240, 60))["mean_iou"])
    recommended = table["shifts"]["s"]["recommendation"]
    assert recommended == {"method": None, "not_computed": "no network was recommended"}


@pytest.mark.skipif(not (RESULTS / "table.json").is_file(), reason="no table is committed yet")
def test_the_committed_table_is_that_of_the_committed_cells():
    assert json.loads(json.dumps(make_table(RESULTS))) == read_json(RESULTS / "table.json")
