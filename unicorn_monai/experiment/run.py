"""One run folder: where everything of a run lies, the bundles in it with the run's own settings, and its results.

    RUN/bundles/                every bundle, for the first mode
    RUN/bundles_<variant>/      those that another mode, a further round or batch normalisation has of its own
    RUN/segmentation/<set-up>/  retrained segmentation networks
    RUN/guessed*/               the unlabelled images with the labels that a network guesses
    RUN/synthetic*/             data sets

A variant is a mode ("joint", "compositional", "paper") or a further round of the first mode ("round2", "round3", ...):
a round has a segmentation network of its own, that of the round before, and so has its uncertainties.
"""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from unicorn_monai.bundle import definition, install
from unicorn_monai.bundle.installation import CHAIN, controlling, drawing
from unicorn_monai.bundle.metadata import described
from unicorn_monai.bundle.sampling_steps import is_coarse
from unicorn_monai.data import manifest
from unicorn_monai.data.layout import HEADER, SPLITS, label_map_counts, label_names, local_folder, read_header
from unicorn_monai.data.remote import absolute, is_url
from unicorn_monai.experiment.settings import (
    GUESSED_JOINT,
    HEEDED,
    PLACES,
    PRESETS,
    Settings,
    measured_files,
    measured_places,
    settings_begun_with,
)
from unicorn_monai.experiment.tracking import address
from unicorn_monai.experiment.versions import provenance
from unicorn_monai.report.recommended import bundle_of
from unicorn_monai.report.trainings import BATCH_NORM, STYLE_TRANSFER, SYNTHETIC, TSYND
from unicorn_monai.system.files import write_json, write_text
from unicorn_monai.system.intake import read_text
from unicorn_monai.system.records import read_record
from unicorn_monai.system.weights import read_metadata, sha256

logger = logging.getLogger("unicorn_monai")

OWN = (*CHAIN, "joint")  # of a variant
FREE = ("jobs", "device", "labeled", "unlabeled")  # may differ in a resumption; the data are compared by content


def nth(name: str, training: int) -> str:
    """A name for one of several trainings; the first has the plain one."""
    return f"{name}_training{training + 1}" if training else name


class Run:
    """Paths and results of a run; a forced one goes on with an autoencoder that does not keep the images."""

    def __init__(self, settings: Settings, forced: bool = False) -> None:
        self.settings, self.run_dir, self.forced = settings, Path(settings.output).resolve(), forced
        self._begun = self.run_dir / "experiment.json"
        self.device = torch.device(settings.device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
        if settings.tracking:
            address(self.run_dir)
        jobs = settings.jobs or (2 if self.device.type == "cpu" else 1)
        self.jobs = min(jobs, os.cpu_count() or 1)  # stages at a time
        self.labeled, self.unlabeled = (Path(local_folder(d)).resolve() for d in (settings.labeled, settings.unlabeled))
        self.label_maps = label_map_counts(read_header(self.unlabeled))
        self.has_truth = self.label_maps["test"][0] > 0  # scores can be computed
        complete = all(0 < n == total for n, total in (self.label_maps[s] for s in SPLITS[:2]))
        self.has_upper = self.has_truth and complete  # and a network trained on true labels
        self.oracle = "upper_bound" if self.has_upper else "lower_bound"  # says what synthetic images show
        self.domains = {"labeled": self.labeled, "unlabeled": self.unlabeled}
        self.augmented = self.run_dir / "labeled_augmented"  # the labelled images with strong intensity augmentation
        self.features_path = self.run_dir / "features" / "model.pt"  # of the feature network that was trained here
        self.rounds = [f"round{r}" for r in range(2, settings.rounds + 1)]  # the further ones, of the first mode
        self.variants = [*settings.modes, *self.rounds]
        self._data: dict[str, Any] | None = None  # what it is, once it was compared with what it was
        self.results: dict[str, Any] = {
            "labels": label_names(self.labeled),
            "modality": read_header(self.labeled).get("modality", "OCT"),
            **{table: {} for table in ("segmentation", "uncertainty", "weights", "budget", "seconds")},
            "words": settings.named(),
        }

    def goes_on(self, resume: bool) -> bool:
        """Whether a run is here; compares its settings with these and changes nothing.

        Raises:
            ValueError: one is, and was not to be resumed, has other settings or was begun with other data; more
                baselines are no others, nor are jobs, device and another place of the same data, nor more modes where
                there were none, or ``joint`` alone.
        """
        if not self._begun.exists():
            return False
        if not resume:
            raise ValueError(
                f"'{self.run_dir}' already holds a run. Use --resume to go on with it, or another --output."
            )
        now = json.loads(json.dumps(asdict(self.settings)))
        before = now | {"words": False} | settings_begun_with(self.run_dir)  # a run may be older than a setting
        free = [*FREE, *(name for name, modes in HEEDED.items() if not set(modes) & set(before["modes"]))]
        changed = [key for key, value in now.items() if before[key] != value and key not in free]
        # A finished run can be compared with more: what those that build on a frozen U-Net need is made once for all.
        adds = not before["modes"] or (before["modes"] == ["joint"] == now["modes"][:1])
        more = "baselines", *["modes"] * adds
        changed = [key for key in changed if key not in more or not set(before[key]) <= set(now[key])]
        if changed:
            what = f"'{self.run_dir}' was started with other settings: {', '.join(changed)}"
            raise ValueError(f"{what}. Resume with the same, or use another --output.")
        if self._data is None:
            self._data = manifest.require_same(self.run_dir, self.domains)
        return True

    def claim(self) -> None:
        """Write down what the run does; within ``Runner.guard``, for it changes what a run here goes by.

        Command, versions and revision of the start are kept, those of every resumption added under "resumed".
        """
        now, settings = provenance(), asdict(self.settings)
        first = read_record(self.run_dir) if self._begun.exists() else {}
        before = {key: value for key, value in first.get("settings", {}).items() if key in FREE}
        if other := {key: [value, settings[key]] for key, value in before.items() if value != settings[key]}:
            now["changed"] = other
        start = first | {"resumed": [*first.get("resumed", []), now]} if first else now
        if first:
            for place in PLACES:
                self._bring_along(absolute(first["settings"][place]), settings[place])
        (self.run_dir / "stages").mkdir(parents=True, exist_ok=True)
        manifest.keep(self.run_dir, self._data or {k: manifest.survey(v) for k, v in self.domains.items()})
        write_json(self._begun, start | {"settings": settings, **({"forced": True} if self.forced else {})})

    def _bring_along(self, before: str, now: str) -> None:
        """Where the run or its data were moved, let what it has measured name the files by their new place."""
        if is_url(now):  # what was measured names the files of the local copy
            return
        old, new = (json.dumps(place)[1:-1] for place in (before, str(Path(now).resolve())))
        if old == new:
            return
        end = r"(?=[/\"'\\]| --)"  # a file in it, or the folder itself in a list or command
        whole = re.compile(rf"(?<![\w/.-]){re.escape(old)}{end}")  # not the end of another path, such as the new one
        for pattern in ("stages/*.json", "evaluation/**/*.json", "bundles*/*/models/*.json"):
            for path in self.run_dir.glob(pattern):
                text, age = read_text(path), path.stat()
                if whole.search(text):
                    write_text(path, whole.sub(lambda _: new, text))
                    os.utime(path, ns=(age.st_atime_ns, age.st_mtime_ns))  # it tells the order of the stages

    def mode(self, variant: str) -> str:
        """The mode of a variant."""
        return variant if variant in self.settings.modes else self.settings.main

    def setup(self, variant: str) -> str:
        """What a variant's set-ups are called: "unicorn", "unicorn_paper", "unicorn_round2"."""
        return "unicorn" if variant == self.settings.main else f"unicorn_{variant}"

    def drawing_dir(self, variant: str) -> Path:
        """The bundle of a variant that draws."""
        return self.bundle_dir(drawing(self.mode(variant)), variant)

    def weight(self, variant: str) -> float:
        """Weight of the uncertainty: the setting, or what was chosen."""
        return self.settings.weight_used(self.mode(variant), self.results["weights"], self.setup(variant))

    @property
    def not_computed(self) -> dict[str, str]:
        """What the labels of the unlabelled domain do not suffice for, and why."""
        if not self.has_truth:
            total = self.label_maps["test"][1]
            why = "scores need label maps of test images of the unlabelled domain"
            return {"segmentation": f"{why}; here none of {total} has one"}
        if self.has_upper:
            return {}
        here = " and ".join(f"{n} of {total} {split}" for split, (n, total) in list(self.label_maps.items())[:2])
        why = "the upper bound is trained on label maps of all training and validation images of the unlabelled domain"
        return {"upper_bound": f"{why}; here {here} images have one"}

    def tell_label_maps(self) -> None:
        """Say before anything is trained which scores the label maps of the unlabelled domain allow."""
        n, total = self.label_maps["test"]
        if 0 < n < total:
            logger.warning(
                f"{total - n} of {total} test images of the unlabelled domain have no label map; scores are of the "
                f"other {n}. `unicorn-monai check {self.unlabeled}` names the first."
            )
        for why in self.not_computed.values():
            logger.info(f"not computed: {why}")

    def bundle_dir(self, name: str, variant: str = "") -> Path:
        """Where a bundle of this run lies; without a variant, that of the first mode."""
        own = name in OWN or (name == "retinal_unet" and variant in self.rounds)
        first = not variant or variant == self.settings.main or not own
        return self.run_dir / ("bundles" if first else f"bundles_{variant}") / name

    def prior(self, variant: str) -> str:
        """File of the prior."""
        return str(self.measured(variant, "prior_path"))

    def uncertainties(self, variant: str) -> Path:
        """File of the uncertainties of the images that the prior was fitted to."""
        return self.measured(variant, "uncertainties_path")

    def measured(self, variant: str, key: str) -> Path:
        """A file of what was measured for a variant, by its setting."""
        mode = self.mode(variant)
        names = measured_files(mode, self.settings.scaling_of(mode))
        return self.bundle_dir("retinal_unet", variant) / "models" / names[key]

    def synthetic(self, variant: str) -> Path:
        """The synthetic data set of a variant; the main one has the plain name."""
        return self.run_dir / self.setup(variant).replace("unicorn", "synthetic")

    @property
    def synthetic_sets(self) -> dict[str, Path]:
        """Every synthetic data set by the name of its set-up."""
        sets = {self.setup(variant): self.synthetic(variant) for variant in self.variants}
        return sets | {n: self.run_dir / f"synthetic_{n}" for n in SYNTHETIC if n in self.settings.baselines}

    def guessed(self, variant: str) -> Path:
        """The unlabelled images with the labels that a network guesses; every further round has its own."""
        if self.mode(variant) == "joint":
            return self.run_dir / GUESSED_JOINT
        return self.run_dir / (f"guessed_{variant}" if variant in self.rounds else "guessed")

    def weights(self, setup: str, training: int = 0) -> Path:
        """Weights of the segmentation network of a set-up, from its first or a further training."""
        if setup == "lower_bound" and not training:
            return self.bundle_dir("retinal_unet") / "models" / "model.pt"
        return self.run_dir / "segmentation" / nth(setup, training) / "model.pt"

    def network_dir(self, setup: str) -> Path:
        """The bundle that defines the segmentation network of a set-up."""
        return bundle_of(self.run_dir, setup)

    def record(self, setup: str, training: int = 0, device: str = "") -> Path:
        """What was counted in the test images for a set-up, of the unlabelled domain or of ``device``."""
        return self.run_dir / "evaluation" / device / f"{nth(setup, training)}.json"

    def hashes(self) -> dict[str, str]:
        """Sha256 of the lists of both data sets, and of all weights that were trained, by their place in the run."""
        found = {"labeled/dataset.json": self.labeled, "unlabeled/dataset.json": self.unlabeled}
        hashes = {name: sha256(folder / HEADER) for name, folder in found.items()}
        for folder in ("bundles*/*/models", "bundles*/*/models/*", "segmentation/**", "features"):
            for twin in sorted(self.run_dir.glob(f"{folder}/*.safetensors")):
                if not twin.parent.name.startswith(("latents", "prompts-")):  # what is kept, not trained
                    path = twin.with_suffix(".pt")
                    hashes[str(path.relative_to(self.run_dir))] = str(read_metadata(path)["sha256"])
        return hashes

    @property
    def num_channels(self) -> int:
        """Channels of the images."""
        return int(definition(self.bundle_dir("retinal_unet"), "num_channels"))

    def install_bundles(self) -> None:
        """Put the bundles into the run folder, with the preset's settings and those of this data."""
        transfer = set(STYLE_TRANSFER) & set(self.settings.baselines)
        shared = ["retinal_unet", *["style_transfer"] * bool(transfer)]
        shared += ["latent_diffusion"] * bool(self.settings.modes or TSYND in self.settings.baselines)
        for name in shared:
            self._install(name, "")
        if BATCH_NORM in self.settings.baselines:
            own = self._overrides("retinal_unet", "")
            own["inference.json"] |= {"network_def::norm": "batch"}
            folder = self.network_dir(BATCH_NORM).parent
            install("retinal_unet", folder, self.settings.presets("retinal_unet"), own)
        for variant in self.variants:
            more = ["retinal_unet"] * (variant in self.rounds)
            for name in (*more, *controlling(self.mode(variant))):
                self._install(name, variant)

    def _install(self, name: str, variant: str) -> None:
        presets = self.settings.presets(name)
        install(name, self.bundle_dir(name, variant).parent, presets, self._overrides(name, variant))

    def _overrides(self, name: str, variant: str) -> dict[str, dict]:
        own = {file: dict(values) for file, values in (self.settings.overrides or {}).get(name, {}).items()}
        preset, labels = PRESETS[self.settings.preset], label_names(self.labeled)
        channels = 3 if read_header(self.labeled).get("modality") == "RGB" else 1
        data = {"metadata.json": described(name, preset, self.settings.overrides or {}, labels, channels)}
        if name in OWN:
            places = {other: self.bundle_dir(other, variant) for other in ("latent_diffusion", "retinal_unet")}
            here = self.bundle_dir(name, variant).parent  # those beside it are found by themselves, moved or not
            elsewhere = {other: str(place) for other, place in places.items() if place.parent != here}
            for file in ("inference.json",) if name == "synthesis" else ("inference.json", "train.json"):
                mode = self.mode(variant)
                places = measured_places(mode, self.settings.scaling_of(mode))
                used = places if (name, file) == ("joint", "train.json") else {"prior_path": places["prior_path"]}
                data[file] = elsewhere | used
        else:
            data["inference.json"] = {"num_labels": len(labels)} if name == "retinal_unet" else {}
            data["inference.json"] |= {"num_channels": channels}
        if name == "latent_diffusion":
            data["inference.json"] |= (
                {"coarse_sampling": True} if is_coarse(preset, self.settings.overrides, self.settings.modes) else {}
            )
            named = self.settings.named()
            data["inference.json"] |= {"subdomains": list(named), "template::words": named} if named else {}
        return {file: data.get(file, {}) | own.get(file, {}) for file in data.keys() | own.keys()}
