"""The part of ``results.json`` that documents speak of, small enough to be committed: a file that tables are made of.

Scores, intervals, differences, distances, what was measured of the images, seconds, and under "run" how to repeat it:
command, commit, versions, and the settings that are not the defaults. No counts of single images, no names of images,
no paths of the machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from unicorn_monai.report.results import Record, Results, read
from unicorn_monai.system.files import parse_json, write_text

KEPT = (  # of the results, as they are
    *("labels", "modality", "simulated", "segmentation", "strongest", "differences", "gap", "not_computed"),
    *("label_maps", "uncertainty", "reconstructions", "autoencoder", "diffusion", "weights", "fid", "memorization"),
    *("words", "budget", "seconds", "wall_seconds", "forced", "separation", "looks", "drawn"),
)
LEFT_OUT = (
    *("per_image", "mean_um", "p95_um", "closest", "flagged", "picture", "features_sha256", "dice", "95", "kid_std"),
    *("measured_std", "chance_mean_iou", "judge"),
)
PLACES = ("labeled", "unlabeled", "output")
DIGITS = 6  # after the point
_json = partial(json.dumps, ensure_ascii=False)


def trim(runs: Sequence[Path], output: Path, defaults: Mapping[str, Any]) -> Path:
    """Write the trimmed results of one finished run, with its settings that are not the defaults; returns the file."""
    if len(runs) != 1:
        raise ValueError(f"--trim takes one run; found {len(runs)}. Trim each into a file of its own.")
    run = runs[0]
    if not (run / "results.json").is_file():
        raise ValueError(f"'{run}' holds no results.json; expected the folder of a finished run.")
    read(run / "results.json", Results)
    results, record = parse_json(run / "results.json"), read(run / "experiment.json", Record)
    usual = json.loads(json.dumps(dict(defaults)))
    settings = {k: v for k, v in record.settings.items() if k not in PLACES and v != usual.get(k)}
    content = {key: _small(results[key]) for key in KEPT if results.get(key) not in (None, {}, [])}
    content |= {key: _small(value) for key, value in results.items() if key.split("_")[0] == "control"}
    content["run"] = {
        "command": record.command and without_places(record.command),
        "git_revision": record.git_revision,
        "settings": _small(settings | {"seed": record.chosen.seed}),
        "versions": record.versions,
        "machine": {k: v for k, v in results.get("environment", {}).items() if k in ("machine", "cpus")},
        "flagged": len(results.get("memorization", {}).get("flagged", [])),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    inner = {key: _lines(value, "  ") if isinstance(value, dict) else _json(value) for key, value in content.items()}
    write_text(output, f"{_lines(inner, ' ', str)}\n")
    return output


def _small(value: Any) -> Any:
    """A part without what documents do not speak of, its numbers rounded."""
    if isinstance(value, dict):
        return {key: _small(part) for key, part in value.items() if key not in LEFT_OUT and part is not None}
    if isinstance(value, list):
        return [_small(part) for part in value]
    if isinstance(value, str):
        return without_places(value)
    return round(value, DIGITS) if isinstance(value, float) else value


def without_places(text: str) -> str:
    """A text whose absolute paths are the names of what they lead to."""
    return re.sub(r"(?<![\w.:/~])/(?:[^\s'\",/]+/)*([^\s'\",/]+)/?", r"\1", text)


def _lines(content: Mapping[str, Any], indent: str, text: Callable[[Any], str] = _json) -> str:
    """An object of JSON with a line for each entry, so that a change of it can be read."""
    lines = ",\n".join(f"{indent}{_json(key)}: {text(value)}" for key, value in content.items())
    return f"{{\n{lines}\n{indent[1:]}}}"
