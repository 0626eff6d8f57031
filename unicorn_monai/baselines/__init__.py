"""What the method is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unicorn_monai.system.lazy import offered

if TYPE_CHECKING:
    from unicorn_monai.baselines.adversarial import translation_trainer
    from unicorn_monai.baselines.cut import CUT, PatchProjection
    from unicorn_monai.baselines.cyclegan import CycleGAN
    from unicorn_monai.baselines.networks import ResnetGenerator, feature_channels
    from unicorn_monai.baselines.self_training import self_train
    from unicorn_monai.baselines.translation import Translator
    from unicorn_monai.baselines.unpaired import unpaired

__all__ = [
    "CUT",
    "CycleGAN",
    "PatchProjection",
    "ResnetGenerator",
    "Translator",
    "feature_channels",
    "self_train",
    "translation_trainer",
    "unpaired",
]
_HOMES = {
    "CUT": "baselines.cut",
    "CycleGAN": "baselines.cyclegan",
    "PatchProjection": "baselines.cut",
    "ResnetGenerator": "baselines.networks",
    "Translator": "baselines.translation",
    "feature_channels": "baselines.networks",
    "self_train": "baselines.self_training",
    "translation_trainer": "baselines.adversarial",
    "unpaired": "baselines.unpaired",
}


def __getattr__(name: str) -> Any:
    return offered(__name__, _HOMES, name)
