"""The whole method on two domains, stage by stage, in one folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unicorn_monai.system.lazy import offers

if TYPE_CHECKING:
    from unicorn_monai.experiment.experiment import Experiment
    from unicorn_monai.experiment.plan import CONTROLNETS
    from unicorn_monai.experiment.runner import Runner
    from unicorn_monai.experiment.settings import Settings, bundle_places, settings_begun_with, settings_of
    from unicorn_monai.experiment.stages import Stage, needed
    from unicorn_monai.experiment.versions import provenance

__getattr__, __all__ = offers(__name__, __file__)
