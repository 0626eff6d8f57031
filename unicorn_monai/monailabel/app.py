"""The app: which tasks there are, and how a request finds its files.

Started in the server and again in every process that MONAI Label runs a training, a scoring or a batch in.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.async_tasks.utils import tasks
from typing_extensions import TypedDict

from unicorn_monai.bundle.installation import drawing
from unicorn_monai.monailabel import synthesis
from unicorn_monai.monailabel.active_learning import UNCERTAINTY, MostUncertainFirst, UncertaintyScoring, outdated
from unicorn_monai.monailabel.app_folder import RECORD, SEGMENTATION
from unicorn_monai.monailabel.client import NUMERIC, Unknown, file_name, known, refuse_expressions, take, whole
from unicorn_monai.monailabel.segmentation import Segmentation, Training
from unicorn_monai.monailabel.studies import FINAL, Studies
from unicorn_monai.system.files import read_json

logger = logging.getLogger(__name__)

SYNTHESIS, STRATEGY = "synthesis", "most_uncertain"
TASKS = {  # of an endpoint: how messages call what it runs, and where MONAI Label keeps them by name
    "infer": ("model", "_infers"),
    "batch": ("model", "_infers"),
    "train": ("trainer", "_trainers"),
    "scoring": ("scoring method", "_scoring_methods"),
    "activelearning": ("strategy", "_strategies"),
}


class Batch(TypedDict, total=False):
    """What a client may set beside the settings of a batch's model."""

    max_batch_size: Annotated[int, NUMERIC, whole(0, 1_000_000)]


class UnicornApp(MONAILabelApp):
    """Segmentation, training, scoring, active learning and synthesis on the bundles of a run; see `make_app`."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.record, self.folder = read_json(Path(app_dir) / RECORD), Path(app_dir)
        self.segmentation = Segmentation(self.folder / "model" / SEGMENTATION, self.record["labels"])
        super().__init__(
            app_dir,
            studies,
            conf,
            name="unicorn_monai",
            description=f"Layers of retinal OCT B-scans, most uncertain first; run {Path(self.record['run']).name}",
            labels=list(self.segmentation.labels),
        )

    def init_datastore(self) -> Datastore:
        """The folder of studies."""
        if "://" in self.studies:
            raise ValueError(f"The studies are '{self.studies}'; expected a folder. DICOMweb is not supported.")
        reload = settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD
        return Studies(self.studies, self.record["labels"], self.segmentation.num_channels, reload)

    def init_infers(self) -> dict[str, InferTask]:
        """Segmentation, and synthesis where the run has a generator."""
        if self.record["mode"] is None:
            return {SEGMENTATION: self.segmentation}
        generator = synthesis.Synthesis(self.folder / "generator" / drawing(self.record["mode"]), self.record)
        return {SEGMENTATION: self.segmentation, SYNTHESIS: generator}

    def init_trainers(self) -> dict[str, TrainTask]:
        """Training of the segmentation."""
        return {SEGMENTATION: Training(self.folder / "model" / SEGMENTATION, self.folder / "mlflow.db")}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """The uncertainty of every unlabelled image."""
        return {UNCERTAINTY: UncertaintyScoring(self.segmentation)}

    def init_strategies(self) -> dict[str, Strategy]:
        """Most uncertain first."""
        return {STRATEGY: MostUncertainFirst()}

    def tasks_of(self, endpoint: str) -> Mapping[str, Any]:
        """What an endpoint, a key of ``TASKS``, may run, by name."""
        return getattr(self, TASKS[endpoint][1])

    def check(self, endpoint: str, name: str, request: Mapping[str, Any]) -> None:
        """Refuse, when a request arrives, what its task would refuse later in a process of its own.

        ``endpoint`` is the first part of the address, a key of ``TASKS``; ``name`` that of the task.
        """
        task, studies = self.tasks_of(endpoint)[name], self.datastore()
        if not isinstance(task, Strategy):
            task.check(request, studies)
        if endpoint == "batch":
            take(request, Batch)
            if request.get("label_tag") is not None:
                file_name("label_tag", request["label_tag"])
            for image in request["images"] if isinstance(request.get("images"), list) else []:
                known("image", image, studies.list_images())

    def infer(self, request: Mapping[str, Any], datastore: Studies | None = None) -> dict[str, Any]:
        """Run a model on a study or an uploaded file: {"label", "tag", "file", "params"}, as MONAI Label's own.

        The request says ``model``, ``image`` (id of a study, or the temporary file of an upload), ``label`` (that of an
        uploaded label map), ``label_tag``, ``save_label``, and the settings of the model.
        """
        refuse_expressions(request)
        model, studies = known("model", request.get("model"), self._infers), datastore or self.datastore()
        image, tag = str(request.get("image") or ""), str(request.get("label_tag") or "original")
        file_name("label tag", tag)
        study = image if image in studies.list_images() else ""
        if not study and image and not is_upload(image):
            raise Unknown(f"There is no image {image[:80]!r} among the {len(studies.list_images())} studies.")
        file = studies.get_image_uri(study) if study else image
        if model == SYNTHESIS:
            return self._synthesise(request, studies, study, file)
        result, answer = self._infers[model]({**request, "image": file})
        label = result
        if study and result and request.get("save_label") is True:
            label = studies.save_label(study, result, tag, {"model": model, "params": answer})
        return {"label": label, "tag": tag, "file": result, "params": answer}

    def _synthesise(self, request: Mapping[str, Any], studies: Studies, study: str, file: str) -> dict[str, Any]:
        """An uploaded label map, else the submitted one of a study."""
        uploaded = str(request.get("label") or ("" if study else file))
        if uploaded and not is_upload(uploaded):
            raise Unknown(f"There is no uploaded label map {uploaded[:80]!r}.")
        tag = file_name("label tag", str(request.get("condition_tag") or FINAL))
        label = uploaded or studies.label_of(study, tag)
        own = {"label_map": label, "image": file if study else None, "source": study or "uploaded"}
        result, answer = self._infers[SYNTHESIS]({**request, **own})
        if request.get("store") in (True, "true"):
            answer["study"] = synthesis.store(studies, result, Path(label), study or "uploaded", answer)
        return {"label": result, "tag": tag, "file": result, "params": answer}

    def train(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Train a model, then measure the images again."""
        refuse_expressions(request)
        trainer = self._trainers[known("trainer", request.get("model"), self._trainers)]
        result = trainer(request, self.datastore())
        if self._auto_update_scoring:  # here, in the process of the training, instead of by way of the server
            self.scoring({"method": UNCERTAINTY, "device": request.get("device")})
        return result

    def scoring(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Run a scoring method."""
        refuse_expressions(request)
        known("scoring method", request.get("method"), self._scoring_methods)
        return super().scoring(request, datastore)

    def batch_infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Run a model on many studies."""
        refuse_expressions(request)
        studies = datastore or self.datastore()
        request = {**request, "multi_gpu": False, "max_workers": 1}
        if known("model", request.get("model"), self._infers) == SYNTHESIS:  # what is not stored would be lost
            request |= {"store": True, "images": studies.real(labeled=True)}
        return super().batch_infer(request, studies)

    def next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The next image to label; images that the current weights have not measured are measured in the background."""
        refuse_expressions(request)
        strategy = known("strategy", request.get("strategy"), self._strategies)
        studies = self.datastore()
        image = self._strategies[strategy](request, studies)
        waiting = any(task["status"] in ("SUBMITTED", "RUNNING") for task in tasks("scoring"))
        if self._auto_update_scoring and not waiting and outdated(studies, self.segmentation.weights_sha256()):
            self.async_scoring(None)
        return {"id": image, "path": studies.get_image_uri(image)} if image else {}


def is_upload(path: str) -> bool:
    """Whether a path is the temporary file of an upload: clients cannot name other files of the server."""
    return Path(path).is_file() and Path(path).resolve().parent == Path(tempfile.gettempdir()).resolve()
