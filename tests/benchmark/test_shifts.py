"""The definitions of the benchmark's shifts: what stands in the file, and what is refused in it."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import SOURCES
from data_prep.label_schemes import read_scheme
from data_prep.splits import split_by_subject
from unicorn_monai.benchmark import Shift, data_folder, read_shifts
from unicorn_monai.benchmark.shifts import SHIFTS
from unicorn_monai.data.layout import SPLITS
from unicorn_monai.simulation.weather import WEATHERS

NAMES = [
    *("wbc_cellavision_tecom", "camvid_day_dusk", "nuclei_fluorescence_histology", "real_anatomy", "home_oct"),
    *("swept_source", "swept_source_strong", "polarised", "polarised_strong", "streets"),
]
REAL = ("wbc", "camvid", "nuclei")
TINY = {"labelled": ["phantom"], "other": ["phantom", "--device", "home_oct"], "ci_unit": "subjects"}


def written(folder: Path, content: object) -> Path:
    path = folder / "shifts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def one(folder: Path, **entries: object) -> Path:
    return written(folder, {"size": 32, "shifts": {"tiny": TINY | entries}})


def words(shift: Shift, option: str, side: str) -> list[str]:
    """The words behind an option of a command."""
    behind = shift.commands(64)[side]
    behind = behind[behind.index(option) + 1 :]
    ends = [k for k, word in enumerate(behind) if word.startswith("--")]
    return behind[: ends[0] if ends else None]


# ---------------------------------------------------------------- the shifts there are


def test_the_shifts_of_the_benchmark():
    assert list(read_shifts().shifts) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_a_source_and_takes_the_size(name):
    for shift in read_shifts().shifts[name].parts():
        for side, command in shift.commands(128).items():
            assert command[0] in SOURCES
            assert words(shift, "--size", side) == (["256"] if side == "through" else ["64"])
            assert command[command.index("--size") + 1] == ("256" if side == "through" else "128")


@pytest.mark.parametrize("name", ["home_oct", "swept_source", "swept_source_strong", "polarised", "polarised_strong"])
def test_at_least_a_hundred_simulated_eyes_are_tested_on_each_side(name):
    shift = read_shifts().shifts[name]
    for side, device in (("labelled", "spectralis"), ("other", name)):
        assert words(shift, "--device", side) == [device]
        assert simulated(shift, side, "--subjects")["test"] >= 100


def simulated(shift: Shift, side: str, option: str, kinds: int = 1) -> Counter[str]:
    subjects = int(words(shift, option, side)[0]) // kinds
    shares = [float(word) for word in words(shift, "--split", side)]
    return Counter(split_by_subject([str(k) for k in range(subjects)], shares, 0).values())


def test_a_hundred_drives_are_tested_in_every_weather():
    shift = read_shifts().shifts["streets"]
    assert shift.sub_domains
    assert {*words(shift, "--weather", "other")} == {*WEATHERS} - {"clear"}
    assert simulated(shift, "labelled", "--drives")["test"] >= 100
    assert simulated(shift, "other", "--drives", 4)["test"] >= 100


def test_each_fold_of_the_real_anatomy_leaves_one_subject_out_of_both_sides():
    folds = read_shifts().shifts["real_anatomy"].parts()
    assert [fold.key for fold in folds] == [f"real_anatomy/subject{k}" for k in range(1, 8)]
    trained = Counter()
    for k, fold in enumerate(folds, 1):
        labelled, other = (
            {part: words(fold, f"--{part}", side) for part in SPLITS} for side in ("labelled", "through")
        )
        assert labelled["test"] == other["test"] == [str(k)]
        assert labelled["validation"] == other["validation"]
        everybody = [*labelled["training"], *other["training"], *labelled["validation"], str(k)]
        assert sorted(everybody) == list("1234567")  # nobody trains both sides
        trained.update(labelled["training"])
    assert set(trained.values()) == {3}


@pytest.mark.parametrize("side", ["labelled", "other"])
@pytest.mark.parametrize("name", REAL)
def test_a_committed_split_has_three_groups_to_test_and_enough_to_train(name, side):
    listed = json.loads((SHIFTS.parent / "splits" / f"{name}_{side}.json").read_text())
    assert len(listed["test"]) >= 3
    assert len(listed["training"]) >= 2
    assert len(listed["validation"]) >= 1
    groups = [group for part in SPLITS for group in listed[part]]
    assert len(set(groups)) == len(groups)
    assert len(listed["about"]) > 50


@pytest.mark.skipif(data_folder() is None, reason="real pictures: set UNICORN_DATA")
@pytest.mark.parametrize("side", ["labelled", "other"])
@pytest.mark.parametrize("name", REAL)
def test_a_committed_split_names_the_groups_that_there_are(name, side):
    shift = next(shift for key, shift in read_shifts().shifts.items() if key.startswith(name))
    folder = data_folder() / shift.needs[0] / side / "images"
    if not folder.is_dir():
        pytest.skip(f"'{folder}' is not there")
    listed = json.loads((SHIFTS.parent / "splits" / f"{name}_{side}.json").read_text())
    assert sorted(group for part in SPLITS for group in listed[part]) == sorted(p.name for p in folder.iterdir())


@pytest.mark.skipif(data_folder() is None, reason="real pictures: set UNICORN_DATA")
def test_the_seven_classes_are_those_of_the_data():
    folder = data_folder() / "real_shifts" / "camvid_day_dusk"
    if not folder.is_dir():
        pytest.skip(f"'{folder}' is not there")
    scheme = read_scheme(str(SHIFTS.with_name("camvid_7.json")))
    assert len(scheme.labels) == 7
    files = sorted((folder / "labels_7").rglob("*.png"))
    assert files
    for path in files[::10]:
        side, *place = path.relative_to(folder / "labels_7").parts
        found = scheme.replace(np.asarray(Image.open(folder.joinpath(side, "labels", *place))))
        np.testing.assert_array_equal(found, np.asarray(Image.open(path)))


# ---------------------------------------------------------------- a file of one's own


def test_what_is_not_said_is_one_training_with_seed_0(tmp_path):
    shift = read_shifts(one(tmp_path)).shifts["tiny"]
    assert (shift.trainings, shift.seeds, shift.folds, shift.sub_domains, shift.needs) == (1, (0,), {}, False, ())
    assert shift.parts() == [shift]
    assert shift.commands(32) == {"labelled": TINY["labelled"], "other": TINY["other"]}


def test_a_fold_gives_words_of_a_command(tmp_path):
    folds = {"a": {"who": ["1", "2"]}, "b": {"who": ["3"]}}
    source = ["spectralis_healthy", "{data}/x", "--size", "{size}", "--training", "{who}"]
    path = one(tmp_path, labelled=source, through=source, other=["home_oct", "{through}"], folds=folds, needs=["x"])
    shift = read_shifts(path).shifts["tiny"]
    first, second = shift.parts()
    assert (first.key, second.key) == ("tiny/a", "tiny/b")
    assert list(first.commands(48)) == ["labelled", "through", "other"]
    assert first.commands(48)["labelled"] == [*source[:3], "48", "--training", "1", "2"]
    assert second.commands(48)["through"][-2:] == ["--training", "3"]
    with pytest.raises(ValueError, match=r"'tiny' has folds, \['a', 'b'\]; expected one of them"):
        shift.commands(48)


def test_shifts_are_chosen_by_name(tmp_path):
    folds = {"a": {"k": ["1"]}, "b": {"k": ["2"]}}
    entries = {"plain": TINY, "parted": TINY | {"folds": folds, "other": ["phantom", "{k}"]}}
    benchmark = read_shifts(written(tmp_path, {"size": 32, "shifts": entries}))
    assert [shift.name for shift in benchmark.chosen([])] == ["plain", "parted"]
    assert [shift.name for shift in benchmark.chosen(["parted", "parted"])] == ["parted"]
    assert [part.key for shift in benchmark.chosen() for part in shift.parts()] == ["plain", "parted/a", "parted/b"]
    with pytest.raises(ValueError, match=r"Unknown shift\(s\) \['sideways'\]; expected some of \['plain', 'parted'\]"):
        benchmark.chosen(["sideways"])


REFUSED = {
    "unknown entry": ({"labeled": []}, r"shift tiny' has the entries \['labeled'\]; expected some of"),
    "a text for words": ({"labelled": "phantom"}, "'labelled' of .* is 'phantom'; expected a list of words"),
    "no words": ({"other": []}, r"'other' of .* is '\[\]'; expected a list of words"),
    "no training": ({"trainings": 0}, "'trainings' of .* is '0'; expected a whole number, 1 or more"),
    "no seed": ({"seeds": []}, "expected a list of seeds"),
    "a seed twice": ({"seeds": [1, 1]}, r"'seeds' of .* is \[1, 1\]; expected each once"),
    "another unit": ({"ci_unit": "pixels"}, "expected 'subjects', 'groups' or 'image blocks'"),
    "a switch as text": ({"sub_domains": "yes"}, "expected true or false"),
    "an output": ({"other": ["phantom", "--output", "x"]}, "has an --output; expected none"),
    "unknown place": ({"other": ["phantom", "{where}"]}, r"has the word '\{where\}'; expected some of"),
    "through without a command": (
        {"other": ["home_oct", "{through}"]},
        r"has the word '\{through\}'; expected some of",
    ),
    "data without needs": ({"other": ["rgb_folder", "{data}/x"]}, "'needs' is empty; expected the folders below it"),
    "a size in a word": ({"other": ["phantom", "--size={size}"]}, "of a size or a fold as a word of its own"),
    "no folds": ({"folds": {}}, "expected an object of folds"),
    "folds that differ": ({"folds": {"a": {"k": ["1"]}, "b": {}}}, r"Fold 'b' of .* gives \[\]; expected the same"),
    "a fold that hides a place": ({"folds": {"a": {"size": ["1"]}}}, r"Fold 'a' of .* gives \['size'\]"),
    "a fold with a path": ({"folds": {"../a": {"k": ["1"]}}}, r"The name '\.\./a' in .* cannot be used"),
}


@pytest.mark.parametrize(("entries", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_shift_that_no_command_can_be_made_of_is_refused_by_name(tmp_path, entries, message):
    with pytest.raises(ValueError, match=message) as refused:
        read_shifts(one(tmp_path, **entries))
    assert "tiny" in str(refused.value)


WHOLE = {
    "no JSON": ("{", "is not valid JSON"),
    "a list": ([], "expected a JSON object"),
    "no size": ({"shifts": {"tiny": TINY}}, "has no entry 'size'; expected pixels, 8 to 4096"),
    "a size as text": ({"size": "64", "shifts": {"tiny": TINY}}, "expected pixels, 8 to 4096"),
    "no shifts": ({"size": 64, "shifts": {}}, "expected an object of shifts"),
    "another entry": ({"size": 64, "shift": {}}, r"has the entries \['shift'\]; expected some of"),
    "a name of a path": ({"size": 64, "shifts": {"../up": TINY}}, r"The name '\.\./up' in"),
    "a shift that is none": ({"size": 64, "shifts": {"tiny": 3}}, "shift tiny' is '3'; expected a JSON object"),
    "nothing of a shift": ({"size": 64, "shifts": {"tiny": {}}}, "has no entry 'labelled'"),
    "a shift twice": (
        '{"size": 64, "shifts": {"tiny": %s, "tiny": %s}}' % ((json.dumps(TINY),) * 2),
        r"has \['tiny'\] twice in one object",
    ),
}


@pytest.mark.parametrize(("content", "message"), WHOLE.values(), ids=WHOLE.keys())
def test_a_file_that_is_no_benchmark_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as refused:
        read_shifts(written(tmp_path, content))
    assert re.search(r"shifts\.json", str(refused.value))
