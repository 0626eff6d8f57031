"""What an evaluator of the segmentation network leaves as files: label maps, uncertainties, the prior, metrics."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import Tensor

from unicorn_monai.data.items import datalist
from unicorn_monai.data.uncertainties import read_uncertainties
from unicorn_monai.images.files import write_array
from unicorn_monai.images.pictures import to_uint8
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.segmentation.acquisition import Measure
from unicorn_monai.system.errors import of_batch
from unicorn_monai.system.files import PathLike, or_none, read_json, write_json
from unicorn_monai.system.networks import require_finite
from unicorn_monai.system.weights import sha256
from unicorn_monai.uncertainty import image_uncertainty, normalised_entropy

logger = logging.getLogger("unicorn_monai")


def _seen(engine: Engine) -> tuple[Tensor, list[str]]:
    """Logits and image files of a batch of an evaluator that does not decollate."""
    logits: Tensor = engine.state.output["pred"]  # type: ignore[index]
    paths: list[str] = engine.state.batch["image_path"]  # type: ignore[index]
    return require_finite("The output of the segmentation network", logits, of_batch(engine)), paths


class SegmentationWriter:
    """Write what a segmentation network says of each image: label map and normalised entropy (0..1 -> 0..255).

    Args:
        output_dir: gets ``000000_label.<suffix>``, ``000000_entropy.<suffix>``, ..., ``index.json`` (what was made of
            which image) and ``uncertainty.json`` (image: value). Names of input files make no names of output files.
        suffix: ".nii.gz" or ".png".
    """

    def __init__(self, output_dir: PathLike, suffix: str = ".nii.gz") -> None:
        self.output_dir, self.suffix = Path(output_dir), suffix
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator that does not decollate."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _write(self, engine: Engine) -> None:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        logits, paths = _seen(engine)
        labels = logits.argmax(dim=1).byte().cpu().numpy()
        entropies, uncertainties = normalised_entropy(logits), image_uncertainty(logits).tolist()
        for i, path in enumerate(paths):
            names = {kind: f"{len(self.rows):06d}_{kind}{self.suffix}" for kind in ("label", "entropy")}
            write_array(self.output_dir / names["label"], labels[i])
            write_array(self.output_dir / names["entropy"], to_uint8(entropies[i]))
            self.rows.append({"image": path, **names, "uncertainty": uncertainties[i]})

    def _finish(self, engine: Engine) -> None:
        write_json(self.output_dir / "index.json", self.rows)
        write_json(self.output_dir / "uncertainty.json", {row["image"]: row["uncertainty"] for row in self.rows})


class UncertaintyRecorder:
    """Write the uncertainty of every image an evaluator sees; Eq. 4 by default.

    As JSON: {"segmentation_sha256": ..., "acquisition": ..., "aggregation": ..., "samples": ..., "ensemble":
    {file: sha256}, "images": {path: uncertainty}}. The sha256 of the ``weights`` is kept, since uncertainties of two
    networks cannot be compared.
    """

    def __init__(
        self,
        path: PathLike,
        weights: PathLike,
        acquisition: str = "entropy",
        aggregation: str = "mean",
        ensemble: Sequence[PathLike] = (),
        samples: int = 8,
    ) -> None:
        self.path, self.measure = Path(path), Measure(acquisition, aggregation)
        members = [Path(member).resolve() for member in ensemble] if acquisition == "ensemble" else []
        self.header: dict[str, Any] = {"segmentation_sha256": sha256(weights), **asdict(self.measure)}
        self.header |= {"samples": samples, "ensemble": {str(member): sha256(member) for member in members}}
        self.table: dict[str, float] = {}

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator that does not decollate."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._record)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _record(self, engine: Engine) -> None:
        logits, paths = _seen(engine)
        self.table.update(zip(paths, self.measure(logits).tolist(), strict=True))

    def _finish(self, engine: Engine) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.header | {"images": self.table})


class PriorFitter:
    """Fit the uncertainty prior when an ``UncertaintyRecorder`` attached before it has written both domains.

    ``uncertainties`` is the recorder's file, ``path`` the prior's; for scaling and distribution see
    :class:`UncertaintyPrior`.
    """

    def __init__(
        self,
        uncertainties: PathLike,
        labeled_dir: PathLike,
        unlabeled_dir: PathLike,
        split: str | list[str],
        scaling: str,
        path: PathLike,
        distribution: str = "gaussian",
    ) -> None:
        self.uncertainties, self.split, self.scaling, self.path = uncertainties, split, scaling, path
        self.folders, self.distribution = (labeled_dir, unlabeled_dir), distribution

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self._fit)

    def _fit(self, engine: Engine) -> None:
        labeled, unlabeled = (read_uncertainties(self.uncertainties, datalist(f, self.split)) for f in self.folders)
        record = read_json(self.uncertainties)
        measure = {key: record[key] for key in ("acquisition", "aggregation", "samples", "ensemble") if key in record}
        measure |= {"distribution": self.distribution}
        prior = UncertaintyPrior.fit(labeled, unlabeled, record["segmentation_sha256"], self.scaling, **measure)
        prior.save(self.path)
        low, high = unlabeled.min(), unlabeled.max()
        logger.info(
            f"uncertainty of the unlabelled domain: {prior.mean:.4f} +- {prior.std:.4f}, {low:.4f} to {high:.4f} "
            f"({prior.distribution} prior); labelled domain: {labeled.mean():.4f}"
        )


class MetricsWriter:
    """Write an evaluator's metrics as JSON when it has finished; null for what it could not compute."""

    def __init__(self, path: PathLike, metrics: list[str]) -> None:
        self.path, self.metrics = Path(path), metrics

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        found = {name: engine.state.metrics[name] for name in self.metrics}
        plain = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in found.items()}
        write_json(self.path, {name: or_none(value) for name, value in plain.items()})
