"""MONAI Label's classes for bundles, importable beside a CPU build of torch too.

They import torchvision, whose package of the ordinary index is compiled for CUDA. Beside a CPU build of torch its
compiled part cannot be loaded, and the Python part, all that is needed, then fails because two operators are unknown.
They are declared here, without an implementation: nothing of this package or of MONAI Label's bundle tasks calls them.
"""

from __future__ import annotations

import torch

OPERATORS = ("nms", "qnms")
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_operators() -> None:
    """Declare the operators of torchvision that its Python part registers something for, where they are missing."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in OPERATORS:
            library.define(name + SIGNATURE)
        _KEPT.append(library)  # an operator lives as long as its library


_KEPT: list[torch.library.Library] = []
declare_operators()

from monailabel.interfaces.tasks.infer_v2 import InferType  # noqa: E402
from monailabel.tasks.infer.bundle import BundleInferTask  # noqa: E402
from monailabel.tasks.train.bundle import BundleTrainTask  # noqa: E402
from monailabel.transform.post import Restored  # noqa: E402

__all__ = ["BundleInferTask", "BundleTrainTask", "InferType", "Restored"]
