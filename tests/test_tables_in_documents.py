"""Tables and numbers of documents come from committed results; a document that differs from its file is noticed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from command_line import CliRunner
from tests.report.test_report import audit, results, write
from unicorn_monai.cli import app
from unicorn_monai.report.documents import filled, write_documents
from unicorn_monai.report.results import Results
from unicorn_monai.report.tables import TABLES, markdown, read_runs
from unicorn_monai.report.trimming import trim

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_shows_what_its_files_hold(document: Path):
    assert filled(document) == document.read_text(encoding="utf-8"), (
        f"write it: unicorn-monai summary --write {document.relative_to(ROOT)}"
    )


RESULTS = ROOT / "docs" / "results"
COMMITTED = sorted(RESULTS.glob("*/results.json"))
CELLS = sorted(RESULTS.glob("benchmark/*/*/results.json"))


@pytest.mark.parametrize("path", [*COMMITTED, *CELLS], ids=lambda path: str(path.parent.relative_to(RESULTS)))
def test_committed_results_are_small_and_tell_nothing_of_the_machine(path: Path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < (120_000 if path in CELLS else 40_000)
    assert not re.search(r"(?<![\w.:/~])/\w+/", text)
    assert path in CELLS or read_runs([path])[0].scores


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for documents, beside the results of two runs."""
    for name, shift in (("a", 0.0), ("b", 0.1)):
        content = results()
        content["segmentation"]["unicorn"]["mean_iou"] += shift
        (tmp_path / name).mkdir()
        write(tmp_path / name / "results.json", content)
    return tmp_path


def page(folder: Path, text: str) -> Path:
    (folder / "page.md").write_text(text, encoding="utf-8")
    return folder / "page.md"


def test_a_table_is_written_between_its_markers_and_stays_as_it_is(folder: Path):
    document = page(folder, "Before.\n\n<!-- table: a/results.json scores -->\nold\n<!-- /table -->\n\nAfter.\n")
    done = CliRunner().invoke(app, ["summary", "--write", str(document)])
    assert done.exit_code == 0, done.output
    lines = document.read_text().splitlines()
    assert lines[:3] == ["Before.", "", "<!-- table: a/results.json scores -->"]
    assert "| unicorn | 0.620 |  | 0.432 | 0.765 | 40 % |  |" in lines
    assert "| unicorn+real | 0.680 | 0.650 to 0.710 | 0.432 | 0.765 | 60 % | 55 to 64 % |" in lines
    assert lines[-3:] == ["<!-- /table -->", "", "After."]
    assert "old" not in lines
    assert write_documents([document]) == "no document has changed"


def test_several_runs_give_mean_and_spread(folder: Path):
    document = page(folder, "<!-- table: a/results.json b/results.json scores --><!-- /table -->")
    assert "| unicorn | 0.670 (0.620 to 0.720) |" in filled(document)
    assert "| 57 % (40 to 73 %) |" in filled(document)


def test_rows_and_columns_are_chosen_ordered_and_renamed(folder: Path):
    order = "rows: upper_bound; unicorn = **ours**, alone\ncolumns: gap closed; mean IoU = score\n"
    document = page(folder, f"<!-- table: a/results.json scores\n{order}-->\n<!-- /table -->")
    table = [line for line in filled(document).splitlines() if line.startswith("|")]
    assert table == [
        "| trained on | gap closed | score |",
        "|---|---|---|",
        "| upper_bound |  | 0.800 |",
        "| **ours**, alone | 40 % | 0.620 |",
    ]


VALUES = {
    "a number": ("segmentation.unicorn+real.mean_iou .3f", "0.680"),
    "per cent": ("gap.unicorn+real.share .0%", "60 %"),
    "an interval": ("gap.unicorn+real.ci95 .0%", "55 to 64 %"),
    "an entry of a list": ("control.curve.1.requested .2f", "0.10"),
    "a quotient by a number": ("seconds.autoencoder/60 .1f", "10.2"),
    "a quotient": ("autoencoder.labeled.high_pass_std.1/autoencoder.labeled.high_pass_std.0 .2f", "1.15"),
    "a sign": ("segmentation.unicorn.mean_iou +.2f", "+0.62"),
    "the start of a text": ("simulated .7", "devices"),
}


@pytest.mark.parametrize(("order", "text"), VALUES.values(), ids=VALUES.keys())
def test_a_value_in_prose(folder: Path, order: str, text: str):
    head = f"<!-- value: a/results.json {order} -->"
    assert filled(page(folder, f"It is {head}?<!-- /value -->.")) == f"It is {head}{text}<!-- /value -->."


WRONG = {
    "no such file": ("<!-- table: c/results.json scores --><!-- /table -->", "c/results.json' does not exist"),
    "no such kind": ("<!-- table: a/results.json score --><!-- /table -->", "is of 'score'; expected"),
    "nothing of it": ("<!-- table: a/results.json domains --><!-- /table -->", "nothing for a table of domains"),
    "no such row": ("<!-- table: a/results.json scores\nrows: cut\n--><!-- /table -->", "no 'cut'; expected some of"),
    "no such column": ("<!-- table: a/results.json scores\ncolumns: IoU\n--><!-- /table -->", "no 'IoU'; expected"),
    "another line": ("<!-- table: a/results.json scores\nrow: cut\n--><!-- /table -->", "the line 'row: cut'"),
    "no end": ("<!-- table: a/results.json scores -->\n", "has no counterpart"),
    "another end": ("<!-- table: a/results.json scores --><!-- /value -->", "has no counterpart"),
    "no beginning": ("0.68<!-- /value -->", "has no counterpart"),
    "one in another": (
        "<!-- value: a/results.json simulated .3 --><!-- value: a/results.json simulated .3 -->x<!-- /value -->",
        "has no counterpart",
    ),
    "no such value": ("<!-- value: a/results.json gap.cut.share .0% -->1<!-- /value -->", "'gap.cut.share' of"),
    "no such file of a value": ("<!-- value: c.json gap .0% -->1<!-- /value -->", r"c\.json"),
    "no format": ("<!-- value: a/results.json gap -->1<!-- /value -->", "expected FILE WHAT FORMAT"),
    "a format of another type": ("<!-- value: a/results.json simulated .2f -->1<!-- /value -->", "cannot be shown"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_marker_that_means_nothing_is_refused_and_nothing_is_written(folder: Path, text: str, message: str):
    good = folder / "good.md"
    good.write_text("<!-- value: a/results.json simulated .3 -->?<!-- /value -->")
    with pytest.raises(ValueError, match=message) as caught:
        write_documents([good, page(folder, text)])
    assert "page.md" in str(caught.value)
    assert "?" in good.read_text()


def test_markers_in_code_are_left_alone(folder: Path):
    text = "```\n<!-- table: no/where.json scores -->\n```\nand `<!-- value: x -->` too\n"
    assert filled(page(folder, text)) == text


# ---------------------------------------------------------------- what is committed


@pytest.fixture
def run(folder: Path) -> Path:
    content = results() | {"memorization": audit(), "commands": {"x": "y"}, "sha256": {"a.pt": "1"}}
    content["segmentation"]["unicorn"]["per_image"] = {"iou": [0.1] * 1000, "mean_iou": 0.5}
    content["differences"] = {"lower_bound": {"unicorn": {"difference": 0.12, "ci95": [0.1, 0.14], "n_subjects": 14}}}
    content["segmentation"]["unicorn"]["iou"] = content["segmentation"]["lower_bound"]["iou"] = [
        0.1234567891,
        0.5,
        1,
        0,
    ]
    for scores in content["segmentation"].values():
        scores["iou"] = [0.1234567891, 0.5, 1, 0]
    content["fid"] = {
        "unlabeled": {"unicorn": 1.0},
        "labeled": {"unicorn": 2.0},
        "n": 9,
        "features": "of /srv/f/net.pt",
    }
    content["weights"] = {"unicorn": {"table": [{"weight": 1.0, "measured_mean": 0.1, "picture": "1.png"}]}}
    write(folder / "a" / "results.json", content)
    settings = {
        "labeled": "/srv/data/a",
        "seed": 3,
        "preset": "quick",
        "trainings": 1,
        "features": {"path": "/srv/f.pt"},
    }
    start = {
        "command": "unicorn-monai experiment --config /mnt/x/s.json --output=/opt/y/runs/demo",
        "settings": settings,
    }
    write(folder / "a" / "experiment.json", start | {"git_revision": "abc", "versions": {"torch": "2.13"}})
    return folder / "a"


def test_trimmed_results_give_the_same_tables_in_little_room(run: Path, tmp_path: Path):
    path = tmp_path / "docs" / "a" / "results.json"
    done = CliRunner().invoke(app, ["summary", str(run), "--trim", str(path)])
    assert done.exit_code == 0, done.output
    for kind, table in TABLES.items():
        assert markdown(table(read_runs([path]))) == markdown(table(read_runs([run]))), kind
    whole, small = json.loads((run / "results.json").read_text()), json.loads(path.read_text())
    assert Results.of(small).gap_closed() == Results.of(whole).gap_closed()
    assert "per_image" not in path.read_text()
    assert "images/1.png" not in path.read_text()
    assert not {"commands", "sha256", "environment"} & small.keys()
    assert path.stat().st_size < 8000


def test_trimmed_results_say_how_to_repeat_the_run_and_nothing_of_the_machine_it_ran_on(run: Path, tmp_path: Path):
    trim([run], tmp_path / "t.json", {"preset": "full", "trainings": 1, "features": None})
    text = (tmp_path / "t.json").read_text()
    assert "/srv" not in text
    assert "/mnt" not in text
    assert "/opt" not in text
    told = json.loads(text)["run"]
    assert told["command"] == "unicorn-monai experiment --config s.json --output=demo"
    assert told["settings"] == {"preset": "quick", "seed": 3, "features": {"path": "f.pt"}}
    assert (told["git_revision"], told["versions"], told["flagged"]) == ("abc", {"torch": "2.13"}, 3)
    assert told["machine"] == {"machine": "x86_64"}
    assert json.loads(text)["segmentation"]["unicorn"]["iou"] == [0.123457, 0.5, 1, 0]


def test_only_one_finished_run_is_trimmed(folder: Path):
    with pytest.raises(ValueError, match="--trim takes one run; found 2"):
        trim([folder / "a", folder / "b"], folder / "t.json", {})
    with pytest.raises(ValueError, match=r"holds no results\.json"):
        trim([folder], folder / "t.json", {})
