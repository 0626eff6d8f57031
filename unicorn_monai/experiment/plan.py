"""The whole method as a table: what each stage is called, needs, makes and does, in the order one process takes.

    autoencoder -> segmentation networks -> uncertainties -> diffusion model
                -> both ControlNets -> fusion weight -> synthesis -> control -> retraining    of every variant
                -> baselines -> further rounds -> distances, search for copies, pictures

What makes something runs a configuration of a bundle, which stands here with its settings; what measures, and the gates
between, are in ``judging.py``. What order, processes and resumption follow from: ``stages.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch

from unicorn_monai.baselines import self_training
from unicorn_monai.data import read_header, write_augmented
from unicorn_monai.experiment.judging import Judging
from unicorn_monai.experiment.run import Run, nth
from unicorn_monai.experiment.runner import Runner
from unicorn_monai.experiment.settings import prior_file
from unicorn_monai.experiment.stages import Stage
from unicorn_monai.report.trainings import AUGMENTED, ON_TOP, SELF_TRAINED, SEMANTIC_ONLY, STYLED, SYNTHETIC
from unicorn_monai.system.weights import copy_weights

Work = Callable[[], Any]  # of a stage
CONTROLNETS = ("uncertainty_controlnet", "semantic_controlnet")  # in order: the second may build on the first


def when(condition: bool, *things: Any) -> tuple[Any, ...]:
    """These things, or none."""
    return things if condition else ()


class Plan:
    """The stages of a run: ``run`` says what is to be done and where, ``runner`` runs the bundles' configurations."""

    def __init__(self, run: Run, runner: Runner) -> None:
        self.run, self.runner, self.settings, self.judge = run, runner, run.settings, Judging(run, runner)
        self.domains = {"dataset_dir": str(run.labeled), "unlabeled_dir": str(run.unlabeled)}
        self.both = [str(run.labeled), str(run.unlabeled)]
        compositional = "compositional" in self.settings.modes
        self.shown = (  # what the Semantic-ControlNet sees besides the labelled images
            *when(self.settings.style_augmentation and compositional, "labeled_augmented"),
            *when(self.settings.teaches, "guessed"),
        )
        self.seen_through = () if (self.settings.features or {}).get("path") else ("features",)

    def stages(self) -> list[Stage]:
        """All stages of the run."""
        chosen, run = self.settings.baselines, self.run
        parts = chain(
            self.autoencoder(),
            self.segmentation(),
            self.diffusion(),
            *(self.variant(mode) for mode in self.settings.modes),
            *(self.self_trained(name) for name in chosen if name in SELF_TRAINED),
            [Stage(name, (), (name,), self.judge.train_features) for name in self.seen_through],
            *(self.synthetic_baseline(name) for name in chosen if name in SYNTHETIC),
            *(self.round(variant, before) for before, variant in pairwise([self.settings.modes[0], *run.rounds])),
            self.judgement(),
        )
        return list(parts)

    def bundle(self, name: str, config: str, kind: str = "train", variant: str = "", /, **values: Any) -> Work:
        """The work of running a configuration of a bundle with these settings."""
        return partial(self.runner.bundle, self.run.bundle_dir(name, variant), config, kind, **values)

    def autoencoder(self) -> list[Stage]:
        """The autoencoder; what follows needs its images to be usable."""
        judge, train = self.judge, self.bundle("latent_diffusion", "train_autoencoder.json", dataset_dir=self.both)
        return [
            Stage("autoencoder", (), ("autoencoder",), train),
            Stage("reconstructions", ("autoencoder",), (), judge.reconstructions, result=("reconstructions",)),
            Stage("usable images", ("reconstructions",), ("usable autoencoder",), judge.refuse_unusable, kept=False),
        ]

    def segmentation(self) -> list[Stage]:
        """The networks of the real images, guessed labels, and the uncertainties."""
        run, settings, first = self.run, self.settings, self.settings.modes[0]
        bounds = self.networks("lower_bound", (), run.labeled)
        bounds += self.networks("upper_bound", (), run.unlabeled) if run.has_upper else []
        styles = partial(write_augmented, run.labeled, run.augmented, settings.seed)
        guess = self.guess(first, run.weights("augmentation"))
        more = list[Stage]()
        for name in settings.augmented:
            style = {"unlabeled_dir": str(run.unlabeled)} if name in STYLED else {}
            more += self.networks(name, (), run.labeled, augmentation=AUGMENTED[name], **style)
        networks = [thing for stage in (*bounds, *more) for thing in stage.makes]  # of any an ensemble may be made
        return [
            *bounds,
            *when("labeled_augmented" in self.shown, Stage("styles", (), ("labeled_augmented",), styles)),
            *more,
            *when(settings.teaches, Stage("pseudo_labels", ("augmentation",), ("guessed",), guess)),
            Stage("uncertainty", (*networks, *self.shown), ("prior",), partial(self.measure, first)),
        ]

    def guess(self, variant: str, teacher: Path) -> Work:
        """Label the unlabelled images by a network, all their pixels: the Semantic-ControlNet sees whole label maps."""
        own = {"dataset_dir": str(self.run.unlabeled), "output_dir": str(self.run.guessed(variant))}
        own |= {"ckpt_path": str(teacher), "threshold": 0.0, "labeled_dir": str(self.run.labeled)}
        return self.bundle("retinal_unet", "pseudo_label.json", "infer", **own)

    def also_labeled(self, variant: str) -> list[str]:
        """What the Semantic-ControlNet of a variant is shown besides the labelled images."""
        folders = {"labeled_augmented": self.run.augmented, "guessed": self.run.guessed(variant)}
        return [str(folders[name]) for name in self.shown]

    def measure(self, variant: str, *before: Work) -> None:
        """Uncertainty of every image of both domains, and the prior in the scaling of every mode."""
        for work in before:
            work()
        root, settings = self.run.bundle_dir("retinal_unet", variant), self.settings
        values = {**self.domains, "measured_too": self.also_labeled(variant)}
        for scaling in dict.fromkeys(settings.scaling_of(mode) for mode in settings.modes):
            own = {"scaling": scaling, "prior_path": str(root / "models" / prior_file(scaling))}
            self.runner.bundle(root, "uncertainty.json", "infer", **values, **own)

    def diffusion(self) -> list[Stage]:
        """The diffusion model; whether its images keep the speckle, and its latents their spread."""
        judge, train = self.judge, self.bundle("latent_diffusion", "train_diffusion.json", dataset_dir=self.both)
        alone = self.run.jobs <= 2  # it is longer than all that could run beside it
        made = ("autoencoder", "lower_bound", "diffusion")
        return [
            Stage("diffusion", ("usable autoencoder",), ("diffusion",), train, alone=alone),
            Stage("textures", made, (), judge.textures, result=("autoencoder",)),
            Stage("latents", ("diffusion",), (), judge.latents, result=("diffusion",)),
            Stage("images as they should be", ("textures", "latents"), (), judge.warn_of_images, kept=False),
        ]

    def networks(self, setup: str, needs: tuple[str, ...], *data: Path, **recipe: str) -> list[Stage]:
        """A recipe trained on some data, validated on the first of them, as often as asked, and its scores."""
        names, found = [nth(setup, i) for i in range(self.settings.trainings)], []
        first, *others = map(str, data)
        values = {"dataset_dir": [first, *others] if others else first, "validation_dir": first}
        for i, name in enumerate(names):
            folder = str(self.run.weights(setup, i).parent)
            own = values | {"ckpt_dir": folder, "output_dir": folder} | recipe | {"seed": self.settings.seed + i}
            found.append(Stage(name, needs, (name,), self.bundle("retinal_unet", "train.json", **own)))
        return [*found, *self.scores(setup, names)]

    def scores(self, setup: str, networks: list[str]) -> list[Stage]:
        """Scores on the unlabelled domain's test images, where they have labels."""
        name, work = f"{setup}_evaluation", partial(self.judge.scores, setup)
        return [*when(self.run.has_truth, Stage(name, tuple(networks), (), work, ("segmentation", setup)))]

    def variant(self, variant: str, prior: str = "prior", before: str = "") -> list[Stage]:
        """Both ControlNets, the fusion weight, the synthesis, how far it obeys, and what is trained on its images.

        ``prior`` is the thing that is its prior, ``before`` the variant whose ControlNets a round goes on from.
        """
        run, judge, name, data = self.run, self.judge, self.run.setup(variant), self.run.synthetic(variant)
        shown = self.shown if run.mode(variant) == "compositional" else ()
        unc, sem = (f"{name}_{net}" for net in CONTROLNETS)
        begun = tuple(f"{run.setup(before)}_{net}" for net in CONTROLNETS) if before else ()
        chosen = (f"{name}_weights",) if self.settings.with_augmentation else ()  # judged without the other labels
        judges = ["augmentation", *when(run.has_upper, "upper_bound")]
        scored = when(run.has_truth, f"{run.oracle}_evaluation")
        weigh, obey = partial(judge.fusion_weight, variant), partial(judge.control, variant)
        key = name.replace("unicorn", "control")
        stages = [
            Stage(unc, ("diffusion", prior, *begun), (unc,), self.controlnet(CONTROLNETS[0], variant, before)),
            Stage(sem, (unc, prior, *shown), (sem,), self.controlnet(CONTROLNETS[1], variant, before)),
            *(Stage(weights, (unc, sem, *judges), (), weigh, ("weights", name)) for weights in chosen),
            Stage(f"{name}_synthesis", (unc, sem, *chosen), (data.name,), partial(self.synthesise, variant, data)),
            Stage(f"{name}_control", (data.name, *chosen, run.oracle, *scored), (), obey, (key,)),
            *self.retrained(name, data),
        ]
        tried = [name for name in self.settings.augmented if name in ON_TOP]
        for more in tried if variant == self.settings.modes[0] else ():
            recipe = {"augmentation": AUGMENTED[more]}
            stages += self.networks(f"{name}+real+{more}", (data.name,), data, run.labeled, **recipe)
        return stages

    def retrained(self, setup: str, data: Path) -> list[Stage]:
        """A segmentation network of synthetic images, and one of synthetic and real ones."""
        alone = self.networks(setup, (data.name,), data)
        return alone + self.networks(f"{setup}+real", (data.name,), data, self.run.labeled)

    def controlnet(self, net: str, variant: str, before: str) -> Work:
        """Train one ControlNet; the Semantic-ControlNet on top of the other in ``compositional`` mode."""
        run, mode = self.run, self.run.mode(variant)
        own: dict[str, Any] = dict(self.domains)
        if net == "semantic_controlnet":
            more = self.also_labeled(variant) if mode == "compositional" else []
            own = {"dataset_dir": [str(run.labeled), *more], "mode": mode}
        if before:  # goes on where the round before ended
            own["initial_weights"] = str(run.bundle_dir(net, before) / "models" / "model.pt")
        return self.bundle(net, "train.json", "train", variant, **own)

    def synthesise(self, variant: str, output: Path, weight: float | None = None) -> None:
        """Label maps of the labelled domain x uncertainties of the unlabelled one -> a synthetic data set."""
        run = self.run
        own = run.settings.synthesis(run.mode(variant), run.weight(variant) if weight is None else weight)
        own |= {"output_dir": str(output), "resume": True}
        self.runner.bundle(run.bundle_dir("synthesis", variant), "inference.json", "infer", **own)

    def round(self, variant: str, before: str) -> list[Stage]:
        """A further round: the retrained network guesses labels, and its uncertainties steer the next synthesis."""
        run, name = self.run, self.run.setup(variant)
        retrained, prior = f"{run.setup(before)}+real", f"{name}_uncertainty"
        weights = run.weights(retrained)
        install = partial(copy_weights, weights, run.bundle_dir("retinal_unet", variant) / "models" / "model.pt")
        guess = when(self.settings.teaches, self.guess(variant, weights))
        work = partial(self.measure, variant, install, *guess)
        return [Stage(prior, (retrained, *self.shown), (prior,), work), *self.variant(variant, prior, before)]

    def self_trained(self, setup: str) -> list[Stage]:
        """Pseudo-labels of a network of the labelled images on the unlabelled ones, training with them, in rounds."""
        run, (teacher, augmentation) = self.run, SELF_TRAINED[setup]
        recipe = self_training.ROUNDS, self.settings.confidence, augmentation
        found, networks = list[Stage](), list[str]()
        for i in range(self.settings.trainings):
            before, folder = nth(teacher, i), run.weights(setup, i).parents[1]
            steps = self_training.steps(run.weights(teacher, i), run.labeled, run.unlabeled, folder, *recipe)
            for k, (config, kind, values) in enumerate(steps):
                own = {"seed": self.settings.seed + i} if kind == "train" else {}
                name, work = nth(f"{setup}_{k}", i), self.bundle("retinal_unet", config, kind, **values, **own)
                found.append(Stage(name, (before,), (name,), work))
                before = name
            networks.append(before)
        return [*found, *self.scores(setup, networks)]

    def synthetic_baseline(self, name: str) -> list[Stage]:
        """A data set in another way: a transfer of the style, or the Semantic-ControlNet alone."""
        data = self.run.synthetic_sets[name]
        if name == SEMANTIC_ONLY:
            nets = tuple(f"{self.run.setup('paper')}_{net}" for net in CONTROLNETS)
            work = partial(self.synthesise, "paper", data, weight=0.0)
            return [Stage(f"{name}_synthesis", nets, (data.name,), work), *self.retrained(name, data)]
        teacher = when(self.settings.teaches, "augmentation")
        spent = (*teacher, "autoencoder", "diffusion", *(f"unicorn_{net}" for net in CONTROLNETS))
        weights = self.run.bundle_dir("style_transfer") / "models" / name / "model.pt"
        own = {"dataset_dir": str(self.run.labeled), "ckpt_path": str(weights), "output_dir": str(data), "resume": True}
        own |= {"device_name": str(read_header(self.run.unlabeled)["device"])}
        translate = self.bundle("style_transfer", "inference.json", "infer", **own)
        train = partial(self.train_style_transfer, name, spent)
        return [
            Stage(f"{name}_training", spent, (f"{name}_networks",), train, result=("budget", name)),
            Stage(f"{name}_translation", (f"{name}_networks",), (data.name,), translate),
            *self.retrained(name, data),
        ]

    def train_style_transfer(self, name: str, stages: tuple[str, ...]) -> dict[str, Any]:
        """CycleGAN or CUT, for the core seconds of all that UnIACorN trains before it can draw an image.

        Seconds alone would not do: stages side by side share the cores, one that runs alone has all of them.
        """
        budget, threads = self.runner.core_seconds(stages), torch.get_num_threads()
        folder = str(self.run.bundle_dir("style_transfer") / "models" / name)
        length = {"max_seconds": round(budget / threads, 1), "max_epochs": 1_000_000}
        folders = {"ckpt_dir": folder, "output_dir": folder}
        self.bundle("style_transfer", f"train_{name}.json", **self.domains, **length, **folders)()
        return {"core_seconds": budget, "threads": threads, "stages": list(stages)}

    def judgement(self) -> list[Stage]:
        """Uncertainties of and distances between the sets of images, the search for copies, and the pictures."""
        judge, run = self.judge, self.run
        main, sets = run.synthetic(self.settings.modes[0]).name, tuple(p.name for p in run.synthetic_sets.values())
        compared, copied = (*self.seen_through, *sets), (*self.seen_through, main, "unicorn+real")
        return [
            Stage("uncertainties", ("prior", *sets), (), judge.uncertainties, alone=True, kept=False),
            Stage("distances", compared, (), judge.distances, ("fid",), alone=True, optional=True),
            Stage("memorization", copied, (), judge.copies, ("memorization",), alone=True, optional=True),
            Stage("pictures", ("uncertainties",), (), judge.pictures, alone=True),
        ]
