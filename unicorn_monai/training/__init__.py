"""What every training shares: handlers, state, time budget, steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unicorn_monai.system.lazy import offered

if TYPE_CHECKING:
    from unicorn_monai.training.batches import check_batches
    from unicorn_monai.training.budget import TimeBudget
    from unicorn_monai.training.handlers import Progress, SampleImages, shared
    from unicorn_monai.training.kept_weights import EMA, BestWeights
    from unicorn_monai.training.settings import AutoencoderSettings, DiffusionSettings, TranslationSettings
    from unicorn_monai.training.state import TrainingState
    from unicorn_monai.training.steps import WarmupCosine, autocast_settings, random_order

__all__ = [
    "EMA",
    "AutoencoderSettings",
    "BestWeights",
    "DiffusionSettings",
    "Progress",
    "SampleImages",
    "TimeBudget",
    "TrainingState",
    "TranslationSettings",
    "WarmupCosine",
    "autocast_settings",
    "check_batches",
    "random_order",
    "shared",
]
_HOMES = {
    "AutoencoderSettings": "training.settings",
    "BestWeights": "training.kept_weights",
    "DiffusionSettings": "training.settings",
    "EMA": "training.kept_weights",
    "Progress": "training.handlers",
    "SampleImages": "training.handlers",
    "TimeBudget": "training.budget",
    "TrainingState": "training.state",
    "TranslationSettings": "training.settings",
    "WarmupCosine": "training.steps",
    "autocast_settings": "training.steps",
    "check_batches": "training.batches",
    "random_order": "training.steps",
    "shared": "training.handlers",
}


def __getattr__(name: str) -> Any:
    return offered(__name__, _HOMES, name)
