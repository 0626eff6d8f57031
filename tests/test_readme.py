"""What the documents say exists: commands and their options, links, pictures, files, imports; and they stay short."""

import argparse
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App

from unicorn_monai.cli import app

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
COMMANDS = [README, ROOT / "data_prep" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS = [
    *COMMANDS,
    *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY")),
    *sorted((ROOT / "bundles").glob("*/docs/*.md")),
]
MARKERS = re.compile(r"<!-- (table|value|text): .*?<!-- /\1 -->", re.DOTALL)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def lines_with(words: str) -> list[tuple[str, str]]:
    found = []
    for document in COMMANDS:
        for block in re.findall(r"```(?:bash|\n)(.*?)```|`([^`\n]+)`", document.read_text(), re.DOTALL):
            found += [(name(document), line.strip()) for line in "".join(block).splitlines() if words in line]
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


# ---------------------------------------------------------------- what they point to


def slugs(document: Path) -> set[str]:
    """What the headings of a document are called in a link."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_and_pictures_are_there(document):
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, heading = target.partition("#")
        if "://" not in target:
            place = document.parent / file if file else document
            assert place.exists(), target
            assert not heading or heading in slugs(place), target


def test_every_picture_is_shown_by_a_document():
    shown = {
        (document.parent / target).resolve()
        for document in DOCUMENTS
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", document.read_text())
    }
    there = {path.resolve() for folder in ("docs", "bundles") for path in (ROOT / folder).rglob("*.png")}
    assert sorted(there - shown) == []


FOLDERS = ("unicorn_monai", "data_prep", "tests", "benchmarks", "bundles", "docs", "examples")
WHOLE = re.compile(r"`((?:" + "|".join(FOLDERS) + r")/[\w/.]+\.(?:py|json|md|html))`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_the_files_that_are_named_are_there(document):
    assert [path for path in WHOLE.findall(document.read_text()) if not (ROOT / path).is_file()] == []


def test_the_table_of_places_names_files_that_are_there():
    table = (ROOT / "CONTRIBUTING.md").read_text().split("## Where to look")[1].split("\n## ")[0]
    files = re.findall(r"`([\w/]+/\w+\.(?:py|json|html))`", table)
    assert len(files) > 30
    missing = [path for path in files if not ((ROOT / path).is_file() or (ROOT / "unicorn_monai" / path).is_file())]
    assert [path for path in missing if path != "configs/NAME.json"] == []
    for path, names in re.findall(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", table):
        text = next(place for place in (ROOT / path, ROOT / "unicorn_monai" / path) if place.is_file()).read_text()
        for called in re.findall(r"`([\w.]+)`", names):
            assert re.search(rf"(def|class) {called.rpartition('.')[2]}\b", text), f"{path}: {called}"


IMPORTED = re.compile(r"from (unicorn_monai[\w.]*) import ([\w, ]+)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_what_is_imported_is_offered_by_a_room_or_by_the_top(document):
    for module, names in IMPORTED.findall(document.read_text()):
        parts = module.split(".")[1:]
        assert not parts or len(parts) == 1 or not (ROOT / "unicorn_monai" / parts[0]).is_dir(), module
        for offered in names.replace(" as export", "").split(","):
            assert hasattr(import_module(module), offered.strip()), f"{module}.{offered}"


def components(node: Any) -> Iterator[dict[str, Any]]:
    """Every dictionary with a ``_target_``."""
    if isinstance(node, dict):
        yield from [node] if "_target_" in node else []
        for child in node.values():
            yield from components(child)


JSON = [
    (name(document), block)
    for document in DOCUMENTS
    for block in re.findall(r"^```json\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)
]


@pytest.mark.parametrize(("document", "block"), JSON)
def test_components_in_documents_exist_and_take_these_arguments(document, block):
    for component in components(json.loads(block if block.startswith("{") else f"{{{block}}}")):
        module, _, called = component["_target_"].rpartition(".")
        target = getattr(import_module(module), called)
        inspect.signature(target).bind(**{key: value for key, value in component.items() if not key.startswith("_")})


# ---------------------------------------------------------------- what they say


def test_every_bundle_in_the_table_has_the_configurations_named():
    rows = re.findall(r"\| \[(\w+)\]\(\.\./bundles/[^)]+\) \| ([^|]+) \|", (ROOT / "docs" / "bundles.md").read_text())
    assert {name for name, _ in rows} == {p.name for p in (ROOT / "bundles").iterdir() if (p / "configs").is_dir()}
    for bundle, files in rows:
        for file in files.split(","):
            assert (ROOT / "bundles" / bundle / "configs" / f"{file.strip()}.json").is_file()


def test_make_does_what_the_documents_say():
    makefile = (ROOT / "Makefile").read_text()
    assert "unicorn-monai demo --preset quick" in makefile
    assert re.search(r"^test: lint$", makefile, re.MULTILINE)
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    for document in DOCUMENTS:
        assert set(re.findall(r"(?:^|`)make ([a-z-]+)", document.read_text(), re.MULTILINE)) <= targets, document


def test_the_table_of_rooms_has_every_room_and_the_order_of_layers_too():
    rooms = {path.parent.name for path in (ROOT / "unicorn_monai").glob("*/__init__.py")}
    table = (ROOT / "docs" / "decisions.md").read_text().split("## Rooms")[1].split("\n- ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == rooms


def test_the_readme_is_two_minutes_long():
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 700


def test_a_version_has_few_lines_in_the_changelog():
    for version in (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1:]:
        assert len(version.strip().splitlines()) - 1 <= 20, version.splitlines()[0]


RUNS = [path for path in DOCUMENTS if path.name != "benchmarks.md" and "bundles" not in path.parts]


@pytest.mark.parametrize("document", RUNS, ids=name)
def test_no_score_is_typed_by_hand(document):
    """Between markers it comes from a file; benchmarks.md has command, commit and machine beside its tables."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", MARKERS.sub("", document.read_text()), flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"(?<![\d.])[01]\.\d{3}(?!\d)", text) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_no_paragraph_is_still_to_be_written(document):
    assert re.findall(r"^[A-Z]{4,}$", document.read_text(), re.MULTILINE) == []
