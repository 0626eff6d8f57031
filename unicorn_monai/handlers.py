"""Ignite handlers: progress, sample images at intervals, and the files that inference and measurement write."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from torch import Tensor
from tqdm import tqdm

from unicorn_monai.acquisition import Measure
from unicorn_monai.budget import TimeBudget
from unicorn_monai.checkpoints import sha256
from unicorn_monai.dataset_files import or_none, parse_json
from unicorn_monai.datasets import PathLike, datalist, write_array, write_json
from unicorn_monai.distributed import is_main
from unicorn_monai.durable import sweep
from unicorn_monai.failures import NotFinite, of_batch, on_failure
from unicorn_monai.intake import lies_there
from unicorn_monai.latents import read_uncertainties
from unicorn_monai.networks import require_finite
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.terminal import printable
from unicorn_monai.transforms import to_uint8
from unicorn_monai.uncertainty import image_uncertainty, normalised_entropy

logger = logging.getLogger("unicorn_monai")


def shared(handler: Any) -> Any:
    """A handler that other entries of a configuration refer to as well, such as the best weights.

    MONAI's ``check_properties`` wants every entry of ``train::handlers`` to be a dictionary with a ``_target_``.
    """
    return handler


def scalars(engine: Engine) -> dict[str, float]:
    """The numbers an engine gave at its last iteration, e.g. its losses.

    A trainer of MONAI gives a list with a dictionary for every image (decollated), each with the same loss.
    """
    output: Any = engine.state.output
    first = output[0] if isinstance(output, list) and output else output
    if not isinstance(first, dict):
        return {}
    values = {k: v.item() if isinstance(v, Tensor) and v.numel() == 1 else v for k, v in first.items()}
    return {k: float(v) for k, v in values.items() if isinstance(v, int | float) and k not in _NOT_SCALARS}


_NOT_SCALARS = ("image", "label", "pred")  # of a single pixel they would look like one


def on_terminal() -> bool:
    """Whether progress is shown as bars: on a terminal, unless ``TQDM_DISABLE`` is set."""
    return sys.stderr.isatty() and not os.environ.get("TQDM_DISABLE")


class Progress:
    """Progress of a training or evaluation: a bar with rate and time left on a terminal, plain lines elsewhere.

    Args:
        description: what is running.
        lines: number of plain lines over the whole run.
        budget: of the training, attached before; the lines then follow the clock too.
    """

    def __init__(self, description: str, lines: int = 10, budget: TimeBudget | None = None) -> None:
        self.description, self.lines, self.budget = description, lines, budget
        self.bar: tqdm | None = None
        self.loss: float | None = None

    def attach(self, engine: Engine) -> None:
        """Register with an engine."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._require_finite)
        if not is_main():
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED, self._close)
        on_failure(engine, self._close)

    def _start(self, engine: Engine) -> None:
        self.total = int(engine.state.max_epochs or 1) * int(engine.state.epoch_length or 1)
        self.first, self.started = engine.state.iteration, time.monotonic()
        self.told = self._line()
        timed = self.budget is not None and self.budget.max_seconds is not None
        total = None if timed else self.total  # the clock ends it, not the iterations
        self.bar = tqdm(
            total=total, initial=self.first, desc=printable(self.description), disable=not on_terminal(), leave=False
        )

    def _require_finite(self, engine: Engine) -> None:
        values = scalars(engine)
        self.loss = values.get("loss")
        for name, value in values.items():
            if not np.isfinite(value):
                where = f"iteration {engine.state.iteration}{of_batch(engine)}"
                raise NotFinite(
                    f"{self.description}: the {name} is {value} at {where}. "
                    "Lower the learning rate, or check the images for extreme values."
                )

    def _step(self, engine: Engine) -> None:
        loss = self.loss
        done = engine.state.iteration
        if self.bar is None:
            return
        self.bar.update()
        if self.bar.total is None and self.budget is not None:
            self.bar.set_postfix_str(f"{self.budget.left():.0f} s left", refresh=False)
        before, self.told = self.told, self._line(done)
        if on_terminal() or self.told == before:
            return
        rate = (done - self.first) / max(1e-9, time.monotonic() - self.started)
        left = min((self.total - done) / rate, self.budget.left() if self.budget else float("inf"))
        text = f"{self.description}: {done}/{self.total}, {rate:.1f} it/s, {left:.0f} s left"
        logger.info(text if loss is None else f"{text}, loss {loss:.4f}")

    def _line(self, done: int | None = None) -> int:
        """Number of plain lines due by now."""
        if self.budget is not None:
            return int(self.budget.share * self.lines)
        return (self.first if done is None else done) * self.lines // self.total

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class SampleImages:
    """Write a sheet of images at intervals of a training: ``<output_dir>/epoch_0010.png``, and to TensorBoard.

    The trainer's ``state.sample_sheet`` is the newest file, which a tracker attached behind this handler picks up.

    Args:
        sampler: gives images (rows, columns of the sheet, channels, height, width) in [0, 1].
        output_dir: folder of the sheets.
        interval: epochs between two sheets; the last epoch always has one.
    """

    def __init__(self, sampler: Callable[[], Tensor], output_dir: PathLike, interval: int) -> None:
        self.sampler, self.output_dir, self.interval = sampler, Path(output_dir), interval

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if is_main():
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write a sheet if it is time."""
        epoch = engine.state.epoch
        last = epoch == engine.state.max_epochs or engine.should_terminate
        if epoch % self.interval and not last:
            return
        sheet = tile(self.sampler())
        self.output_dir.mkdir(parents=True, exist_ok=True)
        sweep(self.output_dir)
        path = self.output_dir / f"epoch_{epoch:04d}.png"
        write_array(path, sheet)
        engine.state.sample_sheet = path  # type: ignore[attr-defined]
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # optional; the PNG above is there in any case
            return
        with SummaryWriter(str(self.output_dir / "tensorboard")) as writer:
            writer.add_image("samples", sheet, epoch, dataformats="HW" if sheet.ndim == 2 else "HWC")


def evenly(total: int, count: int) -> list[int]:
    """``count`` positions spread evenly over ``total``, first and last among them; all where there are fewer."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()


def tile(images: Tensor, gap: int = 2) -> np.ndarray:
    """A sheet from (rows, columns, channels, height, width): (height, width) or (height, width, 3) uint8."""
    rows = []
    for row in images:
        tiles = [
            np.pad(to_uint8(i), [(0, gap), (0, gap)] + [(0, 0)] * (images.shape[2] != 1), constant_values=255)
            for i in row
        ]
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows, axis=0)[:-gap, :-gap]


def _prediction(engine: Engine) -> Tensor:
    """The logits of an evaluator that does not decollate."""
    logits: Tensor = engine.state.output["pred"]  # type: ignore[index]
    return require_finite("The output of the segmentation network", logits, of_batch(engine))


def _paths(engine: Engine) -> list[str]:
    """The image files of its batch."""
    return engine.state.batch["image_path"]  # type: ignore[index]


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
        logits = _prediction(engine)
        labels = logits.argmax(dim=1).byte().cpu().numpy()
        entropies, uncertainties = normalised_entropy(logits), image_uncertainty(logits).tolist()
        for i, path in enumerate(_paths(engine)):
            names = {kind: f"{len(self.rows):06d}_{kind}{self.suffix}" for kind in ("label", "entropy")}
            write_array(self.output_dir / names["label"], labels[i])
            write_array(self.output_dir / names["entropy"], to_uint8(entropies[i]))
            self.rows.append({"image": path, **names, "uncertainty": uncertainties[i]})

    def _finish(self, engine: Engine) -> None:
        write_json(self.output_dir / "index.json", self.rows)
        write_json(self.output_dir / "uncertainty.json", {row["image"]: row["uncertainty"] for row in self.rows})


class UncertaintyRecorder:
    """Write the uncertainty of every image an evaluator sees; Eq. 4 by default.

    Args:
        path: JSON: {"segmentation_sha256": ..., "acquisition": ..., "aggregation": ..., "samples": ..., "ensemble":
            {file: sha256}, "images": {path: uncertainty}}.
        weights: of the segmentation network; their sha256 is kept: uncertainties of two networks cannot be compared.
        acquisition: what is measured per pixel, see ``acquisition.py``; "entropy" is Eq. 3.
        aggregation: how an image's pixels are summed up; "mean" is Eq. 4.
        ensemble: weights of the further networks of an ensemble, their sha256 are kept too.
        samples: predictions with dropout, kept too.
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
        values = self.measure(_prediction(engine)).tolist()
        self.table.update(zip(_paths(engine), values, strict=True))

    def _finish(self, engine: Engine) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.header | {"images": self.table})


class PriorFitter:
    """Fit the uncertainty prior when an ``UncertaintyRecorder`` attached before it has written both domains.

    Args:
        uncertainties: file of the recorder.
        labeled_dir: data set of the labelled domain.
        unlabeled_dir: data set of the unlabelled domain.
        split: splits that count.
        scaling: of the hint, "zscore", "paper" or "quantile".
        path: the prior is written here.
        distribution: "gaussian" (the paper's) or "empirical".
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
        weights = record["segmentation_sha256"]
        prior = UncertaintyPrior.fit(
            labeled, unlabeled, weights, self.scaling, distribution=self.distribution, **measure
        )
        prior.save(self.path)
        low, high = unlabeled.min(), unlabeled.max()
        logger.info(
            f"uncertainty of the unlabelled domain: {prior.mean:.4f} +- {prior.std:.4f}, {low:.4f} to {high:.4f} "
            f"({prior.distribution} prior); labelled domain: {labeled.mean():.4f}"
        )


class MetricsWriter:
    """Write an evaluator's metrics as JSON when it has finished; null for what it could not compute.

    Args:
        path: the file.
        metrics: names of the metrics to write.
    """

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


def read_json(path: PathLike) -> dict:
    """Read a JSON file that an earlier stage wrote."""
    if not lies_there(path):
        raise ValueError(f"'{path}' does not exist; the stage that writes it has not run.")
    return parse_json(path)
