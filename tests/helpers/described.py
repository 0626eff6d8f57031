"""A writer whose options are told together, those of its `About` too."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from unicorn_monai.data.writer import About, DatasetWriter


def described_writer(root: Path | str, **options: Any) -> DatasetWriter:
    """``DatasetWriter(root, About(...), ...)``."""
    about = {field.name: options.pop(field.name) for field in fields(About) if field.name in options}
    return DatasetWriter(root, About(**about), **options)
