"""How many images each stage needs, and whether its batches can be trained on: checked before the first stage.

    every domain       training and validation images: every training has a validation
    uncertainty        2 images of each domain, for a mean and a standard deviation
    autoencoder        a batch, where an epoch is one pass (``iterations_per_epoch`` null); it leaves out what is over
    segmentation       more than one value per channel at its smallest feature map

What is not computed where there are too few images, and hinders nothing, is told.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from unicorn_monai.bundle import configured, from_bundle
from unicorn_monai.dataset_files import SPLITS, PathLike, read_header, read_shape
from unicorn_monai.datasets import datalist
from unicorn_monai.evaluation.memorization import LEAST
from unicorn_monai.settings import PRESETS, Settings
from unicorn_monai.training import no_batch

NAMES = {"labeled": "labelled", "unlabeled": "unlabelled"}
MORE = "Give the split more subjects: `unicorn-monai prepare ... --split`, or add scans."

LARGEST = 256 * 256  # pixels; above, nothing is halved down to one

logger = logging.getLogger("unicorn_monai")


def require_images(settings: Settings) -> None:
    """Refuse an experiment on too few images.

    Raises:
        ValueError: one line per stage, with what it needs, what there is and what to do.
    """
    counts = {name: _counts(getattr(settings, name)) for name in NAMES}
    if lacking := list(_lacking(settings, counts)):
        raise ValueError("There are too few images:\n" + "\n".join(lacking))
    for text in _not_computed(counts):
        logger.info(text)
    config = _config(settings, "retinal_unet", "inference.json")
    with torch.random.fork_rng(devices=[]):
        network = ConfigParser(config).get_parsed_content("network_def")
    require_trainable(network, datalist(settings.labeled, "training"), _config(settings, "retinal_unet")["batch_size"])


def check_batches(
    bundle_root: PathLike, items: Sequence[dict[str, Any]], batch_size: int, num_labels: int | None = None
) -> None:
    """:func:`require_trainable` for a configuration, which it leaves as it is.

    The network is built anew: that of the training gets its weights once the training is seeded.

    Args:
        bundle_root: bundle that defines the network.
        items: to be trained on.
        batch_size: of the training.
        num_labels: of the training's network, where its bundle knows it from weights that are not there yet.
    """
    settings = {} if num_labels is None else {"num_labels": num_labels}
    with torch.random.fork_rng(devices=[]):
        network = from_bundle(bundle_root, settings=settings)
    require_trainable(network, items, batch_size)


def _config(settings: Settings, bundle: str, file: str = "train.json") -> dict[str, Any]:
    """A configuration as the run will have it."""
    return configured(bundle, PRESETS[settings.preset], (settings.overrides or {}).get(bundle), file)


def _counts(folder: PathLike) -> dict[str, int]:
    header = read_header(folder)
    return {split: len(header.get(split, [])) for split in SPLITS}


def _lacking(settings: Settings, counts: dict[str, dict[str, int]]) -> Iterator[str]:
    for name, count in counts.items():
        stages = "segmentation network, autoencoder" if name == "labeled" else "autoencoder, diffusion model"
        for split in ("training", "validation"):
            if not count[split]:
                yield f"{stages}: needs {split} images of the {NAMES[name]} domain, there is none. {MORE}"
    splits = _config(settings, "retinal_unet", "uncertainty.json")["split"]
    for name, count in counts.items():
        found = sum(count[split] for split in ([splits] if isinstance(splits, str) else splits))
        if 0 < found < 2:
            yield (
                f"uncertainty: needs 2 images of the {NAMES[name]} domain in {splits}, there is {found}: a mean and a "
                f"standard deviation are measured. {MORE}"
            )
    autoencoder = _config(settings, "latent_diffusion", "train_autoencoder.json")
    found = sum(count["training"] for count in counts.values())
    if autoencoder["iterations_per_epoch"] is None and found < autoencoder["batch_size"]:
        yield no_batch(found, autoencoder["batch_size"])


def _not_computed(counts: dict[str, dict[str, int]]) -> Iterator[str]:
    """What too few images leave out of the results."""
    few = [NAMES[name] for name, count in counts.items() if count["training"] < 2]
    if few:
        yield f"distances: will not be computed; they need 2 training images, of the {' and '.join(few)} there is one."
    held_out = sum(count["validation"] + count["test"] for count in counts.values())
    if held_out < LEAST:
        yield (
            f"search for copies: will not be computed; it needs {LEAST} validation and test images, there are "
            f"{held_out}."
        )


def require_trainable(network: nn.Module, items: Sequence[dict[str, Any]], batch_size: int) -> None:
    """Refuse images so small that a network's normalisation is left with a single value.

    The network, a copy of it, is tried on a batch of at most two black images; larger ones than 256 x 256 need no try.

    Args:
        network: from images to anything.
        items: with "image", a file; the first one's size counts.
        batch_size: of the training.

    Raises:
        ValueError: with the size, the batch and what to do.
    """
    rows, columns, *colours = read_shape(items[0]["image"])
    if rows * columns > LARGEST:
        return
    batch = torch.zeros(min(batch_size, 2), colours[0] if colours else 1, rows, columns)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copy.deepcopy(network).cpu().train()(batch)
    except ValueError as error:
        if "Expected more than 1" not in str(error):
            raise
        raise ValueError(
            f"Images of {rows} x {columns} in batches of {batch_size} cannot be trained on: the segmentation network "
            f"halves them until its normalisation has a single value to average over ({error}). Raise batch_size to 2 "
            "or more, or convert with a larger `--size` of data_prep."
        ) from error
    except RuntimeError:  # another number of channels or a size that does not fit: said where the images are read
        return
