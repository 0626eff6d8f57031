"""Two domains of one experiment: no person and no image on both sides of a test, and how to split two devices alike."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import image_folder
from data_prep.splits import split_like
from unicorn_monai.data.domain_pair import require_people_apart, splits_by_subject
from unicorn_monai.data.layout import SPLITS, read_header
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.experiment.settings import Settings

LABELS = {0: "vitreous", 1: "retina"}


def write(root: Path, subjects: dict[str, str], seed: int = 0, side: int = 32, suffix: str = ".png") -> Path:
    """A data set with one image and label map of each subject, in the split given."""
    rng = np.random.default_rng(seed)
    with DatasetWriter(root, About(name=root.name, device=root.name, labels=LABELS, suffix=suffix)) as writer:
        for subject, split in subjects.items():
            image = rng.integers(0, 255, (side, side), dtype=np.uint8)
            label = (np.arange(side)[:, None] >= rng.integers(8, side - 8, side)).astype(np.uint8)
            writer.add(split, image, label, subject=subject)
    return root


def validate(labeled: Path | str, unlabeled: Path | str) -> None:
    Settings(str(labeled), str(unlabeled), "run", preset="quick", device="cpu").validate()


def people(*names: str) -> dict[str, str]:
    """Subjects, in the splits in turn."""
    return {name: SPLITS[k % 3] for k, name in enumerate(names)}


APART = {
    "nobody was seen by both": people("x", "y", "z"),
    "all in the same splits": people("a", "b", "c"),
    "some in the same splits": people("x", "b", "y"),
}


@pytest.mark.parametrize("other", APART.values(), ids=APART.keys())
def test_people_who_are_in_the_same_split_of_both_devices_are_allowed(tmp_path, other):
    validate(write(tmp_path / "a", people("a", "b", "c")), write(tmp_path / "b", other, seed=1))


CROSSING = {
    "training and test": ("x", "y", "a"),
    "test and training": ("c", "y", "z"),
    "training and validation": ("x", "a", "z"),
    "validation and test": ("x", "y", "b"),
    "all turned": ("b", "c", "a"),
}


@pytest.mark.parametrize("names", CROSSING.values(), ids=CROSSING.keys())
def test_a_person_in_another_split_of_the_other_device_is_refused_by_number(tmp_path, names):
    labeled = write(tmp_path / "a", people("a", "b", "c"))
    unlabeled = write(tmp_path / "b", people(*names), seed=1)
    with pytest.raises(ValueError, match=r"in another split: .*--split-like .*/a`.*--key-file") as refused:
        validate(labeled, unlabeled)
    shared = len({*"abc"} & {*names})
    assert f"{shared} of the 3 subjects of '{unlabeled}'" in str(refused.value)
    assert "'a'" not in str(refused.value).replace(str(labeled), "")


def same(labeled: Path) -> Path:
    return labeled


def linked(labeled: Path) -> Path:
    (labeled.parent / "link").symlink_to(labeled)
    return labeled.parent / "link"


def roundabout(labeled: Path) -> Path:
    return labeled.parent / "nowhere" / ".." / labeled.name


def copied(labeled: Path) -> Path:
    return shutil.copytree(labeled, labeled.parent / "copy")


def renamed(labeled: Path) -> Path:
    """A copy of other names, people, device, and without labels."""
    return write(labeled.parent / "other", people("x", "y", "z"))


def stored_otherwise(labeled: Path) -> Path:
    return write(labeled.parent / "other", people("x", "y", "z"), suffix=".nii.gz")


SAME = {
    same: "are one folder",
    linked: "are one folder",
    roundabout: "are one folder",
    copied: "3 of the 3 images of .* pixel by pixel",
    renamed: "3 of the 3 images of .* pixel by pixel",
    stored_otherwise: "3 of the 3 images of .* pixel by pixel",
}


@pytest.mark.parametrize("other", SAME, ids=lambda f: f.__name__)
def test_the_same_images_as_both_domains_are_refused(tmp_path, other):
    labeled = write(tmp_path / "a", people("a", "b", "c"))
    with pytest.raises(ValueError, match=SAME[other]):
        validate(labeled, other(labeled))


def test_one_image_of_the_training_among_the_test_images_of_the_other_is_refused(tmp_path):
    labeled = write(tmp_path / "a", people("a", "b", "c"))
    unlabeled = write(tmp_path / "b", people("x", "y", "z"), seed=1)
    shutil.copy(labeled / "images/000000.png", unlabeled / "images/000002.png")
    expected = r"1 of the 3 images of '.*/b' .*'images/000002.png' of test is 'images/000000.png' of training"
    with pytest.raises(ValueError, match=expected):
        validate(labeled, unlabeled)


# ---------------------------------------------------------------- splitting alike


def scans(root: Path, patients: range, seed: int) -> Path:
    """Images of patients as `image_folder` reads them."""
    rng = np.random.default_rng(seed)
    for patient in patients:
        path = root / f"images/patient{patient}/0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(path)
    return root


def prepare(source: Path, output: Path, *options: str) -> int:
    return image_folder.main([str(source), str(output), "--size", "32", "--labels", "none", *options])


@pytest.fixture
def converted(tmp_path, monkeypatch) -> Path:
    """Eight patients of a first device."""
    monkeypatch.setenv("UNICORN_KEY_FILE", str(tmp_path / "key"))
    assert prepare(scans(tmp_path / "in/a", range(8), 0), tmp_path / "a") == 0
    return tmp_path / "a"


def test_patients_of_two_devices_are_split_alike(converted, tmp_path):
    source = scans(tmp_path / "in/b", range(10), 1)
    assert prepare(source, tmp_path / "apart", "--seed", "1") == 0
    with pytest.raises(ValueError, match="8 of the 10 subjects"):
        require_people_apart(converted, tmp_path / "apart")
    for _ in ("made", "resumed"):
        assert prepare(source, tmp_path / "b", "--seed", "1", "--split-like", str(converted), "--resume") == 0
    require_people_apart(converted, tmp_path / "b")
    own, other = (splits_by_subject(read_header(folder)) for folder in (converted, tmp_path / "b"))
    assert {subject: other[subject] for subject in own} == own
    assert sorted(other.values()).count("training") == 7  # of ten, as by shares


REFUSED = {
    "nobody in common": (range(20, 25), (), "none of the 5 subjects is among its 8.*same --key-file"),
    "ids that are no pseudonyms": (range(8), ("--keep-original-ids",), "none of the 8 subjects"),
}


@pytest.mark.parametrize(("patients", "options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_data_set_of_other_people_is_no_example(converted, tmp_path, capsys, patients, options, message):
    source = scans(tmp_path / "in/b", patients, 1)
    assert prepare(source, tmp_path / "b", "--split-like", str(converted), *options) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "b" / "dataset.json").exists()


def test_an_example_that_is_no_data_set_is_refused(converted, tmp_path, capsys):
    source = scans(tmp_path / "in/b", range(4), 1)
    assert prepare(source, tmp_path / "b", "--split-like", str(tmp_path / "in")) == 1
    assert "holds no dataset.json" in capsys.readouterr().err


def test_a_split_that_the_source_decides_is_kept(tmp_path):
    other = write(tmp_path / "a", people("a", "b", "c"))
    found = split_like(other, ["a", "new", "z"], (0.7, 0.1, 0.2), 0, {"a": "training", "z": "test"})
    assert found == {"a": "training", "new": "training", "z": "test"}
    with pytest.raises(ValueError, match="1 subjects are in another split there than the source says"):
        split_like(other, ["a", "b"], (0.7, 0.1, 0.2), 0, {"a": "test"})


def test_the_header_of_an_older_conversion_is_an_example_too(tmp_path):
    other = write(tmp_path / "a", people("a", "b", "c"))
    header = json.loads((other / "dataset.json").read_text())
    header["test"].append({"image": "images/000009.png"})  # nobody's
    (other / "dataset.json").write_text(json.dumps(header))
    assert split_like(other, ["b"], (1, 0, 0), 0, {}) == {"b": "validation"}
