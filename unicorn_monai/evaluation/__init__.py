"""Scores and distances of label maps and images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unicorn_monai.system.lazy import offered

if TYPE_CHECKING:
    from unicorn_monai.evaluation.comparison import SubDomainWriter
    from unicorn_monai.evaluation.copies import Audited, Material, audit, gather
    from unicorn_monai.evaluation.distribution import FeatureSet, distances, fid
    from unicorn_monai.evaluation.features import Features, train_encoder
    from unicorn_monai.evaluation.scoring import Counts, PooledIoU, count, score_images, scored_items, summarise

__all__ = [
    "Audited",
    "Counts",
    "FeatureSet",
    "Features",
    "Material",
    "PooledIoU",
    "SubDomainWriter",
    "audit",
    "count",
    "distances",
    "fid",
    "gather",
    "score_images",
    "scored_items",
    "summarise",
    "train_encoder",
]
_HOMES = {
    "Audited": "evaluation.copies",
    "Counts": "evaluation.scoring",
    "FeatureSet": "evaluation.distribution",
    "Features": "evaluation.features",
    "Material": "evaluation.copies",
    "PooledIoU": "evaluation.scoring",
    "SubDomainWriter": "evaluation.comparison",
    "audit": "evaluation.copies",
    "count": "evaluation.scoring",
    "distances": "evaluation.distribution",
    "fid": "evaluation.distribution",
    "gather": "evaluation.copies",
    "score_images": "evaluation.scoring",
    "scored_items": "evaluation.scoring",
    "summarise": "evaluation.scoring",
    "train_encoder": "evaluation.features",
}


def __getattr__(name: str) -> Any:
    return offered(__name__, _HOMES, name)
