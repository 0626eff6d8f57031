"""What is needed to repeat a run: command, package versions, revision of the source."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any


def provenance() -> dict[str, Any]:
    """What is needed to repeat a run: command, package versions, revision of the source."""
    packages = ("torch", "monai", "pytorch-ignite", "numpy", "scipy", "unicorn-monai")
    return {
        "command": shlex.join(["unicorn-monai", *sys.argv[1:]]),
        "git_revision": git_revision(),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in packages},
    }


@cache
def git_revision() -> str | None:
    """The commit that this package is of, None for an installed one.

    Read once: what is committed while a process runs is not the code that it runs.
    """
    return _git("rev-parse", "HEAD") if _git("ls-files", Path(__file__).name) else None


def _git(*words: str) -> str | None:
    """What git says about the folder of this file, None without git or a repository.

    A package installed below somebody's repository is in it without being part of it: then nothing is listed.
    """
    with suppress(OSError):
        found = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return found.stdout.strip() or None


def _version(package: str) -> str | None:
    with suppress(ModuleNotFoundError):
        return version(package)
