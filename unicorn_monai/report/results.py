"""What a run leaves in ``results.json``, as types: the report, the tables and the checks read attributes.

    RUN/results.json     Results         RUN/uncertainties.json       Uncertainties
    RUN/experiment.json  Record          RUN/pictures/captions.json   Captions

A file is read whole, or refused in a sentence that names the entry. ``null``, NaN, infinity and what is absent are
None: not computed. Texts come as a reader may see them; entries that nothing here knows are read by nobody.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from unicorn_monai.system.files import PathLike, parse_json
from unicorn_monai.system.terminal import LINES, printable

Kind = TypeVar("Kind")
LOWER, UPPER, MAIN = "lower_bound", "upper_bound", "unicorn+real"
MOST = 1e12  # of any number's size, so that nothing that is computed of it overflows
EXPECTED = {
    **dict.fromkeys(("dict_type", "model_type", "dict_attributes_type"), "an object"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("missing", "too_long"), "a list of two"),
    "float_type": "a finite number",
    "string_type": "a text",
}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _both(ends: Any) -> Any:
    return None if isinstance(ends, list | tuple) and None in map(_finite, ends) else ends


Finite = Annotated[float, Field(strict=True, ge=-MOST, le=MOST)]
Number = Annotated[Finite | None, BeforeValidator(_finite)]
Interval = Annotated[tuple[Finite, Finite] | None, BeforeValidator(_both)]
Pair = tuple[Number, Number]
Uncertainties = dict[str, list[Annotated[float, Field(strict=True, ge=0, le=1)]]]  # set of images -> u of each


class Part(BaseModel):
    """A table of a file; each entry may be missing."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, content: Any) -> Any:
        return {k: v for k, v in content.items() if v is not None} if isinstance(content, dict) else content


class Estimate(Part):
    """A difference of mean IoUs, a share of the gap or of n images: with its interval."""

    difference: Number = None
    share: Number = None
    ci95: Interval = None
    ci_unit: str | None = None
    count: Number = None
    n: Number = None


class Spread(Part):
    """Mean and standard deviation of what was measured in n images."""

    mean: Number = None
    std: Number = None
    n: Number = None


class Boundary(Part):
    """Errors of the surfaces between labels, in micrometres."""

    mean_um: list[Number] = []
    p95_um: list[Number] = []
    all_mean_um: Number = None
    all_p95_um: Number = None


class Overlap(Part):
    """Scores of a part of the test images."""

    iou: list[Number] = []  # of each label; empty where not computed
    mean_iou: Number = None
    ci95: Interval = None
    ci_unit: str | None = None  # what is drawn for it: "subjects", or "image blocks" where these are few


class Device(Overlap):
    """Scores of a set-up on the images of one device."""

    ece: Number = None
    nll: Number = None
    boundary: Boundary = Boundary()
    split: str = "test"
    not_computed: str | None = None


class Scores(Device):
    """Scores of a set-up on the unlabelled domain's test images, and on the labelled domain's."""

    labelled_device: Device = Device()
    validation: Overlap = Overlap()  # of the unlabelled domain: for the choice of the strongest opponent alone

    mean_iou_layers: Number = None
    mean_dice: Number = None
    per_image: Overlap = Overlap()
    broken_columns: Estimate = Estimate()
    trainings: Spread = Spread()
    sub_domains: dict[str, Overlap] = {}
    absent: list[Annotated[int, Field(strict=True, ge=0)]] = []
    n_test: Number = None
    n_subjects: Number = None


class Strongest(Part):
    """The opponent that every set-up is compared with."""

    setup: str | None = None
    validation_mean_iou: Number = None
    chosen_by: str | None = None
    not_computed: str | None = None


class Looks(Part):
    """One set of images: the share that looks like the unlabelled device's, and the mesh over them."""

    in_look: Number = None
    mesh: Number = None  # power of its strongest line, against the unlabelled images; 1 is none


class AllLooks(Part):
    """Those of all sets, and what the classifier of looks is worth on real images."""

    accuracy: Number = None
    real: Number = None  # share of the unlabelled device's own validation images in its look
    side: Number = None
    sets: dict[str, Looks] = {}
    not_computed: str | None = None


class Separation(Part):
    """How well each uncertainty tells the devices apart, and which is taken."""

    acquisition: str | None = None
    auc: dict[str, Number] = {}


class Point(Part):
    """Images that were asked for with one uncertainty."""

    requested: Number = None
    measured_mean: Number = None
    measured_std: Number = None


class Control(Part):
    """Do images have the uncertainty and the label map that they were asked for with?"""

    spearman: Number = None
    mean_absolute_error: Number = None
    label_fidelity_mean_iou: Number = None
    oracle_mean_iou: Number = None
    oracle: str | None = None
    curve: list[Point] = []


class Weight(Part):
    """The control at one weight of the uncertainty."""

    weight: Number = None
    requested_mean: Number = None
    measured_mean: Number = None
    spearman: Number = None
    distance: Number = None
    label_consistency: Number = None
    oracle_mean_iou: Number = None
    picture: str | None = None


class Weights(Part):
    """The control over several weights, and which one would be taken."""

    table: list[Weight] = []
    weight: Number = None
    reason: str | None = None
    oracle: str | None = None


class Budget(Part):
    """For how long a style transfer was trained."""

    core_seconds: Number = None
    threads: Number = None
    stages: list[str] = []


class Kept(Part):
    """What the autoencoder keeps of a domain's images: each of the originals and of the reconstructions."""

    high_pass_std: Pair = (None, None)
    entropy: Pair = (None, None)
    grid: Pair = (None, None)
    error: Pair = (None, None)  # of the reconstructions, and the largest allowed


class Sampler(Part):
    """A sampler's errors where the right answer is known."""

    name: str | None = None
    steps: Number = None
    mean: Number = None
    spread: Number = None
    distance: Number = None


class Diffusion(Part):
    """Spread of sampled latents over that of the training's."""

    latent_std: Number = None
    sampler: Sampler = Sampler()


class Drawn(Part):
    """The first images of a joint model: the share in the unlabelled device's look, and their sampler."""

    in_look: Number = None
    accuracy: Number = None
    not_computed: str | None = None
    sampler: Sampler = Sampler()


class Distances(Part):
    """FID and KID between sets of images; the sets' names stand beside the other entries."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, Number]]  # type: ignore[misc]

    kid: dict[str, dict[str, Number]] = {}
    kid_std: dict[str, dict[str, Number]] = {}
    n: Number = None
    features: str | None = None
    not_computed: str | None = None

    @property
    def fid(self) -> dict[str, dict[str, Number]]:
        """Set of images -> set of images -> distance."""
        return self.__pydantic_extra__ or {}


Levels = dict[str, dict[str, Estimate]]  # "residual" (speckle), "embedding" (features) -> "99" -> what is nearer


class Audit(Part):
    """The search for copies of training images."""

    not_computed: str | None = None
    sets: dict[str, Levels] = {}
    planted: dict[str, Levels] = {}
    flagged: list[str] = []
    thresholds: dict[str, dict[str, Number]] = {}
    held_out_thresholds: dict[str, dict[str, Number | dict[str, Estimate]]] = {}
    expected_by_chance: Number = None
    n_training: Number = None


class Recommendation(Part):
    """Which network to use on images without a label, and what mean IoU to expect of it."""

    setup: str | None = None
    criterion: str | None = None
    estimate: Number = None
    low: Number = None
    high: Number = None
    images: Number = None
    candidates: list[str] = []
    scores: dict[str, dict[str, Number]] = {}  # criterion -> set-up -> value, larger is better
    estimates: dict[str, Number] = {}  # set-up -> expected mean IoU
    estimators: dict[str, Number] = {}  # estimator -> what it expects of the one chosen
    not_computed: str | None = None  # why there is none


class Results(Part):
    """All of ``results.json``."""

    labels: list[str] = []
    modality: str = "OCT"
    segmentation: dict[str, Scores] = {}
    uncertainty: dict[str, Spread] = {}
    separation: Separation = Separation()
    looks: AllLooks = AllLooks()
    drawn: dict[str, Drawn] = {}
    weights: dict[str, Weights] = {}
    budget: dict[str, Budget | None] = {}
    seconds: dict[str, Number] = {}
    wall_seconds: Number = None
    words: dict[str, str] = {}
    reconstructions: dict[str, Kept] = {}
    forced: str | None = None  # what was not heeded
    autoencoder: dict[str, Kept] = {}
    diffusion: Diffusion = Diffusion()
    control: dict[str, Control] = {}  # by name: "control", "control_paper", "control_round2", ...
    fid: Distances = Distances()
    memorization: Audit = Audit()
    strongest: Strongest = Strongest()
    differences: dict[str, dict[str, Estimate]] = {}
    gap: dict[str, Estimate] = {}
    not_computed: dict[str, str] = {}
    recommendation: Recommendation = Recommendation()
    label_maps: dict[str, Pair] = {}
    simulated: str | None = None
    environment: dict[str, Any] = {}
    commands: dict[str, Any] = {}
    sha256: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _controls(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        return content | {"control": {k: v for k, v in content.items() if k.split("_")[0] == "control" and v}}

    @model_validator(mode="after")
    def _lengths(self) -> Results:
        for name, scores in self.segmentation.items() if self.labels else ():
            if scores.iou and len(scores.iou) != len(self.labels):
                raise ValueError(f"'{name}' has {len(scores.iou)} IoUs; expected {len(self.labels)}, one per label")
        return self

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Results:
        """The results of a run that is going on, as far as there are some."""
        return typed(cls, content, "results.json")

    @property
    def scores(self) -> dict[str, float]:
        """Mean IoU of every set-up that has one."""
        return {key: part.mean_iou for key, part in self.segmentation.items() if part.mean_iou is not None}

    @property
    def absent_labels(self) -> list[str]:
        """Labels without a pixel in the test images, by name."""
        first = next(iter(self.segmentation.values()), Scores())
        return [self.labels[i] if i < len(self.labels) else str(i) for i in first.absent]

    @property
    def ci_unit(self) -> str | None:
        """What the intervals of the scores on the unlabelled domain are over."""
        return next((part.ci_unit for part in self.segmentation.values() if part.ci_unit), None)

    def gap_closed(self, setup: str = MAIN) -> Estimate | None:
        """Share of the gap between the bounds that a set-up closed (0 at the lower, 1 at the upper), with its interval.

        None if a score is missing or the upper bound is not above the lower. A run finished before results held "gap"
        gives the share alone.
        """
        lower, upper, score = (self.scores.get(key) for key in (LOWER, UPPER, setup))
        if lower is None or upper is None or score is None or upper <= lower:
            return None
        known = self.gap.get(setup, Estimate())
        return Estimate(share=(score - lower) / (upper - lower), ci95=known.ci95) if known.share is None else known


class Start(Part):
    """How a run was started or gone on with."""

    command: str | None = None
    git_revision: str | None = None
    versions: dict[str, Any] = {}


class Chosen(Part):
    """Settings of a run that the report speaks of."""

    seed: Any = None
    modes: list[str] = []
    trainings: Number = None


class Record(Start):
    """All of ``experiment.json``."""

    settings: dict[str, Any] = {}
    chosen: Chosen = Field(Chosen(), alias="settings")
    resumed: list[Start] = []


class Caption(Part):
    """A picture of the run."""

    file: str
    title: str | None = None
    caption: str = ""


Captions = list[Caption]


def within(run: Path, name: Path | str) -> Path:
    """A file of a run, which a report may take in; a link that leads out of the run's folder is refused."""
    file = run / name
    if not file.resolve().is_relative_to(run.resolve()):
        raise ValueError(
            f"'{file}' lies at '{file.resolve()}', outside the run; a report takes in only what lies in the run's own "
            "folder. Put the file itself there, or remove the link."
        )
    return file


def typed(kind: type[Kind], content: Any, path: PathLike) -> Kind:
    """What was read from a file, checked; an entry of another type or out of its range is refused by name."""
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place, value = ".".join(map(str, first["loc"])).removeprefix("control."), repr(first["input"])
        expected = EXPECTED.get(first["type"], first["msg"].removeprefix("Input should be "))
        what = f"is {value if len(value) <= 60 else f'{value[:57]}...'}; expected {expected}"
        what = str(first["ctx"]["error"]) if first["type"] == "value_error" else what
        entry = f"'{place}' " if place else ""
        raise ValueError(
            f"'{path}': {entry}{what}. Is it the folder of a finished run? Let the experiment write it again; --resume "
            "does."
        ) from None


def read(path: Path, kind: type[Kind]) -> Kind:
    """A JSON file as a type, its texts as a reader may see them; refused if it holds no JSON, or anything else."""
    return typed(kind, _seen(parse_json(path)), path)


def _seen(value: Any) -> Any:
    """A JSON document, every text in it printable: the names of entries too."""
    if isinstance(value, dict):
        return {printable(key, LINES): _seen(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_seen(entry) for entry in value]
    return printable(value, LINES) if isinstance(value, str) else value
