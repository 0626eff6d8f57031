from .acquisition import Measure as Measure
from .acquisition import make_inferer as make_inferer
from .predict import predict_labels as predict_labels
from .pseudo_labels import PseudoLabeller as PseudoLabeller
from .recorders import (
    MetricsWriter as MetricsWriter,
)
from .recorders import (
    PriorFitter as PriorFitter,
)
from .recorders import (
    SegmentationWriter as SegmentationWriter,
)
from .recorders import (
    UncertaintyRecorder as UncertaintyRecorder,
)
from .segformer import SegFormer as SegFormer
from .training import (
    SegmentationInferer as SegmentationInferer,
)
from .training import (
    SegmentationLoss as SegmentationLoss,
)
from .training import (
    SegmentationSheet as SegmentationSheet,
)
