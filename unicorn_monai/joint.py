"""Noise predictor and both controls as one network, which learns them at once (``joint`` mode).

    f(z_t, t, c, u) = unet(z_t, t, r_sem(c) + r_unc(u))         c: label map, u: hint of the uncertainty

The paper freezes the U-Net before it trains the controls. A U-Net that knows nothing of the condition draws mixtures
of both devices, and a ControlNet beside it cannot undo them: of the same label maps and uncertainties 41 % of the
images took the asked-for look, 95 % where all three learn at once (nuclei, 64 x 64). In training r_sem and r_unc of
some images are left out, each by itself, so that f also predicts without them, as guidance asks (Ho and Salimans 2022).

Two forms of r, both what ``fusion.py`` adds up and a U-Net takes:

    ControlNets      residuals of the decoder, of copies of the encoder, as in the paper
    light controls   hint(c) is concatenated to z_t, embed(u) is added to the embedding of t        a third of the cost

    hint(c)  = strided convolutions of the one-hot label map, to the latents' size
    embed(u) = MLP of sin(2 u w), cos(2 u w), w ~ N(0, 1)                      Fourier features, Tancik et al. 2020
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from unicorn_monai.controlnets import controlnet_for
from unicorn_monai.fusion import Residuals, Weight, control, controlled

HINT_CHANNELS = 16  # of the label map beside the latents
FREQUENCIES = 32  # w of the Fourier features


class LightUNet(DiffusionModelUNet):
    """A U-Net that takes features beside its latents and a vector beside its timestep, where others take residuals.

    Args:
        in_channels: of the latents.
        hint_channels: of the features.
        definition: all else is as of a ``DiffusionModelUNet``.
    """

    def __init__(self, in_channels: int, hint_channels: int = HINT_CHANNELS, **definition: Any) -> None:
        super().__init__(in_channels=in_channels + hint_channels, num_class_embeds=1, **definition)
        self.class_embedding = nn.Identity()  # type: ignore[assignment]  # of "class labels": the vector itself
        self.in_channels, self.hint_channels = in_channels, hint_channels
        self.embedding_channels: int = self.block_out_channels[0] * 4  # of the timestep

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
    ) -> Tensor:
        """What is predicted for latents (batch, channels, *latent); "residuals" are those of the light controls."""
        if down_block_additional_residuals is None or mid_block_additional_residual is None:
            features = x.new_zeros(len(x), self.hint_channels, *x.shape[2:])
            vector = x.new_zeros(len(x), self.embedding_channels)
        else:
            (features,), vector = down_block_additional_residuals, mid_block_additional_residual
        return super().forward(torch.cat([x, features], dim=1), timesteps, context, class_labels=vector)


class LightLabels(nn.Module):
    """The label map's part: features at the latents' size, for :class:`LightUNet`.

    Args:
        unet: whom the features are for.
        num_labels: of the label maps.
        embedding_channels: each after the first halves the resolution, as in a ControlNet.
    """

    def __init__(self, unet: LightUNet, num_labels: int, embedding_channels: Sequence[int] = (16, 32)) -> None:
        super().__init__()
        channels, layers = num_labels, list[nn.Module]()
        convolution: type[nn.Module] = type(unet.conv_in.conv)  # type: ignore[assignment]
        for wide in embedding_channels:
            layers += [convolution(channels, wide, 3, 2, 1), nn.SiLU()]
            channels = wide
        layers.append(convolution(channels, unet.hint_channels, 3, 1, 1))
        self.controlnet_cond_embedding = nn.Sequential(*layers)  # named as in a ControlNet: embedded once per sampling
        self.vector = unet.embedding_channels

    def forward(
        self, x: Tensor, timesteps: Tensor, controlnet_cond: Tensor, context: Tensor | None = None
    ) -> Residuals:
        """One-hot label maps (batch, labels, *image) -> ([features], no vector)."""
        return [self.controlnet_cond_embedding(controlnet_cond)], x.new_zeros(len(x), self.vector)


class LightUncertainty(nn.Module):
    """The uncertainty's part: a vector beside the timestep, for :class:`LightUNet`."""

    frequencies: Tensor

    def __init__(self, unet: LightUNet) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(FREQUENCIES))
        size = unet.embedding_channels
        self.mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, size), nn.SiLU(), nn.Linear(size, size))
        self.features = unet.hint_channels

    def forward(
        self, x: Tensor, timesteps: Tensor, controlnet_cond: Tensor, context: Tensor | None = None
    ) -> Residuals:
        """Hints, the same at every pixel (batch, 1, *image) -> ([no features], vector)."""
        angle = 2 * controlnet_cond.flatten(1).mean(dim=1, keepdim=True) * self.frequencies
        vector = self.mlp(torch.cat([angle.sin(), angle.cos()], dim=1))
        return [x.new_zeros(len(x), self.features, *x.shape[2:])], vector


class JointNetwork(nn.Module):
    """A U-Net and its two controls, trained and stored as one."""

    def __init__(self, unet: nn.Module, semantic: nn.Module, uncertainty: nn.Module) -> None:
        super().__init__()
        self.unet, self.semantic, self.uncertainty = unet, semantic, uncertainty

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        label_map: Tensor,
        hint: Tensor,
        seen: tuple[Weight, Weight] = (1.0, 1.0),
        context: Tensor | None = None,
    ) -> Tensor:
        """What is predicted for latents (batch, channels, *latent) under one-hot label maps and hints of the images.

        ``seen``: of the label map and of the uncertainty; 0 leaves it out, for all or, as a tensor (batch,), for some.
        """
        controls = control(self.semantic, seen[0], label_map, x, timesteps, context)
        controls += control(self.uncertainty, seen[1], hint, x, timesteps, context)
        return controlled(self.unet, controls, x, timesteps, context)


def light_controls(unet: dict[str, Any], num_labels: int, downsampling: int = 4) -> JointNetwork:
    """Light controls and their U-Net, of the definition of a ``DiffusionModelUNet``, untrained."""
    network = LightUNet(**_arguments(unet))
    steps = downsampling.bit_length() - 1
    if downsampling < 2 or downsampling != 2**steps:
        raise ValueError(
            f"The autoencoder makes images {downsampling} times smaller; expected a power of 2, 2 or more."
        )
    widths = [16 * 2**i for i in range(steps)]
    return JointNetwork(network, LightLabels(network, num_labels, widths), LightUncertainty(network))


def joint_controlnets(unet: dict[str, Any], num_labels: int, downsampling: int = 4) -> JointNetwork:
    """The paper's two ControlNets and their U-Net, of its definition, untrained."""
    widths = [16 * 2**i for i in range(downsampling.bit_length())]
    semantic, uncertainty = (controlnet_for(unet, channels, widths) for channels in (num_labels, 1))
    return JointNetwork(DiffusionModelUNet(**_arguments(unet)), semantic, uncertainty)


def _arguments(definition: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in definition.items() if not key.startswith("_")}


FORMS = {"light": light_controls, "controlnets": joint_controlnets}


def joint_network(form: str, unet: dict[str, Any], num_labels: int, downsampling: int = 4) -> JointNetwork:
    """The network of one of ``FORMS``.

    Args:
        form: of the controls.
        unet: definition of the ``DiffusionModelUNet``.
        num_labels: of the label maps.
        downsampling: image size / latent size.
    """
    if form not in FORMS:
        raise ValueError(f"Unknown form '{form}' of the controls; expected one of {list(FORMS)}.")
    return FORMS[form](unet, num_labels, downsampling)
