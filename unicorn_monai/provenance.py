"""What is needed to repeat a run: command, package versions, revision of the source."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


def provenance() -> dict[str, Any]:
    """What is needed to repeat a run: command, package versions, revision of the source."""
    packages = ("torch", "monai", "pytorch-ignite", "numpy", "scipy", "unicorn-monai")
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "command": shlex.join(["unicorn-monai", *sys.argv[1:]]),
        "git_revision": revision or None,
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in packages},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:
        return None
