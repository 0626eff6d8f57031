"""The whole method as a table: what each stage is called, needs, makes and does, in the order one process takes.

    autoencoder -> segmentation networks -> the teacher, the best of them without labels -> training on its guesses
    joint       -> the teacher's guesses -> uncertainties, by what separates the domains -> U-Net and controls at once
    others      -> uncertainties -> diffusion model -> both ControlNets of every mode
                -> weight -> synthesis -> control -> retraining                               of every variant
                -> baselines -> further rounds -> distances, looks, search for copies, pictures -> verdict

What makes something runs a configuration of a bundle, which stands here with its settings; what measures, and the gates
between, are in ``judging.py``. What order, processes and resumption follow from: ``stages.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch

from unicorn_monai.bundle import bundle_root
from unicorn_monai.data import read_header, write_augmented
from unicorn_monai.experiment.judging import Judging
from unicorn_monai.experiment.run import Run, nth
from unicorn_monai.experiment.runner import Runner
from unicorn_monai.experiment.settings import ACQUISITIONS, measured_files, prior_file
from unicorn_monai.experiment.stages import Stage
from unicorn_monai.report.trainings import (
    AUGMENTED,
    BATCH_NORM,
    CYCADA,
    FREE,
    ON_TOP,
    PLAIN,
    PSEUDO_LABELS,
    SELF_TRAINED,
    SELF_TRAINED_CHOSEN,
    SEMANTIC_ONLY,
    STRONGEST,
    STYLED,
    SYNTHETIC,
    TSYND,
)
from unicorn_monai.segmentation.devices_apart import ENOUGH, measured_separation, separates
from unicorn_monai.system.files import read_json
from unicorn_monai.system.weights import copy_weights

logger = logging.getLogger("unicorn_monai")

Work = Callable[[], Any]  # of a stage
ENSEMBLE = 3  # networks whose disagreement is measured
CONTROLNETS = ("uncertainty_controlnet", "semantic_controlnet")  # in order: the second may build on the first


def when(condition: bool, *things: Any) -> tuple[Any, ...]:
    """These things, or none."""
    return things if condition else ()


def paper_recipe() -> dict[str, Any]:
    """How the segmentation networks of ``paper`` mode are trained, but for the length: settings of ``train.json``."""
    preset = read_json(Path(bundle_root("retinal_unet"), "presets", "paper.json"))
    return preset["train.json"] | {"augmentation": "none"}


class Plan:
    """The stages of a run: ``run`` says what is to be done and where, ``runner`` runs the bundles' configurations."""

    def __init__(self, run: Run, runner: Runner) -> None:
        self.run, self.runner, self.settings, self.judge = run, runner, run.settings, Judging(run, runner)
        self.domains = {"dataset_dir": str(run.labeled), "unlabeled_dir": str(run.unlabeled)}
        self.both = [str(run.labeled), str(run.unlabeled)]
        self.chained = [mode for mode in self.settings.modes if mode != "joint"]  # on a frozen U-Net
        compositional = "compositional" in self.settings.modes
        self.shown = (  # what the Semantic-ControlNet sees besides the labelled images
            *when(self.settings.style_augmentation and compositional, "labeled_augmented"),
            *when(self.settings.teaches, "guessed"),
        )
        self.setups = list[str]()  # whose networks there are
        self.seen_through = () if (self.settings.features or {}).get("path") else ("features",)

    def stages(self) -> list[Stage]:
        """All stages of the run."""
        chosen, run, modes, networks = self.settings.baselines, self.run, self.settings.modes, self.segmentation()
        parts = chain(
            self.autoencoder() if modes else (),
            networks,
            *(self.self_trained(name, augmentation) for name, augmentation in SELF_TRAINED.items() if name in chosen),
            self.self_trained_chosen() if SELF_TRAINED_CHOSEN in chosen else (),
            self.batch_norm() if BATCH_NORM in chosen else (),
            self.teacher() if PSEUDO_LABELS in chosen or "joint" in modes else (),
            self.plain_guesses() if PSEUDO_LABELS in chosen else (),
            self.generator([thing for stage in networks for thing in stage.makes]) if modes else (),
            [Stage(name, (), (name,), self.judge.train_features) for name in self.seen_through if modes],
            *(self.variant(mode) for mode in modes),
            *(self.synthetic_baseline(name) for name in chosen if name in SYNTHETIC),
            *(self.round(variant, before) for before, variant in pairwise([self.settings.main, *run.rounds])),
            self.judgement() if modes else (),
        )
        return [*parts, self.verdict()]

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
        """The networks of the real images."""
        run = self.run
        bounds = self.networks("lower_bound", (), run.labeled) + self.ensemble()
        bounds += self.networks("upper_bound", (), run.unlabeled) if run.has_upper else []
        for name in self.settings.augmented:
            style = {"unlabeled_dir": str(run.unlabeled)} if name in STYLED else {}
            bounds += self.networks(name, (), run.labeled, augmentation=AUGMENTED[name], **style)
        return bounds

    def ensemble(self) -> list[Stage]:
        """Further trainings of the lower bound, whose disagreement is an uncertainty."""
        if "joint" not in self.settings.modes or "ensemble" not in self.tried:
            return []
        folder, found = str(self.run.labeled), list[Stage]()
        own = {"dataset_dir": folder, "validation_dir": folder, "augmentation": PLAIN}
        for i in range(self.settings.trainings, ENSEMBLE):
            name = nth("lower_bound", i)
            found.append(Stage(name, (), (name,), self.training("lower_bound", i, "train.json", own)))
        return found

    def generator(self, networks: list[str]) -> list[Stage]:
        """What the modes need: guessed labels, the uncertainties, the diffusion model that ControlNets are beside."""
        judge, run = self.judge, self.run
        found = [Stage("textures", ("autoencoder", "lower_bound"), (), judge.textures, result=("autoencoder",))]
        if "joint" in self.settings.modes:
            guess = partial(self.guess_by_teacher, run.guessed("joint"), self.settings.joint_confidence)
            ensemble = tuple(nth("lower_bound", i) for i in range(ENSEMBLE)) if "ensemble" in self.tried else ()
            found += [
                Stage("joint_guesses", ("teacher",), ("joint_guesses",), guess),
                Stage(
                    "joint_uncertainty",
                    ("lower_bound", *ensemble, "joint_guesses"),
                    ("joint_prior",),
                    self.measure_best,
                    result=("separation",),
                ),
            ]
        return found + (self.chain_begins(networks) if self.chained else [])

    def chain_begins(self, networks: list[str]) -> list[Stage]:
        """What ControlNets beside a frozen U-Net need: guessed labels, the uncertainties, the diffusion model."""
        run, settings = self.run, self.settings
        first = self.chained[0]
        styles = partial(write_augmented, run.labeled, run.augmented, settings.seed)
        guess = self.guess(first, run.weights("augmentation"))
        return [
            *when("labeled_augmented" in self.shown, Stage("styles", (), ("labeled_augmented",), styles)),
            *when(settings.teaches, Stage("guessed_labels", ("augmentation",), ("guessed",), guess)),
            # an ensemble may be made of any of the networks
            Stage("uncertainty", (*networks, *self.shown), ("prior",), partial(self.measure, first)),
            *self.diffusion(),
        ]

    def guess(self, variant: str, teacher: Path) -> Work:
        """Label the unlabelled images by a network: the Semantic-ControlNet sees whole label maps."""
        return partial(self.label, self.run.bundle_dir("retinal_unet"), teacher, self.run.guessed(variant))

    def label(self, root: Path, weights: Path, data: Path, threshold: float = 0.0) -> None:
        """Labels of the unlabelled images by a network that a bundle defines; of all pixels by default."""
        own = {"dataset_dir": str(self.run.unlabeled), "output_dir": str(data), "labeled_dir": str(self.run.labeled)}
        self.runner.bundle(root, "pseudo_label.json", "infer", **own, ckpt_path=str(weights), threshold=threshold)

    def also_labeled(self, variant: str) -> list[str]:
        """What the Semantic-ControlNet of a variant is shown besides the labelled images."""
        folders = {"labeled_augmented": self.run.augmented, "guessed": self.run.guessed(variant)}
        return [str(folders[name]) for name in self.shown]

    def measure(self, variant: str, *before: Work) -> None:
        """Uncertainty of every image of both domains, and the prior in the scaling of every mode but the joint one."""
        for work in before:
            work()
        root = self.run.bundle_dir("retinal_unet", variant)
        values = {**self.domains, "measured_too": self.also_labeled(variant)}
        for scaling in dict.fromkeys(self.settings.scaling_of(mode) for mode in self.chained):
            own = {"scaling": scaling, "prior_path": str(root / "models" / prior_file(scaling))}
            self.runner.bundle(root, "uncertainty.json", "infer", **values, **own)

    @property
    def tried(self) -> tuple[str, ...]:
        """The acquisitions that are tried for the joint mode."""
        return ACQUISITIONS if self.settings.acquisition == "auto" else (self.settings.acquisition,)

    def measure_best(self) -> dict[str, Any]:
        """Uncertainty of every image of both domains by what tells them apart best, and the prior of the joint mode.

        Returns the acquisition, and of each that was tried how well it tells the domains apart.
        """
        root, run, found = self.run.bundle_dir("retinal_unet"), self.run, dict[str, float]()
        models = root / "models"
        for name in self.tried:
            files = {"uncertainties_path": models / "tried" / f"uncertainties_{name}.json"}
            files["prior_path"] = models / "tried" / f"prior_{name}.json"
            self.measure_by(name, **{key: str(path) for key, path in files.items()})
            found[name] = measured_separation(files["uncertainties_path"], run.labeled, run.unlabeled)
        best = max(found, key=lambda name: separates(found[name]))
        files = {key: str(models / name) for key, name in measured_files("joint").items()}
        self.measure_by(best, measured_too=[str(run.guessed("joint"))], **files)
        told = f"{best} puts {found[best]:.1%} of unlabelled images above labelled ones"
        if separates(found[best]) >= ENOUGH:
            logger.info(f"   uncertainty: {told}")
        else:
            logger.warning(
                f"{told}: the uncertainty hardly sees the shift, so to ask for that of the unlabelled images is to ask "
                "for nothing. Are both data sets of one device? Else choose another acquisition, or train the network "
                "longer."
            )
        return {"acquisition": best, "auc": found}

    def measure_by(self, acquisition: str, **places: Any) -> None:
        """Run ``uncertainty.json`` for the joint mode."""
        own: dict[str, Any] = {"scaling": self.settings.scaling, "distribution": "empirical"}
        own["acquisition"] = acquisition
        if acquisition == "ensemble":
            own["ensemble"] = [str(self.run.weights("lower_bound", i)) for i in range(1, ENSEMBLE)]
        root = self.run.bundle_dir("retinal_unet")
        self.runner.bundle(root, "uncertainty.json", "infer", **self.domains, **own, **places)

    def diffusion(self) -> list[Stage]:
        """The diffusion model; whether its latents keep their spread."""
        judge, train = self.judge, self.bundle("latent_diffusion", "train_diffusion.json", dataset_dir=self.both)
        alone = self.run.jobs <= 2  # it is longer than all that could run beside it
        return [
            Stage("diffusion", ("usable autoencoder",), ("diffusion",), train, alone=alone),
            Stage("latents", ("diffusion",), (), judge.latents, result=("diffusion",)),
            self.warning("textures", "latents"),
        ]

    def warning(self, *needs: str) -> Stage:
        """What of the images is not as it should be."""
        return Stage("images as they should be", needs, (), self.judge.warn_of_images, kept=False)

    def networks(self, setup: str, needs: tuple[str, ...], *data: Path, **recipe: Any) -> list[Stage]:
        """The plain recipe, or another one, on some data, validated on the first of them, and its scores."""
        first, *others = map(str, data)
        own = {"dataset_dir": [first, *others] if others else first, "validation_dir": first, "augmentation": PLAIN}
        trained = self.trainings(setup, needs, "train.json", own | recipe)
        return [*trained, *self.scores(setup, [stage.name for stage in trained])]

    def trainings(self, setup: str, needs: tuple[str, ...], config: str, own: dict[str, Any]) -> list[Stage]:
        """A configuration that trains a segmentation network, as often as asked; these stages alone."""
        found = list[Stage]()
        for i in range(self.settings.trainings):
            name = nth(setup, i)
            found.append(Stage(name, needs, (name,), self.training(setup, i, config, own)))
        return found

    def training(self, setup: str, i: int, config: str, own: dict[str, Any]) -> Work:
        """One of them."""
        folder = str(self.run.weights(setup, i).parent)
        values = own | {"ckpt_dir": folder, "output_dir": folder, "seed": self.settings.seed + i}
        return partial(self.runner.bundle, self.run.network_dir(setup), config, "train", **values)

    def scores(self, setup: str, networks: list[str]) -> list[Stage]:
        """Scores on the unlabelled domain's test images, where they have labels; its network is one to choose from."""
        self.setups.append(setup)
        name, work = f"{setup}_evaluation", partial(self.judge.scores, setup)
        return [*when(self.run.has_truth, Stage(name, tuple(networks), (), work, ("segmentation", setup)))]

    def variant(self, variant: str, prior: str = "prior", before: str = "") -> list[Stage]:
        """The controls, the fusion weight, the synthesis, how far it obeys, and what is trained on its images.

        ``prior`` is the thing that is its prior, ``before`` the variant whose ControlNets a round goes on from.
        """
        run, judge, name, data = self.run, self.judge, self.run.setup(variant), self.run.synthetic(variant)
        trained = [self.joint(variant)] if run.mode(variant) == "joint" else self.chain(variant, prior, before)
        trained += self.looked_at(variant, trained[-1]) if run.mode(variant) == "joint" else []
        drawn_by = tuple(thing for stage in trained for thing in stage.makes)
        chosen = (f"{name}_weights",) if self.settings.with_augmentation else ()  # judged without the other labels
        judges = ["augmentation", *when(run.has_upper, "upper_bound")]
        scored = when(run.has_truth, f"{run.oracle}_evaluation")
        weigh, obey = partial(judge.fusion_weight, variant), partial(judge.control, variant)
        key = name.replace("unicorn", "control")
        stages = [
            *trained,
            *(Stage(weights, (*drawn_by, *judges), (), weigh, ("weights", name)) for weights in chosen),
            Stage(f"{name}_synthesis", (*drawn_by, *chosen), (data.name,), partial(self.synthesise, variant, data)),
            Stage(f"{name}_control", (data.name, *chosen, run.oracle, *scored), (), obey, (key,)),
            *self.retrained(name, data, **(paper_recipe() if run.mode(variant) == "paper" else {})),
        ]
        tried = [name for name in self.settings.augmented if name in ON_TOP]
        for more in tried if variant == self.settings.main else ():
            recipe = {"augmentation": AUGMENTED[more]}
            stages += self.networks(f"{name}+real+{more}", (data.name,), data, run.labeled, **recipe)
        return stages

    def joint(self, variant: str) -> Stage:
        """The diffusion model and both controls at once, on both devices."""
        name, shown = f"{self.run.setup(variant)}_joint", [str(self.run.labeled), str(self.run.guessed(variant))]
        work = self.bundle("joint", "train.json", "train", variant, dataset_dir=shown)
        return Stage(name, ("usable autoencoder", "joint_prior"), (name,), work, alone=self.run.jobs <= 2)

    def looked_at(self, variant: str, trained: Stage) -> list[Stage]:
        """Whether its images have the look that was asked for; else nothing is trained on them."""
        name, judge = self.run.setup(variant), self.judge
        look, refuse = partial(judge.drawn, variant), partial(judge.refuse_other_look, variant)
        return [
            Stage(f"{name}_look", (*trained.makes, *self.seen_through), (), look, ("drawn", name)),
            Stage(f"{name} draws the device", (f"{name}_look",), (f"{name} as asked",), refuse, kept=False),
        ]

    def chain(self, variant: str, prior: str, before: str) -> list[Stage]:
        """One ControlNet after the other, beside the frozen diffusion model."""
        run, name = self.run, self.run.setup(variant)
        shown = self.shown if run.mode(variant) == "compositional" else ()
        unc, sem = (f"{name}_{net}" for net in CONTROLNETS)
        begun = tuple(f"{run.setup(before)}_{net}" for net in CONTROLNETS) if before else ()
        return [
            Stage(unc, ("diffusion", prior, *begun), (unc,), self.controlnet(CONTROLNETS[0], variant, before)),
            Stage(sem, (unc, prior, *shown), (sem,), self.controlnet(CONTROLNETS[1], variant, before)),
        ]

    def retrained(self, setup: str, data: Path, **recipe: Any) -> list[Stage]:
        """A segmentation network of synthetic images, and one of synthetic and real ones."""
        alone = self.networks(setup, (data.name,), data, **recipe)
        return alone + self.networks(f"{setup}+real", (data.name,), data, self.run.labeled, **recipe)

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
        """Label maps x uncertainties of the unlabelled domain -> a synthetic data set."""
        run = self.run
        weight = run.weight(variant) if weight is None else weight
        own = run.settings.synthesis(run.mode(variant), weight)
        own |= {"output_dir": str(output), "resume": True}
        self.runner.bundle(run.drawing_dir(variant), "inference.json", "infer", **own)

    def round(self, variant: str, before: str) -> list[Stage]:
        """A further round: the retrained network guesses labels, and its uncertainties steer the next synthesis."""
        run, name = self.run, self.run.setup(variant)
        retrained, prior = f"{run.setup(before)}+real", f"{name}_uncertainty"
        weights = run.weights(retrained)
        install = partial(copy_weights, weights, run.bundle_dir("retinal_unet", variant) / "models" / "model.pt")
        guess = when(self.settings.teaches, self.guess(variant, weights))
        work = partial(self.measure, variant, install, *guess)
        return [Stage(prior, (retrained, *self.shown), (prior,), work), *self.variant(variant, prior, before)]

    def self_trained(self, setup: str, augmentation: str) -> list[Stage]:
        """Online self-training: the network's own average guesses the labels of the unlabelled images."""
        trained = self.trainings(setup, (), "self_train.json", self.self_training(augmentation))
        return [*trained, *self.scores(setup, [stage.name for stage in trained])]

    def self_training(self, augmentation: str) -> dict[str, Any]:
        """Its settings."""
        own = {**self.domains, "validation_dir": str(self.run.labeled), "augmentation": augmentation}
        return own | {"threshold": self.settings.confidence}

    def self_trained_chosen(self) -> list[Stage]:
        """The same with the augmentation whose network looks best on the unlabelled images, without labels."""
        setup, found = SELF_TRAINED_CHOSEN, list[Stage]()
        tried = ("lower_bound", *self.settings.augmented)
        choose = partial(self.judge.recommend, tried)
        for i in range(self.settings.trainings):
            name, work = nth(setup, i), partial(self.self_train_as_chosen, i)
            found.append(Stage(name, ("chosen_augmentation",), (name,), work))
        made = ("augmentation_choice",)  # once: networks are trained by it
        choice = Stage("chosen_augmentation", tried, made, choose, result=("chosen_augmentation",))
        return [choice, *found, *self.scores(setup, [stage.name for stage in found])]

    def self_train_as_chosen(self, i: int) -> None:
        """One training with the augmentation that was chosen."""
        augmentation = AUGMENTED.get(self.run.results["chosen_augmentation"]["setup"], PLAIN)
        self.training(SELF_TRAINED_CHOSEN, i, "self_train.json", self.self_training(augmentation))()

    def batch_norm(self) -> list[Stage]:
        """A network with batch normalisation, whose statistics are then taken from the unlabelled images."""
        run, before, found, names = self.run, f"{BATCH_NORM}_before", list[Stage](), list[str]()
        own = {"dataset_dir": str(run.labeled), "validation_dir": str(run.labeled), "augmentation": STRONGEST}
        for i in range(self.settings.trainings):
            adapt = {"dataset_dir": str(run.unlabeled), "ckpt_path": str(run.weights(before, i))}
            adapt |= {"output": str(run.weights(BATCH_NORM, i))}
            work = partial(self.runner.bundle, run.network_dir(BATCH_NORM), "adapt.json", "infer", **adapt)
            names.append(nth(BATCH_NORM, i))
            found.append(Stage(names[-1], (nth(before, i),), (names[-1],), work))
        return [*self.trainings(before, (), "train.json", own), *found, *self.scores(BATCH_NORM, names)]

    def teacher(self) -> list[Stage]:
        """The best of the networks that cost no generator, chosen without labels."""
        free = ("lower_bound", *(name for name in FREE if name in self.setups))
        return [Stage("teacher", free, ("teacher",), partial(self.judge.recommend, free), result=("teacher",))]

    def plain_guesses(self) -> list[Stage]:
        """Plain training on the labels that the teacher guesses."""
        run, data = self.run, self.run.run_dir / "segmentation" / PSEUDO_LABELS / "guessed"
        guess = partial(self.guess_by_teacher, data)
        return [
            Stage("teacher_guesses", ("teacher",), ("guessed_plainly",), guess),
            *self.networks(PSEUDO_LABELS, ("guessed_plainly",), run.labeled, data, augmentation=STRONGEST),
        ]

    def guess_by_teacher(self, data: Path, threshold: float = 0.0) -> None:
        """Labels of the unlabelled images by the network that was chosen; of all pixels by default.

        No probability is asked for: what a network is rarely sure of would be left out, and the label that it is always
        sure of taught alone. Nuclei of a network that is hardly ever above 0.6 there: plain training 0.36 with this
        bound and 0.55 without, synthetic images of a generator that was taught with it 0.36, without 0.52.
        """
        teacher = self.run.results["teacher"]["setup"]
        self.label(self.run.network_dir(teacher), self.run.weights(teacher), data, threshold)

    def verdict(self) -> Stage:
        """Which of all networks to use, without a label of the unlabelled domain."""
        candidates = tuple(name for name in self.setups if name != "upper_bound")
        work = partial(self.judge.recommend, candidates)
        return Stage("verdict", candidates, (), work, result=("recommendation",), alone=True, optional=True)

    def synthetic_baseline(self, name: str) -> list[Stage]:
        """A data set in another way: a transfer of the style, or the Semantic-ControlNet alone."""
        data = self.run.synthetic_sets[name]
        if name == SEMANTIC_ONLY:
            nets = tuple(f"{self.run.setup('paper')}_{net}" for net in CONTROLNETS)
            work = partial(self.synthesise, "paper", data, weight=0.0)
            return [Stage(f"{name}_synthesis", nets, (data.name,), work), *self.retrained(name, data)]
        if name == TSYND:
            first = () if self.settings.modes else self.autoencoder()
            return [*first, self.moved_latents(data), *self.retrained(name, data, augmentation=STRONGEST)]
        spent, needs = self.spent(), when(name == CYCADA, "lower_bound")
        weights = self.run.bundle_dir("style_transfer") / "models" / name / "model.pt"
        own = {"dataset_dir": str(self.run.labeled), "ckpt_path": str(weights), "output_dir": str(data), "resume": True}
        own |= {"device_name": self.device_name}
        translate = self.bundle("style_transfer", "inference.json", "infer", **own)
        train = partial(self.train_style_transfer, name, spent)
        return [
            Stage(f"{name}_training", (*spent, *needs), (f"{name}_networks",), train, result=("budget", name)),
            Stage(f"{name}_translation", (f"{name}_networks",), (data.name,), translate),
            *self.retrained(name, data, augmentation=STRONGEST),
        ]

    @property
    def device_name(self) -> str:
        """What synthetic images say they come from."""
        return str(read_header(self.run.unlabeled)["device"])

    def moved_latents(self, data: Path) -> Stage:
        """TSynD: the labelled images, moved to where two networks disagree."""
        judges = ("lower_bound", "augmentation")
        own = {"dataset_dir": str(self.run.labeled), "output_dir": str(data), "device_name": self.device_name}
        own |= {"segmentation_paths": [str(self.run.weights(name)) for name in judges], "resume": True}
        work = self.bundle("latent_diffusion", "tsynd.json", "infer", **own)
        return Stage("tsynd_images", ("usable autoencoder", *judges), (data.name,), work)

    def spent(self) -> tuple[str, ...]:
        """The stages whose time each style transfer has; none where it is given in minutes."""
        if self.settings.transfer_minutes is not None:
            return ()
        teacher = when(self.settings.teaches, "augmentation")
        if self.settings.main == "joint":
            networks = ("augmentation", *(stage.name for stage in self.ensemble()))
            return (*networks, "autoencoder", "unicorn_joint")
        return (*teacher, "autoencoder", "diffusion", *(f"unicorn_{net}" for net in CONTROLNETS))

    def train_style_transfer(self, name: str, stages: tuple[str, ...]) -> dict[str, Any]:
        """A style transfer, for the minutes that are set, or all that UnIACorN trains before it can draw an image.

        Seconds alone would not do: stages side by side share the cores, one that runs alone has all of them.
        """
        minutes, threads = self.settings.transfer_minutes, torch.get_num_threads()
        budget = self.runner.core_seconds(stages) if minutes is None else 60.0 * minutes
        folder = str(self.run.bundle_dir("style_transfer") / "models" / name)
        length = {"max_seconds": round(budget / threads, 1), "max_epochs": 1_000_000}
        own = {"ckpt_dir": folder, "output_dir": folder}
        own |= {"segmentation_path": str(self.run.weights("lower_bound"))} if name == CYCADA else {}
        self.bundle("style_transfer", f"train_{name}.json", **self.domains, **length, **own)()
        return {"core_seconds": budget, "threads": threads, "stages": list(stages)}

    def judgement(self) -> list[Stage]:
        """Uncertainties of and distances between the sets of images, the search for copies, and the pictures."""
        judge, run = self.judge, self.run
        main, sets = run.synthetic(self.settings.main).name, tuple(p.name for p in run.synthetic_sets.values())
        prior = "joint_prior" if self.settings.main == "joint" else "prior"
        compared, copied = (*self.seen_through, *sets), (*self.seen_through, main, "unicorn+real")
        return [
            Stage("uncertainties", (prior, *sets), (), judge.uncertainties, alone=True, kept=False),
            Stage("distances", compared, (), judge.distances, ("fid",), alone=True, optional=True),
            Stage("looks", compared, (), judge.looks, ("looks",), alone=True, optional=True),
            Stage("memorization", copied, (), judge.copies, ("memorization",), alone=True, optional=True),
            Stage("pictures", ("uncertainties",), (), judge.pictures, alone=True),
            *when(self.settings.modes == ("joint",), self.warning("textures", "looks")),
        ]
