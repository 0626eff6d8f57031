"""The whole method on two domains, stage by stage, in one folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unicorn_monai.system.lazy import offered

if TYPE_CHECKING:
    from unicorn_monai.experiment.experiment import Experiment
    from unicorn_monai.experiment.plan import CONTROLNETS
    from unicorn_monai.experiment.runner import Runner
    from unicorn_monai.experiment.settings import Settings, bundle_places, settings_begun_with, settings_of
    from unicorn_monai.experiment.stages import Stage, needed
    from unicorn_monai.experiment.versions import provenance

__all__ = [
    "CONTROLNETS",
    "Experiment",
    "Runner",
    "Settings",
    "Stage",
    "bundle_places",
    "needed",
    "provenance",
    "settings_begun_with",
    "settings_of",
]
_HOMES = {
    "CONTROLNETS": "experiment.plan",
    "Experiment": "experiment.experiment",
    "Runner": "experiment.runner",
    "Settings": "experiment.settings",
    "Stage": "experiment.stages",
    "bundle_places": "experiment.settings",
    "needed": "experiment.stages",
    "provenance": "experiment.versions",
    "settings_begun_with": "experiment.settings",
    "settings_of": "experiment.settings",
}


def __getattr__(name: str) -> Any:
    return offered(__name__, _HOMES, name)
