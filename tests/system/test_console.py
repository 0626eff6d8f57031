"""The commands before and after their work: help, usage errors before anything heavy is loaded, readers that leave."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import data_prep
from command_line import CliRunner
from data_prep import acdc
from data_prep.privacy import read_key
from data_prep.splits import split_by_subject
from unicorn_monai.cli import app
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.system.console import BAD_USAGE, CLOSED_PIPE, run_commands

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
START = "import sys; from unicorn_monai.cli import main; sys.argv[0] = 'unicorn-monai'"
LOADED = "import atexit, sys; atexit.register(lambda: print('loaded:', *({'torch', 'monai'} & {*sys.modules})))"


def command(*words: str, before: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own; ``before`` it, some Python."""
    code = f"{before}\n{START}\nmain()"
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=ENVIRONMENT, cwd=cwd, check=False
    )


# ---------------------------------------------------------------- usage

USAGE = {  # words, exit status, what is said
    "help": (["--help"], 0, "experiment"),
    "help of prepare": (["prepare", "--help"], 0, r"heidelberg: .*Options of a source"),
    "help of a source": (["prepare", "image_folder", "--help"], 0, "--subject-pattern"),
    "nothing given": (["experiment"], 2, "missing --labeled and --unlabeled"),
    "one data set": (["experiment", "--labeled", "a"], 2, "missing --unlabeled"),
    "no such preset": (
        ["experiment", "--labeled", "a", "--unlabeled", "b", "--preset", "tiny"],
        2,
        '"tiny" for --preset',
    ),
    "no round": (["experiment", "--labeled", "a", "--unlabeled", "b", "--rounds", "0"], 2, "--rounds"),
    "no such folder": (["experiment", "--labeled", "a", "--unlabeled", "b"], 1, "folder 'a' does not exist"),
    "no such settings": (["experiment", "--config", "a.json"], 1, "Cannot read the settings 'a.json'"),
    "no such scene": (["demo", "--scene", "mars"], 2, '"mars" for --scene'),
    "no such source": (["prepare", "polaroid", "A", "B"], 2, "unknown source 'polaroid'; expected one of heidelberg"),
    "no source": (["prepare", "options", "A", "B"], 2, "unknown source 'options'"),
    "no output": (["prepare", "image_folder", "A"], 2, "prepare image_folder: error: required: OUTPUT"),
    "size": (["prepare", "image_folder", "A", "B", "--size", "7"], 1, r"--size \[7\]: expected one number or two"),
    "pattern": (["prepare", "volumes", ".", "../B", "--subject-pattern", "("], 1, "is no regular expression"),
    "no input": (["prepare", "rgb_folder", "A", "B"], 1, "INPUT 'A' does not exist"),
    "no data set": (["check", "A"], 1, "folder 'A' does not exist"),
}


@pytest.mark.parametrize(("words", "status", "said"), USAGE.values(), ids=USAGE.keys())
def test_usage_is_told_before_pytorch_and_monai_are_loaded(tmp_path, words, status, said):
    done = command(*words, before=LOADED, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert re.search(said, done.stdout + done.stderr, re.DOTALL)
    assert done.stdout.splitlines()[-1] == "loaded:", "neither PyTorch nor MONAI"
    assert list(tmp_path.iterdir()) == []


def test_prepare_lists_every_source_of_the_documentation():
    rows = re.findall(r"^\| \[(\w+)\]\(#\1\) \|", (ROOT / "data_prep/README.md").read_text(), re.MULTILINE)
    assert rows == list(data_prep.SOURCES)
    listed = CliRunner().invoke(app, ["prepare", "--help"]).output
    assert re.findall(r"^(\w+): ", listed, re.MULTILINE) == rows
    assert all(f"    unicorn-monai prepare {source} " in listed for source in rows)


@pytest.mark.parametrize("source", data_prep.SOURCES)
def test_every_source_has_a_help_and_calls_itself_as_it_was_called(source, capsys):
    main = import_module(f"data_prep.{source}").main
    for name, start in ((f"python -m data_prep.{source}", main), (f"unicorn-monai prepare {source}", None)):
        words = ["--help"] if start else ["prepare", source, "--help"]
        assert (start or (lambda words: run_commands(app, words)))(words) == 0
        told = capsys.readouterr().out
        assert told.startswith(f"Usage: {name} ")
        assert "OUTPUT" in told
        assert "--seed INT" in told
        assert (start or (lambda words: run_commands(app, ["prepare", source, *words])))(["--nonsense"]) == BAD_USAGE
        assert capsys.readouterr().err.startswith(f"{name}: error: Unknown option: --nonsense.")


TAKEN = {  # words behind INPUT OUTPUT -> what becomes of them
    "one number": (["--size", "64"], {"size": (64,), "shape": (64, 64)}),
    "two": (["--size", "64", "96"], {"size": (64, 96), "shape": (64, 96)}),
    "the last time counts": (["--size", "64", "96", "--size=128"], {"size": (128,)}),
    "of a single value too": (["--seed", "1", "--seed", "2"], {"seed": 2}),
    "negative and small": (["--split", "1", "-0.5", "1e-3"], {"split": (1.0, -0.5, 0.001)}),
    "some weather": (["--weather", "fog", "night"], {"weather": ("fog", "night")}),
    "defaults": ([], {"size": (512, 1024), "split": (0.9, 0.1, 0.0), "keep_original_ids": True, "seed": 0}),
}


@pytest.mark.parametrize(("words", "expected"), TAKEN.values(), ids=TAKEN.keys())
def test_options_take_what_is_written(monkeypatch, words, expected):
    seen = []
    monkeypatch.setattr(acdc.AcdcOptions, "check", lambda self: seen.append(self))
    monkeypatch.setattr(acdc, "find", lambda *_: [])
    assert acdc.main(["in", "out", *words]) == 1  # nothing to convert
    assert {name: getattr(seen[0], name) for name in expected} == expected


@pytest.mark.parametrize(
    "words", [["--size"], ["--size", "64.5"], ["--seed", "1.0"], ["--split", "1", "0"], ["--weather", "hail"], ["more"]]
)
def test_options_do_not_take_what_they_would_have_to_change(words):
    assert acdc.main(["in", "out", *words]) == BAD_USAGE


# ---------------------------------------------------------------- readers that leave


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    import numpy as np

    root = tmp_path_factory.mktemp("data") / "set"
    parts = split_by_subject([f"s{i}" for i in range(300)], (0.7, 0.1, 0.2), 0)
    with DatasetWriter(root, About(name="n", device="d", labels={0: "a"}, suffix=".png")) as writer:
        for subject, split in parts.items():
            writer.add(split, np.full((8, 8), 7, np.uint8), subject=subject)  # constant: a line for each
    return root


@pytest.mark.parametrize("start", [f"{START}; main()", "import sys, data_prep.check as c; sys.exit(c.main())"])
@pytest.mark.parametrize("read", [0, 10])
def test_a_command_whose_reader_leaves_ends_quietly(dataset, start, read):
    words = [str(dataset)] if "data_prep" in start else ["check", str(dataset)]
    with subprocess.Popen(
        [sys.executable, "-c", start, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        process.stdout.read(read)
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == CLOSED_PIPE
    assert said == b""


def test_another_broken_pipe_is_an_error():
    code = "from unicorn_monai.system.console import ends_with_its_reader as e\nwith e():\n    raise BrokenPipeError"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert found.returncode == 1
    assert "BrokenPipeError" in found.stderr


# ---------------------------------------------------------------- the key


def test_a_folder_as_key_file_is_told(tmp_path):
    (tmp_path / "keys").mkdir()
    with pytest.raises(
        ValueError, match=r"/keys' is a folder; expected a key file, e.g. --key-file '.*/keys/pseudonym.key'"
    ):
        read_key(tmp_path / "keys", tmp_path / "out")
