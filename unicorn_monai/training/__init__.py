"""What every training shares: handlers, state, time budget, steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unicorn_monai.system.lazy import offered

if TYPE_CHECKING:
    from unicorn_monai.training.batches import check_batches
    from unicorn_monai.training.budget import LinearDecay, TimeBudget
    from unicorn_monai.training.handlers import Progress, SampleImages, shared
    from unicorn_monai.training.kept_weights import EMA, BestWeights
    from unicorn_monai.training.state import TrainingState
    from unicorn_monai.training.steps import ClipGradients, WarmupCosine, autocast_settings, loss_metric, random_order

__all__ = [
    "EMA",
    "BestWeights",
    "ClipGradients",
    "LinearDecay",
    "Progress",
    "SampleImages",
    "TimeBudget",
    "TrainingState",
    "WarmupCosine",
    "autocast_settings",
    "check_batches",
    "loss_metric",
    "random_order",
    "shared",
]
_HOMES = {
    "BestWeights": "training.kept_weights",
    "ClipGradients": "training.steps",
    "EMA": "training.kept_weights",
    "LinearDecay": "training.budget",
    "Progress": "training.handlers",
    "SampleImages": "training.handlers",
    "TimeBudget": "training.budget",
    "TrainingState": "training.state",
    "WarmupCosine": "training.steps",
    "autocast_settings": "training.steps",
    "check_batches": "training.batches",
    "loss_metric": "training.steps",
    "random_order": "training.steps",
    "shared": "training.handlers",
}


def __getattr__(name: str) -> Any:
    return offered(__name__, _HOMES, name)
