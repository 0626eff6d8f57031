"""Scripts that bring images from elsewhere into the data set format; each can be run by itself. See README.md."""

from __future__ import annotations

import ast
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


def overview() -> str:
    """What `unicorn-monai prepare` takes: every source with its first line and its usage, as its file has them."""
    lines = ["Convert scans to the data set format: unicorn-monai prepare SOURCE ... = python -m data_prep.SOURCE ..."]
    for source in SOURCES:
        text = ast.get_docstring(ast.parse((Path(__file__).parent / f"{source}.py").read_text(encoding="utf-8"))) or ""
        usage = next(line.strip() for line in text.splitlines() if "python -m data_prep." in line)
        command = usage.replace("python -m data_prep.", "unicorn-monai prepare ")
        lines += ["", f"{source}: {text.splitlines()[0]}", f"    {command}"]
    return "\n".join([*lines, "", "Options of a source: unicorn-monai prepare SOURCE --help"])
