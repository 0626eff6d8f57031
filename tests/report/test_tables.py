"""The summary of several runs: every run once, and what is missing is said, whatever is given for a run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from command_line import CliRunner
from tests.report.test_report import on_both_devices, results
from unicorn_monai.cli import app
from unicorn_monai.report.tables import score_table, summarise


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results() | changes))
    return folder


def linked(run: Path) -> Path:
    (run.parent / "link").symlink_to(run)
    return run.parent / "link"


def relative(run: Path) -> Path:
    return Path(os.path.relpath(run))


def copied(run: Path) -> Path:
    return shutil.copytree(run, run.parent / "copy")


@pytest.mark.parametrize("again", [lambda run: run, linked, relative, copied], ids=["same", "link", "relative", "copy"])
def test_a_run_given_twice_is_refused(tmp_path, again):
    run, other = write(tmp_path / "a"), write(tmp_path / "b", wall_seconds=3.0)
    with pytest.raises(ValueError, match=r"are one run \(the same .*expected each once.* another --seed"):
        summarise([run, other, again(run)])


def test_runs_that_share_some_networks_are_two_and_those_that_share_all_are_one(tmp_path):
    first = {"labeled/dataset.json": "0", "bundles/a.pt": "1", "segmentation/b.pt": "2"}
    run = write(tmp_path / "a", sha256=first)
    other = write(tmp_path / "b", sha256=first | {"segmentation/b.pt": "3"})
    assert "| lower_bound | 0.500 (0.500 to 0.500) |" in summarise([run, other])
    went_on = write(tmp_path / "c", sha256=first | {"segmentation/more.pt": "4"}, wall_seconds=1)
    with pytest.raises(ValueError, match="the same networks"):
        summarise([run, went_on])


@pytest.mark.parametrize("missing", ["autoencoder", "diffusion", "control", "uncertainty", "segmentation", "seconds"])
def test_what_a_run_lacks_is_told_and_never_a_key(tmp_path, missing):
    whole = results()
    del whole[missing]
    (tmp_path / "results.json").write_text(json.dumps(whole))
    done = CliRunner().invoke(app, ["summary", str(tmp_path)])
    if missing in ("uncertainty", "segmentation", "seconds"):
        assert f"'{missing}' is None; expected what an experiment writes there" in str(done.exception)
    else:
        assert done.exit_code == 0
        assert "not computed" in done.output or missing == "control"


def test_scores_of_both_devices_have_columns_where_a_run_has_them(tmp_path):
    assert "labelled device" not in summarise([write(tmp_path / "old")])
    segmentation = on_both_devices()
    run = write(tmp_path / "new", segmentation=segmentation, strongest={"setup": "lower_bound"})
    head, _, *rows = summarise([run]).split("\n\n")[0].splitlines()
    assert head.endswith("| labelled device | ECE | NLL |")
    assert rows[0].endswith("| 0.550 | 0.087 | 0.456 |")
    assert "| 0.650 to 0.710 (image blocks and trainings) |" in rows[2]
    table = score_table(json.loads((run / "results.json").read_text()))
    assert [column.header for column in table.columns][-3:] == ["labelled device", "ECE", "NLL"]
    assert table.caption == "intervals over image blocks and trainings; strongest opponent: lower_bound"


OTHERS = {
    "a list": ("[1, 2]", r"is \[1, 2\]; expected an object"),
    "empty": ("{}", "'labels' is None"),
    "of a data set": ('{"labels": {"0": "a"}, "training": []}', "'labels' is {'0': 'a'}; expected a list"),
    "a score that is none": (
        json.dumps(results() | {"segmentation": {"unicorn": 0.7}}),
        "'segmentation.unicorn' is 0.7; expected an object",
    ),
    "no JSON": ("{", "is not valid JSON"),
}


@pytest.mark.parametrize(("text", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_what_is_no_result_of_a_run_is_refused_in_a_sentence(tmp_path, text, message):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        summarise([tmp_path])
