"""MONAI Label's classes for bundles, importable beside a CPU build of torch too.

They import torchvision, whose package of the ordinary index is compiled for CUDA. Beside a CPU build of torch its
compiled part cannot be loaded, and the Python part, all that is needed, then fails because two operators are unknown.
They are declared here, without an implementation: nothing of this package or of MONAI Label's bundle tasks calls them.
"""

from __future__ import annotations

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    OPERATORS = torch.library.Library("torchvision", "FRAGMENT")  # they live as long as it
    for name in ("nms", "qnms"):
        OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.tasks.train.bundle import BundleTrainTask
from monailabel.transform.post import Restored

__all__ = ["BundleInferTask", "BundleTrainTask", "InferType", "Restored"]
