"""What the README says to type exists, and the files it names are there."""

import argparse
import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from cyclopts import App

from unicorn_monai.cli import app

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "data_prep" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def lines_with(words: str) -> list[tuple[str, str]]:
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```(?:bash|\n)(.*?)```|`([^`\n]+)`", document.read_text(), re.DOTALL):
            found += [(document.name, line.strip()) for line in "".join(block).splitlines() if words in line]
    return found


@pytest.mark.parametrize(("document", "line"), lines_with("unicorn-monai "))
def test_every_command_of_the_documents_exists_with_its_options(document, line):
    words = line.split("#")[0].split("unicorn-monai ", 1)[1].split()
    command = app[words[0]]
    known = {name for argument in command.assemble_argument_collection() for name in argument.names}
    used = {word for word in words[1:] if word.startswith("--")}
    assert used <= known | {"--help"} or words[0] == "prepare"


SCRIPTS = [
    (document, line[line.index("python -m ") :])
    for document, line in lines_with("python -m data_prep.") + lines_with("python -m benchmarks.")
    if "SOURCE ..." not in line
]


@pytest.mark.parametrize(("document", "line"), SCRIPTS)
def test_the_scripts_of_the_documents_take_what_is_written(document, line, monkeypatch):
    words = shlex.split(line.removeprefix("python -m ").replace("SEED", "0"), comments=True)
    assert find_spec(words[0]), line
    if words[1:]:
        taken = []

        def parse_only(*given):
            taken.append(parse(*given))
            raise SystemExit(0)

        place, name = (App, "__call__") if "data_prep" in words[0] else (argparse.ArgumentParser, "parse_args")
        parse = App.parse_args if place is App else argparse.ArgumentParser.parse_args
        monkeypatch.setattr(place, name, parse_only)
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit):
            import_module(words[0]).main()
        assert taken, f"usage error in {document}: {line}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_links_and_pictures_are_there(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_every_bundle_in_the_table_has_the_configurations_named():
    rows = re.findall(r"\| \[(\w+)\]\(bundles/[^)]+\) \| ([^|]+) \|", (ROOT / "README.md").read_text())
    assert {name for name, _ in rows} == {p.name for p in (ROOT / "bundles").iterdir() if (p / "configs").is_dir()}
    for name, files in rows:
        for file in files.split(","):
            assert (ROOT / "bundles" / name / "configs" / f"{file.strip()}.json").is_file()


def test_make_demo_and_make_test_do_what_the_readme_says():
    makefile = (ROOT / "Makefile").read_text()
    assert "unicorn-monai demo --preset quick" in makefile
    assert re.search(r"^test: lint$", makefile, re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_no_paragraph_is_still_to_be_written(document):
    found = re.findall(r"^[A-Z]{4,}$", document.read_text(), re.MULTILINE)
    assert found == []
