"""What ``metadata.json`` of a run's bundles says of the networks: channels and sizes are those of data and preset.

MONAI's ``verify_net_in_out`` draws an image of the size written there and looks what the network makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from monai.bundle import ConfigParser

from unicorn_monai.bundle.installation import configured

NETWORK, AUTOENCODER = "network_data_format", "autoencoder_data_format"
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
        sides = f"{math.prod(entry(name, 'network_def::strides'))}*n"
        return {
            "label_classes": f"single channel: {', '.join(named)}; 255 is ignored",
            "pred_classes": f"{len(named)} channels of logits, one for each label; their softmax: the probabilities",
            **_tensor(f"{NETWORK}::inputs::image", image, sides),
            **_tensor(f"{NETWORK}::outputs::pred", named, sides),
        }
    if name == "style_transfer":
        sides = f"{2 ** entry(name, 'network_def::num_downs')}*(n+1)"
        tensors = [f"{NETWORK}::inputs::image", f"{NETWORK}::outputs::pred"]
        return {key: value for tensor in tensors for key, value in _tensor(tensor, image, sides).items()}

    latents = range(entry("latent_diffusion", "latent_channels"))
    widths = entry("latent_diffusion", "network_def::channels")
    halvings = 2 ** (len(widths) - 1)
    # A group of one channel has no spread to normalise by where a single value is left of it: two rows or more.
    times = "n" if widths[-1] > entry("latent_diffusion", "network_def::norm_num_groups") else "(n+1)"
    large = f"{halvings * 2 ** (len(entry('latent_diffusion', 'autoencoder_def::channels')) - 1)}*{times}"
    noised = _tensor(f"{NETWORK}::inputs::image", [f"noised latent {i}" for i in latents], f"{halvings}*{times}")
    if name == "latent_diffusion":
        predicted = _tensor(
            f"{NETWORK}::outputs::pred", [f"prediction of latent {i}" for i in latents], f"{halvings}*{times}"
        )
        encoded = _tensor(f"{AUTOENCODER}::inputs::image", image, large)
        return noised | predicted | encoded | _tensor(f"{AUTOENCODER}::outputs::pred", image, large)
    if name == "synthesis":
        drawn = _tensor(f"{NETWORK}::outputs::pred", image, large)
        return _tensor(f"{NETWORK}::inputs::image", named, large) | drawn
    residuals = _tensor(f"{NETWORK}::outputs::pred", [RESIDUAL], times)
    residuals[f"{NETWORK}::outputs::pred::num_channels"] = widths[-1]
    hint = ["uncertainty of the image, scaled by the prior, the same in every pixel"]
    condition = named if name == "semantic_controlnet" else hint
    return noised | residuals | _tensor(f"{NETWORK}::inputs::controlnet_cond", condition, large)


def _tensor(place: str, channels: Sequence[str], side: str) -> dict[str, Any]:
    """One tensor of square images."""
    return {
        f"{place}::num_channels": len(channels),
        f"{place}::spatial_shape": [side, side],
        f"{place}::channel_def": {str(i): text for i, text in enumerate(channels)},
    }
