"""What the method is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unicorn_monai.system.lazy import offered

if TYPE_CHECKING:
    from unicorn_monai.baselines.adversarial import LastWeights, TranslationSheet, TranslationTrainer
    from unicorn_monai.baselines.cut import CUT, PatchProjection
    from unicorn_monai.baselines.cyclegan import CycleGAN
    from unicorn_monai.baselines.networks import ResnetGenerator, feature_channels
    from unicorn_monai.baselines.self_training import self_train
    from unicorn_monai.baselines.translation import Translator
    from unicorn_monai.baselines.unpaired import UnpairedDataset, UnpairedLoader

__all__ = [
    "CUT",
    "CycleGAN",
    "LastWeights",
    "PatchProjection",
    "ResnetGenerator",
    "TranslationSheet",
    "TranslationTrainer",
    "Translator",
    "UnpairedDataset",
    "UnpairedLoader",
    "feature_channels",
    "self_train",
]
_HOMES = {
    "CUT": "baselines.cut",
    "CycleGAN": "baselines.cyclegan",
    "LastWeights": "baselines.adversarial",
    "PatchProjection": "baselines.cut",
    "ResnetGenerator": "baselines.networks",
    "TranslationSheet": "baselines.adversarial",
    "TranslationTrainer": "baselines.adversarial",
    "Translator": "baselines.translation",
    "UnpairedDataset": "baselines.unpaired",
    "UnpairedLoader": "baselines.unpaired",
    "feature_channels": "baselines.networks",
    "self_train": "baselines.self_training",
}


def __getattr__(name: str) -> Any:
    return offered(__name__, _HOMES, name)
