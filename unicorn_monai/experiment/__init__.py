"""The whole method on two domains, stage by stage, in one folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unicorn_monai.system.lazy import offered

if TYPE_CHECKING:
    from unicorn_monai.experiment.experiment import CONTROLNETS, Experiment
    from unicorn_monai.experiment.settings import Settings, bundle_places, settings_begun_with, settings_of
    from unicorn_monai.experiment.stages import Stages
    from unicorn_monai.experiment.versions import provenance

__all__ = [
    "CONTROLNETS",
    "Experiment",
    "Settings",
    "Stages",
    "bundle_places",
    "provenance",
    "settings_begun_with",
    "settings_of",
]
_HOMES = {
    "CONTROLNETS": "experiment.experiment",
    "Experiment": "experiment.experiment",
    "Settings": "experiment.settings",
    "Stages": "experiment.stages",
    "bundle_places": "experiment.settings",
    "provenance": "experiment.versions",
    "settings_begun_with": "experiment.settings",
    "settings_of": "experiment.settings",
}


def __getattr__(name: str) -> Any:
    return offered(__name__, _HOMES, name)
