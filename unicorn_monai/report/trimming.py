"""The part of ``results.json`` that documents speak of, small enough to be committed: a file that tables are made of.

Scores, intervals, differences, distances, what was measured of the images, seconds, and under "run" how to repeat it:
command, commit, versions, and the settings that are not the defaults. No counts of single images, no names of images,
no paths of the machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unicorn_monai.report.results import Record, Results, read
from unicorn_monai.system.files import parse_json, write_text

KEPT = (  # of the results, as they are
    *("labels", "modality", "simulated", "segmentation", "differences", "gap", "not_computed", "label_maps"),
    *("uncertainty", "reconstructions", "autoencoder", "diffusion", "weights", "fid", "memorization", "words"),
    *("budget", "seconds", "wall_seconds", "forced"),
)
LEFT_OUT = (
    *("per_image", "mean_um", "p95_um", "closest", "flagged", "picture", "features_sha256", "dice", "95", "kid_std"),
    *("measured_std", "chance_mean_iou", "judge"),
)
PLACES = ("labeled", "unlabeled", "output")
DIGITS = 6  # after the point


def trim(run: Path, output: Path, defaults: Mapping[str, Any]) -> Path:
    """Write the trimmed results of a finished run.

    Args:
        run: its folder.
        output: the file, ``results.json`` of a folder for it.
        defaults: of the settings; those of the run that differ are kept.

    Returns:
        ``output``.

    Raises:
        ValueError: no finished run.
    """
    if not (run / "results.json").is_file():
        raise ValueError(f"'{run}' holds no results.json; expected the folder of a finished run.")
    read(run / "results.json", Results)
    results, record = parse_json(run / "results.json"), read(run / "experiment.json", Record)
    usual = json.loads(json.dumps(dict(defaults)))
    settings = {k: v for k, v in record.settings.items() if k not in PLACES and v != usual.get(k)}
    content = {key: _small(results[key]) for key in KEPT if results.get(key) not in (None, {}, [])}
    content |= {key: _small(value) for key, value in results.items() if key.split("_")[0] == "control"}
    content["run"] = {
        "command": record.command and _without_places(record.command),
        "git_revision": record.git_revision,
        "settings": _small(settings | {"seed": record.chosen.seed}),
        "versions": record.versions,
        "machine": {k: v for k, v in results.get("environment", {}).items() if k in ("machine", "cpus")},
        "flagged": len(results.get("memorization", {}).get("flagged", [])),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, "\n".join(_lines(content)) + "\n")
    return output


def _small(value: Any) -> Any:
    """A part without what documents do not speak of, its numbers rounded."""
    if isinstance(value, dict):
        return {key: _small(part) for key, part in value.items() if key not in LEFT_OUT and part is not None}
    if isinstance(value, list):
        return [_small(part) for part in value]
    return (
        round(value, DIGITS)
        if isinstance(value, float)
        else _without_places(value)
        if isinstance(value, str)
        else value
    )


def _without_places(text: str) -> str:
    """A text whose absolute paths are the names of what they lead to."""
    return re.sub(r"(?<![\w.:/~])/(?:[^\s'\",/]+/)*([^\s'\",/]+)/?", r"\1", text)


def _lines(content: dict[str, Any]) -> Iterator[str]:
    """JSON with a line for each entry of an entry, so that a change of it can be read."""
    yield "{"
    for i, (key, value) in enumerate(content.items()):
        end = "," * (i < len(content) - 1)
        if isinstance(value, dict):
            yield f" {json.dumps(key)}: {{"
            inner = [f"  {json.dumps(name)}: {json.dumps(part, ensure_ascii=False)}" for name, part in value.items()]
            yield from (f"{line}," for line in inner[:-1])
            yield f"{inner[-1] if inner else ''}\n }}{end}"
        else:
            yield f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}{end}"
    yield "}"
