"""The segmentation network: training, predictions, uncertainties, pseudo-labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unicorn_monai.system.lazy import offers

if TYPE_CHECKING:
    from unicorn_monai.segmentation.acquisition import Measure, make_inferer
    from unicorn_monai.segmentation.predict import predict_labels
    from unicorn_monai.segmentation.pseudo_labels import PseudoLabeller
    from unicorn_monai.segmentation.recorders import MetricsWriter, PriorFitter, SegmentationWriter, UncertaintyRecorder
    from unicorn_monai.segmentation.segformer import SegFormer
    from unicorn_monai.segmentation.training import SegmentationInferer, SegmentationLoss, SegmentationSheet

__getattr__, __all__ = offers(__name__, __file__)
