"""What reaches a terminal is text: no code of a file's name or content is obeyed by it."""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import CliRunner
from data_prep.check import main as check
from data_prep.image_folder import main as image_folder
from unicorn_monai.bundle.installation import install
from unicorn_monai.cli import app, main
from unicorn_monai.data.layout import HEADER
from unicorn_monai.report.tables import cell
from unicorn_monai.system.console import BAD_USAGE, command_line, run_commands
from unicorn_monai.system.terminal import LINES, PrintableFormatter, guard_terminal, printable, say

ROOT = Path(__file__).parents[2]
EVIL = "\x1b[2J\x1b]0;title\x07\r\x9b31m\u202efine\u2066"
SEEN = r"\x1b[2J\x1b]0;title\x07\r\x9b31m\u202efine\u2066"


def is_text(output: str) -> bool:
    """Whether a terminal would obey nothing in it but the ends of lines."""
    return printable(output, LINES) == output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (EVIL, SEEN),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x00\x7f\x85\u2028\ufeff\xad", r"\x00\x7f\x85\u2028\ufeff\xad"),
        ("\udce9.png", r"\udce9.png"),  # a name that is not UTF-8
        ("\U000e0041", r"\U000e0041"),
        (
            "Müller, 網膜, 👩\u200d⚕️, 1\u00a0%, a\\x1b",
            "Müller, 網膜, 👩\u200d⚕️, 1\u00a0%, a\\x1b",
        ),
    ],
)
def test_codes_become_visible_and_writing_stays(text, expected):
    assert printable(text) == expected


def test_lines_stay_where_a_text_has_several():
    assert printable("a\nb\tc\r", LINES) == "a\nb\tc\\r"


def test_a_message_a_log_a_warning_and_a_usage_error_are_text(capsys):
    say(EVIL)
    record = logging.LogRecord("n", logging.INFO, "f", 1, "%s", (EVIL,), None)
    try:
        raise ValueError(EVIL)
    except ValueError:
        record.exc_info = sys.exc_info()
    sys.stdout.write(PrintableFormatter().format(record))
    before = warnings.formatwarning
    try:
        guard_terminal()
        guard_terminal()
        sys.stdout.write(warnings.formatwarning(UserWarning(EVIL), UserWarning, EVIL, 1))
    finally:
        warnings.formatwarning = before
    assert run_commands(command_line("p"), [EVIL]) == BAD_USAGE
    out = capsys.readouterr()
    assert is_text(out.out)
    assert is_text(out.err)
    assert out.out.count(SEEN) >= 4
    assert out.err.count(SEEN) == 1


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(path)


def test_prepare_tells_names_of_files_as_text(tmp_path, capsys):
    for i in range(3):
        picture(tmp_path / "in" / "images" / f"{i}.png")
    (tmp_path / "in" / "images" / f"{EVIL.replace('/', '')}.png").write_bytes(b"no picture")
    words = ["--subject-pattern", "(.*)", "--labels", "none", "--size", "16", "--keep-original-ids"]
    image_folder([str(tmp_path / "in"), str(tmp_path / "out"), *words, "--device-name", EVIL])
    out = capsys.readouterr()
    assert is_text(out.out + out.err)
    assert SEEN in out.out + out.err


def test_check_tells_a_header_as_text_line_by_line(tmp_path, capsys):
    forged = f"x{EVIL}\nno problem(s)"
    item = {"image": f"images/{forged}.png", "subject": forged}
    labels = {"0": forged, "1": forged}
    (tmp_path / HEADER).write_text(json.dumps({"name": forged, "device": forged, "labels": labels, "training": [item]}))
    assert check([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert is_text(out)
    assert not [line for line in out.splitlines() if line.startswith("no problem")]
    assert check([str(tmp_path), "--json"]) == 1
    assert is_text(capsys.readouterr().out)


def test_verify_tells_names_and_contents_as_text_line_by_line(tmp_path):
    bundle = install("retinal_unet", tmp_path)
    (bundle / f"x{EVIL}\nno findings.py").write_text("")
    (bundle / "configs" / "more.json").write_text(json.dumps({EVIL: f"${EVIL}", "a": {"_target_": EVIL}}))
    (bundle / "SHA256SUMS").write_text(EVIL + "\n", newline="")
    result = CliRunner().invoke(app, ["verify", str(bundle)])
    assert result.exit_code == 1
    assert is_text(result.output)
    assert not [line for line in result.output.splitlines() if line.startswith("no findings")]


@pytest.mark.parametrize(
    "words",
    [
        [EVIL],
        [f"--{EVIL}"],
        ["demo", "--scene", EVIL],
        ["demo", f"--{EVIL}"],
        ["experiment", "--rounds", EVIL],
        ["import-weights", "x", "--bundle", "y", "--set", EVIL],
        ["prepare", EVIL],
        ["prepare", "image_folder", "a", "b", EVIL],
        ["prepare", "image_folder", "a", "b", "--size", "8", EVIL],
        ["prepare", "acdc", "a", "b", "--weather", EVIL],
    ],
)
def test_a_usage_error_of_any_command_is_text_on_a_line(words):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == BAD_USAGE
    assert is_text(done.output)
    assert repr(EVIL)[1:9] in done.output
    assert len(done.output.splitlines()) == 2


def test_names_in_a_summary_stay_in_their_cells():
    assert cell(f"a|b\n|{EVIL}<script>") == rf"a\|b\n\|{SEEN}&lt;script&gt;"


def test_an_error_is_text(tmp_path, monkeypatch, capsys):
    folder = tmp_path / EVIL.replace("/", "")
    folder.mkdir()
    monkeypatch.setattr(sys, "argv", ["unicorn-monai", "report", str(folder)])
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr().err
    assert is_text(told)
    assert SEEN in told


@pytest.mark.parametrize("folder", ["unicorn_monai", "data_prep"])
def test_nothing_is_printed_past_the_one_place(folder):
    past = re.compile(r"(?<![\w.])print\(|ArgumentParser\(|\bApp\(|sys\.(stdout|stderr)\.write|logging\.Formatter\(")
    sources = [path for path in (ROOT / folder).rglob("*.py") if path.name not in ("terminal.py", "console.py")]
    assert sources
    assert [(p.name, line) for p in sources for line in p.read_text().splitlines() if past.search(line)] == []
