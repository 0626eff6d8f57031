"""A shift is made from its definition, once; what cannot be made is told in a sentence."""

from __future__ import annotations

import _thread
import json
import logging
import signal
import threading
import time
from pathlib import Path

import pytest

from unicorn_monai.benchmark import (
    Shift,
    absent,
    data_folder,
    place_of,
    prepare,
    read_shifts,
    run_folder,
    settings,
    sizes,
)
from unicorn_monai.benchmark.preparation import require_size
from unicorn_monai.experiment.settings import Settings

EYES = ["phantom", "--size", "{size}", "--subjects", "4", "--scans-per-subject", "1", "--split", "0.5", "0.25", "0.25"]
OTHERS = [*EYES, "--device", "home_oct"]


def shift(folder: Path, **entries: object) -> Shift:
    """A tiny simulated shift, from a settings file of its own."""
    entry = {"labelled": EYES, "other": OTHERS, "ci_unit": "subjects"} | entries
    (folder / "shifts.json").write_text(json.dumps({"size": 64, "shifts": {"tiny": entry}}))
    return read_shifts(folder / "shifts.json").shifts["tiny"]


def test_both_data_sets_are_made_and_one_line_tells_so(tmp_path, capfd, caplog):
    caplog.set_level(logging.INFO, "unicorn_monai")
    pair = prepare(shift(tmp_path), tmp_path / "bench", None, 64)
    assert pair == place_of(shift(tmp_path), tmp_path / "bench")
    assert pair.other == tmp_path / "bench/data/tiny/other"
    once = {"images": 2, "labelled": 2, "subjects": 2}
    half = {"images": 1, "labelled": 1, "subjects": 1}
    assert sizes(pair) == {side: {"training": once, "validation": half, "test": half} for side in ("labelled", "other")}
    assert capfd.readouterr() == ("", "")
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["tiny of 64 x 64 pixels"]


def test_what_is_finished_is_kept_and_what_was_interrupted_is_made_anew(tmp_path):
    pair = prepare(shift(tmp_path), tmp_path, None, 64)
    before = (pair.labelled / "dataset.json").stat().st_mtime_ns
    pair.other.rename(pair.other.with_name("other.making"))  # as if it had stopped there
    (pair.other.with_name("other.making") / "dataset.json").unlink()
    assert prepare(shift(tmp_path), tmp_path, None, 64) == pair
    assert (pair.labelled / "dataset.json").stat().st_mtime_ns == before
    assert sorted(path.name for path in pair.other.parent.iterdir()) == ["labelled", "other", "prepared.json"]


def test_an_interruption_ends_all_and_leaves_nothing_that_looks_finished(tmp_path):
    place = tmp_path / "data/tiny"

    def interrupt() -> None:
        until = time.monotonic() + 60
        while not list(place.glob("labelled.making/images/*.nii.gz")) and time.monotonic() < until:
            time.sleep(0.01)
        _thread.interrupt_main()  # as Ctrl-C

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            prepare(shift(tmp_path, labelled=[*EYES, "--subjects", "5000"]), tmp_path, None, 64)
    finally:
        signal.signal(signal.SIGINT, before)
    assert sorted(path.name for path in place.iterdir()) == ["labelled.making", "prepared.json"]
    assert not (place / "labelled.making/dataset.json").exists()


def test_another_size_is_refused(tmp_path):
    prepare(shift(tmp_path), tmp_path, None, 64)
    with pytest.raises(ValueError, match=r"data/tiny' was made with the size 64, not 128. Choose another folder"):
        prepare(shift(tmp_path), tmp_path, None, 128)


def test_another_definition_is_refused(tmp_path):
    prepare(shift(tmp_path), tmp_path, None, 64)
    with pytest.raises(ValueError, match=r"was made with the commands .*'home_oct'.*, not .*'polarised'"):
        prepare(shift(tmp_path, other=[*EYES, "--device", "polarised"]), tmp_path, None, 64)


def test_the_data_may_move_and_a_split_may_not_change(tmp_path):
    for side in ("labelled", "other"):
        pictures(tmp_path / "real" / side)
    (tmp_path / "splits.json").write_text(json.dumps({"training": ["a", "b"], "validation": ["c"], "test": ["d"]}))
    words = ["--labels", "none", "--size", "{size}", "--splits", "{here}/splits.json", "--keep-original-ids"]
    sides = {side: ["rgb_folder", f"{{data}}/real/{side}", *words] for side in ("labelled", "other")}
    real = shift(tmp_path, **sides, needs=["real"])
    pair = prepare(real, tmp_path / "bench", tmp_path, 64)
    assert sizes(pair)["other"]["training"] == {"images": 2, "labelled": 0, "subjects": 2}
    (tmp_path / "moved").mkdir()
    (tmp_path / "real").rename(tmp_path / "moved" / "real")
    assert prepare(real, tmp_path / "bench", tmp_path / "moved", 64) == pair
    (tmp_path / "splits.json").write_text(json.dumps({"training": ["a", "c"], "validation": ["b"], "test": ["d"]}))
    with pytest.raises(ValueError, match=r"was made with the files {'splits\.json': "):
        prepare(real, tmp_path / "bench", tmp_path / "moved", 64)
    (tmp_path / "splits.json").unlink()
    with pytest.raises(ValueError, match=r"'tiny' needs \['splits.json'\], which are not in"):
        prepare(real, tmp_path / "bench", tmp_path / "moved", 64)


def pictures(folder: Path) -> None:
    """One picture of each of four groups."""
    from PIL import Image

    for group in "abcd":
        (folder / group).mkdir(parents=True)
        grey = Image.linear_gradient("L").resize((64, 64)).rotate(90 * "abcd".index(group))
        Image.merge("RGB", [grey, grey, grey]).save(folder / group / "0.png")


def test_a_fold_is_prepared_by_itself_through_what_does_not_stay(tmp_path):
    through = [*EYES, "--seed", "{seed}", "--first-subject", "{first}"]
    folds = {"a": {"seed": ["1"], "first": ["500"]}, "b": {"seed": ["2"], "first": ["700"]}}
    parted = shift(tmp_path, through=through, other=["home_oct", "{through}", "--size", "{size}"], folds=folds)
    pair = prepare(parted.parts()[1], tmp_path, None, 64)
    assert pair.other == tmp_path / "data/tiny/b/other"
    header = json.loads((pair.other / "dataset.json").read_text())
    assert (header["device"], header["simulated_device"]) == ("home_oct", True)
    assert {item["subject"] for item in header["training"]} <= {f"s70{k}" for k in range(4)}
    assert sorted(path.name for path in pair.other.parent.iterdir()) == ["labelled", "other", "prepared.json"]
    with pytest.raises(ValueError, match="'tiny' has folds"):
        prepare(parted, tmp_path, None, 64)


def test_data_that_are_not_there_are_told_by_what_was_looked_for_and_where(tmp_path, monkeypatch):
    needy = shift(tmp_path, labelled=["rgb_folder", "{data}/real/x"], needs=["real/x", "real/y"])
    (tmp_path / "real/x").mkdir(parents=True)
    assert absent(needy, tmp_path).startswith(
        f"'tiny' is left out: it needs real/y, looked for in $UNICORN_DATA = '{tmp_path}'"
    )
    monkeypatch.delenv("UNICORN_DATA", raising=False)
    assert data_folder() is None
    with pytest.raises(ValueError, match=r"it needs real/x, real/y, \$UNICORN_DATA is not set"):
        prepare(needy, tmp_path, data_folder(), 64)
    monkeypatch.setenv("UNICORN_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    (tmp_path / "real/y").mkdir()
    assert absent(needy, data_folder()) is None
    assert absent(shift(tmp_path), None) is None


FAILS = {
    "unknown source": (["phantoms"], "unknown source 'phantoms'"),
    "unknown option": ([*EYES, "--strength", "3"], "--strength"),
    "unknown device": ([*EYES, "--device", "nothing"], "nothing"),
    "a domain of one subject in three parts": ([*EYES, "--subjects", "1"], "1 subjects cannot fill 3 splits"),
}


@pytest.mark.parametrize(("words", "message"), FAILS.values(), ids=FAILS.keys())
def test_a_command_that_fails_is_told_with_what_it_said(tmp_path, capfd, words, message):
    with pytest.raises(ValueError, match=f"'tiny' cannot be prepared by `unicorn-monai prepare .*{message}"):
        prepare(shift(tmp_path, other=words), tmp_path, None, 64)
    assert capfd.readouterr() == ("", "")
    assert not place_of(shift(tmp_path), tmp_path).other.exists()


POOR = {
    "fewer than eight unlabelled images": ([], 2, 1),
    "one subject, all for training": (["--subjects", "1", "--split", "1", "0", "0"], 1, 0),
    "no labels to test with": (["--unlabeled"], 2, 1),
    "nothing to train with": (["--split", "0", "0.5", "0.5"], 0, 2),
}


@pytest.mark.parametrize(("words", "training", "test"), POOR.values(), ids=POOR.keys())
def test_poor_data_are_prepared_and_counted(tmp_path, words, training, test):
    counts = sizes(prepare(shift(tmp_path, other=[*OTHERS, *words]), tmp_path, None, 64))["other"]
    assert (counts["training"]["images"], counts["test"]["images"]) == (training, test)
    assert counts["test"]["labelled"] == (0 if "--unlabeled" in words else test)


# ---------------------------------------------------------------- settings


def test_settings_of_an_experiment(tmp_path):
    tiny = shift(tmp_path, trainings=3)
    pair = prepare(tiny, tmp_path, None, 64)
    made = settings(tiny, tmp_path, ["lower_bound", "augmentation", "cyclegan+real", "cyclegan", "upper_bound"], 64)
    assert made == {
        "labeled": str(pair.labelled),
        "unlabeled": str(pair.other),
        "output": str(tmp_path / "tiny"),
        "preset": "quick",
        "modes": [],
        "baselines": ["augmentation", "cyclegan"],
        "trainings": 3,
        "seed": 0,
        "transfer_minutes": 8,
        "words": False,
    }
    assert Settings.from_dict(made).baselines == ("augmentation", "cyclegan")


def test_every_seed_and_every_fold_has_a_run_folder(tmp_path):
    assert run_folder(shift(tmp_path, seeds=[4]), tmp_path, 4) == tmp_path / "tiny"
    assert run_folder(shift(tmp_path, seeds=[0, 1]), tmp_path, 1) == tmp_path / "tiny/seed1"
    parted = shift(tmp_path, seeds=[0, 1], folds={"a": {"k": ["1"]}}, other=["phantom", "{k}"])
    assert run_folder(parted.parts()[0], tmp_path) == tmp_path / "tiny/a/seed0"
    with pytest.raises(ValueError, match=r"seed is 2; expected one of 'tiny', \[0, 1\]"):
        run_folder(shift(tmp_path, seeds=[0, 1]), tmp_path, 2)


def test_settings_that_cannot_be_run_are_refused(tmp_path):
    tiny = shift(tmp_path)
    with pytest.raises(ValueError, match=r"holds data of size None; expected 64. Prepare the shift first"):
        settings(tiny, tmp_path, [], 64)
    prepare(tiny, tmp_path, None, 64)
    with pytest.raises(ValueError, match="holds data of size 64; expected 128"):
        settings(tiny, tmp_path, [], 128)
    with pytest.raises(ValueError, match=r"size is 96; expected one of \[64, 128\]"):
        require_size(96)
    with pytest.raises(ValueError, match=r"Unknown method\(s\) \['magic'\]; expected some of \['lower_bound'"):
        settings(tiny, tmp_path, ["augmentation", "magic"], 64)
