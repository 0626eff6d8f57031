"""The whole method as stages in order: from two data sets to a retrained segmentation network and a report.

    segmentation -> uncertainty -> autoencoder -> diffusion -> uncertainty ControlNet -> semantic ControlNet
                 -> synthesis -> retraining -> evaluation -> control -> report

Every training stage is a bundle configuration; the shell command that repeats it is printed and kept. How stages are
run, kept and resumed: ``stages.py``; what can be set: ``settings.py``.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from unicorn_monai.augmentation import write_augmented
from unicorn_monai.baselines import self_training
from unicorn_monai.bundle import install
from unicorn_monai.datasets import label_names, read_header, write_json
from unicorn_monai.evaluation import control, pictures
from unicorn_monai.evaluation.report import write_report
from unicorn_monai.evaluation.segmentation import compare
from unicorn_monai.evaluation.subdomains import score_images
from unicorn_monai.handlers import log_to_console, read_json
from unicorn_monai.provenance import provenance
from unicorn_monai.settings import SEMANTIC_ONLY, STYLE_TRANSFER, SYNTHETIC, Settings
from unicorn_monai.stages import Branch, Stages, side_by_side
from unicorn_monai.tracking import Tracker

logger = logging.getLogger("unicorn_monai")

OWN_BUNDLES = ("retinal_unet", "latent_diffusion", "uncertainty_controlnet", "semantic_controlnet", "synthesis")
OWN_TRAINING = ("autoencoder", "diffusion", "unicorn_uncertainty_controlnet", "unicorn_semantic_controlnet")
ROUNDS = 2  # of self-training
REFERENCES = (
    "lower_bound",
    "cut+real",
    "augmentation",
    SEMANTIC_ONLY,
)  # what set-ups are compared with, subject by subject


class Experiment(Stages):
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
        self.resumed = record.exists()
        if self.resumed:
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
        device = torch.device(settings.device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
        super().__init__(self.run_dir, device, settings.seed)
        self.results: dict[str, Any] = {
            "labels": label_names(self.labeled),
            "modality": read_header(self.labeled).get("modality", "OCT"),
            "segmentation": {},
            "uncertainty": {},
            "seconds": {},
        }

    # ------------------------------------------------------------------ the stages, in order

    def run(self) -> Path:
        """Run every stage that is not finished; returns the report's path."""
        started = time.monotonic()
        with self.guard():
            self.tracker = Tracker(self.run_dir, self.run_dir.name, self.settings.tracking)
            self.install()
            self.segment()
            self.learn_images()
            self.compare()
            self.stage("pictures", lambda: pictures.write_all(self))
            if not self.resumed:  # stages side by side: less than the sum of their seconds
                self.results["wall_seconds"] = round(time.monotonic() - started, 1)
            self.finish()
        return self.run_dir / "report.html"

    def compare(self) -> None:
        """UnIACorN in its modes, and the baselines; those with a budget of compute come last, since it is measured."""
        s = self.settings
        last = [name for name in s.baselines if name in SYNTHETIC]
        others = [name for name in s.baselines if name not in SYNTHETIC]
        self.parallel([("generate", mode) for mode in s.modes] + [("baseline", name) for name in others])
        self.parallel([("baseline", name) for name in last])

    def segment(self) -> None:
        """Train the segmentation networks of the real images, and measure the uncertainties."""
        s = self.settings
        self.train_segmentation("lower_bound", self.labeled, self.labeled)
        if self.has_truth:
            self.train_segmentation("upper_bound", self.unlabeled, self.unlabeled)
        if s.style_augmentation and "compositional" in s.modes:
            self.stage("styles", lambda: write_augmented(self.labeled, self.augmented, s.seed))
        self.stage("uncertainty", self.measure_uncertainty)

    def learn_images(self) -> None:
        """Train the latent diffusion model."""
        self.stage("autoencoder", lambda: self.train_ldm("autoencoder"))
        self.results["autoencoder"] = self.stage("reconstruction", lambda: control.reconstruction(self))
        self.stage("diffusion", lambda: self.train_ldm("diffusion"))
        self.results["diffusion"] = self.stage("latents", lambda: control.latent_statistics(self))

    def generate(self, mode: str) -> None:
        """Train both ControlNets of a mode, synthesise, retrain, and measure the control."""
        main = mode == self.settings.modes[0]
        name = "unicorn" if main else f"unicorn_{mode}"
        for net in ("uncertainty_controlnet", "semantic_controlnet"):  # the second may build on the first
            self.stage(f"{name}_{net}", lambda net=net: self.train_controlnet(net, mode))  # type: ignore[misc]
        self.stage(f"{name}_synthesis", lambda: self.synthesise(mode))
        synthetic = self.synthetic(mode)
        self.train_segmentation(name, synthetic, synthetic)
        self.train_segmentation(f"{name}+real", [synthetic, self.labeled], synthetic)
        if main and "augmentation" in self.settings.baselines:
            setup = f"{name}+real+augmentation"
            self.train_segmentation(setup, [synthetic, self.labeled], synthetic, augmentation="strong")
        key = "control" if main else f"control_{mode}"
        self.results[key] = self.stage(f"{name}_control", lambda: control.measure(self, mode, synthetic))

    def baseline(self, name: str) -> None:
        """What one would do without UnIACorN: strong augmentation, pseudo-labels, or a transfer of the style."""
        if name == "augmentation":
            self.train_segmentation(name, self.labeled, self.labeled, augmentation="strong")
        elif name == "self_training":
            folder = self.run_dir / "segmentation" / name
            teacher, confidence = self.weights("lower_bound"), self.settings.confidence
            steps = self_training.steps(teacher, self.labeled, self.unlabeled, folder, ROUNDS, confidence)
            for i, (config, kind, overrides) in enumerate(steps):
                work = partial(self.bundle, self.bundle_dir("retinal_unet", ""), config, kind, **overrides)
                self.stage(f"{name}_{i}", work)
            self.evaluate(name)
        else:
            data = self.run_dir / f"synthetic_{name}"
            if name == SEMANTIC_ONLY:
                self.stage(f"{name}_synthesis", lambda: self.synthesise("paper", data, weight=0.0))
            else:
                self.stage(f"{name}_training", lambda: self.train_style_transfer(name))
                self.stage(f"{name}_translation", lambda: self.translate(name))
            self.train_segmentation(name, data, data)
            self.train_segmentation(f"{name}+real", [data, self.labeled], data)

    def parallel(self, branches: list[Branch]) -> None:
        """Run methods of this experiment that do not depend on each other, side by side where there is room."""
        jobs = min(self.settings.jobs or (2 if self.device.type == "cpu" else 1), len(branches), os.cpu_count() or 1)
        if jobs > 1:
            side_by_side(_run_branch, branches, jobs, self.settings, self.tracker.parent)
        for name, *arguments in branches:  # what ran elsewhere is finished now, and its results are picked up here
            getattr(self, name)(*arguments)

    def install(self) -> None:
        """Put the bundles into the run folder, with the preset's settings and those of this data."""
        labels, channels = len(self.results["labels"]), 3 if self.results["modality"] == "RGB" else 1
        preset = "small" if self.settings.preset == "quick" else None
        if set(STYLE_TRANSFER) & set(self.settings.baselines):
            own = self._overrides("style_transfer", "", labels, channels)
            install("style_transfer", self.bundle_dir("style_transfer", "").parent, preset, own)
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
        if name in ("latent_diffusion", "style_transfer"):
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
        shared = name in ("retinal_unet", "latent_diffusion", "style_transfer") or mode == self.settings.modes[0]
        return self.run_dir / ("bundles" if shared else f"bundles_{mode}") / name

    def prior(self, mode: str) -> str:
        """File of the prior: the paper's hint is the plain uncertainty, the compositional one is standardised."""
        scaling = "paper" if mode == "paper" else "zscore"
        return str(self.bundle_dir("retinal_unet", mode) / "models" / f"prior_{scaling}.json")

    @property
    def augmented(self) -> Path:
        """The labelled images with strong intensity augmentation."""
        return self.run_dir / "labeled_augmented"

    def synthetic(self, mode: str) -> Path:
        """The synthetic data set of a mode; the main one has the plain name."""
        return self.run_dir / ("synthetic" if mode == self.settings.modes[0] else f"synthetic_{mode}")

    def weights(self, setup: str) -> Path:
        """Weights of the segmentation network of a set-up."""
        if setup == "lower_bound":
            return self.run_dir / "bundles" / "retinal_unet" / "models" / "model.pt"
        if setup == "self_training":
            return self.run_dir / "segmentation" / setup / f"round_{ROUNDS}" / "model.pt"
        return self.run_dir / "segmentation" / setup / "model.pt"

    def train_segmentation(self, setup: str, data: Path | list[Path], validation: Path, **recipe: str) -> None:
        """Train the same recipe on some data and score it on the unlabelled domain's test images."""
        folder = self.weights(setup).parent
        data = [str(d) for d in data] if isinstance(data, list) else str(data)  # type: ignore[assignment]
        self.stage(
            setup,
            lambda: self.bundle(
                self.bundle_dir("retinal_unet", ""),
                "train.json",
                dataset_dir=data,
                validation_dir=str(validation),
                ckpt_dir=str(folder),
                output_dir=str(folder),
                **recipe,
            ),
        )
        self.evaluate(setup)

    def evaluate(self, setup: str) -> None:
        """Score the segmentation network of a set-up on the unlabelled domain's test images, where they have labels."""
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
                    self.run_dir / "evaluation" / f"{setup}.json",
                ),
            )

    def differences(self) -> dict[str, Any]:
        """Mean IoU of every set-up minus that of each reference, on the same subjects, with intervals."""
        paths = {setup: self.run_dir / "evaluation" / f"{setup}.json" for setup in self.results["segmentation"]}
        records = {setup: [path] for setup, path in paths.items() if path.is_file()}
        seed = self.settings.seed
        return {
            reference: {s: compare(records[s], records[reference], seed) for s in records if s != reference}
            for reference in REFERENCES
            if reference in records
        }

    def measure_uncertainty(self) -> None:
        """Uncertainty of every image of both domains, and the prior in both scalings."""
        for scaling in ("zscore", "paper"):
            path = self.bundle_dir("retinal_unet", self.settings.modes[0]) / "models" / f"prior_{scaling}.json"
            self.bundle(
                self.bundle_dir("retinal_unet", ""),
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
        root, data = self.bundle_dir("latent_diffusion", ""), [str(self.labeled), str(self.unlabeled)]
        self.bundle(root, f"train_{part}.json", dataset_dir=data)

    def train_controlnet(self, name: str, mode: str) -> None:
        """Train one ControlNet; the Semantic-ControlNet on top of the other in ``compositional`` mode."""
        root = self.bundle_dir(name, mode)
        if name == "semantic_controlnet":
            styles = [self.augmented] if mode == "compositional" and self.augmented.is_dir() else []
            self.bundle(root, "train.json", dataset_dir=[str(folder) for folder in (self.labeled, *styles)], mode=mode)
        else:
            self.bundle(root, "train.json", dataset_dir=str(self.labeled), unlabeled_dir=str(self.unlabeled))

    def train_style_transfer(self, name: str) -> None:
        """CycleGAN or CUT, for as many seconds as the diffusion model and both ControlNets took together."""
        stages = [self.run_dir / "stages" / f"{stage}.json" for stage in OWN_TRAINING]
        folder = self.bundle_dir("style_transfer", "") / "models" / name
        self.bundle(
            self.bundle_dir("style_transfer", ""),
            f"train_{name}.json",
            dataset_dir=str(self.labeled),
            unlabeled_dir=str(self.unlabeled),
            max_seconds=sum(read_json(path)["seconds"] for path in stages),
            max_epochs=1_000_000,
            ckpt_dir=str(folder),
            output_dir=str(folder),
        )

    def translate(self, name: str) -> None:
        """The labelled images in the look of the unlabelled domain."""
        self.bundle(
            self.bundle_dir("style_transfer", ""),
            "inference.json",
            "infer",
            dataset_dir=str(self.labeled),
            ckpt_path=str(self.bundle_dir("style_transfer", "") / "models" / name / "model.pt"),
            output_dir=str(self.run_dir / f"synthetic_{name}"),
            device_name=str(read_header(self.unlabeled)["device"]),
        )

    def synthesise(self, mode: str, output: Path | None = None, weight: float | None = None) -> None:
        """Label maps of the labelled domain x uncertainties of the unlabelled one -> the synthetic data set."""
        s = self.settings
        self.bundle(
            self.bundle_dir("synthesis", mode),
            "inference.json",
            "infer",
            dataset_dir=str(self.labeled),
            mode=mode,
            output_dir=str(output or self.synthetic(mode)),
            uncertainty_weight=s.weight(mode) if weight is None else weight,
            guidance=list(s.guidance_of(mode)),
            count=s.count,
            augment=s.augment and self.results["modality"] == "OCT",  # streets do not bend
            device_name=str(read_header(self.unlabeled)["device"]),
        )

    def finish(self) -> None:
        """Write results.json and the report, and close the tracking."""
        control.summarise_uncertainties(self)
        self.results["differences"] = self.differences()
        simulated = [bool(read_header(self.unlabeled).get(key)) for key in ("simulated_device", "simulated_anatomy")]
        what = "devices and anatomy" if all(simulated) else "devices" if any(simulated) else "none"
        self.results["simulated"] = read_header(self.unlabeled).get("simulated", what)
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


def _run_branch(settings: Settings, parent: str, branch: Branch, threads: int) -> None:
    """One branch of an experiment, in a process of its own."""
    torch.set_num_threads(threads)
    log_to_console()
    run = Experiment(settings, resume=True)
    run.segment()  # finished: picks up the results
    run.learn_images()
    run.tracker = Tracker(run.run_dir, run.run_dir.name, settings.tracking, parent)
    name, *arguments = branch
    getattr(run, name)(*arguments)
