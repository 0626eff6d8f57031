"""Bundles use each other's networks by reference: a network is defined once, in its bundle's ``inference.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from unicorn_monai.bundle.expressions import require_literal
from unicorn_monai.bundle.installation import _read, load_config
from unicorn_monai.bundle.root import ENTRY, literal_root
from unicorn_monai.system.distributed import local_device
from unicorn_monai.system.files import PathLike
from unicorn_monai.system.networks import freeze
from unicorn_monai.system.weights import load_weights, read_metadata


def definition(bundle_root: PathLike, id: str = "network_def", config_file: str = "inference.json") -> Any:
    """A configuration entry of another bundle as it stands there, not built."""
    config = _read(bundle_root, config_file)
    if id not in config:
        raise ValueError(f"configs/{config_file} of '{bundle_root}' has no entry '{id}', only {sorted(config)}.")
    return config[id]


def from_bundle(
    bundle_root: PathLike,
    id: str = "network_def",
    weights: str | None = None,
    device: torch.device | str | None = None,
    settings: dict[str, Any] | None = None,
) -> Any:
    """Build what another bundle's ``inference.json`` defines, e.g. its "scheduler"; a network with weights is frozen.

    ``weights`` is a file under its ``models`` folder to load, not read where the networks come with their weights (see
    :func:`metadata_of`). ``settings`` replace entries of the configuration, e.g. ``{"num_labels": 19}``.
    """
    require_literal(settings or {}, "settings")
    parser = ConfigParser(_read(bundle_root) | {ENTRY: literal_root(bundle_root)} | (settings or {}))
    definition(bundle_root, id)
    thing = parser.get_parsed_content(id)
    if weights is not None:
        if not _comes_with_weights(bundle_root, weights):
            load_weights(thing, Path(bundle_root) / "models" / weights)
        freeze(thing)
    return thing if device is None else thing.to(device)


def arguments(bundle_root: PathLike, id: str = "network_def") -> dict[str, Any]:
    """The constructor arguments of what a bundle defines, references resolved: a dictionary without ``_target_``."""
    parser, names = ConfigParser(_read(bundle_root) | {ENTRY: literal_root(bundle_root)}), definition(bundle_root, id)
    return {key: parser.get_parsed_content(f"{id}::{key}") for key in names if not key.startswith("_")}


def weights_sha256(**paths: PathLike) -> dict[str, str]:
    """Sha256 of each of several weights files ``BUNDLE/models/FILE``, by name."""
    return {name: metadata_of(Path(path).parent.parent, Path(path).name)["sha256"] for name, path in paths.items()}


def with_weights(network: nn.Module, path: PathLike, device: torch.device | str | None = None) -> nn.Module:
    """Load weights into a network, freeze it and put it on a device."""
    load_weights(network, path)
    return freeze(network).to(device)


def metadata_of(bundle_root: PathLike, weights: str = "model.pt") -> dict[str, Any]:
    """What is known about a bundle's weights: what is stored with ``models/WEIGHTS``.

    The networks of some bundles come with weights of another origin, e.g. a folder of Stable Diffusion. Such a bundle
    has an entry ``weights_metadata``, which gives the same for each file that is not there.
    """
    if _comes_with_weights(bundle_root, weights):
        return from_bundle(bundle_root, "weights_metadata")[weights]
    return read_metadata(Path(bundle_root) / "models" / weights)


def _comes_with_weights(bundle_root: PathLike, weights: str) -> bool:
    if (Path(bundle_root) / "models" / weights).is_file():
        return False
    try:
        return "weights_metadata" in load_config(bundle_root)
    except ValueError:  # no bundle, only weights; reading them tells what is missing
        return False


def weights_metadata(bundle_root: PathLike, weights: str, key: str) -> Any:
    """One entry of what is known about a bundle's weights, e.g. "scale_factor" or "sha256"."""
    path, metadata = Path(bundle_root) / "models" / weights, metadata_of(bundle_root, weights)
    if key not in metadata:
        raise ValueError(f"The weights '{path}' carry no '{key}', only {sorted(metadata)}. Train this stage again.")
    return metadata[key]


def default_device() -> torch.device:
    """The first GPU where there is one (of several processes, each has its own), else the CPU."""
    return local_device()
