"""What ``metadata.json`` of a run's bundles says of the networks: channels and sizes are those of data and preset.

MONAI's ``verify_net_in_out`` draws an image of the size written there and looks what the network makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from monai.bundle import ConfigParser

from unicorn_monai.bundle.installation import configured

IMAGE, PRED = "network_data_format::inputs::image", "network_data_format::outputs::pred"
CONDITION = "network_data_format::inputs::controlnet_cond"
CONDITIONS = tuple(f"network_data_format::inputs::{name}" for name in ("label_map", "hint"))
ENCODED, DECODED = "autoencoder_data_format::inputs::image", "autoencoder_data_format::outputs::pred"
RESIDUAL = "residual of the middle block, as are all other channels"
SCAN, COLOURS = "B-scan; rows are depth, columns A-scans", ("red", "green", "blue")


def described(
    name: str, preset: str | None, overrides: Mapping[str, Any], labels: Sequence[str], num_channels: int
) -> dict[str, Any]:
    """The entries of a bundle's ``metadata.json`` that a run changes, by their place in it."""

    def entry(bundle: str, key: str) -> Any:
        return ConfigParser(configured(bundle, preset, overrides.get(bundle))).get_parsed_content(key)

    image = COLOURS if num_channels == len(COLOURS) else [SCAN] * num_channels
    named = [f"{i} {label}" for i, label in enumerate(labels)]
    if name == "retinal_unet":
        sides = f"{math.prod(entry(name, 'network_def::strides'))}*(n+1)"
        return {
            "label_classes": f"single channel: {', '.join(named)}; 255 is ignored",
            "pred_classes": f"{len(named)} channels of logits, one for each label; their softmax: the probabilities",
            **_tensors({IMAGE: (image, sides), PRED: (named, sides)}),
        }
    if name == "style_transfer":
        sides = f"{2 ** entry(name, 'network_def::num_downs')}*(n+1)"
        return _tensors({IMAGE: (image, sides), PRED: (image, sides)})

    latents = range(entry("latent_diffusion", "latent_channels"))
    widths = entry("latent_diffusion", "network_def::channels")
    halvings = 2 ** (len(widths) - 1)
    # A group of one channel has no spread to normalise by where a single value is left of it: two rows or more.
    times = "n" if widths[-1] > entry("latent_diffusion", "network_def::norm_num_groups") else "(n+1)"
    small = f"{halvings}*{times}"
    large = f"{halvings * 2 ** (len(entry('latent_diffusion', 'autoencoder_def::channels')) - 1)}*{times}"
    if name == "synthesis":
        return _tensors({IMAGE: (named, large), PRED: (image, large)})
    noised = {IMAGE: ([f"noised latent {i}" for i in latents], small)}
    hint = ["uncertainty of the image, scaled by the prior, the same in every pixel"]
    predicted = {PRED: ([f"prediction of latent {i}" for i in latents], small)}
    if name == "latent_diffusion":
        return _tensors(noised | predicted | {ENCODED: (image, large), DECODED: (image, large)})
    if name == "joint":
        both = {place: (channels, large) for place, channels in zip(CONDITIONS, (named, hint), strict=True)}
        return _tensors(noised | both | predicted)
    condition = {CONDITION: (named if name == "semantic_controlnet" else hint, large)}
    return _tensors(noised | condition | {PRED: ([RESIDUAL], times)}) | {f"{PRED}::num_channels": widths[-1]}


def _tensors(tensors: Mapping[str, tuple[Sequence[str], str]]) -> dict[str, Any]:
    """The entries of tensors of square images, {place: (channels, side)}."""
    entries: dict[str, Any] = {}
    for place, (channels, side) in tensors.items():
        entries[f"{place}::num_channels"] = len(channels)
        entries[f"{place}::spatial_shape"] = [side, side]
        entries[f"{place}::channel_def"] = {str(i): text for i, text in enumerate(channels)}
    return entries
