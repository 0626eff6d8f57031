"""Two ControlNets, one denoising step: the weighted sum of their residuals, Eqs. (6) and (7) of UnIACorN.

    d_l = a_sem * d_l^sem + a_unc * d_l^unc          for every down block l                       (6)
    m   = a_sem * m^sem   + a_unc * m^unc            for the mid block                            (7)

The residuals enter the frozen U-Net. The paper's form is convex, (a_sem, a_unc) = (1 - w, w), for nets trained
independently; nets trained on top of each other (compositional) are summed, (a_sem, a_unc) = (1, w). Controls that
learnt together with the U-Net (joint) are part of it, (a_sem, a_unc) = (1, 1); w is how far the uncertainty's guidance
goes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unicorn_monai.controlnets import shared_encoder

Residuals = tuple[list[Tensor], Tensor]  # what a ControlNet returns: down block residuals, mid block residual
Weight = float | Tensor  # one for the batch, or (batch,): one per image
Control = tuple[Residuals, Weight]

MODES = ("joint", "compositional", "paper")


def mode_weights(mode: str, uncertainty_weight: Weight) -> tuple[Weight, Weight]:
    """(semantic, uncertainty) weights: (1 - w, w) in ``paper`` mode, (1, w) in ``compositional`` mode.

    In ``joint`` mode, where w is a factor of the guidance, they are (1, 1), and (1, 0) where w is the number 0: a
    control of weight 0 is not asked for anything.
    """
    if mode not in MODES:
        raise ValueError(f"Unknown mode '{mode}'; expected one of {list(MODES)}.")
    if mode == "joint":
        return 1.0, 0.0 if not isinstance(uncertainty_weight, Tensor) and uncertainty_weight == 0 else 1.0
    return (1.0 - uncertainty_weight if mode == "paper" else 1.0), uncertainty_weight


def fuse_residuals(residuals: Sequence[Residuals], weights: Sequence[Weight]) -> Residuals:
    """Weighted sum of the residuals of several ControlNets, Eqs. (6) and (7); each has a weight, a number or (batch,).

    Raises:
        ValueError: the nets do not have the same number or shapes of residuals (the U-Net would silently truncate).
    """
    if not residuals or len(residuals) != len(weights):
        raise ValueError(f"Got residuals of {len(residuals)} ControlNets and {len(weights)} weights; expected pairs.")
    shapes = [[tuple(r.shape) for r in [*down, mid]] for down, mid in residuals]
    for other in shapes[1:]:
        if other != shapes[0]:
            raise ValueError(
                f"The ControlNets' residuals differ: {shapes[0]} against {other}. Both must copy the encoder of the "
                "same U-Net (channels, num_res_blocks, attention_levels)."
            )
    downs = [_weighted_sum(parts, weights) for parts in zip(*(down for down, _ in residuals), strict=True)]
    return downs, _weighted_sum([mid for _, mid in residuals], weights)


def control(
    controlnet: nn.Module | None,
    weight: Weight,
    condition: Tensor,
    inputs: Tensor,
    timesteps: Tensor,
    context: Tensor | None = None,
) -> list[Control]:
    """A ControlNet's residuals with their weight; nothing, and nothing is computed, for None or a weight of 0."""
    if controlnet is None or (not isinstance(weight, Tensor) and weight == 0):
        return []
    _require_context(controlnet, context)
    return [(controlnet(inputs, timesteps, controlnet_cond=condition, context=context), weight)]


def controlled(
    unet: nn.Module, controls: Sequence[Control], inputs: Tensor, timesteps: Tensor, context: Tensor | None = None
) -> Tensor:
    """What the U-Net predicts for ``inputs`` with the fused residuals; without any, what it predicts by itself."""
    _require_context(unet, context)
    down, mid = fuse_residuals(*zip(*controls, strict=True)) if controls else (None, None)
    extra = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    return unet(inputs, timesteps, context=context, **extra)


def guided(
    unet: nn.Module,
    terms: Sequence[tuple[Weight, Sequence[Control]]],
    inputs: Tensor,
    timesteps: Tensor,
    context: Tensor | None = None,
) -> Tensor:
    """Weighted sum of what the U-Net predicts under several sets of controls; one of a weight that is 0 is not run.

    Has the type of ``inputs``: what networks in lower precision say is rounded by themselves only.
    """
    run = [(g, c) for g, c in terms if isinstance(g, Tensor) or g != 0]
    with shared_encoder(unet):
        passes = [controlled(unet, c, inputs, timesteps, context).to(inputs.dtype) for _, c in run]
    return sum((p * _per_image(g, p) for (g, _), p in zip(run, passes, strict=True)), torch.zeros(()))


def _require_context(network: nn.Module, context: Tensor | None) -> None:
    """MONAI's networks without the context they were made for attend to themselves, or fail in a matrix product."""
    if context is None and getattr(network, "with_conditioning", False):
        raise ValueError("The network was made for prompts, but there is no context. Give it prompts, or empty ones.")


def _weighted_sum(parts: Sequence[Tensor], weights: Sequence[Weight]) -> Tensor:
    first, *others = (part * _per_image(weight, part) for part, weight in zip(parts, weights, strict=True))
    return sum(others, start=first)


def _per_image(weight: Weight, like: Tensor) -> Weight:
    if not isinstance(weight, Tensor) or weight.ndim == 0:
        return weight
    if weight.shape != like.shape[:1]:
        raise ValueError(f"Weight has shape {tuple(weight.shape)}; expected a number or one per image, ({len(like)},).")
    return weight.to(like).reshape(-1, *[1] * (like.ndim - 1))
