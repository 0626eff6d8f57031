"""What every training shares: handlers, state, time budget, steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unicorn_monai.system.lazy import offers

if TYPE_CHECKING:
    from unicorn_monai.training.batches import check_batches
    from unicorn_monai.training.budget import TimeBudget
    from unicorn_monai.training.handlers import Progress, SampleImages, shared
    from unicorn_monai.training.kept_weights import EMA, BestWeights
    from unicorn_monai.training.settings import AutoencoderSettings, DiffusionSettings, TranslationSettings
    from unicorn_monai.training.state import TrainingState
    from unicorn_monai.training.steps import WarmupCosine, autocast_settings, random_order

__getattr__, __all__ = offers(__name__, __file__)
