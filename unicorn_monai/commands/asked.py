"""The settings that a command line asks for: those of a file, over them the options, and what ``--weight`` means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicorn_monai.system.intake import finite, read_text

_WEIGHT = {"paper": "paper_weight"}  # the setting that holds a mode's weight, else uncertainty_weight


def settings_asked(config: Path | None, given: Mapping[str, Any], weight: str | None = None) -> dict[str, Any]:
    """Settings of an experiment, as `Settings.from_dict` takes them: those of a JSON file, and over them the options.

    An option that is not given is None. A weight of the uncertainty is that of the first mode; "auto" holds
    for every mode and needs the baseline that judges weights.
    """
    settings: dict[str, Any] = {"output": "runs/experiment"}
    if config is not None:
        try:
            settings |= json.loads(read_text(config))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"Cannot read the settings '{config}' ({error}). Expected a JSON object.") from error
    settings |= {k: str(v) if isinstance(v, Path) else v for k, v in given.items() if v is not None}
    modes = settings.get("modes") or ["joint"]
    if weight == "auto":
        baselines = list(dict.fromkeys([*settings.get("baselines", []), "augmentation"]))
        settings |= {_WEIGHT.get(mode, "uncertainty_weight"): "auto" for mode in modes} | {"baselines": baselines}
    elif weight is not None:
        settings[_WEIGHT.get(modes[0], "uncertainty_weight")] = weight_asked(weight)
    return settings


def weight_asked(weight: str) -> float:
    """The number that ``--weight`` gives."""
    try:
        return finite(weight)
    except ValueError:
        raise ValueError(f"--weight is '{weight}'; expected a finite number, or auto.") from None
