"""The denoising loops that `sampling.py` compares: the stock one, the inferer in several forms, and the bare passes."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets import AutoencoderKL, ControlNet, DiffusionModelUNet
from torch import Tensor, nn

from benchmarks.common import PRESETS, now, wake
from unicorn_monai.bundle import arguments, definition, from_bundle, install
from unicorn_monai.controlnets import encoded_condition
from unicorn_monai.images import one_hot
from unicorn_monai.inferers import DualControlNetInferer
from unicorn_monai.latent_diffusion import LatentDiffusion, downsampling
from unicorn_monai.schedulers import DDIM
from unicorn_monai.system import CudaGraphs, compiled

WEIGHT = 0.5
GUIDED = ("compositional", 1.0, (3, 1))
STEP = ("unet", "semantic", "uncertainty")
BUNDLES = ("latent_diffusion", "retinal_unet", "uncertainty_controlnet", "semantic_controlnet")


@dataclass
class Setup:
    """The networks of the bundles and a batch of conditions."""

    autoencoder: AutoencoderKL
    unet: DiffusionModelUNet
    semantic: ControlNet
    uncertainty: ControlNet
    scheduler: DDIM
    label_map: Tensor
    hint: Tensor
    latent_shape: tuple[int, ...]
    steps: int

    @classmethod
    def build(cls, size: int, batch: int, steps: int, device: torch.device) -> Setup:
        """From the bundles' configurations; DDIM, the cheapest step."""
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            roots = {name: install(name, folder, PRESETS[size]) for name in BUNDLES}
            ldm = roots["latent_diffusion"]
            nets = [
                wake(from_bundle(root, id)).to(device)
                for root, id in (
                    (ldm, "autoencoder_def"),
                    (ldm, "network_def"),
                    (roots["semantic_controlnet"], "network_def"),
                    (roots["uncertainty_controlnet"], "network_def"),
                )
            ]
            scheduler = DDIM(**arguments(ldm, "scheduler") | {"coarse": True})
            labels, channels = definition(roots["retinal_unet"], "num_labels"), nets[1].in_channels
        rows = torch.arange(size).reshape(-1, 1).expand(size, size)
        maps = torch.stack([(rows * labels // size + i) % labels for i in range(batch)])[:, None]
        side = size // downsampling(nets[0])
        hint = torch.linspace(-1, 2, batch).to(device)
        label_map = one_hot(maps, labels).to(device)
        return cls(*nets, scheduler, label_map, hint, (channels, side, side), steps)

    def changed(self, change: Callable[[nn.Module], nn.Module]) -> Setup:
        """The same with copies of the three networks of a step, changed."""
        return replace(self, **{name: change(copy.deepcopy(getattr(self, name))) for name in STEP})

    def hint_image(self) -> Tensor:
        """One number per image as a constant image."""
        return self.hint.reshape(-1, 1, 1, 1).expand(-1, 1, *self.label_map.shape[2:])

    def noise(self) -> Tensor:
        """What the inferer starts from with the seeds 0, 1, ..."""
        draw = [torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(i)) for i in range(self.batch)]
        return torch.stack(draw).to(self.label_map.device)

    @property
    def batch(self) -> int:
        """Images."""
        return len(self.label_map)


@torch.no_grad()
def stock(s: Setup, mode: str = "paper", weight: float = WEIGHT, guidance: tuple[float, float] = (1, 1)) -> Tensor:
    """(a): latents, by what MONAI has; with guidance the U-Net is asked three times."""
    x, hint = s.noise(), s.hint_image()
    semantic_weight = 1 - weight if mode == "paper" else 1.0
    s.scheduler.set_timesteps(s.steps)
    for t in s.scheduler.timesteps:
        at = torch.tensor([int(t)], device=x.device)
        down_sem, mid_sem = s.semantic(x, at, controlnet_cond=s.label_map)
        down_unc, mid_unc = s.uncertainty(x, at, controlnet_cond=hint)
        style, style_mid = [weight * b for b in down_unc], weight * mid_unc
        down = [semantic_weight * a + b for a, b in zip(down_sem, style, strict=True)]
        mid = semantic_weight * mid_sem + style_mid
        noise = s.unet(x, at, down_block_additional_residuals=down, mid_block_additional_residual=mid)
        if guidance != (1, 1):
            alone, (g_unc, g_sem) = s.unet(x, at), guidance
            unc = s.unet(x, at, down_block_additional_residuals=style, mid_block_additional_residual=style_mid)
            noise = alone + g_unc * (unc - alone) + g_sem * (noise - unc)
        x, _ = s.scheduler.step(noise, int(t), x)
    return x


@dataclass
class Form:
    """How (b) and (c) run.

    Args:
        setup: their networks.
        half: automatic mixed precision; the latents are added up in float32.
        graphs: a step is recorded as a CUDA graph.
        inference: without autograd's bookkeeping, as `synthesis.generator.Generator` samples.
    """

    setup: Setup
    half: bool = False
    graphs: bool = False
    inference: bool = False

    @contextmanager
    def modes(self) -> Iterator[None]:
        """Where both run."""
        device = self.setup.label_map.device.type
        with torch.inference_mode(self.inference), torch.autocast(device, torch.bfloat16, self.half):
            yield

    def sampler(self, *mode: Any) -> Callable[[], Tensor]:
        """(b): a function that gives latents; it keeps its recordings from call to call, as between two batches."""
        made = make_inferer(self.setup, *mode, graphs=self.graphs)

        def sample() -> Tensor:
            with self.modes():
                return sampled(self.setup, made).clone()

        return sample

    def floor(self) -> Callable[[], float]:
        """(c): a function that gives seconds."""
        passes = CudaGraphs(bare_passes) if self.graphs else bare_passes

        def measure() -> float:
            with self.modes():
                return floor(self.setup, passes)

        return measure


def make_inferer(
    s: Setup,
    mode: str = "paper",
    weight: float = WEIGHT,
    guidance: tuple[float, float] = (1, 1),
    graphs: bool = False,
) -> DualControlNetInferer:
    """What (b) samples with."""
    ldm = LatentDiffusion(s.autoencoder, s.unet, s.scheduler, s.scheduler, 1.0, s.latent_shape)
    return DualControlNetInferer(ldm, s.semantic, s.uncertainty, weight, mode, guidance, cuda_graphs=graphs)


def inferer(s: Setup, mode: str = "paper", weight: float = WEIGHT, guidance: tuple[float, float] = (1, 1)) -> Tensor:
    """(b): latents."""
    return sampled(s, make_inferer(s, mode, weight, guidance))


def sampled(s: Setup, sampler: DualControlNetInferer) -> Tensor:
    """Latents of the batch."""
    return sampler.sample_latents(s.label_map, s.hint, range(s.batch), s.steps)


def bare_passes(
    unet: nn.Module, semantic: nn.Module, uncertainty: nn.Module, x: Tensor, at: Tensor, label: Tensor, hint: Tensor
) -> Tensor:
    """The three networks, the conditions embedded."""
    down, mid = semantic(x, at, controlnet_cond=label)
    uncertainty(x, at, controlnet_cond=hint)
    return unet(x, at, down_block_additional_residuals=down, mid_block_additional_residual=mid)


@torch.no_grad()
def floor(s: Setup, passes: Callable[..., Tensor] = bare_passes) -> float:
    """(c): seconds of the passes alone."""
    x, size, device = s.noise(), s.latent_shape[1:], s.label_map.device
    s.scheduler.set_timesteps(s.steps)
    with (
        encoded_condition(s.semantic, s.label_map, size=size) as label,
        encoded_condition(s.uncertainty, s.hint_image(), size=size) as hint,
    ):
        started = now(device)
        for t in s.scheduler.timesteps:
            at = torch.tensor([int(t)], device=device)
            passes(s.unet, s.semantic, s.uncertainty, x, at, label, hint)
        return now(device) - started


def attention(network: nn.Module, fused: bool) -> nn.Module:
    """Let a network's attention be PyTorch's fused one, or MONAI's default, which writes the whole matrix."""
    for module in network.modules():
        if isinstance(module, SABlock):
            module.use_flash_attention = fused
    return network


@torch.no_grad()
def decode(s: Setup, latents: Tensor) -> Tensor:
    """Images."""
    return torch.cat([s.autoencoder.decode_stage_2_outputs(z) for z in latents.split(1)])


def forms_of(s: Setup, with_compiled: bool, with_half: bool) -> dict[str, Form]:
    """The forms of (b) to compare, by name."""
    forms = {"as they are": Form(s)}
    if with_half:
        forms["CUDA graphs"] = Form(s, graphs=True, inference=True)
        forms["bfloat16"] = Form(s, half=True, inference=True)
        forms["bfloat16, CUDA graphs"] = Form(s, half=True, graphs=True, inference=True)
    if with_compiled:
        fast = s.changed(compiled)
        forms["compiled"] = Form(fast)
        if with_half:
            forms["compiled, bfloat16, CUDA graphs"] = Form(fast, half=True, graphs=True, inference=True)
    return forms
