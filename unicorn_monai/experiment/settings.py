"""What an experiment does: every setting with its default, checked before anything starts."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from unicorn_monai.bundle.expressions import require_data, require_literal
from unicorn_monai.bundle.image_sizes import check_domains, multiples
from unicorn_monai.bundle.installation import CHAIN, controlling, drawing
from unicorn_monai.bundle.run_bundles import require_own_bundles
from unicorn_monai.bundle.sampling_steps import check_steps
from unicorn_monai.bundle.settings import check_device, check_overrides
from unicorn_monai.data.domain_pair import require_sound_pair
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import WEATHER, read_header
from unicorn_monai.data.remote import absolute, is_url
from unicorn_monai.evaluation.features import require_file
from unicorn_monai.fusion import MODES
from unicorn_monai.prior import SCALINGS
from unicorn_monai.report.trainings import (
    AUGMENTED,
    COMPARED,
    FREE,
    PSEUDO_LABELS,
    SELF_TRAINED_CHOSEN,
    SEMANTIC_ONLY,
    STYLE_TRANSFER,
    TSYND,
)
from unicorn_monai.system.files import read_json, require_finite
from unicorn_monai.system.records import obeys, one_of, read_record, rules_of, take, tell_unread

logger = logging.getLogger("unicorn_monai")

PLACES = ("labeled", "unlabeled", "output")  # absolute from the start, so that a run can be gone on with from anywhere
PRESETS = {"quick": "small", "full": None}  # and the preset of the bundles
WORDED = ("latent_diffusion", "semantic_controlnet", "joint")  # have a preset "words"; the others follow the first


def _once_each(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("a name comes twice")
    return names


_JSON = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)  # it has no tuples
_ONCE = AfterValidator(_once_each)
_SOME = "a list of some of {}, each at most once"
Folder = Annotated[str, Field(min_length=1, description="the path of a folder")]
Switch = Annotated[bool, Field(description="true or false (True or False on the command line)")]
Positive = Annotated[int, Field(ge=1, description="at least one, a whole number")]
Unlimited = Annotated[int | None, Field(ge=1, description="at least one, a whole number, or null")]
Number = int | float  # a whole one stays one
Share = Annotated[Number, Field(ge=0, le=1, description="a number, 0 to 1")]
Weight = Annotated[Number, Field(ge=0)]
Auto = Literal["auto"]
Scaling = Annotated[str, one_of(SCALINGS)]
ACQUISITIONS = ("ensemble", "entropy", "max_softmax", "margin", "tta")  # that need no network of another kind
MAPS = ("labeled", "guessed", "both")
Acquisition = Annotated[str, one_of(("auto", *ACQUISITIONS))]
Minutes = Annotated[Number | None, Field(gt=0, description="a number of minutes, above 0, or null")]
Table = Annotated[dict[str, Any] | None, Field(description="an object of settings, or null")]
Modes = Annotated[tuple[Annotated[str, one_of(MODES)], ...], _JSON, _ONCE]
Baselines = Annotated[tuple[Annotated[str, one_of(COMPARED)], ...], _JSON, _ONCE]
Guidance = Annotated[tuple[Number, ...], _JSON, Field(min_length=2, max_length=3)]
_GUIDANCE = "two or three numbers, [uncertainty, label map] or [uncertainty, label map, text], or null"
GUIDANCE = {"joint": (2.0, 1.5), "compositional": (3.0, 1.0), "paper": (1.0, 1.0)}  # the paper has none
GUESSED_JOINT = "guessed_joint"  # folder of a run: the unlabelled images with labels that the teacher guesses
SAMPLES = {"joint": 3}  # images of each label map, else 1
HEEDED = {  # settings -> the modes that heed them; elsewhere another value than the default is refused
    **dict.fromkeys(("guidance", "samples_per_label", "rounds", "augment", "count", "features"), MODES),
    **dict.fromkeys(("acquisition", "maps", "joint_confidence"), ("joint",)),
    **dict.fromkeys(("pseudo_labels", "style_augmentation"), ("compositional",)),
    **dict.fromkeys(("uncertainty_weight", "scaling"), ("joint", "compositional")),
    **dict.fromkeys(("paper_weight", "paper_scaling"), ("paper",)),
}


@dataclass
class Settings:
    """What an experiment does; every entry can stand in the JSON file given by ``--config``."""

    labeled: Folder  # data set of the labelled domain
    unlabeled: Folder  # data set of the unlabelled domain; labels in it serve the upper bound and the scores only
    output: Folder  # run folder
    preset: Annotated[str, one_of(PRESETS)] = "full"  # for 256 x 256; "quick": the bundles' small networks
    seed: Annotated[int, Field(ge=0, lt=2**32, description="a whole number, 0 to 4294967295")] = 0  # of everything
    # What to train and compare; the first is the main one, its results carry the plain names. None, []: the baselines
    # alone. Modes can be added to such a run, and to one of ``joint`` alone, when it is resumed.
    modes: Annotated[Modes, Field(description=_SOME.format(list(MODES)))] = ("joint",)
    # What else to compare with, see ``report/trainings.py``. "pseudo_labels": plain training on the guesses of the
    # network that is chosen without labels. "semantic_only": the Semantic-ControlNet of the mode "paper" alone.
    baselines: Annotated[Baselines, Field(description=_SOME.format(list(COMPARED)))] = ()
    confidence: Share = 0.9  # of the network that a pixel's guessed label needs to count in self-training
    # Minutes of one core that CycleGAN, CUT, CyCADA and ACCUT are each trained for; null: as long as all that UnIACorN
    # trains before it can draw an image.
    transfer_minutes: Minutes = None
    # Of the uncertainty in ``joint`` and ``compositional`` mode; "auto": what ``fusion_weight.choose_weight`` takes.
    uncertainty_weight: Annotated[Weight | Auto, Field(description="a number, 0 or more, or 'auto'")] = 1.0
    # w in ``paper`` mode, (1 - w, w), or "auto".
    paper_weight: Annotated[Share | Auto, Field(description="a number, 0 to 1, or 'auto'")] = 0.7
    # Of the uncertainty and of the label map in ``joint`` and ``compositional`` mode, (1, 1) is none; null: the mode's
    # own (``GUIDANCE``). With ``words`` there may be a third, of the text, for all modes.
    guidance: Annotated[Guidance | None, Field(description=_GUIDANCE)] = None
    count: Unlimited = None  # synthetic training images; by default ``samples_per_label`` for each label map
    # Synthetic images of each label map, of other uncertainties; null: the mode's own, 3 in ``joint`` mode, else 1.
    samples_per_label: Unlimited = None
    # 2 or more, with ``compositional`` as the first mode: the retrained network measures the uncertainties again, both
    # ControlNets go on.
    rounds: Positive = 1
    # In ``compositional`` mode, show the Semantic-ControlNet the unlabelled images too, with the labels that a network
    # guesses: that of "augmentation" (trained for it where it is no baseline), in further rounds the retrained one.
    # ``joint`` mode always learns from both devices.
    pseudo_labels: Switch = True
    # What asks "how uncertain?" in ``joint`` mode (``segmentation/acquisition.py``); "auto": what tells the two domains
    # apart best, of several networks' mutual information and what one network says.
    acquisition: Acquisition = "auto"
    # Whose label maps are drawn in ``joint`` mode: those of the labelled images, what the teacher sees in the others,
    # which has the shares and sizes of their device, or both in turn.
    maps: Annotated[str, one_of(MAPS)] = "both"
    joint_confidence: Share = 0.0  # in ``joint`` mode, of the teacher; pixels below it are of an unknown label
    scaling: Scaling = "zscore"  # of the hint in ``joint`` and ``compositional`` mode
    paper_scaling: Scaling = "paper"  # of the hint in ``paper`` mode; another than "paper" is ours
    trainings: Positive = 1  # of every segmentation network, with other seeds; scores are means over them
    # Feature network of distances and audit, {"path", "sha256", "preprocessing", "arguments"}; by default one is
    # trained here, for {"iterations": 1000}.
    features: Table = None
    augment: Switch = True  # change the label maps' geometry before synthesis; OCT only, since streets do not bend
    # In ``compositional`` mode, show the Semantic-ControlNet strongly augmented images too.
    style_augmentation: Switch = True
    # The generative networks are told each image's ``sub_domain`` in words ("foggy scene"), and synthetic images are
    # asked for in those of the unlabelled domain in turn.
    words: Switch = False
    device: Annotated[str | None, Field(description="cpu, cuda:0, ..., or null for the first GPU there is")] = None
    # Branches that do not depend on each other, run at the same time; None: 2 on a CPU, else 1. From 3 on the diffusion
    # model, else alone, is trained beside the segmentation networks.
    jobs: Unlimited = None
    tracking: Switch = True  # keep an MLflow record
    overrides: Table = None  # settings of single bundles, {bundle: {"train.json": {"max_epochs": 10}}}

    def __post_init__(self) -> None:
        for name in PLACES:
            if obeys(Folder, getattr(self, name)):  # else `validate` says so
                setattr(self, name, absolute(getattr(self, name)))
        for name in ("modes", "guidance", "baselines"):
            if isinstance(getattr(self, name), list):  # JSON has no tuples
                setattr(self, name, tuple(getattr(self, name)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """Build from a dictionary; an unknown entry, or one that MONAI would run as code, is refused."""
        if unknown := sorted(values.keys() - SETTINGS.keys()):
            raise ValueError(f"Unknown setting(s) {unknown}; expected some of {list(SETTINGS)}. Check the spelling.")
        require_data(values, "settings")
        require_finite(values, "settings")
        made = cls(**values)
        check_overrides({} if made.overrides is None else made.overrides, made.presets)
        return made

    def weight(self, mode: str) -> float | str:
        """Weight of the uncertainty in a mode, or "auto"."""
        return self.paper_weight if mode == "paper" else self.uncertainty_weight

    def weight_used(
        self, mode: str, chosen: Mapping[str, Any], setup: str = "unicorn", given: float | str | None = None
    ) -> float:
        """The weight as a number, of the setting or ``given`` in its place.

        For "auto" it is that of the set-up in ``chosen``, "weights" of the run's results; refused if there is none.
        """
        given = self.weight(mode) if given is None else given
        if given != "auto":
            return float(given)
        if setup not in chosen:
            raise ValueError(
                f"The run has not chosen a weight for '{setup}'; give a number, or run it with the baseline "
                "'augmentation'."
            )
        return float(chosen[setup]["weight"])

    @property
    def main(self) -> str:
        """The first mode, whose results carry the plain names; "" of a run without an image generator of ours."""
        return next(iter(self.modes), "")

    @property
    def teaches(self) -> bool:
        """Whether a segmentation network guesses labels for the Semantic-ControlNet."""
        return self.pseudo_labels and "compositional" in self.modes

    @property
    def with_augmentation(self) -> bool:
        """Whether a network is trained with strong augmentation: a baseline, a judge of weights, a teacher."""
        return "augmentation" in self.baselines or self.teaches or "joint" in self.modes

    @property
    def augmented(self) -> list[str]:
        """Which of ``AUGMENTED`` are trained, by themselves and on top of synthetic and real images."""
        chosen = {*self.baselines, *["augmentation"] * self.with_augmentation}
        return [name for name in AUGMENTED if name in chosen]

    def scaling_of(self, mode: str) -> str:
        """Scaling of the hint in a mode."""
        return self.paper_scaling if mode == "paper" else self.scaling

    def guidance_of(self, mode: str) -> tuple[float, ...]:
        """Guidance in a mode; the paper has none of the controls."""
        given = self.guidance or GUIDANCE[mode]
        return given if mode != "paper" else (*GUIDANCE[mode], *given[2:])

    def samples(self, mode: str) -> int:
        """Synthetic images of each label map in a mode."""
        return self.samples_per_label or SAMPLES.get(mode, 1)

    def named(self) -> dict[str, str]:
        """The sub-domains of the unlabelled domain's training images and the words for each; none without words."""
        if not self.words:
            return {}
        found = {str(item["sub_domain"]) for item in datalist(self.unlabeled, "training") if item.get("sub_domain")}
        return {name: WEATHER.get(name, name) for name in sorted(found)}

    def changes_geometry(self) -> bool:
        """Whether label maps are changed before synthesis: those of layers only, not of scenes."""
        return self.augment and read_header(self.labeled).get("modality", "OCT") == "OCT"

    def sampling(self, mode: str) -> dict[str, Any]:
        """What ``inference.json`` of the bundle that draws is told in a mode about how to sample."""
        maps, guidance = self.label_maps(mode), list(self.guidance_of(mode))
        told = {"dataset_dir": maps if len(maps) > 1 else maps[0], "mode": mode}
        return told | {"guidance": guidance, "augment": self.changes_geometry()}

    def label_maps(self, mode: str) -> list[str]:
        """The data sets whose label maps are drawn."""
        both = {"labeled": self.labeled, "guessed": str(Path(self.output) / GUESSED_JOINT)}
        wanted = self.maps if mode == "joint" else "labeled"
        return [folder for name, folder in both.items() if wanted in (name, "both")]

    def synthesis(self, mode: str, weight: float) -> dict[str, Any]:
        """All that it is told for the run's own data set, but for the place of the result."""
        return self.sampling(mode) | {
            "uncertainty_weight": weight,
            "count": self.count or self.samples(mode) * len(datalist(self.label_maps(mode), "training")),
            "device_name": str(read_header(self.unlabeled)["device"]),
        }

    def validate(self) -> None:
        """Refuse what would fail later, or would not be heeded."""
        for name, (right, words) in SETTINGS.items():
            if not right(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {words}.")
        if self.device is not None:
            check_device(self.device)
        for name in PLACES:
            require_literal(getattr(self, name), name)
        check_overrides(self.overrides or {}, self.presets)
        check_steps(PRESETS[self.preset], self.overrides, self.modes)
        transfers = sorted(set(STYLE_TRANSFER) & set(self.baselines))
        if transfers and not self.modes and self.transfer_minutes is None:
            raise ValueError(
                f"{transfers} are trained as long as UnIACorN, but modes is empty; expected transfer_minutes, e.g. 8, "
                "or a mode."
            )
        if SEMANTIC_ONLY in self.baselines and "paper" not in self.modes:
            raise ValueError(f"'{SEMANTIC_ONLY}' needs the mode 'paper'; modes are {list(self.modes)}. Add it.")
        if PSEUDO_LABELS in self.baselines and not set(self.augmented) | set(FREE) & set(self.baselines):
            raise ValueError(f"'{PSEUDO_LABELS}' guesses by the best of several networks; add one of {list(FREE)}.")
        if SELF_TRAINED_CHOSEN in self.baselines and not self.augmented:
            raise ValueError(f"'{SELF_TRAINED_CHOSEN}' chooses an augmentation; add some of {list(AUGMENTED)}.")
        if TSYND in self.baselines and not self.with_augmentation:
            raise ValueError(f"'{TSYND}' raises what two networks disagree about; add the baseline 'augmentation'.")
        if not self.words and self.guidance and tuple(self.guidance[2:]) not in ((), (1.0,)):
            raise ValueError(
                f"guidance is {self.guidance}; expected two numbers, [uncertainty, label map]. A third, of the text, "
                'can only be 1 without words: these networks have no prompts then. Set "words": true, or leave it out.'
            )
        for name in ("uncertainty_weight", "paper_weight"):
            if getattr(self, name) == "auto" and not self.with_augmentation:
                raise ValueError(
                    f"{name} is 'auto', which needs the baseline 'augmentation': its network judges, without labels of "
                    f"the unlabelled domain, whether label maps are obeyed. Add it to baselines {self.baselines}."
                )
        if self.rounds > 1 and self.main != "compositional":
            raise ValueError(f"rounds is {self.rounds}; further rounds need the first mode to be 'compositional'.")
        self._check_heeded()
        if self.features is not None:
            known = ["path", "sha256", "preprocessing", "arguments"] if "path" in self.features else ["iterations"]
            kind = Folder if "path" in self.features else Positive
            wrong = [key for key in known[:3] if not obeys(kind, self.features.get(key))]
            if wrong or set(self.features) - set(known):
                raise ValueError(
                    f"features is {self.features}; expected path, sha256, preprocessing and, where needed, arguments "
                    "of a feature network, or iterations (at least one) for one trained here."
                )
            if "path" in self.features:  # before hours of training, not after
                require_file(*(self.features[key] for key in known[:3]))
        require_sound_pair(self.labeled, self.unlabeled)
        require_literal(read_header(self.unlabeled).get("device"), f"{self.unlabeled}/dataset.json::device")
        require_data(read_header(self.labeled)["labels"], f"{self.labeled}/dataset.json::labels")
        self._check_words()
        check_domains(self.labeled, self.unlabeled, multiples(PRESETS[self.preset], self.overrides, bool(transfers)))

    def _check_heeded(self) -> None:
        """Refuse what no mode of the run would take notice of."""
        usual = {field.name: field.default for field in fields(self)}
        for name, modes in HEEDED.items():
            value = getattr(self, name)
            if self.modes and value != usual[name] and not set(modes) & set(self.modes):
                raise ValueError(
                    f"{name} is {value!r}, but modes are {list(self.modes)}; expected {' or '.join(modes)} among them, "
                    "which alone heeds it. Leave it out, or add the mode."
                )
        if self.guidance and self.modes == ("paper",) and self.guidance_of("paper") != self.guidance:
            raise ValueError(
                f"guidance is {list(self.guidance)}, but the mode 'paper', the only one, has none of the controls: "
                f"expected {list(GUIDANCE['paper'])}, and a third number with words."
            )
        self._check_overridden()
        own = ((self.overrides or {}).get("retinal_unet") or {}).get("uncertainty.json") or {}
        lost = sorted({"acquisition", "distribution", "ensemble", "scaling"} & set(own))
        if self.modes == ("joint",) and lost:
            raise ValueError(
                f"overrides of retinal_unet/uncertainty.json set {lost}, which the joint mode sets itself. Use the "
                "settings acquisition and scaling in their place."
            )
        if "joint" in self.modes and self.scaling == "paper":
            raise ValueError(
                "scaling is 'paper', which leaves u as it is, often within some hundredths, where the joint model adds "
                f"more noise to the hint. Expected one of {[name for name in SCALINGS if name != 'paper']}."
            )

    def _check_overridden(self) -> None:
        """Say which overrides are of bundles that no mode of the run trains."""
        trained = {name for mode in self.modes for name in controlling(mode)}
        idle = sorted(set(self.overrides or {}) & {*CHAIN, "joint"} - trained)
        if self.modes and idle:
            logger.warning(f"overrides of {idle} are without effect: modes are {list(self.modes)}.")

    def presets(self, bundle: str) -> list[str]:
        """Which presets of a bundle the run merges into its copy."""
        size = PRESETS.get(self.preset) if isinstance(self.preset, str) else None  # else `validate` says so
        return [*([size] if size else []), *(["words"] if self.words and bundle in WORDED else [])]

    def _check_words(self) -> None:
        named = self.named()
        if self.words and not named:
            raise ValueError(
                f"words is true, but no training image of the unlabelled data set '{self.unlabeled}' has a "
                "'sub_domain' in dataset.json, so there is nothing to name. Name them (fog, night, ...), or set words "
                "to false."
            )
        for name in named:  # from here it goes into configurations
            if not re.fullmatch(r"[^\W_][\w .-]*", name):
                raise ValueError(
                    f"The sub-domain {name!r} of '{self.unlabeled}' cannot be named in a prompt; expected letters, "
                    "digits, spaces, points, hyphens and underscores, a letter or digit first. Rename it."
                )


SETTINGS = rules_of(Settings)  # what each may be by itself; what must hold between them: `Settings.validate`


def settings_of(run: Path, files: str = "inference.json") -> tuple[Settings, dict[str, Any]]:
    """Settings of a run, and the weights it chose where they are "auto"; those are known once it is finished.

    The run may be somebody else's: settings, or configurations of its bundles that are going to be used (``files``, a
    pattern), that would run anything but what this package's own do are refused.
    """
    results = run / "results.json"
    chosen = read_json(results).get("weights", {}) if results.is_file() else {}
    settings = Settings.from_dict(settings_begun_with(run))
    places = measured_places(settings.main, settings.scaling_of(settings.main))
    require_own_bundles(run / "bundles", settings.presets, settings.overrides or {}, places, files)
    return settings, chosen


def settings_begun_with(run: Path) -> dict[str, Any]:
    """What a run was begun with; the folder is where it is now, and so is the data in it, as that of a demo."""
    settings = read_record(run)["settings"]
    require_data(settings, "settings")
    known = take(settings, SETTINGS, run / "experiment.json", PLACES)
    tell_unread(settings.keys() - known.keys(), run / "experiment.json", kept=False)
    before, now = Path(absolute(known["output"])), Path(run).resolve()
    for name in PLACES:
        place = absolute(known[name])
        inside = not is_url(place) and Path(place).is_relative_to(before)
        known[name] = str(now / Path(place).relative_to(before)) if inside else place
    return known


def prior_file(scaling: str) -> str:
    """Name of the file under the ``models`` of a run's ``retinal_unet`` that holds the prior of a scaling."""
    return f"prior_{scaling}.json"


def measured_files(mode: str, scaling: str = "") -> dict[str, str]:
    """Names of what was measured for a mode, beside that file, by their setting.

    The uncertainty of the joint mode is what separates the domains best, that of the others Eqs. (3) and (4).
    """
    if mode == "joint":
        return {"prior_path": "prior_joint.json", "uncertainties_path": "uncertainties_joint.json"}
    return {"prior_path": prior_file(scaling), "uncertainties_path": "uncertainties.json"}


def measured_places(mode: str, scaling: str = "") -> dict[str, str]:
    """The same, wherever the bundle lies, for the configurations of the others."""
    return {key: f"$@retinal_unet + '/models/{name}'" for key, name in measured_files(mode, scaling).items()}


def bundle_places(bundles: Path, settings: Settings, name: str | None = None) -> dict[str, str]:
    """Where a generative bundle of a run, in the folder of all, finds itself, the others and the first mode's prior.

    Its configuration tells where they were when the run began. By default it is the one that draws.
    """
    name = drawing(settings.main) if name is None else name
    found = {other: str(bundles / other) for other in ("latent_diffusion", "retinal_unet")}
    files = measured_files(settings.main, settings.scaling_of(settings.main))
    prior = bundles / "retinal_unet" / "models" / files["prior_path"]
    return found | {"bundle_root": str(bundles / name), "prior_path": str(prior)}
