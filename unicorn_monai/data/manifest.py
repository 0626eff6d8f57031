"""What the data of a run were at its start: size, time and sha256 of every file, and the sha256 of ``dataset.json``.

    RUN/data.json   {"labeled": {"header": sha256, "files": {"images/0.nii.gz": [bytes, nanoseconds, sha256]}}, ...}

Content decides, not time or place: a file whose size and time are those of the start is taken for the same, any other
is read again. So a comparison of 100,000 untouched images takes seconds, and a data set that was copied is the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicorn_monai.data.layout import SPLITS, read_header
from unicorn_monai.system.files import parse_json, write_text
from unicorn_monai.system.weights import sha256

FILE = "data.json"
KINDS = ("image", "label")
NAMED = 3  # changes that a message names
ANEW = "begin anew with another --output."

logger = logging.getLogger("unicorn_monai")


def survey(folder: Path, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a data set is now: "header", the sha256 of what ``dataset.json`` says (not of its blanks), and "files".

    ``before`` is what it was: files of the same size and time are not read again.
    """
    header, known = read_header(folder), (before or {}).get("files", {})
    entries = {item[kind] for split in SPLITS for item in header.get(split, []) for kind in KINDS if kind in item}
    files: dict[str, list] = {}
    for entry in sorted(entries):
        path, old = folder / entry, known.get(entry, [])
        try:
            found = path.stat()
        except OSError as error:
            reason = error.strerror
            raise ValueError(f"'{path}', listed in dataset.json, cannot be read ({reason}). Restore it.") from error
        now = [found.st_size, found.st_mtime_ns]
        files[entry] = [*now, old[2] if old[:2] == now else sha256(path)]
    return {"header": hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest(), "files": files}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed in a data set, file by file; empty if it is the same."""
    old, new = before["files"], now["files"]
    found = [f"{name} has another content" for name in sorted(old.keys() & new.keys()) if old[name][2] != new[name][2]]
    found += [f"{name} is no longer listed" for name in sorted(old.keys() - new.keys())]
    found += [f"{name} was added" for name in sorted(new.keys() - old.keys())]
    if not found and before["header"] != now["header"]:
        found = ["dataset.json says something else of the same files (subjects, splits, labels, ...)"]
    return found


def require_same(run_dir: Path, domains: Mapping[str, Path]) -> dict[str, Any]:
    """What the "labeled" and "unlabeled" data of a run are, for :func:`keep`; others are refused."""
    path = run_dir / FILE
    if not path.is_file():
        logger.warning(
            f"'{run_dir}' was begun before runs kept what their data were, so nobody can tell whether they have "
            "changed since. From now on they are compared with what they are today."
        )
        return {name: survey(folder) for name, folder in domains.items()}
    before, now = parse_json(path), {}
    try:
        for part in [before[name] for name in domains]:
            if not (isinstance(part["header"], str) and all(len(found) == 3 for found in part["files"].values())):
                raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"'{path}' does not tell what the data of the run were. Restore it, or {ANEW}") from error
    for name, folder in domains.items():
        now[name] = survey(folder, before[name])
        if found := changes(before[name], now[name]):
            more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
            raise ValueError(
                f"The {name} data set '{folder}' is not what the run in '{run_dir}' was begun with: "
                f"{'; '.join(found[:NAMED])}{more}. Give the data it was begun with, or {ANEW}"
            )
    return now


def keep(run_dir: Path, data: Mapping[str, Any]) -> None:
    """Write down what the data of a run are, one file a line."""
    parts = []
    for name, part in data.items():
        files = ",\n".join(f"{json.dumps(entry)}: {json.dumps(found)}" for entry, found in part["files"].items())
        parts.append(f'{json.dumps(name)}: {{"header": {json.dumps(part["header"])}, "files": {{\n{files}\n}}}}')
    write_text(run_dir / FILE, "{" + ",\n".join(parts) + "}\n")
