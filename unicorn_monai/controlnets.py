"""A ControlNet that starts as a copy of the U-Net's encoder, and the checks that keep both in step.

A ControlNet must agree with its U-Net in channels, residual blocks, attention and ``include_fc``; the U-Net truncates
silently what does not fit. Here its architecture is derived from the U-Net itself, so it cannot drift.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from monai.networks.nets import ControlNet, DiffusionModelUNet
from torch import Tensor, nn

logger = logging.getLogger("unicorn_monai")
_ENCODER = ("conv_in", "time_embed", "class_embedding", "down_blocks", "middle_block")


def controlnet_for(
    unet: dict[str, Any] | DiffusionModelUNet,
    conditioning_channels: int,
    embedding_channels: Sequence[int] = (16, 32, 64),
) -> ControlNet:
    """Build the ControlNet of a U-Net, trainable, its encoder copied from the U-Net where that is a network.

    Args:
        unet: the U-Net, or its definition (``{"_target_": "DiffusionModelUNet", "channels": ..., ...}``), of which the
            ControlNet has random weights until ``copy_encoder``.
        conditioning_channels: channels of the hint at image resolution: number of labels, or 1 for the uncertainty.
        embedding_channels: channels of the condition embedding; each step after the first halves the resolution, so
            an autoencoder of factor 4 needs three entries.
    """
    embedding = {
        "conditioning_embedding_in_channels": conditioning_channels,
        "conditioning_embedding_num_channels": tuple(embedding_channels),
    }
    if not isinstance(unet, nn.Module):
        arguments = {key: value for key, value in dict(unet).items() if not key.startswith("_")}
        if unknown := set(arguments) - set(inspect.signature(DiffusionModelUNet).parameters):
            raise ValueError(f"The U-Net's definition has {sorted(unknown)}; expected arguments of DiffusionModelUNet.")
        shared = set(inspect.signature(ControlNet).parameters)
        return ControlNet(**{key: value for key, value in arguments.items() if key in shared}, **embedding)
    network: Any = unet
    controlnet = ControlNet(
        spatial_dims=network.conv_in.conv.weight.ndim - 2,
        in_channels=unet.in_channels,
        num_res_blocks=unet.num_res_blocks,
        channels=unet.block_out_channels,
        attention_levels=[False] * len(unet.block_out_channels),  # the copied blocks bring their own attention
        num_head_channels=unet.num_head_channels,
        norm_num_groups=network.out[0].num_groups,
        num_class_embeds=unet.num_class_embeds,
        **embedding,
    )
    for name in _ENCODER:
        if hasattr(unet, name):
            setattr(controlnet, name, copy.deepcopy(getattr(unet, name)).requires_grad_(True).train())
    controlnet.attention_levels, controlnet.with_conditioning = unet.attention_levels, unet.with_conditioning
    return controlnet.to(next(unet.parameters()))


def copy_encoder(controlnet: ControlNet, unet: DiffusionModelUNet) -> ControlNet:
    """Copy every weight of the U-Net's encoder, middle block and time embedding; other architectures are refused."""
    source, target = _encoder(unet), _encoder(controlnet)
    if misfits := sorted(name for name in source.keys() | target.keys() if source.get(name) != target.get(name)):
        name = misfits[0]
        raise ValueError(
            f"The ControlNet is not a copy of this U-Net's encoder: {len(misfits)} parts differ, first '{name}': "
            f"{target.get(name, 'absent')} in the ControlNet, {source.get(name, 'absent')} in the U-Net. "
            "Build it with `controlnet_for` from the definition of this U-Net."
        )
    for name in _ENCODER:
        if hasattr(unet, name):
            getattr(controlnet, name).load_state_dict(getattr(unet, name).state_dict())
    return controlnet


def _encoder(network: nn.Module) -> dict[str, str]:
    """Every part of the encoder, by name, in words: its type, its options, the shapes of its weights."""
    parts = {}
    for name, module in network.named_modules():
        if name.split(".")[0] in _ENCODER:
            shapes = {key: tuple(value.shape) for key, value in module.named_parameters(recurse=False)}
            options = "" if isinstance(module, nn.Dropout) else module.extra_repr()  # a ControlNet has no dropout_cattn
            heads = f", {module.num_heads} heads" if hasattr(module, "num_heads") else ""  # changes no shape
            parts[name] = f"{type(module).__name__}({options}{heads}) {shapes}"
    return parts


class _Encoded(nn.Identity):
    """In place of a condition embedding whose output was computed beforehand."""


@contextmanager
def encoded_condition(
    controlnet: nn.Module | None, condition: Tensor, name: str = "condition", size: Sequence[int] | None = None
) -> Iterator[Tensor]:
    """Compute the condition embedding once; yields what to pass as ``controlnet_cond`` inside the block.

    It does not depend on the timestep, but ``ControlNet.forward`` computes it at every call: 32 % of the time of a
    denoising step with two small ControlNets. A network without ``controlnet_cond_embedding`` gets its condition as is.

    Args:
        controlnet: the network; not to be used by others inside the block.
        condition: (batch, channels, *image).
        name: how messages call the condition.
        size: spatial size of the latents, which the embedding must give.
    """
    embedding = getattr(controlnet, "controlnet_cond_embedding", None)
    if controlnet is None or not isinstance(embedding, nn.Module):
        yield condition
        return
    if isinstance(embedding, _Encoded):
        raise ValueError(f"The ControlNet of the {name} is in use already; give each condition its own network.")
    weight = next((w for w in embedding.parameters() if w.ndim > 2), None)
    if weight is not None and (condition.ndim != weight.ndim or condition.shape[1] != weight.shape[1]):
        raise ValueError(
            f"The {name} has shape {tuple(condition.shape)}; its ControlNet expects (batch, {weight.shape[1]}, "
            f"*{weight.ndim - 2} dimensions). Use the number of channels it was trained with."
        )
    encoded = embedding(condition)
    if size is not None and tuple(encoded.shape[2:]) != tuple(size):
        raise ValueError(
            f"The {name} of {tuple(condition.shape[2:])} pixels is embedded to {tuple(encoded.shape[2:])}, the latents "
            f"are {tuple(size)}. Give it the size of the image that they decode to, or change embedding_channels."
        )
    controlnet.controlnet_cond_embedding = _Encoded()
    try:
        yield encoded
    finally:
        controlnet.controlnet_cond_embedding = embedding


class _Once:
    """A function that runs at the first call and then repeats its answer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.answer = function, None

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        self.answer = self.function(*inputs, **options) if self.answer is None else self.answer
        return self.answer


@contextmanager
def shared_encoder(unet: nn.Module) -> Iterator[None]:
    """Run a U-Net's encoder and middle block once, for all calls inside the block; their latents must be the same.

    The residuals of ControlNets enter behind both, so the passes of a guided step differ in the decoder only. A network
    that is not MONAI's own ``DiffusionModelUNet`` may use them elsewhere (MAISI's does): it is left as it is.
    """
    parts = [unet.conv_in, *unet.down_blocks, unet.middle_block] if type(unet) is DiffusionModelUNet else []
    for part in parts:
        part.forward = _Once(part.forward)
    try:
        yield
    finally:
        for part in parts:
            del part.forward  # the method of the class is back
