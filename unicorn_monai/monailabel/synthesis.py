"""Synthesis as a task of MONAI Label: the label map of a study, or an uploaded one -> an image that belongs to it.

The networks are those of the run's bundle that draws. The uncertainty is on the scale of the segmentation network
they were trained with, by the run's acquisition, kept beside them, whatever the served network has been trained to
since.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from monai.bundle import ConfigParser
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from typing_extensions import TypedDict

from unicorn_monai.bundle.installation import load_config
from unicorn_monai.bundle.references import default_device
from unicorn_monai.images.files import read_array
from unicorn_monai.images.pictures import to_uint8
from unicorn_monai.monailabel.client import NUMERIC, Device, Flag, number, take, whole
from unicorn_monai.monailabel.label_files import read_client_label, served_suffix, write_like
from unicorn_monai.monailabel.studies import FINAL, Studies
from unicorn_monai.synthesis.generator import Generator
from unicorn_monai.synthesis.requests import Request


class Wanted(TypedDict, total=False):
    """What a client may set."""

    device: Device
    seed: Annotated[int, NUMERIC, whole(0, 2**63 - 1)]
    uncertainty: Annotated[float, NUMERIC, number(0, 1)]
    weight: Annotated[float, NUMERIC, number(0, 10)]
    num_inference_steps: Annotated[int, NUMERIC, whole(1, 1000)]
    store: Flag


class Synthesis(InferTask):
    """Make an image for a label map, by the bundle of an app that draws and what ``app.json`` says of it."""

    def __init__(self, bundle: Path, record: Mapping[str, Any]) -> None:
        self.bundle, self.names, self.mode = bundle, record["labels"], record["mode"]
        self.weight, self.guidance = record["uncertainty_weight"], record["guidance"]
        description = "An image for the label map of a study or an uploaded one, at a given or sampled uncertainty"
        config = {"seed": None, "uncertainty": None, "weight": self.weight, "num_inference_steps": None, "store": False}
        super().__init__(InferType.OTHERS, None, 2, description, config)
        self._loaded: dict[str, ConfigParser] = {}
        self._lock = threading.Lock()

    def is_valid(self) -> bool:
        """Whether the bundle is there."""
        return (self.bundle / "configs" / "inference.json").is_file()

    def _parser(self, name: str) -> ConfigParser:
        """The bundle's configuration with its networks on a device; built once."""
        if name not in self._loaded:
            settings = {"mode": self.mode, "uncertainty_weight": self.weight, "guidance": self.guidance, "device": name}
            self._loaded[name] = ConfigParser(load_config(self.bundle) | settings)
        return self._loaded[name]

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Make one image, by the settings of ``Wanted``; returns its file, and what it was made of.

        ``label_map`` of the request is a file as clients send it, ``image`` that of the image it belongs to, or None.
        """
        started, settings = time.monotonic(), self._settings(request)
        path = Path(request["label_map"])
        reference = Path(request.get("image") or path)
        labels = torch.from_numpy(read_client_label(path, reference, self.names))[None, None].long()
        seed = settings.get("seed", secrets.randbelow(2**31))
        weight = settings.get("weight", self.weight)
        with self._lock:
            parser = self._parser(settings.get("device", str(default_device())))
            generator: Generator = parser.get_parsed_content("generator")
            models = parser.get_parsed_content("evaluator::models")
            uncertainty = settings.get("uncertainty")
            if uncertainty is None:
                uncertainty = float(parser.get_parsed_content("prior").sample([seed])[0])
            size = generator.ldm.image_size
            if tuple(labels.shape[2:]) != size:
                raise ValueError(
                    f"The label map is {tuple(labels.shape[2:])}; the networks of this run make {size}. Resample it."
                )
            prompt = self._prompt(parser, seed)
            wanted = Request(0, seed, uncertainty=uncertainty, prompt=prompt)
            image = generator([wanted], labels, weight, settings.get("num_inference_steps"))[0]
        with tempfile.NamedTemporaryFile(suffix=served_suffix(reference), delete=False) as file:
            write_like(to_uint8(image), Path(file.name), reference)
        return file.name, {
            "synthetic": True,
            "seed": seed,
            "uncertainty": uncertainty,
            "uncertainty_sampled": "uncertainty" not in settings,
            "weight": weight,
            "mode": self.mode,
            "guidance": self.guidance,
            "source_label": request.get("source", path.name),
            **({} if prompt is None else {"prompt": prompt}),
            "models": models,
            "latencies": {"total": round(time.monotonic() - started, 2)},
        }

    def check(self, request: Mapping[str, Any], studies: Studies) -> None:
        """Refuse wrong settings when a request arrives."""
        self._settings(request)

    def _settings(self, request: Mapping[str, Any]) -> Wanted:
        settings = take(request, Wanted)
        weight = settings.get("weight", self.weight)
        if self.mode == "paper" and weight > 1:
            raise ValueError(f"'weight' is {weight}; expected 0 to 1, since the weights of this run are (1 - w, w).")
        return settings

    def _prompt(self, parser: ConfigParser, seed: int) -> str | None:
        """The words of an image, where the run has some: a sub-domain of the unlabelled domain, chosen by the seed."""
        if parser.get("template") is None:  # none, or a run from before there were any
            return None
        template, names = (parser.get_parsed_content(key) for key in ("template", "subdomains"))
        return None if template is None else template({}, names[seed % len(names)] if names else None)


def store(studies: Studies, image: str, label: Path, source: str, answer: Mapping[str, Any]) -> str:
    """Keep a synthetic image with its label map as a labelled study that is marked as synthetic; returns its id.

    The id ends with a hash of the pixels and of the label map: the same again is the same study, an image of the same
    seed with another uncertainty, weight or label map is another one.
    """
    content = hashlib.sha256(read_array(image).tobytes() + label.read_bytes()).hexdigest()[:8]
    study = studies.add_image(f"synthetic_{source}_{answer['seed']}_{content}", image, {"synthetic": dict(answer)})
    studies.save_label(study, str(label), FINAL, {"synthetic": True})
    return study
