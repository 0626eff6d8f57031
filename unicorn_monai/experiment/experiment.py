"""The whole method as stages in order: from two data sets to a retrained segmentation network and a report.

    segmentation -> uncertainty -> autoencoder -> diffusion -> uncertainty ControlNet -> semantic ControlNet
                 -> fusion weight -> synthesis -> retraining -> evaluation -> control -> distances -> audit -> report

Every training stage is a bundle configuration; the shell command that repeats it is printed and kept. How stages are
run, kept and resumed: ``stages.py``; where everything lies: ``run.py``; what can be set: ``settings.py``.
"""

from __future__ import annotations

import logging
import platform
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from unicorn_monai.baselines import self_training
from unicorn_monai.data.augmented import write_augmented
from unicorn_monai.data.layout import label_names, read_header
from unicorn_monai.evaluation.comparison import closed_gaps, differences, score_trainings
from unicorn_monai.evaluation.scoring import score_images
from unicorn_monai.evaluation.subdomains import sub_domain_scores
from unicorn_monai.experiment import image_sets, measures, pictures, reconstructions
from unicorn_monai.experiment.image_counts import require_images
from unicorn_monai.experiment.run import RunFolder, nth
from unicorn_monai.experiment.settings import Settings, prior_file
from unicorn_monai.experiment.stages import Branch, Chain, side_by_side, widest
from unicorn_monai.experiment.tracking import Tracker
from unicorn_monai.experiment.versions import provenance
from unicorn_monai.report.checks import image_checks
from unicorn_monai.report.report import write_report
from unicorn_monai.report.trainings import AUGMENTED, SELF_TRAINED, SEMANTIC_ONLY, SYNTHETIC
from unicorn_monai.system.console import log_to_console, unsaid
from unicorn_monai.system.distributed import require_single
from unicorn_monai.system.files import write_json
from unicorn_monai.system.records import read_stage
from unicorn_monai.system.weights import copy_weights

logger = logging.getLogger("unicorn_monai")

CONTROLNETS = ("uncertainty_controlnet", "semantic_controlnet")  # in order: the second may build on the first
REFERENCES = ("lower_bound", "cut+real", *AUGMENTED, SEMANTIC_ONLY)  # compared with, subject by subject


class Experiment(RunFolder):
    """One run of the whole method.

    Args:
        settings: what to do.
        resume: go on with a run folder in use; finished stages are not run again, ``baselines`` may be added.
        branch: a part of a run that is going on, whose settings and data were checked at its start.
        force: go on even where the autoencoder does not keep the images; kept with the run.
    """

    def __init__(self, settings: Settings, resume: bool = False, branch: bool = False, force: bool = False) -> None:
        if not branch:
            require_single("an experiment")
            settings.validate()
            require_images(settings)
        super().__init__(settings, torch.device(settings.device or ("cuda:0" if torch.cuda.is_available() else "cpu")))
        self.may_resume, self.resumed = resume, branch or self.goes_on(resume)
        self.forced = force or self.was_forced()
        self.results: dict[str, Any] = {
            "labels": label_names(self.labeled),
            "modality": read_header(self.labeled).get("modality", "OCT"),
            "segmentation": {},
            "uncertainty": {},
            "weights": {},
            "budget": {},
            "seconds": {},
            "words": settings.named(),
        }
        self.walked: list[Branch] = []  # branches that are finished, in order

    # ------------------------------------------------------------------ the stages, in order

    def run(self) -> Path:
        """Run every stage that is not finished; returns the report's path."""
        started = time.monotonic()
        with self.guard():
            self.resumed = self.goes_on(self.may_resume)  # a run may have been begun here meanwhile
            self.claim()
            self.tell_label_maps()
            with Tracker(self.run_dir, self.run_dir.name, self.settings.tracking) as self.tracker:
                self.install_bundles()
                self.know_both_domains()
                self.compare()
                self.judge()
                if not self.resumed:  # stages side by side: less than the sum of their seconds
                    self.results["wall_seconds"] = round(time.monotonic() - started, 1)
                self.finish()
        return self.run_dir / "report.html"

    def know_both_domains(self) -> None:
        """What comes before the ControlNets: the networks of the real images, the autoencoder, the diffusion model."""
        reconstructions.refused_before(self.marker("reconstructions"), self.run_dir, self.forced)
        beside = self.jobs > 2  # else it has the cores alone: it is longer than all that could run beside it
        self.parallel([("learn_latents",), *[("learn_images",)] * beside], [("segment",)])
        if not beside:
            self.learn_images()
        self.check_images()

    def compare(self) -> None:
        """UnIACorN in its variants and the baselines; those whose budget of compute is measured come last."""
        s = self.settings
        last = [name for name in s.baselines if name in SYNTHETIC]
        others = [name for name in s.baselines if name not in (*AUGMENTED, *SYNTHETIC)]
        self.parallel(
            *[[("generate", mode), *self.retrainings(mode)] for mode in s.modes],
            *[[("baseline", name)] for name in others],
            [("learn_features",)],
        )
        self.parallel(*[[("baseline", name)] for name in last], *[[("generate_rounds",)]] * (s.rounds > 1))

    def segment(self) -> None:
        """Train the segmentation networks of the real images, guess labels, and measure the uncertainties."""
        s = self.settings
        self.train_segmentation("lower_bound", self.labeled, self.labeled)
        if self.has_upper:
            self.train_segmentation("upper_bound", self.unlabeled, self.unlabeled)
        if s.style_augmentation and "compositional" in s.modes:
            self.stage("styles", lambda: write_augmented(self.labeled, self.augmented, s.seed))
        for name in s.augmented:
            self.train_segmentation(name, self.labeled, self.labeled, augmentation=AUGMENTED[name])
        if s.teaches:
            self.stage("pseudo_labels", lambda: self.guess_labels(s.modes[0], self.weights("augmentation")))
        self.stage("uncertainty", lambda: self.measure_uncertainty(s.modes[0]))

    def learn_latents(self) -> None:
        """Train the autoencoder, and go on only where its images are usable."""
        self.stage("autoencoder", lambda: self.train_ldm("autoencoder"))
        self.results["reconstructions"] = self.stage("reconstructions", lambda: reconstructions.measure(self))
        reconstructions.refuse_unusable(self.results, self.run_dir, self.forced)

    def learn_images(self) -> None:
        """Train the diffusion model."""
        self.stage("diffusion", lambda: self.train_ldm("diffusion"))

    def learn_features(self) -> None:
        """Train the feature network behind distances and audit, unless a file was given."""
        if not (self.settings.features or {}).get("path"):
            self.stage("features", lambda: image_sets.train_features(self))

    def check_images(self) -> None:
        """Does the diffusion model keep the speckle and the spread of the latents?"""
        self.results["autoencoder"] = self.stage("reconstruction", lambda: measures.reconstruction(self))
        self.results["diffusion"] = self.stage("latents", lambda: measures.latent_statistics(self))
        for expected, found, good in image_checks(self.results):
            if good is False:
                logger.warning(f"{expected}; found {found}. What follows rests on it: look at the sheets of samples.")

    def generate(self, variant: str) -> None:
        """Train both ControlNets of a variant, choose the weight, synthesise, and measure the control."""
        name, synthetic = self.setup(variant), self.synthetic(variant)
        for net in CONTROLNETS:
            self.stage(f"{name}_{net}", lambda net=net: self.train_controlnet(net, variant))  # type: ignore[misc]
        if self.settings.with_augmentation:  # its network judges without labels of the unlabelled domain
            weights = self.stage(f"{name}_weights", lambda: measures.over_weights(self, variant))
            self.results["weights"][name] = weights
        self.stage(f"{name}_synthesis", lambda: self.synthesise(variant))
        key = name.replace("unicorn", "control")
        self.results[key] = self.stage(f"{name}_control", lambda: measures.measure(self, variant, synthetic))

    def retrainings(self, variant: str) -> list[Branch]:
        """The segmentation networks that are trained on the synthetic images of a variant, as branches."""
        recipes = ["", "+real"]
        if variant == self.settings.modes[0]:
            recipes += [f"+real+{name}" for name in self.settings.augmented]
        return [("retrain", variant, recipe) for recipe in recipes]

    def retrain(self, variant: str, recipe: str) -> None:
        """Train a segmentation network on the synthetic images of a variant, "+real" images, augmented as it says."""
        synthetic = self.synthetic(variant)
        data = [synthetic, self.labeled] if "+real" in recipe else synthetic
        name = recipe.removeprefix("+real+")
        own = {"augmentation": AUGMENTED[name]} if name in AUGMENTED else {}
        self.train_segmentation(self.setup(variant) + recipe, data, synthetic, **own)

    def generate_rounds(self) -> None:
        """Further rounds: the retrained network's uncertainties steer the next synthesis."""
        for variant in self.rounds:
            self.stage(f"{self.setup(variant)}_uncertainty", partial(self.start_round, variant))
            self.generate(variant)
            for _, *arguments in self.retrainings(variant):
                self.retrain(*arguments)

    def baseline(self, name: str) -> None:
        """What one would do without UnIACorN: pseudo-labels, or a transfer of the style."""
        if name in SELF_TRAINED:
            for i in range(self.settings.trainings):
                self.self_train(name, i)
            self.evaluate(name)
        else:
            data = self.run_dir / f"synthetic_{name}"
            if name == SEMANTIC_ONLY:
                self.stage(f"{name}_synthesis", lambda: self.synthesise("paper", data, weight=0.0))
            else:
                budget = self.stage(f"{name}_training", lambda: self.train_style_transfer(name))
                self.results["budget"] |= {name: budget} if budget else {}
                self.stage(f"{name}_translation", lambda: self.translate(name))
            self.train_segmentation(name, data, data)
            self.train_segmentation(f"{name}+real", [data, self.labeled], data)

    def judge(self) -> None:
        """Uncertainties of and distances between the sets of images, the search for copies, and the pictures."""
        measures.summarise_uncertainties(self)
        self.results["fid"] = self.described("distances", lambda: image_sets.distances_of(self))
        self.results["memorization"] = self.described("memorization", lambda: image_sets.search_copies(self))
        self.stage("pictures", lambda: pictures.write_all(self))

    def finish(self) -> None:
        """Write results.json and the report, and close the tracking."""
        records = {s: [self.record(s, i) for i in range(self.settings.trainings)] for s in self.results["segmentation"]}
        self.results["differences"] = differences(records, REFERENCES, self.settings.seed)
        self.results |= {"not_computed": self.not_computed, "label_maps": self.label_maps}
        self.results["gap"] = closed_gaps(records, self.settings.seed)
        simulated = [bool(read_header(self.unlabeled).get(key)) for key in ("simulated_device", "simulated_anatomy")]
        what = "devices and anatomy" if all(simulated) else "devices" if any(simulated) else "none"
        self.results["simulated"] = read_header(self.unlabeled).get("simulated", what)
        self.results["commands"], self.results["sha256"] = self.commands, self.hashes()
        self.results["environment"] = provenance()["versions"] | {
            "machine": platform.machine(),
            "cpus": torch.get_num_threads(),
        }
        markers = sorted((self.run_dir / "stages").glob("*.json"), key=lambda p: p.stat().st_mtime)
        kept = {p.stem: read_stage(p) for p in markers}
        self.results["seconds"] = {name: stage["seconds"] for name, stage in kept.items()}
        self.results["without_command"] = [name for name, stage in kept.items() if not stage["commands"]]
        write_json(self.run_dir / "results.json", self.results)
        report = write_report(self.run_dir)
        scores = {f"{k}.mean_iou".replace("+", "_"): v["mean_iou"] for k, v in self.results["segmentation"].items()}
        self.tracker.close(scores, [self.run_dir / "results.json", report])

    # ------------------------------------------------------------------ single stages

    def parallel(self, *chains: Chain) -> None:
        """Run methods of this experiment that do not depend on each other, side by side where there is room."""
        branches = [branch for chain in chains for branch in chain]
        jobs = min(self.jobs, widest(chains))
        if jobs > 1:
            side_by_side(_run_branch, chains, jobs, self.settings, self.tracker.parent, self.walked, self.forced)
        for name, *arguments in branches:  # what ran elsewhere is finished now, and its results are picked up here
            getattr(self, name)(*arguments)
        self.walked += branches

    def train_segmentation(self, setup: str, data: Path | list[Path], validation: Path, **recipe: str) -> None:
        """Train one recipe on some data, as often as asked, and score it on the unlabelled domain's test images."""
        sets = [str(folder) for folder in data] if isinstance(data, list) else str(data)
        for i in range(self.settings.trainings):
            folder = str(self.weights(setup, i).parent)
            folders = {"validation_dir": str(validation), "ckpt_dir": folder, "output_dir": folder}
            values = {"dataset_dir": sets, **folders, **recipe, "seed": self.seed + i}
            work = partial(self.bundle, self.bundle_dir("retinal_unet"), "train.json", **values)
            self.stage(nth(setup, i), work)
        self.evaluate(setup)

    def self_train(self, setup: str, training: int) -> None:
        """Pseudo-labels of a network of the labelled images on the unlabelled ones, training with them, in rounds."""
        teacher, augmentation = SELF_TRAINED[setup]
        data, folder = (self.labeled, self.unlabeled), self.weights(setup, training).parents[1]
        recipe = self_training.ROUNDS, self.settings.confidence, augmentation
        steps = self_training.steps(self.weights(teacher, training), *data, folder, *recipe)
        for i, (config, kind, overrides) in enumerate(steps):
            own = {"seed": self.seed + training} if kind == "train" else {}
            work = partial(self.bundle, self.bundle_dir("retinal_unet"), config, kind, **overrides, **own)
            self.stage(nth(f"{setup}_{i}", training), work)

    def evaluate(self, setup: str) -> None:
        """Score the networks of a set-up on the unlabelled domain's test images, where they have labels."""
        if self.has_truth:
            self.results["segmentation"][setup] = self.stage(f"{setup}_evaluation", lambda: self.score(setup))

    def score(self, setup: str) -> dict[str, Any]:
        """Scores of a set-up, over its trainings."""
        seed, records = self.settings.seed, [self.record(setup, i) for i in range(self.settings.trainings)]
        root = self.bundle_dir("retinal_unet")
        for i in range(self.settings.trainings):
            file, weights = root / "configs" / "evaluate.json", self.weights(setup, i)
            self.note(file, dataset_dir=self.unlabeled, split="test", ckpt_path=weights)
        each = [
            score_images(root, self.weights(setup, i), self.unlabeled, "test", seed, self.device, record)
            for i, record in enumerate(records)
        ]
        found = each[0] if len(each) == 1 else score_trainings(each, records, seed)
        return found | sub_domain_scores(records, self.unlabeled, "test", seed)

    def guess_labels(self, variant: str, teacher: Path) -> None:
        """Label the unlabelled images by a network, all their pixels: the Semantic-ControlNet sees whole label maps."""
        own = {"dataset_dir": str(self.unlabeled), "output_dir": str(self.guessed(variant))}
        own |= {"ckpt_path": str(teacher), "threshold": 0.0, "labeled_dir": str(self.labeled)}
        self.bundle(self.bundle_dir("retinal_unet"), "pseudo_label.json", "infer", **own)

    def measure_uncertainty(self, variant: str) -> None:
        """Uncertainty of every image of both domains, and the prior in the scaling of every mode."""
        root = self.bundle_dir("retinal_unet", variant)
        for scaling in dict.fromkeys(self.settings.scaling_of(mode) for mode in self.settings.modes):
            self.bundle(
                root,
                "uncertainty.json",
                "infer",
                dataset_dir=str(self.labeled),
                unlabeled_dir=str(self.unlabeled),
                measured_too=self.also_labeled(variant),
                scaling=scaling,
                prior_path=str(root / "models" / prior_file(scaling)),
            )

    def start_round(self, variant: str) -> None:
        """The network retrained in the round before guesses labels and measures the uncertainties of the next."""
        root, before = self.bundle_dir("retinal_unet", variant), self.setup(self.round_before(variant))
        weights = self.weights(f"{before}+real")
        copy_weights(weights, root / "models" / "model.pt")
        if self.settings.teaches:
            self.guess_labels(variant, weights)
        self.measure_uncertainty(variant)

    def train_ldm(self, part: str) -> None:
        """Train the autoencoder or the diffusion model on the images of both domains."""
        root, data = self.bundle_dir("latent_diffusion"), [str(self.labeled), str(self.unlabeled)]
        self.bundle(root, f"train_{part}.json", dataset_dir=data)

    def train_controlnet(self, name: str, variant: str) -> None:
        """Train one ControlNet; the Semantic-ControlNet on top of the other in ``compositional`` mode."""
        root, mode = self.bundle_dir(name, variant), self.mode(variant)
        own: dict[str, Any] = {"dataset_dir": str(self.labeled), "unlabeled_dir": str(self.unlabeled)}
        if name == "semantic_controlnet":
            more = self.also_labeled(variant) if mode == "compositional" else []
            own = {"dataset_dir": [str(self.labeled), *more], "mode": mode}
        if self.is_round(variant):  # goes on where the round before ended
            before = self.bundle_dir(name, self.round_before(variant))
            own["initial_weights"] = str(before / "models" / "model.pt")
        self.bundle(root, "train.json", **own)

    def train_style_transfer(self, name: str) -> dict[str, Any]:
        """CycleGAN or CUT, for the core seconds of all that UnIACorN trains before it can draw an image.

        Seconds alone would not do: stages side by side share the cores, one that runs alone has all of them.
        """
        teacher = ["augmentation"] * self.settings.teaches
        stages = [*teacher, "autoencoder", "diffusion", *(f"unicorn_{net}" for net in CONTROLNETS)]
        budget, threads = self.core_seconds(stages), torch.get_num_threads()
        folder = self.bundle_dir("style_transfer") / "models" / name
        self.bundle(
            self.bundle_dir("style_transfer"),
            f"train_{name}.json",
            dataset_dir=str(self.labeled),
            unlabeled_dir=str(self.unlabeled),
            max_seconds=round(budget / threads, 1),
            max_epochs=1_000_000,
            ckpt_dir=str(folder),
            output_dir=str(folder),
        )
        return {"core_seconds": budget, "threads": threads, "stages": stages}

    def translate(self, name: str) -> None:
        """The labelled images in the look of the unlabelled domain."""
        self.bundle(
            self.bundle_dir("style_transfer"),
            "inference.json",
            "infer",
            dataset_dir=str(self.labeled),
            ckpt_path=str(self.bundle_dir("style_transfer") / "models" / name / "model.pt"),
            output_dir=str(self.run_dir / f"synthetic_{name}"),
            resume=True,
            device_name=str(read_header(self.unlabeled)["device"]),
        )

    def weight(self, variant: str) -> float:
        """Weight of the Uncertainty-ControlNet: the setting, or what was chosen (:func:`control.over_weights`)."""
        return self.settings.weight_used(self.mode(variant), self.results["weights"], self.setup(variant))

    def synthesise(self, variant: str, output: Path | None = None, weight: float | None = None) -> None:
        """Label maps of the labelled domain x uncertainties of the unlabelled one -> the synthetic data set."""
        own = self.settings.synthesis(self.mode(variant), self.weight(variant) if weight is None else weight)
        own |= {"output_dir": str(output or self.synthetic(variant)), "resume": True}
        self.bundle(self.bundle_dir("synthesis", variant), "inference.json", "infer", **own)


def _run_branch(
    settings: Settings,
    parent: str,
    walked: list[Branch],
    forced: bool,
    before: list[Branch],
    branch: Branch,
    threads: int,
) -> None:
    """One branch of an experiment, in a process of its own."""
    torch.set_num_threads(threads)
    log_to_console()
    run = Experiment(settings, branch=True, force=forced)
    with run.branch():
        with unsaid():
            for name, *arguments in [*walked, *before]:  # finished: picks up the results
                getattr(run, name)(*arguments)
        run.tracker = Tracker(run.run_dir, run.run_dir.name, settings.tracking, parent)
        name, *arguments = branch
        getattr(run, name)(*arguments)
