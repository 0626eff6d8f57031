"""What a run leaves as JSON, read with its types: a folder of somebody else may hold anything under these names.

    RUN/experiment.json     settings and versions of the start, and of every resumption
    RUN/stages/STAGE.json   seconds, result and commands of a finished stage
    RUN/mlflow_run.json     id of the MLflow run

A known entry of a wrong type is refused by name. Unknown ones are read by nobody.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from unicorn_monai.system.files import PathLike, parse_json

logger = logging.getLogger("unicorn_monai")

Rule = tuple[Callable[[Any], bool], str]
TEXT: Rule = (lambda v: isinstance(v, str), "a text")
TABLE: Rule = (lambda v: isinstance(v, dict), "an object")
ANYTHING: Rule = (lambda v: True, "anything")
NUMBER: Rule = (
    lambda v: isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v),
    "a finite number",
)
COUNT: Rule = (lambda v: type(v) is int and 1 <= v <= 4096, "a whole number, 1 to 4096")
SECONDS: Rule = (lambda v: NUMBER[0](v) and v >= 0, "a finite number, 0 or more")
TEXTS: Rule = (lambda v: isinstance(v, list | tuple) and all(isinstance(t, str) for t in v), "a list of texts")
TABLES: Rule = (lambda v: isinstance(v, list) and all(isinstance(t, dict) for t in v), "a list of objects")
NAMED_TEXTS: Rule = (
    lambda v: isinstance(v, dict) and all(isinstance(text, str) for text in v.values()),
    "an object of texts",
)

SPACING: Rule = (
    lambda v: v is None or (isinstance(v, list | tuple) and len(v) == 2 and all(NUMBER[0](s) and s > 0 for s in v)),
    "[axial, lateral] in mm, finite and positive, or null",
)
COLOURS: Rule = (
    lambda v: isinstance(v, list) and all(isinstance(c, list) and len(c) == 3 and all(map(NUMBER[0], c)) for c in v),
    "a list of [red, green, blue]",
)
KNOWN = {  # entries of a header that this package reads or writes
    *("name", "modality", "device", "labels", "spacing_mm", "settings", "colours", "source", "seed", "phantom"),
    *("simulated", "simulated_device", "simulated_anatomy"),
    *("synthetic", "augmented", "pseudo_labels", "without_flagged"),
}

EXPERIMENT = {"settings": TABLE, "resumed": TABLES}
_NUMBERS: Rule = (lambda v: isinstance(v, list) and all(map(NUMBER[0], v)), "a list of finite numbers")
PRIOR = {
    **dict.fromkeys(("mean", "std", "offset", "scale", "samples"), NUMBER),
    **dict.fromkeys(("scaling", "segmentation_sha256", "distribution", "acquisition", "aggregation"), TEXT),
    **dict.fromkeys(("quantiles", "both_quantiles"), _NUMBERS),
    "ensemble": NAMED_TEXTS,
}
SPENT = {"seconds": SECONDS, "core_seconds": SECONDS, "threads": SECONDS}
STAGE = {**SPENT, "result": ANYTHING, "commands": NAMED_TEXTS}
_RUN_ID: Rule = (lambda v: isinstance(v, str) and re.fullmatch("[0-9a-f]{32}", v) is not None, "32 digits, 0 to f")
_told: set[tuple[str, tuple[str, ...]]] = set()


def take(content: Any, rules: Mapping[str, Rule], path: PathLike, needed: Collection[str] = ()) -> dict[str, Any]:
    """The known entries of what was read from a file; a ``ValueError`` where one is missing or of another type.

    ``rules``: what each entry may be; ``path``: of the file, for the message; ``needed``: entries that must be there.
    """
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' is {str(content)[:60]!r}; expected a JSON object.")
    for name in needed:
        if name not in content:
            raise ValueError(f"'{path}' has no entry '{name}'; expected {rules[name][1]}. Write it again.")
    for name, (obeys, expected) in rules.items():
        if name in content and not obeys(content[name]):
            raise ValueError(f"'{name}' of '{path}' is {str(content[name])[:80]!r}; expected {expected}.")
    return {name: content[name] for name in rules if name in content}


def tell_unread(names: Collection[str], path: PathLike, kept: bool) -> None:
    """Tell of entries that nothing here reads; of the same ones in a file once."""
    key = (str(path), tuple(sorted(names)))
    if names and key not in _told:
        _told.add(key)
        what = "are kept as they are" if kept else "are left out"
        logger.warning(f"Nothing reads the entries {list(key[1][:8])} of '{path}'; they {what}.")


def read_record(run: Path) -> dict[str, Any]:
    """``experiment.json`` with an entry "settings"; versions and the like are kept as they are."""
    path = run / "experiment.json"
    if not path.is_file():
        raise ValueError(f"'{path}' does not exist; '{run}' is no folder of a run.")
    content = parse_json(path)
    take(content, EXPERIMENT, path, ["settings"])
    return content


def read_stage(path: Path) -> dict[str, Any]:
    """What a finished stage left: "seconds", "result", "commands", and "core_seconds" and "threads" if noted."""
    return take(parse_json(path), STAGE, path, ["seconds", "result", "commands"])


def read_spent(path: Path) -> dict[str, Any]:
    """What a stage has taken, finished or not."""
    return take(parse_json(path), SPENT, path, ["seconds"])


def read_run_id(path: Path) -> str:
    """The id of the MLflow run of a run folder."""
    return take(parse_json(path), {"run_id": _RUN_ID}, path, ["run_id"])["run_id"]


def read_prior(path: PathLike) -> dict[str, Any]:
    """The fields of an ``UncertaintyPrior`` that a file has."""
    fields = take(parse_json(path), PRIOR, path)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def read_flagged(run: Path) -> list[str]:
    """Images that the search for copies flagged, as ``results.json`` of a run tells; refused without a search."""
    path = run / "results.json"
    if not path.is_file():
        raise ValueError(f"'{path}' does not exist; '{run}' is no finished run.")
    found = take(parse_json(path), {"memorization": (lambda v: v is None or isinstance(v, dict), "an object")}, path)
    audit = take(found.get("memorization") or {}, {"flagged": TEXTS, "not_computed": TEXT}, path)
    if "flagged" not in audit:
        reason = str(audit.get("not_computed", "no result")).rstrip(".")
        raise ValueError(f"The search for copies of '{run}' was not computed: {reason}.")
    return list(audit["flagged"])
