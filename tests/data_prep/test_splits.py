"""A split that is published with a result: a file says who is where, and nobody is forgotten."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from data_prep import cityscapes, image_folder
from data_prep.privacy import pseudonym, read_key
from data_prep.splits import split_as_listed
from oct_files import bscan, picture
from unicorn_monai.data.domain_pair import splits_by_subject
from unicorn_monai.data.layout import read_header

LISTED = {"training": ["p0", "p3"], "validation": ["p1"], "test": ["p2"]}


def convert(folder: Path, listed: object, *options: str, patients: int = 4) -> int:
    """Two B-scans of each patient, split as a file says."""
    for k in range(2 * patients):
        picture(folder / f"in/p{k // 2}/{k}.png", bscan(k))
    (folder / "splits.json").write_text(listed if isinstance(listed, str) else json.dumps(listed))
    words = [str(folder / "in"), str(folder / "out"), "--size", "32", "--labels", "none"]
    return image_folder.main([*words, "--key-file", str(folder / "key"), "--splits", f"{folder}/splits.json", *options])


def parts(folder: Path) -> dict[str, str]:
    return splits_by_subject(read_header(folder / "out"))


def test_everybody_is_where_the_file_says(tmp_path):
    assert convert(tmp_path, LISTED | {"about": "p1 is blurred"}, "--keep-original-ids") == 0
    assert parts(tmp_path) == {"p0": "training", "p3": "training", "p1": "validation", "p2": "test"}


def test_the_file_names_people_before_their_pseudonyms(tmp_path):
    assert convert(tmp_path, LISTED) == 0
    key = read_key(tmp_path / "key", tmp_path / "out")
    assert parts(tmp_path)[pseudonym("p1", key)] == "validation"
    assert parts(tmp_path)[pseudonym("p2", key)] == "test"


def test_a_part_may_be_empty(tmp_path):
    assert convert(tmp_path, {"training": ["p0", "p1", "p2", "p3"], "validation": [], "test": []}) == 0
    assert set(parts(tmp_path).values()) == {"training"}


REFUSED = {
    "somebody nowhere": (LISTED | {"test": []}, "1 of the 4 subjects found stand nowhere in it"),
    "somebody twice": (LISTED | {"test": ["p2", "p0"]}, "entry 2 of 'test' stands in it twice"),
    "twice in one part": (LISTED | {"training": ["p0", "p3", "p3"]}, "entry 3 of 'training' stands in it twice"),
    "somebody unknown": (LISTED | {"test": ["p2", "p9"]}, "entry 2 of 'test' is none of the 4 subjects found"),
    "a part missing": ({"training": ["p0", "p1", "p2", "p3"]}, r"holds \['training'\]; expected training, validation"),
    "another key": (LISTED | {"tset": []}, r"holds \['test', 'training', 'tset', 'validation'\]; expected"),
    "a list": ([], r"holds '\[\]'; expected training, validation, test"),
    "a name in place of a list": (LISTED | {"test": "p2"}, "'test' is 'p2'; expected a list of subjects"),
    "a number for a name": (LISTED | {"test": [2]}, r"'test' is '\[2\]'; expected a list of subjects"),
    "no JSON": ("{", "is not valid JSON"),
}


@pytest.mark.parametrize(("listed", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_file_that_does_not_fit_is_refused_by_place_and_tells_no_name(tmp_path, capsys, listed, message):
    assert convert(tmp_path, listed) == 1
    told = capsys.readouterr().err
    assert re.search(message, told)
    assert not re.search(r"p[0139]\b", told)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_names_that_are_no_secret_are_told(tmp_path, capsys):
    assert convert(tmp_path, LISTED | {"training": []}, "--keep-original-ids") == 1
    assert "2 of the 4 subjects found stand nowhere in it (p0, p3)" in capsys.readouterr().err


def test_a_missing_file_is_told(tmp_path, capsys):
    assert convert(tmp_path, LISTED, "--splits", str(tmp_path / "none.json")) == 1
    assert "none.json' is no file; expected JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    "other", [("--split", "0.5", "0.1", "0.4"), ("--split", "0.7", "0.1", "0.2"), ("--split-like",)]
)
def test_one_thing_alone_says_who_is_where(tmp_path, capsys, other):
    words = (*other, str(tmp_path)) if len(other) == 1 else other
    assert convert(tmp_path, LISTED, *words) == 1
    assert f"--splits says who is where, and so does {other[0]}: give one of both" in capsys.readouterr().err


def test_a_conversion_is_resumed_with_the_same_split_only(tmp_path, capsys):
    for _ in ("made", "resumed"):
        assert convert(tmp_path, LISTED, "--resume") == 0
    assert convert(tmp_path, LISTED | {"validation": ["p2"], "test": ["p1"]}, "--resume") == 1
    assert "was begun with the settings" in capsys.readouterr().err


def test_official_splits_agree_with_the_file(tmp_path):
    (tmp_path / "splits.json").write_text(json.dumps({"training": ["a"], "validation": ["b"], "test": ["c"]}))
    listed = {"a": "training", "b": "validation", "c": "test"}
    assert split_as_listed(tmp_path / "splits.json", ["a", "b", "c"], {"c": "test"}, True) == listed
    with pytest.raises(ValueError, match="1 subjects are in another split there than the source says"):
        split_as_listed(tmp_path / "splits.json", ["a", "b", "c"], {"c": "validation"}, True)


def test_other_sources_take_it_too(tmp_path, capsys):
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "bonn")):
        for kind, end in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
            path = tmp_path / "in" / kind / split / city / f"{city}_000000_000000_{end}.png"
            path.parent.mkdir(parents=True)
            grey = Image.linear_gradient("L").resize((64, 64))
            (grey.convert("RGB") if kind == "leftImg8bit" else grey.point([7] * 256)).save(path)
    (tmp_path / "s.json").write_text(json.dumps({"training": ["bochum"], "validation": ["aachen"], "test": ["bonn"]}))
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "--size", "64", "--keep-original-ids"]
    cityscapes.main([*words, "--splits", str(tmp_path / "s.json")])
    assert parts(tmp_path) == {"bochum": "training", "aachen": "validation", "bonn": "test"}
