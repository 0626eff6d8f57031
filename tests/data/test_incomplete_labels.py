"""Data sets of which some images have no label map: told by the check, and scored as far as there are labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.check import main as check_main
from unicorn_monai.bundle.installation import load_config
from unicorn_monai.data.checks import problems
from unicorn_monai.data.layout import label_map_counts, read_header
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.evaluation.comparison import by_sub_domain
from unicorn_monai.evaluation.scoring import Counts, scored_items
from unicorn_monai.report.tables import score_table

LABEL = np.arange(2, dtype=np.uint8).repeat(128).reshape(16, 16)
SPLITS = ("training", "validation", "test")


def write(root: Path, lacking: dict[str, int], names: tuple[str, ...] = ("a", "b")) -> Path:
    """Four images a split, of which the first ones lack a label map."""
    rng = np.random.default_rng(0)
    with DatasetWriter(root, About(name="few", device="d", labels=dict(enumerate(names)))) as writer:
        for split in SPLITS:
            for k in range(4):
                image = rng.integers(0, 255, (16, 16), np.uint8)
                label = LABEL if k >= lacking.get(split, 0) else None
                writer.add(split, image, label, subject=f"{split}{k}")
    return root


def test_the_check_warns_of_incomplete_splits_and_counts(tmp_path, capsys):
    root = write(tmp_path / "d", {"test": 1, "training": 4})
    warnings = [problem for problem in problems(root) if problem.field == "label"]
    assert [problem.fatal for problem in warnings] == [False]
    assert "found 1 of 4 images of test without a label map, first 'images/" in str(warnings[0])
    assert check_main([str(root)]) == 0
    assert "label maps: 0 of 4 training, 4 of 4 validation, 3 of 4 test" in capsys.readouterr().out
    assert check_main([str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["label_maps"]["test"] == [3, 4]


@pytest.mark.parametrize("lacking", [{}, {"training": 4, "validation": 4}, dict.fromkeys(SPLITS, 4)])
def test_splits_that_are_complete_or_without_labels_need_no_warning(tmp_path, lacking):
    assert [p for p in problems(write(tmp_path / "d", lacking)) if p.field == "label"] == []


def test_images_with_a_label_map_are_scored_and_the_others_counted(tmp_path, caplog):
    root = write(tmp_path / "d", {"test": 1})
    assert len(scored_items(root, "test")) == 3
    assert "1 of 4 images of 'test' have no label map and are not scored" in caplog.text
    assert label_map_counts(read_header(root))["test"] == (3, 4)


def test_without_any_label_map_nothing_can_be_scored(tmp_path):
    with pytest.raises(ValueError, match=r"None of the 4 images of 'test'.*has a label map"):
        scored_items(write(tmp_path / "d", dict.fromkeys(SPLITS, 4)), "test")


def test_label_tables_must_agree_where_several_sets_are_scored(tmp_path):
    folders = [write(tmp_path / name, {}, names) for name, names in (("one", ("a", "b")), ("two", ("a", "c")))]
    with pytest.raises(ValueError, match="different label tables"):
        scored_items(folders, "test")


def test_the_bundle_scores_the_same_images_as_an_experiment():
    config = load_config(Path(__file__).parents[2] / "bundles" / "retinal_unet", "evaluate.json")
    assert config["dataset"]["data"]["_target_"].endswith("evaluation.scored_items")


def test_a_sub_domain_without_label_maps_is_there_without_a_score():
    counts = Counts(["a"], ["s"], [[[1, 0], [0, 1]]])
    found = by_sub_domain([counts], {"a": "fog", "b": "rain"}, seed=0)
    assert found["fog"]["n_test"] == 1
    nothing = dict.fromkeys(("mean_iou", "ci95", "ci_unit"))
    assert found["rain"] == nothing | {"iou": [None] * 2, "n_test": 0, "n_subjects": 0}


@pytest.mark.parametrize(
    ("labelled", "told"), [(3, "scores are of the other 3"), (0, "nothing can be scored"), (4, None)]
)
def test_the_printed_table_says_how_many_test_images_have_no_label_map(labelled, told):
    table = score_table({"segmentation": {}, "label_maps": {"test": (labelled, 4)}})
    expected = f"{4 - labelled} of 4 test images of the unlabelled domain have no label map: {told}"
    assert table.caption == (told and expected)
