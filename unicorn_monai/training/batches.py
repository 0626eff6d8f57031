"""Batches that a network can be trained on: none that is empty, none of a single value per channel."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from unicorn_monai.bundle.references import from_bundle
from unicorn_monai.images.files import read_shape
from unicorn_monai.system.files import PathLike

LARGEST = 256 * 256  # pixels; above, nothing is halved down to one


def check_batches(
    bundle_root: PathLike, items: Sequence[dict[str, Any]], batch_size: int, num_labels: int | None = None
) -> None:
    """:func:`require_trainable` for a configuration, which it leaves as it is.

    The network is built anew: that of the training gets its weights once the training is seeded. ``num_labels``, where
    its bundle knows them from weights that are not there yet.
    """
    settings = {} if num_labels is None else {"num_labels": num_labels}
    with torch.random.fork_rng(devices=[]):
        network = from_bundle(bundle_root, settings=settings)
    require_trainable(network, items, batch_size)


def require_trainable(network: nn.Module, items: Sequence[dict[str, Any]], batch_size: int) -> None:
    """Refuse images so small that a network's normalisation is left with a single value.

    The network, a copy of it, is tried on a batch of at most two black images of the first one's size; larger ones than
    256 x 256 need no try.
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
        more = "Raise batch_size to 2 or more, or convert" if "value per channel" in str(error) else "Convert"
        raise ValueError(
            f"Images of {rows} x {columns} in batches of {batch_size} cannot be trained on: the segmentation network "
            f"halves them until its normalisation has a single value to average over ({error}). {more} with a larger "
            "`--size` of data_prep."
        ) from error
    except RuntimeError:  # another number of channels or a size that does not fit: said where the images are read
        return


def no_batch(images: int, batch_size: int) -> str:
    """What is wrong with so few training images, and what to do."""
    return (
        f"The autoencoder's training needs {batch_size} training images (batch_size), there are {images}, and with "
        f"iterations_per_epoch null every epoch is one pass over them. Lower batch_size to {max(1, images)}, or give "
        "iterations_per_epoch a number."
    )
