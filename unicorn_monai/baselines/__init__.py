"""What the method is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unicorn_monai.system.lazy import offers

if TYPE_CHECKING:
    from unicorn_monai.baselines.adversarial import translation_trainer
    from unicorn_monai.baselines.cut import CUT, PatchProjection
    from unicorn_monai.baselines.cyclegan import CycleGAN
    from unicorn_monai.baselines.networks import ResnetGenerator, feature_channels
    from unicorn_monai.baselines.self_training import self_train
    from unicorn_monai.baselines.translation import Translator
    from unicorn_monai.baselines.unpaired import unpaired_images

__getattr__, __all__ = offers(__name__, __file__)
