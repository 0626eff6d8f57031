"""Weights trained with monai-generative 0.2.3, in today's MONAI networks and with the same outputs.

    attention over an image   X.to_q, X.to_k, X.to_v   ->  X.attn.to_q, ..., or one below the other as X.attn.qkv
                              X.proj_attn              ->  nothing: it was created and never called
                              nothing                  ->  X.attn.out_proj, the identity (where `include_fc` is true)
    transformer blocks        X.attn1.to_out.0         ->  X.attn1.out_proj; the same for attn2
    upsampling                X.conv                   ->  X.postconv
    everything else           the same name

Transposed convolutions (`use_convtranspose` of the autoencoder) have three pixels there and two here: they have no
counterpart.

Every entry of both sides is accounted for, other than by MONAI's ``load_old_state_dict`` (docs/weights.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unicorn_monai.bundle.references import from_bundle
from unicorn_monai.system.files import PathLike
from unicorn_monai.system.weights import is_state, load_tensors_only, save_weights, sha256

_IMAGE_ATTENTION = re.compile(r"(?P<block>.+)\.attn\.(?P<part>to_q|to_k|to_v|qkv|out_proj)\.(?P<kind>weight|bias)")
_TRANSFORMER = re.compile(r"(?P<block>.+\.attn[12])\.(?P<part>qkv|out_proj)\.(?P<kind>weight|bias)")
_NEVER_CALLED = re.compile(r"(.+)\.proj_attn\.(weight|bias)")


def convert(network: nn.Module, old: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dictionary of ``network`` that gives the outputs of the old network.

    It is an ``AutoencoderKL``, ``DiffusionModelUNet`` or ``ControlNet`` of MONAI, built with the arguments of the old
    one (``num_channels`` is called ``channels`` today). An entry of either side without its counterpart, or of another
    shape, is refused.
    """
    new, used = {}, set()
    for key, value in network.state_dict().items():
        if ".deconv." in key:
            raise ValueError(
                f"'{key}' of the {type(network).__name__}: the transposed convolutions of monai-generative have three "
                "pixels, MONAI's two; no network of today gives their outputs. Train this autoencoder again."
            )
        sources = old_names(key)
        missing = [name for name in sources if name not in old]
        if missing:
            raise ValueError(
                f"The checkpoint has no '{missing[0]}', from which '{key}' of the {type(network).__name__} is made. "
                "Build the network with the arguments of the old one."
            )
        if len(sources) > 1:
            found = torch.cat([old[name] for name in sources])
        elif sources:
            found = old[sources[0]]
        else:
            found = torch.eye(len(value)) if value.ndim == 2 else torch.zeros_like(value)
        if found.shape != value.shape:
            raise ValueError(
                f"'{sources[0]}' of the checkpoint has shape {tuple(found.shape)}, '{key}' of the network "
                f"{tuple(value.shape)}. Build the network with the arguments of the old one."
            )
        new[key] = found.to(value.dtype)
        used |= set(sources)
    left = [name for name in old if name not in used and not _never_called(name, used)]
    if left:
        fc = any(".attn1.to_out." in name for name in left)
        hint = " `include_fc` must be true with cross-attention." if fc else ""
        raise ValueError(
            f"{len(left)} entries of the checkpoint have no place in the {type(network).__name__}, first '{left[0]}'. "
            f"Build the network with the arguments of the old one.{hint}"
        )
    return new


def old_names(key: str) -> list[str]:
    """Old entries that, one below the other, make up an entry of today; none for a projection that was not there."""
    if found := _IMAGE_ATTENTION.fullmatch(key):
        parts = {"qkv": ["to_q", "to_k", "to_v"], "out_proj": []}.get(found["part"], [found["part"]])
    elif found := _TRANSFORMER.fullmatch(key):
        parts = {"qkv": ["to_q", "to_k", "to_v"], "out_proj": ["to_out.0"]}[found["part"]]
    else:
        return [key.replace(".postconv.", ".conv.")]
    return [f"{found['block']}.{part}.{found['kind']}" for part in parts]


def _never_called(name: str, used: set[str]) -> bool:
    found = _NEVER_CALLED.fullmatch(name)
    return found is not None and f"{found[1]}.to_q.weight" in used


def read_checkpoint(path: PathLike, entry: str | None = None) -> dict[str, Tensor]:
    """The state dictionary in a checkpoint, or its ``entry``; a "module." of several GPUs is taken off its names."""
    if not Path(path).is_file():
        raise ValueError(f"No checkpoint at '{path}'. Check the path.")
    content = load_tensors_only(path)
    if entry is not None and isinstance(content, dict):
        content = content.get(entry)
    if not is_state(content) or not content:
        inside = [k for k, v in content.items() if is_state(v) and v] if isinstance(content, dict) else []
        what = f"entry '{entry}' of '{path}'" if entry is not None else f"'{path}'"
        raise ValueError(f"{what} is no state dictionary; state dictionaries in it: {inside}. Name one with --entry.")
    together = all(name.startswith("module.") for name in content)
    return {name.removeprefix("module.") if together else name: value for name, value in content.items()}


def import_weights(
    checkpoint: PathLike,
    bundle_root: PathLike,
    id: str = "network_def",
    weights: str = "model.pt",
    entry: str | None = None,
    **metadata: Any,
) -> Path:
    """Publish the weights of an old checkpoint (:func:`read_checkpoint`) as ``models/WEIGHTS`` of a bundle.

    Its ``inference.json`` defines the network with the arguments of the old one; ``metadata`` is what belongs to the
    weights, e.g. ``scale_factor`` and ``latent_shape`` of a diffusion model. The path of the file is returned.
    """
    network = from_bundle(bundle_root, id)
    network.load_state_dict(convert(network, read_checkpoint(checkpoint, entry)))
    path = Path(bundle_root) / "models" / weights
    save_weights(network, path, imported_sha256=sha256(checkpoint), **metadata)
    return path
