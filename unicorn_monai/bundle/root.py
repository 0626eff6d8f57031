"""The folder of the bundle whose configuration runs: ``bundle_root`` of every bundle.

    "bundle_root": {"_target_": "unicorn_monai.bundle.own_root"}

MONAI tells a configuration not where it lies. So a bundle that was copied, moved or downloaded is found by the file
that MONAI was told to run; who builds parts of a configuration otherwise gives ``bundle_root``.
"""

from __future__ import annotations

import ast
import inspect
import os
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from unicorn_monai.bundle.expressions import require_literal
from unicorn_monai.system.files import PathLike

ENTRY = "bundle_root"


def own_root(part: str | None = None) -> str:
    """Folder of the bundle whose configuration MONAI runs, or of a ``part`` of it (for configurations).

    Refused where nothing tells which configuration runs, or the folder has a name that MONAI would change.
    """
    frames = [frame for frame, _ in traceback.walk_stack(inspect.currentframe())]
    workflow = next((w for f in frames if isinstance(w := f.f_locals.get("self"), ConfigWorkflow)), None)
    files = next((files for f in frames if (files := _told(f))), [])
    if workflow is not None and (not files or Path(files[0]).parent != Path(workflow.config_root_path)):
        return root_above(Path(workflow.config_root_path) / "inference.json", part)  # begun by a program, not by MONAI
    if files:  # of several, a later one wins that has the entry; others only change what it wires
        own = [file for file in files if ENTRY in ConfigParser.load_config_file(file)]
        return root_above(own[-1] if own else files[0], part)
    raise ValueError(
        "bundle_root is not given, and MONAI was told no configuration file to run, whose folder would be it. Set it, "
        "e.g. parser['bundle_root'] = '/path/of/the/bundle', or use unicorn_monai.bundle.load_config or from_bundle."
    )


def root_above(file: PathLike, part: str | None = None) -> str:
    """The bundle of a configuration file: the folder above ``configs``, or, as for MONAI, else the file's own.

    Links are not followed, since a cache may keep its files under other names.
    """
    folder = Path(file).absolute().parent
    root = folder.parent if folder.name == "configs" else folder
    return literal_root(root if part is None else root / part)


def with_root(config: Mapping[str, Any], root: PathLike) -> dict[str, Any]:
    """A configuration whose ``bundle_root``, if it has one, is a folder, or the part of it that the entry names."""
    if ENTRY not in config:
        return dict(config)
    own = config[ENTRY]
    return {**config, ENTRY: literal_root(Path(root) / (own.get("part", "") if isinstance(own, dict) else ""))}


def literal_root(bundle_root: PathLike) -> str:
    """A bundle's folder as an absolute path, refused where MONAI would not take it as it is."""
    root = str(Path(bundle_root).absolute())
    require_literal(root, ENTRY)
    return root


def _told(frame: FrameType) -> list[str]:
    """The configuration files that a function of ``monai.bundle`` was told, itself or by its file of arguments."""
    if frame.f_globals.get("__name__") != "monai.bundle.scripts":
        return []
    values = frame.f_locals
    arguments = values.get("args_file") or {}
    if isinstance(arguments, str | os.PathLike):
        arguments = ConfigParser.load_config_file(arguments)
    given = (values.get("config_file"), (values.get("kwargs") or {}).get("config_file"), arguments.get("config_file"))
    return files_of(next((files for files in given if files), []))


def files_of(files: str | os.PathLike | Sequence[Any]) -> list[str]:
    """Configuration files as MONAI takes them: one, a list, or names with commas between."""
    if isinstance(files, os.PathLike):
        return [os.fspath(files)]
    if isinstance(files, str):
        if files.startswith(("[", "(")):
            return [str(file) for file in ast.literal_eval(files)]
        return files.split(",") if "," in files and not Path(files).is_file() else [files]
    return [str(file) for file in files]
