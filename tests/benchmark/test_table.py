"""The table of tables, from cells whose scores are known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from unicorn_monai.benchmark.cells import marginals, mean_iou
from unicorn_monai.benchmark.table import make_table, recommendation, row
from unicorn_monai.evaluation.scoring import scores

UNITS = 4


def a_cell(method, hits, validation=0.5, pixels=100, trainings=1):
    """Two labels of as many pixels; ``hits`` of each are right, the others are taken for the other label."""
    one = [[hits, hits], [pixels, pixels], [pixels, pixels]]
    return {
        "shift": "s",
        "method": method,
        "mean_iou": hits / (2 * pixels - hits),
        "ci95": [0.0, 1.0],
        "ci_unit": "subjects",
        "subjects": UNITS,
        "std_trainings": None,
        "trainings": [{"seed": 0, "training": i, "mean_iou": 0.0} for i in range(trainings)],
        "validation_mean_iou": validation,
        "mean_iou_labelled_device": 0.9,
        "ece": 0.1,
        "nll": 0.2,
        "boundary_um": None,
        "minutes": 1.0,
        "commit": "abc",
        "fold_units": [UNITS],
        "counts": [[one] * UNITS] * trainings,
    }


def test_the_mean_iou_of_marginals_is_that_of_the_confusion_matrix():
    matrix = np.array([[5.0, 2, 0], [1, 7, 3], [0, 0, 0]])
    assert mean_iou(marginals(matrix)) == pytest.approx(scores(matrix)["mean_iou"])


def test_labels_that_neither_occur_nor_are_seen_do_not_count():
    assert mean_iou(np.array([[4.0, 0], [8, 0], [4, 0]])) == 0.5
    assert np.isnan(mean_iou(np.zeros((3, 2))))


def test_the_strongest_is_chosen_on_validation_images_among_opponents_alone():
    cells = {
        "lower_bound": a_cell("lower_bound", 40, 0.3),
        "upper_bound": a_cell("upper_bound", 95, 0.9),
        "fda": a_cell("fda", 60, 0.5),
        "svdna": a_cell("svdna", 70, 0.4),  # better in the test images, which do not choose
        "unicorn+real": a_cell("unicorn+real", 80, 0.8),
    }
    found = row(cells, {})
    assert found["strongest"] == "fda"
    assert found["differences"]["unicorn+real"]["mean"] == pytest.approx(80 / 120 - 60 / 140)
    assert found["differences"]["unicorn+real"]["ci95"] == pytest.approx([80 / 120 - 60 / 140] * 2), "all units alike"
    assert "fda" not in found["differences"]
    assert found["unicorn_plus_minus_strongest"]["mean"] is None


def test_regret_and_error_of_a_choice_without_labels():
    cells = {name: a_cell(name, hits) for name, hits in (("augmentation", 60), ("fda", 70), ("svdna", 80))}
    ranked = {
        "agreement": {"augmentation": 0.1, "fda": 0.3, "svdna": 0.2},
        "density": {"augmentation": 2.0, "fda": 1.0, "svdna": 3.0},
    }
    fold = {"setup": "fda", "criterion": "agreement", "candidates": list(cells), "scores": ranked}
    fold |= {"estimate": 0.5, "estimators": {"belief": 0.5, "confidence": 0.7}}
    found = recommendation(cells, {"folds": [fold]})
    best, chosen = 80 / 120, 70 / 130
    assert (found["method"], found["best"]) == ("fda", "svdna")
    assert found["regret"] == pytest.approx(best - chosen)
    assert found["errors"] == pytest.approx({"belief": 0.5 - chosen, "confidence": 0.7 - chosen})
    assert found["minus_augmentation"] == pytest.approx(chosen - 60 / 140)
    assert found["regrets"] == pytest.approx({"agreement": best - chosen, "density": 0.0})


def test_folds_that_choose_differently_are_scored_each_on_its_own_units():
    cells = {"fda": a_cell("fda", 60), "svdna": a_cell("svdna", 80)}
    for one in cells.values():
        one["fold_units"] = [1, 3]
    told = {"criterion": "c", "estimate": 0.5, "estimators": {}, "candidates": list(cells), "scores": {}}
    folds = [told | {"setup": name} for name in cells]
    found = recommendation(cells, {"folds": folds})
    assert found["mean_iou"] == pytest.approx(300 / (800 - 300)), "one unit with 60 of 100, three with 80"
    assert found["chosen"] == ["fda", "svdna"]


def test_without_a_verdict_it_says_why():
    cells = {"fda": a_cell("fda", 60)}
    assert recommendation(cells, {"not_computed": "one network alone"}) == {
        "method": None,
        "not_computed": "one network alone",
    }


def test_the_table_is_made_of_the_files_alone(tmp_path):
    with pytest.raises(ValueError, match=r"holds no SHIFT/METHOD/results.json; run `unicorn-monai benchmark` first"):
        make_table(tmp_path)
    for method, hits in (("fda", 60), ("augmentation", 50)):
        folder = tmp_path / "s" / method
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(a_cell(method, hits, hits / 100)))
    table = make_table(tmp_path)
    assert "home_oct" in table["not_run"]
    assert "snow" in table["not_run"]
    assert {name: one["strongest"] for name, one in table["shifts"].items()} == {"s": "fda"}
    assert table["shifts"]["s"]["methods"]["fda"]["mean_iou"] == pytest.approx(60 / 140)
    assert table["shifts"]["s"]["methods"]["fda"]["trainings"] == 1
