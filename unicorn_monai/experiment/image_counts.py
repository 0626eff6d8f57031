"""How many images each stage needs, and whether its batches can be trained on: checked before the first stage.

    every domain       training and validation images: every training has a validation; without an image generator no
                       validation images of the unlabelled domain
    uncertainty        2 images of each domain, for a mean and a standard deviation
    autoencoder        a batch, where an epoch is one pass (``iterations_per_epoch`` null); it leaves out what is over
    segmentation       more than one value per channel at its smallest feature map

What is not computed where there are too few images, and hinders nothing, is told.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from monai.bundle import ConfigParser

from unicorn_monai.bundle.installation import configured
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import SPLITS, read_header
from unicorn_monai.evaluation.copies import LEAST
from unicorn_monai.experiment.settings import PRESETS, Settings
from unicorn_monai.report.trainings import STYLE_TRANSFER, TSYND
from unicorn_monai.training.batches import no_batch, require_trainable

NAMES = {"labeled": "labelled", "unlabeled": "unlabelled"}
MORE = "Give the split more subjects: `unicorn-monai prepare ... --split`, or add scans."

logger = logging.getLogger("unicorn_monai")


def require_images(settings: Settings) -> None:
    """Refuse an experiment on too few images, with a line for each stage: what it needs, what there is, what to do."""
    headers = {name: read_header(getattr(settings, name)) for name in NAMES}
    counts = {name: {split: len(header.get(split, [])) for split in SPLITS} for name, header in headers.items()}
    if lacking := list(_lacking(settings, counts)):
        raise ValueError("There are too few images:\n" + "\n".join(lacking))
    for text in _not_computed(counts) if settings.modes else ():
        logger.info(text)
    with torch.random.fork_rng(devices=[]):
        config = ConfigParser(_config(settings, "retinal_unet", "inference.json"))
        network = config.get_parsed_content("network_def")
    require_trainable(network, datalist(settings.labeled, "training"), _config(settings, "retinal_unet")["batch_size"])


def _config(settings: Settings, bundle: str, file: str = "train.json") -> dict[str, Any]:
    """A configuration as the run will have it."""
    return configured(bundle, PRESETS[settings.preset], (settings.overrides or {}).get(bundle), file)


def _lacking(settings: Settings, counts: dict[str, dict[str, int]]) -> Iterator[str]:
    trained, drawn = {"labeled": "segmentation network", "unlabeled": "what networks are adapted to"}, tuple[str, ...]()
    if settings.modes or {*STYLE_TRANSFER, TSYND} & {*settings.baselines}:
        trained = {"labeled": "segmentation network, autoencoder", "unlabeled": "image generators"}
        drawn = ("validation",)
    for name, count in counts.items():
        for split in ("training", *(("validation",) if name == "labeled" else drawn)):
            if not count[split]:
                yield f"{trained[name]}: needs {split} images of the {NAMES[name]} domain, there is none. {MORE}"
    if settings.modes:
        yield from _lacking_for_uncertainty(settings, counts)
    if settings.modes or TSYND in settings.baselines:
        autoencoder = _config(settings, "latent_diffusion", "train_autoencoder.json")
        found = sum(count["training"] for count in counts.values())
        if autoencoder["iterations_per_epoch"] is None and found < autoencoder["batch_size"]:
            yield no_batch(found, autoencoder["batch_size"])


def _lacking_for_uncertainty(settings: Settings, counts: dict[str, dict[str, int]]) -> Iterator[str]:
    splits = _config(settings, "retinal_unet", "uncertainty.json")["split"]
    for name, count in counts.items():
        found = sum(count[split] for split in ([splits] if isinstance(splits, str) else splits))
        if 0 < found < 2:
            need = f"uncertainty: needs 2 images of the {NAMES[name]} domain in {splits}, there is {found}"
            yield f"{need}: a mean and a standard deviation are measured. {MORE}"


def _not_computed(counts: dict[str, dict[str, int]]) -> Iterator[str]:
    """What too few images leave out of the results."""
    if few := [NAMES[name] for name, count in counts.items() if count["training"] < 2]:
        yield f"distances: will not be computed; they need 2 training images, of the {' and '.join(few)} there is one."
    held_out = sum(count["validation"] + count["test"] for count in counts.values())
    if held_out < LEAST:
        need = f"it needs {LEAST} validation and test images, there are {held_out}"
        yield f"search for copies: will not be computed; {need}."
