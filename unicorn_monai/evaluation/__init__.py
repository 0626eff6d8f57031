"""Scores and distances of label maps and images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unicorn_monai.system.lazy import offers

if TYPE_CHECKING:
    from unicorn_monai.evaluation.comparison import SubDomainWriter
    from unicorn_monai.evaluation.copies import Audited, Material, audit, gather
    from unicorn_monai.evaluation.distribution import FeatureSet, distances, fid
    from unicorn_monai.evaluation.features import Features, train_encoder
    from unicorn_monai.evaluation.scoring import Counts, PooledIoU, count, score_images, scored_items, summarise

__getattr__, __all__ = offers(__name__, __file__)
