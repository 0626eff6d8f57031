"""How set-ups, sets of images and numbers are called: in the report, in its checks, in a log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MISSING = "not computed"
SEMANTIC_ONLY = "Label map only"
NAMES = {
    "lower_bound": "Lower bound",
    "upper_bound": "Upper bound",
    "augmentation": "Lower bound, augmented",
    "random_contrast": "Random contrast",
    "synthseg": "Images from label maps (SynthSeg)",
    "svdna": "Noise of unlabelled images (SVDNA)",
    "fda": "Low frequencies of unlabelled images (FDA)",
    "histogram": "Grey values of unlabelled images",
    "self_training": "Self-training",
    "batch_norm": "Adapted batch normalisation",
    "pseudo_labels": "Training on guessed labels",
    "cyclegan": "CycleGAN",
    "cut": "CUT",
    "cycada": "CyCADA",
    "accut": "ACCUT",
    "tsynd": "TSynD",
    "semantic_only": SEMANTIC_ONLY,
    "unicorn": "UnIACorN",
    "control": "UnIACorN",
    "labeled": "Labelled device",
    "unlabeled": "Unlabelled device",
}


def name_of(key: str) -> str:
    """How a set-up, a set of images or a control experiment is called, from its key in ``results.json``."""
    base, *added = key.split("+")
    variant = base.removeprefix("unicorn_").removeprefix("control_")
    mode = f"{variant} mode" if not variant.startswith("round") else f"round {variant.removeprefix('round')}"
    known = NAMES.get(base) or (base if variant == base else f"UnIACorN, {mode}")
    return " + ".join([known, *added])


def drawn(unit: str | None) -> str:
    """What a 95 % interval is over, from its "ci_unit"; results of earlier runs name none."""
    return "image blocks and trainings" if unit == "image blocks" else unit or "subjects"


def fixed(value: float | None, digits: int) -> str:
    """A rounded number."""
    return MISSING if value is None else f"{value:.{digits}f}".replace("-", "\u2212")


def percent(share: float | None, sign: str = "-") -> str:
    """Whole percents; one digit more where rounding would claim none or all. ``sign``: "+" shows it always."""
    if share is None:
        return MISSING
    digits = 1 if round(100 * share) in (0, 100) and share not in (0, 1) else 0
    return f"{100 * share:{sign}.{digits}f}\u00a0%".replace("-", "\u2212")


def duration(seconds: float | None) -> str:
    """Seconds in words."""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.{0 if seconds >= 10 else 1}f} s"


def ordered(keys: Iterable[str], first: Sequence[str]) -> list[str]:
    """The keys, those of ``first`` first."""
    return sorted(keys, key=lambda key: first.index(key) if key in first else len(first))
