"""Scores per sub-domain: each from its own images, pooled; together those of the whole test set."""

import json

import numpy as np
import pytest
import torch

from unicorn_monai.data.items import datalist
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.evaluation.comparison import by_sub_domain, sub_domain_table
from unicorn_monai.evaluation.scoring import Counts, count, scores
from unicorn_monai.images.files import read_array
from unicorn_monai.images.pictures import paint, palette


@pytest.fixture
def data(tmp_path):
    with DatasetWriter(
        tmp_path / "d", About(name="d", device="c", labels={0: "a", 1: "b", 2: "c"}, modality="RGB", suffix=".png")
    ) as writer:
        for k in range(6):
            label = np.repeat(np.array([0, 1, 2, 255], np.uint8), 4)[None].repeat(16, axis=0)
            image = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3) // (k + 1)
            writer.add("test", image, label, subject=f"d{k}", sub_domain=("fog", "night")[k % 2])
    return tmp_path / "d"


def test_a_perfect_and_a_wrong_sub_domain_are_told_apart(data):
    items, table = datalist(data, "test", ("image", "label")), sub_domain_table(data, "test")
    truth = torch.stack([torch.from_numpy(read_array(i["label"]).astype(np.int64)) for i in items])
    predicted = truth.where(truth != 255, 0).clone()
    for k, item in enumerate(items):
        if table[item["image"]] == "night":
            predicted[k] = (predicted[k] + 1) % 3
    counts = count(items, predicted, 3, layered=False)
    found = by_sub_domain([counts], table, seed=0)
    assert list(found) == ["fog", "night"]
    assert found["fog"]["mean_iou"] == 1
    assert found["night"]["mean_iou"] == 0
    assert [part["n_test"] for part in found.values()] == [3, 3]
    assert [part["n_subjects"] for part in found.values()] == [3, 3]
    twice = by_sub_domain([counts, counts], table, seed=0)  # two trainings that agree
    assert {k: part["mean_iou"] for k, part in twice.items()} == {"fog": 1, "night": 0}
    assert twice["fog"]["n_test"] == 3
    pooled = scores(np.asarray(counts.confusion).sum(axis=0))
    assert 0 < pooled["mean_iou"] < 1


def test_a_sub_domain_without_a_labelled_pixel_has_no_score_and_the_others_have():
    counts = Counts(["a", "b"], ["s", "t"], [[[1, 0], [0, 1]], [[0, 0], [0, 0]]])
    for each in ([counts], [counts, counts]):
        found = by_sub_domain(each, {"a": "fog", "b": "rain"}, seed=0)
        assert found["fog"]["mean_iou"] == 1
        assert found["rain"]["iou"] == [None] * 2
        assert found["rain"]["mean_iou"] is found["rain"]["ci95"] is None
        assert (found["rain"]["n_test"], found["rain"]["n_subjects"]) == (1, 1)


def test_a_label_that_does_not_occur_in_a_sub_domain_has_no_score_there(data):
    items, table = datalist(data, "test", ("image", "label")), sub_domain_table(data, "test")
    predicted = torch.zeros(6, 16, 16, dtype=torch.int64)
    counts = count(items, predicted, 3, layered=False)
    for matrix, item in zip(counts.confusion, items, strict=True):
        if table[item["image"]] == "fog":
            matrix[2] = [0, 0, 0]
    found = by_sub_domain([counts], table, seed=0)
    assert found["fog"]["iou"][2] is None
    assert found["night"]["iou"][2] == 0


def test_without_sub_domains_there_is_nothing_and_half_of_them_is_refused(data):
    header = json.loads((data / "dataset.json").read_text())
    del header["test"][0]["sub_domain"]
    (data / "dataset.json").write_text(json.dumps(header))
    with pytest.raises(ValueError, match=r"1 of 6 items have no 'sub_domain'"):
        sub_domain_table(data, "test")
    for item in header["test"]:
        item.pop("sub_domain", None)
    (data / "dataset.json").write_text(json.dumps(header))
    assert sub_domain_table(data, "test") == {}


def test_label_maps_are_painted_in_the_colours_of_the_data_set():
    labels = torch.tensor([[[[0, 1], [2, 255]]]])
    header = {"labels": {"0": "a", "1": "b", "2": "c"}, "colours": [[255, 0, 0], [0, 255, 0], [0, 0, 255]]}
    picture = paint(labels, palette(header, 3))
    assert picture[0].permute(1, 2, 0).tolist() == [[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 0, 0]]]
    grey = paint(labels, palette(header, 1))
    assert grey[0, 0].tolist() == [[0, 0.5], [1, 0]]
    made = palette({"labels": header["labels"]}, 3)
    assert made.shape == (3, 3)
    assert len({tuple(c) for c in made.tolist()}) == 3
    with pytest.raises(ValueError, match=r"'colours' of dataset\.json"):
        palette(header | {"colours": [[0, 0, 0]]}, 3)
