"""Which components a bundle may call without being told of: what bundles are made of, and nothing that does more.

Whole packages would not do: MONAI's own hold functions that start programs (``monai.utils.misc.run_cmd``), run other
bundles, download, unpickle and write. So these are let through:

    - what the configurations of this package's own bundles call;
    - classes that compute, of the modules in ``COMPUTING``: networks, losses, transforms, optimizers, ..., but for
      those in ``TOO_MUCH``, which load, store or download, or call by name what they are told to;
    - the classes and functions of ``USUAL``.

No function else, and no method: a name must be that of the class itself, where it was defined.
"""

from __future__ import annotations

import pydoc
from functools import cache
from pathlib import Path

from monai.bundle.config_item import ComponentLocator

from unicorn_monai.bundle.expressions import texts
from unicorn_monai.bundle.installation import BUNDLES, bundle_root
from unicorn_monai.system.files import parse_json

COMPUTING = (
    "torch.nn.modules",
    "torch.optim",
    "ignite.metrics",
    "monai.engines",
    "monai.inferers",
    "monai.losses",
    "monai.metrics",
    "monai.networks.blocks",
    "monai.networks.layers",
    "monai.networks.nets",
    "monai.networks.schedulers",
    "monai.optimizers",
    "monai.transforms",
    "unicorn_monai.images.augmentation",
    "unicorn_monai.inferers",
    "unicorn_monai.schedulers",
    "unicorn_monai.segmentation.acquisition",
)


def _words(text: str, package: str = "") -> set[str]:
    return {package + word for word in text.split()}


USUAL = {
    *_words(
        "dataset.ArrayDataset dataset.CacheDataset dataset.Dataset dataset.SmartCacheDataset dataset.ZipDataset "
        "dataloader.DataLoader thread_buffer.ThreadDataLoader samplers.DistributedSampler "
        "samplers.DistributedWeightedRandomSampler utils.decollate_batch utils.list_data_collate "
        "utils.pad_list_data_collate meta_obj.set_track_meta",
        "monai.data.",
    ),
    *_words(
        "average_precision.AveragePrecision confusion_matrix.ConfusionMatrix earlystop_handler.EarlyStopHandler "
        "garbage_collector.GarbageCollector hausdorff_distance.HausdorffDistance ignite_metric.IgniteMetricHandler "
        "lr_schedule_handler.LrScheduleHandler mean_dice.MeanDice mean_iou.MeanIoUHandler metric_logger.MetricLogger "
        "postprocessing.PostProcessing regression_metrics.MeanAbsoluteError regression_metrics.MeanSquaredError "
        "regression_metrics.PeakSignalToNoiseRatio regression_metrics.RootMeanSquaredError roc_auc.ROCAUC "
        "stats_handler.StatsHandler surface_distance.SurfaceDistance utils.from_engine "
        "validation_handler.ValidationHandler",
        "monai.handlers.",
    ),
    "monai.utils.misc.set_determinism",
    "unicorn_monai.controlnets.copy_encoder",
    "unicorn_monai.diffusion.autoencoder.AutoencoderLoss",
    "unicorn_monai.segmentation.training.SegmentationLoss",
    "unicorn_monai.backbones.stable_diffusion.load_autoencoder",
    "unicorn_monai.backbones.stable_diffusion.scale_factor",
}
WEIGHTS_FROM_ELSEWHERE = _words(
    "AHNet EfficientNetBN EfficientNetBNFeatures FCN FlexUNet FlexibleUNet FlexUNetEncoderRegister HoVerNet MCFCN "
    "MILModel BertPreTrainedModel MultiModal Transchex TorchVisionFCModel PerceptualLoss FID InceptionScore"
)
FILES_AND_NAMES = _words(
    "LearningRateFinder ZarrAvgMerger PatchInferer LoadImage LoadImaged SaveImage SaveImaged SaveClassificationd "
    "WriteFileMapping WriteFileMappingd Lambda Lambdad RandLambda RandLambdad TorchVision TorchVisiond "
    "RandTorchVisiond TorchIO TorchIOd RandTorchIO RandTorchIOd CuCIM CuCIMd RandCuCIM RandCuCIMd"
)
TOO_MUCH = WEIGHTS_FROM_ELSEWHERE | FILES_AND_NAMES
_MODULES = frozenset(COMPUTING) | {place.rpartition(".")[0] for place in USUAL}
_locator = cache(ComponentLocator)


def is_usual(target: str) -> bool:
    """Whether a ``_target_`` is one of the components above; nothing but modules of these packages is imported."""
    if target in _own():
        return True
    if target.isidentifier():  # is looked up in MONAI, and in Python itself where MONAI lacks it
        modules = _locator().get_component_module_name(target) or []
        modules = [modules] if isinstance(modules, str) else modules
        return bool(modules) and all(is_usual(f"{module}.{target}") for module in modules)
    if not target.startswith(("monai.", "torch.nn.", "torch.optim.", "ignite.metrics.", "unicorn_monai.")):
        return False
    package = target.rpartition(".")[0]
    if not any(_within(package, module) or _within(module, package) for module in _MODULES):
        return False
    try:
        found = pydoc.locate(target)
    except pydoc.ErrorDuringImport:
        return False
    place = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', None)}"  # where it was defined
    return place in USUAL or (isinstance(found, type) and _is_let_through(found))


def _is_let_through(found: type) -> bool:
    return found.__name__ not in TOO_MUCH and any(_within(found.__module__, module) for module in COMPUTING)


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


@cache
def _own() -> frozenset[str]:
    """Every dotted name that the bundles of this package call."""
    files = [path for name in BUNDLES for path in Path(bundle_root(name)).rglob("*.json")]
    found = (pair for path in files for pair in texts(parse_json(path)))
    return frozenset(text for key, text in found if key.rpartition("::")[2] == "_target_" and "." in text)
