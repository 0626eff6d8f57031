"""The bundle ``retinal_unet`` as tasks of MONAI Label: inference that tells its uncertainty, training on the studies.

Inference runs the bundle's own ``inference.json`` (preprocessing, network, inferer, postprocessing), so the mask is
that of ``python -m monai.bundle run``; training its ``train.json`` with the studies' files in place of a data set.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from monai.data import partition_dataset
from typing_extensions import TypedDict

from unicorn_monai.bundle.references import default_device
from unicorn_monai.experiment.tracking import store_uri
from unicorn_monai.images.files import read_shape
from unicorn_monai.images.transforms import FileAxesd, read_image
from unicorn_monai.monailabel.client import FIRST, NUMERIC, Device, Flag, number, take, whole
from unicorn_monai.monailabel.label_files import VOLUMES, served_suffix
from unicorn_monai.monailabel.stock import BundleInferTask, BundleTrainTask, InferType, Restored
from unicorn_monai.monailabel.studies import FINAL, Studies
from unicorn_monai.system.records import one_of
from unicorn_monai.system.weights import read_metadata
from unicorn_monai.uncertainty import image_uncertainty, normalised_entropy

ENTROPY = "entropy"
FEWEST = 2  # labelled studies: one to train on, one to validate on


class Inference(TypedDict, total=False):
    """What a client may set of an inference."""

    device: Device
    result_extension: Annotated[str, FIRST, one_of((*VOLUMES, ".png"))]
    result_write_to_file: Flag
    map: Annotated[str, FIRST, one_of(("labels", ENTROPY))]


class Trained(TypedDict, total=False):
    """What a client may set of a training."""

    device: Device
    pretrained: Flag
    max_epochs: Annotated[int, NUMERIC, whole(1, 10_000)]
    val_split: Annotated[float, NUMERIC, number(0.01, 0.9)]
    tracking: Annotated[str, FIRST, one_of(("mlflow", "None"))]


class Segmentation(BundleInferTask):
    """Label map of an image, with the image's uncertainty u(x) of Eq. (4) in the answer.

    ``names``: of the labels, ordered by value; the first is the background, which viewers do not paint.
    """

    def __init__(self, bundle: Path, names: Sequence[str]) -> None:
        super().__init__(str(bundle), {}, type=InferType.SEGMENTATION, load_strict=True)
        if not self.is_valid():
            raise ValueError(f"'{bundle}' cannot be served: it needs configs/inference.json and models/model.pt.")
        self.labels = {name: value for value, name in enumerate(names) if value > 0}
        del self._config["model_filename"]  # the weights are those that are trained, not a client's choice
        self._config["device"] = devices()
        self._config["map"] = ["labels", ENTROPY]
        self.num_channels = int(self.bundle_config.get_parsed_content("num_channels"))
        self._factor = math.prod(self.bundle_config["network_def"]["strides"])
        self._lock = threading.Lock()  # transforms are built from the one configuration

    def weights_sha256(self) -> str:
        """Which weights are served now."""
        return read_metadata(self.get_path())["sha256"]

    def __call__(self, request: Mapping[str, Any], callbacks: Any = None) -> tuple[str, dict[str, Any]]:
        """Segment one image, a file, by the settings of ``Inference``; everything else in the request is left out.

        Returns the file of the label map, or of the entropy (0..1 -> 0..255) where ``map`` is "entropy", and what is
        told about it: ``uncertainty``, ``weights`` (sha256), ``label_names``, ``latencies``.
        """
        image = str(request["image"])
        rows, columns = read_image(image, self.num_channels).shape[1:]
        if rows % self._factor or columns % self._factor:
            raise ValueError(
                f"The image is {rows} x {columns}; the network needs sides that are multiples of {self._factor}. "
                "Resample the studies, e.g. with the --size of data_prep."
            )
        own = {"device": str(default_device()), "result_extension": served_suffix(image)}
        asked = {"image": image, "model": "retinal_unet", **own, **take(request, Inference)}
        with self._lock:
            return super().__call__(asked, callbacks)

    def check(self, request: Mapping[str, Any], studies: Studies) -> None:
        """Refuse wrong settings when a request arrives."""
        take(request, Inference)

    def run_inferer(self, data: dict[str, Any], convert_to_batch: bool = True, device: str = "cuda") -> dict[str, Any]:
        """The logits under ``pred``, and the uncertainty for the answer."""
        data = super().run_inferer(data, convert_to_batch, device)
        uncertainty = image_uncertainty(data["pred"][None]).item()
        data["result"] = {"uncertainty": uncertainty, "weights": self.weights_sha256()}
        return data

    def post_transforms(self, data: dict[str, Any] | None = None) -> Sequence[Any]:
        """Those of the bundle, for the label map; the normalised entropy in the same axes, where it is asked for."""
        if data is None or data.get("map") != ENTROPY:
            return super().post_transforms(data)
        return [entropy_image, FileAxesd(["pred"]), Restored(keys="pred", ref_image="image")]


def devices() -> list[str]:
    """What a client may choose from: the GPUs where there are any, else the CPU."""
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]


def entropy_image(data: dict[str, Any]) -> dict[str, Any]:
    """Logits under ``pred`` -> normalised entropy (rows, columns), 0..1 as 0..255 uint8."""
    entropy = normalised_entropy(data["pred"][None])[0, 0]
    return data | {"pred": (entropy * 255).round().to(torch.uint8)}


class Training(BundleTrainTask):
    """Train the bundle on the labelled studies, in place; the served weights follow. ``store``: SQLite file."""

    def __init__(self, bundle: Path, store: Path) -> None:
        super().__init__(str(bundle), {}, enable_tracking=True, load_strict=True)
        self.store = store

    def config(self) -> dict[str, Any]:
        """What a client may set, with its defaults."""
        tracking = ["mlflow", "None"]
        return {"device": devices(), "pretrained": True, "max_epochs": 50, "val_split": 0.2, "tracking": tracking}

    def __call__(self, request: Mapping[str, Any], datastore: Studies) -> dict[str, Any]:
        """Train; in MONAI Label's own process for it."""
        own = {
            "model": "retinal_unet",
            "multi_gpu": False,
            "tracking": "mlflow",
            "tracking_uri": store_uri(Path(self.store)),
            "tracking_experiment_name": "monailabel",
            "tracking_run_name": time.strftime("%Y-%m-%d %H:%M:%S"),  # a name of its own, or MONAI goes on with a run
        }
        return super().__call__(own | take(request, Trained), datastore)

    def check(self, request: Mapping[str, Any], studies: Studies) -> None:
        """Refuse wrong settings, and a training on too few labels, when a request arrives."""
        take(request, Trained)
        self._fetch_datalist(request, studies)

    def _fetch_datalist(self, request: Mapping[str, Any], datastore: Studies) -> list[dict[str, Any]]:
        items = [
            {
                "image": datastore.get_image_uri(study),
                "label": datastore.get_label_uri(study, FINAL),
                "synthetic": bool(datastore.get_image_info(study).get("synthetic")),
            }
            for study in sorted(datastore.get_labeled_images())
        ]
        if sum(not item["synthetic"] for item in items) < FEWEST:
            raise ValueError(
                f"{len(items)} studies have a submitted label; expected at least {FEWEST} that are not synthetic, one "
                "to train on and one to validate on. Submit more labels."
            )
        sizes = {read_shape(item["image"])[:2]: Path(item["image"]).name for item in items}
        if len(sizes) > 1:
            listed = ", ".join(f"{rows} x {columns} ('{name}')" for (rows, columns), name in sizes.items())
            raise ValueError(f"The studies with a submitted label have the sizes {listed}; a training needs one size.")
        return items

    def _partition_datalist(self, datalist, request, shuffle=False):
        """Validate on real images only, at least one."""
        real, synthetic = ([item for item in datalist if item["synthetic"] is kind] for kind in (False, True))
        count = min(max(1, round(len(real) * request.get("val_split", 0.2))), len(real) - 1)
        training, validation = partition_dataset(real, ratios=[len(real) - count, count], shuffle=True, seed=0)
        parts = training + synthetic, validation
        return tuple([{key: item[key] for key in ("image", "label")} for item in part] for part in parts)

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[dict[str, Any]]) -> None:
        if pretrained:
            super()._load_checkpoint(model_pytorch, pretrained, train_handlers)

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        overrides["max_epochs"] = overrides["train#trainer#max_epochs"]  # the learning rate's schedule needs it too
        return overrides
