"""The segmentation network: training, predictions, uncertainties, pseudo-labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unicorn_monai.system.lazy import offered

if TYPE_CHECKING:
    from unicorn_monai.segmentation.acquisition import Measure, make_inferer
    from unicorn_monai.segmentation.predict import predict_labels
    from unicorn_monai.segmentation.pseudo_labels import PseudoLabeller
    from unicorn_monai.segmentation.recorders import MetricsWriter, PriorFitter, SegmentationWriter, UncertaintyRecorder
    from unicorn_monai.segmentation.segformer import SegFormer
    from unicorn_monai.segmentation.training import SegmentationInferer, SegmentationLoss, SegmentationSheet

__all__ = [
    "Measure",
    "MetricsWriter",
    "PriorFitter",
    "PseudoLabeller",
    "SegFormer",
    "SegmentationInferer",
    "SegmentationLoss",
    "SegmentationSheet",
    "SegmentationWriter",
    "UncertaintyRecorder",
    "make_inferer",
    "predict_labels",
]
_HOMES = {
    "Measure": "segmentation.acquisition",
    "MetricsWriter": "segmentation.recorders",
    "PriorFitter": "segmentation.recorders",
    "PseudoLabeller": "segmentation.pseudo_labels",
    "SegFormer": "segmentation.segformer",
    "SegmentationInferer": "segmentation.training",
    "SegmentationLoss": "segmentation.training",
    "SegmentationSheet": "segmentation.training",
    "SegmentationWriter": "segmentation.recorders",
    "UncertaintyRecorder": "segmentation.recorders",
    "make_inferer": "segmentation.acquisition",
    "predict_labels": "segmentation.predict",
}


def __getattr__(name: str) -> Any:
    return offered(__name__, _HOMES, name)
