"""The whole method as stages in order: from two data sets to a retrained segmentation network and a report.

    segmentation -> uncertainty -> autoencoder -> diffusion -> uncertainty ControlNet -> semantic ControlNet
                 -> synthesis -> retraining -> evaluation -> control -> report

Every training stage is a bundle configuration run in process; the shell command that repeats it is printed and kept. A
finished stage leaves ``RUN/stages/<name>.json``, written last, and is not run again by ``--resume``.
"""

from __future__ import annotations

import json
import logging
import platform
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from unicorn_monai.augmentation import write_augmented
from unicorn_monai.bundle import install, run_bundle
from unicorn_monai.datasets import check, label_names, read_header, write_json
from unicorn_monai.evaluation import control, pictures
from unicorn_monai.evaluation.report import write_report
from unicorn_monai.evaluation.segmentation import score_images
from unicorn_monai.fusion import MODES
from unicorn_monai.handlers import read_json
from unicorn_monai.provenance import provenance
from unicorn_monai.tracking import Tracker

logger = logging.getLogger("unicorn_monai")

OWN_BUNDLES = ("retinal_unet", "latent_diffusion", "uncertainty_controlnet", "semantic_controlnet", "synthesis")


@dataclass
class Settings:
    """What an experiment does; every entry can stand in the JSON file given by ``--config``.

    Args:
        labeled: data set of the labelled domain.
        unlabeled: data set of the unlabelled domain; labels in it serve the upper bound and the scores only.
        output: run folder.
        preset: "quick" (the bundles' small networks) or "full" (their defaults, for 256 x 256).
        seed: of everything.
        modes: what to train and compare; the first is the main one, its results carry the plain names.
        uncertainty_weight: weight of the Uncertainty-ControlNet in ``compositional`` mode.
        paper_weight: w in ``paper`` mode, (1 - w, w).
        count: synthetic training images; as many as labelled ones by default.
        augment: change the label maps' geometry before synthesis.
        style_augmentation: in ``compositional`` mode, show the Semantic-ControlNet strongly augmented images too.
        device: "cpu", "cuda:0", ...; None takes the first GPU where there is one.
        tracking: keep an MLflow record.
        overrides: settings of single bundles, {bundle: {"train.json": {"max_epochs": 10}}}.
    """

    labeled: str
    unlabeled: str
    output: str
    preset: str = "full"
    seed: int = 0
    modes: tuple[str, ...] = MODES
    uncertainty_weight: float = 2.0
    paper_weight: float = 0.7
    count: int | None = None
    augment: bool = True
    style_augmentation: bool = True
    device: str | None = None
    tracking: bool = True
    overrides: dict[str, dict] | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """Build from a dictionary; an unknown entry is refused."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"Unknown setting(s) {unknown}; expected some of {known}. Check the spelling.")
        settings = dict(values)
        if "modes" in settings:
            settings["modes"] = tuple(settings["modes"])
        return cls(**settings)

    def validate(self) -> None:
        """Refuse what would fail later."""
        if self.preset not in ("quick", "full"):
            raise ValueError(f"preset is '{self.preset}'; expected 'quick' or 'full'.")
        for mode in self.modes:
            if mode not in MODES:
                raise ValueError(f"Unknown mode '{mode}'; expected some of {list(MODES)}.")
        if not 0 <= self.paper_weight <= 1:
            raise ValueError(f"paper_weight is {self.paper_weight}; expected 0 to 1, since the weights are (1 - w, w).")
        for name, folder, need_labels in (("labeled", self.labeled, True), ("unlabeled", self.unlabeled, False)):
            problems = check(folder, need_labels)
            if problems:
                more = f"\n... and {len(problems) - 5} more" if len(problems) > 5 else ""
                raise ValueError(f"The {name} data set '{folder}' cannot be used:\n" + "\n".join(problems[:5]) + more)


class Experiment:
    """One run of the whole method.

    Args:
        settings: what to do.
        resume: go on with a run folder in use; finished stages are not run again.
    """

    def __init__(self, settings: Settings, resume: bool = False) -> None:
        settings.validate()
        self.settings, self.run_dir = settings, Path(settings.output).resolve()
        record = self.run_dir / "experiment.json"
        if record.exists() and not resume:
            raise ValueError(
                f"'{self.run_dir}' already holds a run. Use --resume to go on with it, or another --output."
            )
        if record.exists():
            before = read_json(record)["settings"]
            changed = [k for k, v in json.loads(json.dumps(asdict(settings))).items() if before.get(k, v) != v]
            if changed:
                raise ValueError(
                    f"'{self.run_dir}' was started with other settings: {', '.join(changed)}. Resume with the "
                    "same, or use another --output."
                )
        (self.run_dir / "stages").mkdir(parents=True, exist_ok=True)
        write_json(record, {"settings": asdict(settings), **provenance()})
        self.labeled, self.unlabeled = Path(settings.labeled).resolve(), Path(settings.unlabeled).resolve()
        header = read_header(self.unlabeled)
        self.has_truth = all("label" in item for item in header.get("test", [])) and bool(header.get("test"))
        self.commands: dict[str, str] = {}
        self.results: dict[str, Any] = {
            "labels": label_names(self.labeled),
            "segmentation": {},
            "uncertainty": {},
            "seconds": {},
        }

    # ------------------------------------------------------------------ the stages, in order

    def run(self) -> Path:
        """Run every stage that is not finished; returns the report's path."""
        s = self.settings
        self.tracker = Tracker(self.run_dir, self.run_dir.name, s.tracking)
        main, *others = s.modes
        with self.guard():
            self.install()
            self.train_segmentation("lower_bound", self.labeled, self.labeled)
            if self.has_truth:
                self.train_segmentation("upper_bound", self.unlabeled, self.unlabeled)
            if s.style_augmentation and "compositional" in s.modes:
                self.stage("augmentation", lambda: write_augmented(self.labeled, self.augmented, s.seed))
            self.stage("uncertainty", self.measure_uncertainty)
            self.stage("autoencoder", lambda: self.train_ldm("autoencoder"))
            self.results["autoencoder"] = self.stage("reconstruction", lambda: control.reconstruction(self))
            self.stage("diffusion", lambda: self.train_ldm("diffusion"))
            self.results["diffusion"] = self.stage("latents", lambda: control.latent_statistics(self))
            for mode in (main, *others):
                self.generate(mode, "unicorn" if mode == main else f"unicorn_{mode}")
            self.stage("pictures", lambda: pictures.write_all(self))
            self.finish()
        return self.run_dir / "report.html"

    def generate(self, mode: str, name: str) -> None:
        """Train both ControlNets of a mode, synthesise, retrain, and measure the control."""
        order = ("uncertainty_controlnet", "semantic_controlnet")  # the second may build on the first
        for net in order:
            self.stage(f"{name}_{net}", lambda net=net: self.train_controlnet(net, mode))  # type: ignore[misc]
        self.stage(f"{name}_synthesis", lambda: self.synthesise(mode, name))
        synthetic = self.run_dir / ("synthetic" if name == "unicorn" else f"synthetic_{mode}")
        self.train_segmentation(name, synthetic, synthetic)
        self.train_segmentation(f"{name}+real", [synthetic, self.labeled], synthetic)
        key = "control" if name == "unicorn" else f"control_{mode}"
        self.results[key] = self.stage(f"{name}_control", lambda: control.measure(self, mode, synthetic))

    def install(self) -> None:
        """Put the bundles into the run folder, with the preset's settings and those of this data."""
        labels, channels = len(self.results["labels"]), 3 if read_header(self.labeled).get("modality") == "RGB" else 1
        preset = "small" if self.settings.preset == "quick" else None
        for mode in self.settings.modes:
            for name in OWN_BUNDLES:
                if mode == self.settings.modes[0] or name in (
                    "uncertainty_controlnet",
                    "semantic_controlnet",
                    "synthesis",
                ):
                    install(
                        name, self.bundle_dir(name, mode).parent, preset, self._overrides(name, mode, labels, channels)
                    )

    def _overrides(self, name: str, mode: str, labels: int, channels: int) -> dict[str, dict]:
        own = {k: dict(v) for k, v in (self.settings.overrides or {}).get(name, {}).items()}
        if name == "retinal_unet":
            own["inference.json"] = {"num_labels": labels, "num_channels": channels} | own.get("inference.json", {})
        if name == "latent_diffusion":
            own["inference.json"] = {"num_channels": channels} | own.get("inference.json", {})
        if name in ("uncertainty_controlnet", "semantic_controlnet", "synthesis"):
            files = ("inference.json",) if name == "synthesis" else ("inference.json", "train.json")
            for file in files:
                siblings = {"latent_diffusion": str(self.bundle_dir("latent_diffusion", mode))}
                siblings |= {"retinal_unet": str(self.bundle_dir("retinal_unet", mode)), "prior_path": self.prior(mode)}
                own[file] = siblings | own.get(file, {})
        return own

    def bundle_dir(self, name: str, mode: str) -> Path:
        """Where a bundle of this run lives; the modes share the segmentation network and the diffusion model."""
        shared = name in ("retinal_unet", "latent_diffusion") or mode == self.settings.modes[0]
        return self.run_dir / ("bundles" if shared else f"bundles_{mode}") / name

    def prior(self, mode: str) -> str:
        """File of the prior: the paper's hint is the plain uncertainty, the compositional one is standardised."""
        scaling = "paper" if mode == "paper" else "zscore"
        return str(self.bundle_dir("retinal_unet", mode) / "models" / f"prior_{scaling}.json")

    @property
    def augmented(self) -> Path:
        """The labelled images with strong intensity augmentation."""
        return self.run_dir / "labeled_augmented"

    def weights(self, setup: str) -> Path:
        """Weights of the segmentation network of a set-up."""
        if setup == "lower_bound":
            return self.run_dir / "bundles" / "retinal_unet" / "models" / "model.pt"
        return self.run_dir / "segmentation" / setup / "model.pt"

    def train_segmentation(self, setup: str, data: Path | list[Path], validation: Path) -> None:
        """Train the same recipe on some data and score it on the unlabelled domain's test images."""
        folder = self.weights(setup).parent
        data = [str(d) for d in data] if isinstance(data, list) else str(data)  # type: ignore[assignment]
        self.stage(
            setup,
            lambda: self.bundle(
                "retinal_unet",
                "train.json",
                dataset_dir=data,
                validation_dir=str(validation),
                ckpt_dir=str(folder),
                output_dir=str(folder),
            ),
        )
        if self.has_truth:
            self.results["segmentation"][setup] = self.stage(
                f"{setup}_evaluation",
                lambda: score_images(
                    self.bundle_dir("retinal_unet", self.settings.modes[0]),
                    self.weights(setup),
                    self.unlabeled,
                    "test",
                    self.settings.seed,
                    self.device,
                ),
            )

    def measure_uncertainty(self) -> None:
        """Uncertainty of every image of both domains, and the prior in both scalings."""
        for scaling in ("zscore", "paper"):
            path = self.bundle_dir("retinal_unet", self.settings.modes[0]) / "models" / f"prior_{scaling}.json"
            self.bundle(
                "retinal_unet",
                "uncertainty.json",
                "infer",
                dataset_dir=str(self.labeled),
                unlabeled_dir=str(self.unlabeled),
                measured_too=[str(self.augmented)] if self.augmented.is_dir() else [],
                scaling=scaling,
                prior_path=str(path),
            )

    def train_ldm(self, part: str) -> None:
        """Train the autoencoder or the diffusion model on the images of both domains."""
        self.bundle("latent_diffusion", f"train_{part}.json", dataset_dir=[str(self.labeled), str(self.unlabeled)])

    def train_controlnet(self, name: str, mode: str) -> None:
        """Train one ControlNet; the Semantic-ControlNet on top of the other in ``compositional`` mode."""
        if name == "semantic_controlnet":
            styles = [self.augmented] if mode == "compositional" and self.augmented.is_dir() else []
            data = [str(folder) for folder in (self.labeled, *styles)]
            self.bundle(name, "train.json", mode_of_run=mode, dataset_dir=data, mode=mode)
        else:
            self.bundle(
                name, "train.json", mode_of_run=mode, dataset_dir=str(self.labeled), unlabeled_dir=str(self.unlabeled)
            )

    def synthesise(self, mode: str, name: str) -> None:
        """Label maps of the labelled domain x uncertainties of the unlabelled one -> the synthetic data set."""
        s = self.settings
        self.bundle(
            "synthesis",
            "inference.json",
            "infer",
            mode_of_run=mode,
            dataset_dir=str(self.labeled),
            mode=mode,
            output_dir=str(self.run_dir / ("synthetic" if name == "unicorn" else f"synthetic_{mode}")),
            uncertainty_weight=s.paper_weight if mode == "paper" else s.uncertainty_weight,
            count=s.count,
            augment=s.augment,
            device_name=str(read_header(self.unlabeled)["device"]),
        )

    def finish(self) -> None:
        """Write results.json and the report, and close the tracking."""
        control.summarise_uncertainties(self)
        simulated = [bool(read_header(self.unlabeled).get(key)) for key in ("simulated_device", "simulated_anatomy")]
        self.results["simulated"] = "devices and anatomy" if all(simulated) else "devices" if any(simulated) else "none"
        self.results["commands"] = self.commands
        self.results["environment"] = provenance()["versions"] | {
            "machine": platform.machine(),
            "cpus": torch.get_num_threads(),
        }
        self.results["seconds"] = {
            p.stem: read_json(p)["seconds"]
            for p in sorted((self.run_dir / "stages").glob("*.json"), key=lambda p: p.stat().st_mtime)
        }
        write_json(self.run_dir / "results.json", self.results)
        report = write_report(self.run_dir)
        scores = {f"{k}.mean_iou".replace("+", "_"): v["mean_iou"] for k, v in self.results["segmentation"].items()}
        self.tracker.close(scores, [self.run_dir / "results.json", report])

    # ------------------------------------------------------------------ running a stage

    @property
    def device(self) -> torch.device:
        """Where everything runs."""
        return torch.device(self.settings.device or ("cuda:0" if torch.cuda.is_available() else "cpu"))

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        """Run one stage unless it is finished; its result is kept."""
        marker = self.run_dir / "stages" / f"{name}.json"
        if marker.exists():
            logger.info(f"{name}: finished before, skipped")
            kept = read_json(marker)
            self.commands |= kept["commands"]
            return kept["result"]
        logger.info(f"== {name}")
        started, before = time.monotonic(), set(self.commands)
        self.tracked = None
        try:
            result = work()
        except BaseException as error:
            if self.tracked is not None:
                self.tracked.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        seconds = round(time.monotonic() - started, 1)
        if self.tracked is not None:
            self.tracked.close("FINISHED")
        commands = {k: v for k, v in self.commands.items() if k not in before}
        write_json(marker, {"seconds": seconds, "result": result, "commands": commands})
        logger.info(f"   {name}: {seconds} s")
        return result

    def bundle(
        self, name: str, config: str, kind: str = "train", mode_of_run: str | None = None, **overrides: Any
    ) -> None:
        """Run one configuration of a bundle in this process and note the equivalent shell command."""
        file = self.bundle_dir(name, mode_of_run or self.settings.modes[0]) / "configs" / config
        if kind == "train" or name == "synthesis":
            overrides["seed"] = self.settings.seed
        if kind == "train":
            overrides["resume"] = True
        overrides["device"] = str(self.device)
        words = ["python", "-m", "monai.bundle", "run", "--config_file", str(file)]
        words += [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
        command = shlex.join(words)
        self.commands[f"{name}/{config} {len(self.commands)}"] = command
        logger.info(f"   {command}")
        handlers = []
        if kind == "train":
            self.tracked = self.tracker.stage(f"{name}-{len(self.commands)}", {"config": str(file), **overrides})
            handlers = [self.tracked]
        run_bundle(file, kind, handlers, **overrides)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """One process in a run folder at a time."""
        lock = self.run_dir / ".lock"
        import fcntl

        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(f"Another process is working in '{self.run_dir}'. Wait for it, or stop it.") from None
            yield
