"""Scripts that bring images from elsewhere into the data set format; each can be run by itself. See README.md."""

import ast
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

SOURCES = (
    "heidelberg",
    "dicom",
    "volumes",
    "image_folder",
    "spectralis_healthy",
    "home_oct",
    "phantom",
    "cityscapes",
    "acdc",
    "rgb_folder",
    "street_phantom",
)


def prepare(words: Sequence[str], name: str) -> int:
    """The command line of a source, of which alone is imported, or the list of sources; returns the exit status."""
    from unicorn_monai.system.console import BadUsage
    from unicorn_monai.system.terminal import LINES, say

    if not words:
        raise BadUsage(f"required: a source, one of {', '.join(SOURCES)}")
    if words[0] in ("--help", "-h"):
        say(overview(), LINES)
        return 0
    if words[0] not in SOURCES:
        raise BadUsage(f"unknown source '{words[0]}'; expected one of {', '.join(SOURCES)}")
    return import_module(f"data_prep.{words[0]}").main(words[1:], f"{name} {words[0]}")


def overview() -> str:
    """What `unicorn-monai prepare` takes: every source with its first line and its usage, as its file has them."""
    lines = ["Convert scans to the data set format: unicorn-monai prepare SOURCE ... = python -m data_prep.SOURCE ..."]
    for source in SOURCES:
        text = ast.get_docstring(ast.parse((Path(__file__).parent / f"{source}.py").read_text(encoding="utf-8"))) or ""
        usage = next(line.strip() for line in text.splitlines() if "python -m data_prep." in line)
        command = usage.replace("python -m data_prep.", "unicorn-monai prepare ")
        lines += ["", f"{source}: {text.splitlines()[0]}", f"    {command}"]
    return "\n".join([*lines, "", "Options of a source: unicorn-monai prepare SOURCE --help"])
