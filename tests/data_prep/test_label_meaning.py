"""What the values of label maps mean over a whole data set: labels that never occur, 255, rims; and scores of them."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data_prep import image_folder, phantom, spectralis_healthy
from data_prep.grey import resize_nearest
from data_prep.label_schemes import read_scheme
from oct_files import bscan, picture
from unicorn_monai.data.checks import check, problems
from unicorn_monai.data.label_checks import LabelSurvey
from unicorn_monai.data.layout import read_header
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.evaluation.comparison import score_trainings
from unicorn_monai.evaluation.scoring import Counts, summarise
from unicorn_monai.experiment.settings import Settings
from unicorn_monai.images.surfaces import label_map
from unicorn_monai.report.report import render
from unicorn_monai.report.tables import score_table

DATA = Path(os.environ.get("UNICORN_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"real files not found in {DATA}; set UNICORN_DATA")
NAMES = ("a", "b", "c", "d", "e", "f", "g")


def survey(maps, n: int) -> LabelSurvey:
    found = LabelSurvey({str(k): NAMES[k] for k in range(n)})
    for label in maps:
        found.add(np.asarray(label, np.uint8), rims=True)
    return found


def said(maps, n: int, need_labels: bool = True) -> list[str]:
    return [
        f"{'' if fatal else 'warning: '}{found}. {remedy}"
        for found, _, remedy, fatal in survey(maps, n).findings(need_labels)
    ]


# ---------------------------------------------------------------- which occur


MASKS = [np.repeat([[0, 255, 0, 0]], 8, axis=0)] * 3


def test_masks_of_0_and_255_are_refused_with_what_to_write():
    (text,) = said(MASKS, 2)
    assert text.startswith("nothing but 0 'a' and 255 (ignore) in all 3 label maps.")
    assert '"values": {"255": 1}' in text
    assert said(MASKS, 2, need_labels=False) == [text]  # scores over one label say nothing either


def test_masks_of_255_and_1_are_the_same_case():
    (text,) = said([np.where(m == 0, 255, 1) for m in MASKS], 2)
    assert '"values": {"255": 0}' in text


def test_255_for_one_of_three_labels_is_noticed():
    (text,) = said([[[0, 1, 255, 255], [0, 1, 0, 255]]], 3)
    assert text.startswith("warning: no pixel of 2 'c'.")
    assert "255 (ignore) fills 37.5% of the pixels: is it one of these?" in text


def test_a_label_that_never_occurs_is_told_by_name():
    assert said([[[0, 1], [0, 1]]], 4) == [
        "warning: no pixel of 2 'c', 3 'd'. Leave them out of the table, or look which values the label files hold."
    ]
    assert said([[[0, 1], [2, 1]]], 3) == []


@pytest.mark.parametrize("need_labels", [True, False])
def test_one_label_everywhere_is_nothing_to_learn(need_labels):
    (text,) = said([np.zeros((4, 4))], 2, need_labels)
    expected = "nothing but 0 'a' in all 1 label maps." if need_labels else "warning: no pixel of 1 'b'."
    assert text.startswith(expected)


def test_much_255_is_noticed_and_some_is_not():
    assert said([[[0, 1, 255, 255, 255]]], 2)[0].startswith("warning: 255 (ignore) in 60.0% of the pixels.")
    assert said([[[0, 1, 0, 255, 255]]], 2) == []


def test_without_label_maps_there_is_nothing_to_say():
    assert said([], 3) == []


# ---------------------------------------------------------------- rims


def blobs(values, seed: int = 0, size: int = 64) -> np.ndarray:
    """Areas of a few labels that meet at random places."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(len(values), size, size)), (0, 7, 7))
    return np.asarray(values, np.uint8)[noise.argmax(axis=0)]


def resampled(label: np.ndarray, filter_=Image.Resampling.BILINEAR) -> np.ndarray:
    image = Image.fromarray(label)
    return np.asarray(image.resize((128, 128), filter_).resize(image.size, filter_))


@pytest.mark.parametrize(
    ("values", "n", "rims"),
    [((0, 4, 2), 5, [1, 3]), ((0, 2), 3, [1]), ((0, 3, 6), 7, [1, 2, 4, 5]), ((1, 3), 4, [2])],
)
@pytest.mark.parametrize("filter_", [Image.Resampling.BILINEAR, Image.Resampling.HAMMING, Image.Resampling.BOX])
def test_labels_that_interpolation_makes_up_are_noticed(values, n, rims, filter_):
    drawn = [blobs(values, seed) for seed in range(6)]
    maps = [resampled(label, filter_) for label in drawn]
    made_up = [v for v in rims if any((m == v).any() for m in maps)]
    assert survey(maps, n).rims() == made_up
    assert survey(drawn, n).rims() == []


def test_the_names_of_rims_are_told():
    (text,) = said([resampled(blobs((0, 4, 2), seed)) for seed in range(6)], 5)
    assert text.startswith("warning: 1 'b', 3 'd' only as rims of one or two pixels between lower and higher labels.")


def test_pixels_that_are_ignored_are_no_border():
    maps = [blobs((0, 1, 2), seed) for seed in range(4)]
    for label in maps:
        label[ndimage.binary_dilation(label == 1) & (label != 1)] = 255
        label[label == 1] = np.where(np.arange((label == 1).sum()) % 2, 1, 255)
    assert survey(maps, 3).rims() == []


@pytest.mark.parametrize("thickness", [1.0, 1.5, 2.0, 3.0])
def test_thin_layers_are_layers(thickness):
    rng = np.random.default_rng(0)
    maps = []
    for _ in range(6):
        top = 20 + 5 * np.sin(np.linspace(0, 4, 64) + rng.uniform(0, 6))
        maps.append(label_map(np.stack([top, top + 15, top + 15 + thickness, top + 15 + 2 * thickness]), 64))
    assert survey(maps, 5).rims() == []


@pytest.mark.parametrize("device", ["spectralis", "home_oct"])
def test_simulated_devices_raise_no_false_alarm(tmp_path, device):
    options = ["--device", device, "--size", "64", "--subjects", "4", "--scans-per-subject", "3"]
    assert phantom.main([str(tmp_path / "out"), *options, "--split", "0.5", "0.25", "0.25"]) == 0
    assert [str(p) for p in problems(tmp_path / "out", need_labels=True) if p.field == "labels"] == []


@needs_data
def test_real_layers_raise_no_false_alarm(tmp_path):
    options = ["--size", "64", "--training", "1", "2", "--validation", "3", "--test", "4"]
    assert spectralis_healthy.main([str(DATA / "spectralis_healthy"), str(tmp_path / "out"), *options]) == 0
    assert [str(p) for p in problems(tmp_path / "out", need_labels=True) if p.field == "labels"] == []


@needs_data
@pytest.mark.parametrize(
    ("name", "n"), [("camvid_day_dusk", 11), ("wbc_cellavision_tecom", 3), ("nuclei_fluorescence_histology", 2)]
)
@pytest.mark.parametrize("size", [(64, 64), (128, 128)])
def test_real_scenes_and_cells_raise_no_false_alarm(name, n, size):
    paths = sorted((DATA / "real_shifts" / name / "labelled" / "labels").rglob("*.png"))[::4]
    found = LabelSurvey({str(k): f"label {k}" for k in range(n)})
    for path in paths:
        found.add(resize_nearest(np.asarray(Image.open(path)), size), rims=True)
    assert paths
    assert list(found.findings(need_labels=True)) == []


def test_thin_poles_and_borders_drawn_beside_areas_are_labels():
    maps = []
    for seed in range(6):
        label = blobs((0, 1, 4), seed)
        label[10:, 5 + 9 * seed] = 2  # a pole: the same label is on both sides of it in most places
        maps.append(label)
    assert survey(maps, 5).rims() == []


# ---------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {str(k): f"label {k}" for k in range(256)},
            r"has 256 labels; expected at most 255, 0 to 254: 255 means ignore",
        ),
        ({"0": "bone", "1": "air", "2": "bone "}, r"gives the names \['bone'\] twice"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_wherever_it_is_read(tmp_path, table, message):
    (tmp_path / "labels.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=message):
        read_scheme(str(tmp_path / "labels.json"))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": table, "training": []}))
    with pytest.raises(ValueError, match=message):
        read_header(tmp_path)
    with pytest.raises(ValueError, match=message):
        DatasetWriter(tmp_path / "new", About(name="x", device="x", labels={int(k): v for k, v in table.items()}))


def test_a_table_of_255_labels_is_one(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps({str(k): f"label {k}" for k in range(255)}))
    assert len(read_scheme(str(tmp_path / "labels.json")).names) == 255


@pytest.mark.parametrize(
    "text", ['{"0": "a", "1": "b", "1": "c"}', '{"labels": {"0": "a", "1": "b"}, "values": {"7": 0, "7": 1}}']
)
def test_an_entry_that_is_there_twice_is_refused(tmp_path, text):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(ValueError, match=r"the file has the entries \['[17]'\] twice"):
        read_scheme(str(tmp_path / "labels.json"))


# ---------------------------------------------------------------- where it is told


def masks(folder: Path, values) -> Path:
    """Three patients with masks of these values, and their label table."""
    for k in range(3):
        picture(folder / "in" / "images" / f"p{k}" / "a.png", bscan(k))
        picture(
            folder / "in" / "labels" / f"p{k}" / "a.png", np.asarray(values, np.uint8)[(bscan(k) > 100).astype(int)]
        )
    (folder / "labels.json").write_text(json.dumps({"0": "background", "1": "fluid"}))
    return folder / "in"


def test_prepare_and_check_refuse_masks_of_0_and_255(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("UNICORN_KEY_FILE", str(tmp_path / "keys" / "key"))
    options = ["--labels", str(tmp_path / "labels.json"), "--size", "40", "32", "--split", "0.4", "0.3", "0.3"]
    assert image_folder.main([str(masks(tmp_path, (0, 255))), str(tmp_path / "out"), *options]) == 1
    assert "nothing but 0 'background' and 255 (ignore) in all 3 label maps" in capsys.readouterr().out
    assert len(check(tmp_path / "out")) == 1
    (tmp_path / "labels.json").write_text(
        json.dumps({"labels": {"0": "background", "1": "fluid"}, "values": {"255": 1}})
    )
    assert image_folder.main([str(tmp_path / "in"), str(tmp_path / "again"), *options]) == 0
    assert not problems(tmp_path / "again", need_labels=True)


def written(folder: Path, labels: dict[int, str], values) -> Path:
    rng = np.random.default_rng(len(folder.name))
    with DatasetWriter(folder, About(name="x", device=folder.name, labels=labels, modality="other")) as writer:
        for k, split in enumerate(("training", "validation", "test")):
            label = blobs(values, k)
            writer.add(split, rng.integers(0, 256, label.shape, dtype=np.uint8), label, subject=f"{folder.name}{k}")
    return folder


def test_an_experiment_is_not_begun_on_one_label_and_warns_of_those_that_never_occur(tmp_path, caplog):
    three = {0: "a", 1: "b", 2: "c"}
    good, bad = written(tmp_path / "good", three, (0, 1)), written(tmp_path / "bad", three, (0, 255))
    settings = {"output": str(tmp_path / "run"), "unlabeled": str(good)}
    with pytest.raises(ValueError, match=r"(?s)labeled data set .* cannot be used.*nothing but 0 'a' and 255"):
        Settings.from_dict(settings | {"labeled": str(bad)}).validate()
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="bad"):
        Settings.from_dict({"output": str(tmp_path / "run"), "labeled": str(good), "unlabeled": str(bad)}).validate()
    assert "The labeled data set: warning: dataset.json: labels: found no pixel of 2 'c'" in caplog.text


# ---------------------------------------------------------------- scores


def counts(confusion) -> Counts:
    return Counts(["a", "b"], ["s1", "s2"], [confusion, confusion])


def test_scores_say_which_labels_the_test_set_lacks(tmp_path):
    never, predicted = [[9, 1, 0], [0, 5, 0], [0, 0, 0]], [[9, 0, 1], [0, 5, 0], [0, 0, 0]]
    for k, confusion in enumerate((never, predicted)):
        found = summarise(counts(confusion), seed=0)
        assert found["absent"] == [2]
        assert found["iou"][2] == (None, 0.0)[k]
        counts(confusion).save(tmp_path / f"{k}.json")
    assert found["mean_iou"] == pytest.approx((0.9 + 1 + 0) / 3)  # what is made up is a mistake
    both = [summarise(counts(never), seed=0)] * 2
    assert score_trainings(both, [tmp_path / "0.json"] * 2, seed=0)["absent"] == [2]
    assert summarise(counts([[9, 1, 0], [0, 5, 0], [0, 1, 1]]), seed=0)["absent"] == []


def test_table_and_report_say_which_labels_the_test_set_lacks(tmp_path):
    found = summarise(counts([[9, 1, 0], [0, 5, 0], [0, 0, 0]]), seed=0)
    results = {"segmentation": {"lower_bound": found}, "labels": ["background", "fluid", "drusen"]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert "without a pixel in the test images: drusen" in str(score_table(results).caption)
    assert "drusen: without a pixel in the test images: 0 where predicted, else no score" in render(tmp_path)
    found["absent"] = []
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert "without a pixel" not in str(score_table(results).caption)
    assert "without a pixel" not in render(tmp_path)
