"""How fast is the sampling? Side by side, in turns, at equal outputs; nothing is judged here.

    python -m benchmarks.sampling                          both sizes, batches of 1, 8 and 32 (256 x 256: few steps)
    python -m benchmarks.sampling --size 64 --options      what else was tried, each against the stock loop
    python -m benchmarks.sampling --size 64 --compiled     the compiled networks too

(a) the loop a user writes from MONAI's parts: two `ControlNet` calls and one `DiffusionModelUNet` call per step, the
networks with MONAI's default attention; (b) `DualControlNetInferer`; (c) the bare forward passes of the three networks
of (b) with the conditions embedded beforehand: the floor. Mode `paper` with weight 1/2, so all do the same passes. The
architectures are those of the bundles, the weights random. Seconds are per denoising step and batch, everything that is
done once included, but for the decoder, which is the same in all.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets import AutoencoderKL, ControlNet, DiffusionModelUNet
from torch import Tensor, nn

from benchmarks.common import (
    PRESETS,
    alternate,
    difference,
    kinds_of,
    now,
    ratio,
    recorder,
    seconds,
    table,
    wake,
    where,
)
from unicorn_monai.bundle import arguments, default_device, definition, from_bundle, install
from unicorn_monai.inferers import DualControlNetInferer
from unicorn_monai.networks import compiled, encoded_condition
from unicorn_monai.schedulers import DDIM
from unicorn_monai.synthesis import downsampling
from unicorn_monai.transforms import one_hot

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
            scheduler = DDIM(**arguments(ldm, "scheduler"))
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


class NoDecoder(nn.Module):
    """Stands for the autoencoder where its time is not to count."""

    def decode_stage_2_outputs(self, latents: Tensor) -> Tensor:
        """The latents themselves."""
        return latents


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


def inferer(s: Setup, mode: str = "paper", weight: float = WEIGHT, guidance: tuple[float, float] = (1, 1)) -> Tensor:
    """(b): latents."""
    sampler = DualControlNetInferer(s.scheduler, 1.0, weight, mode, guidance)
    return sampler.sample(  # type: ignore[return-value]  # no intermediates
        s.label_map,
        s.hint,
        NoDecoder(),  # type: ignore[arg-type]
        s.unet,
        s.semantic,
        s.uncertainty,
        s.latent_shape,
        range(s.batch),
        s.steps,
        decode_batch_size=s.batch,
    )


@torch.no_grad()
def floor(s: Setup) -> float:
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
            down, mid = s.semantic(x, at, controlnet_cond=label)
            s.uncertainty(x, at, controlnet_cond=hint)
            s.unet(x, at, down_block_additional_residuals=down, mid_block_additional_residual=mid)
        return now(device) - started


def attention(network: nn.Module, fused: bool) -> nn.Module:
    """Let a network's attention be PyTorch's fused one, or MONAI's default, which writes the whole matrix."""
    for module in network.modules():
        if isinstance(module, SABlock):
            module.use_flash_attention = fused
    return network


def compare(s: Setup, rounds: int, device: torch.device, with_compiled: bool) -> list[list[str]]:
    """Rows of one size and batch: the loops in turns, and how far their images are apart."""
    plain, pairs = s.changed(partial(attention, fused=False)), {"as it is": s}
    if with_compiled:
        pairs["compiled"] = s.changed(compiled)
    image, works = decode(s, stock(plain)), {"stock": lambda: seconds(lambda: stock(plain), device)}
    differences = {name: difference(image, decode(s, inferer(setup))) for name, setup in pairs.items()}
    for name, setup in pairs.items():
        works[name] = lambda setup=setup: seconds(lambda: inferer(setup), device)
        works[f"floor, {name}"] = lambda setup=setup: floor(setup)
        floor(setup)  # once, so that nothing is compiled in the rounds
    found, rows = alternate(works, rounds), []
    for name in pairs:
        own, bare = found[name], found[f"floor, {name}"]
        each = [f"{1000 * statistics.median(t) / s.steps:.1f}" for t in (found["stock"], own, bare)]
        ratios = [f"{ratio(found['stock'], own):.2f}", f"{ratio(own, bare):.3f}", f"{differences[name]:.0e}"]
        rows.append([f"{s.label_map.shape[-1]}", str(s.batch), str(s.steps), name, *each, *ratios])
    return rows


def try_options(s: Setup, rounds: int, device: torch.device) -> list[list[str]]:
    """Rows of what could make (b) faster; differences are those of the images from (a)'s."""
    plain, last = s.changed(partial(attention, fused=False)), s.changed(channels_last)
    samples = {
        "(a) the stock loop": lambda: stock(plain),
        "(b) with MONAI's attention: condition embeddings once": lambda: inferer(plain),
        "(b) as it is: and fused attention": lambda: inferer(s),
        "(b) in inference_mode, as `synthesis.Generator` runs it": lambda: in_inference_mode(s),
        "(b) with channels last": lambda: inferer(last),
        "(b) in bfloat16 autocast, latents in float32": lambda: in_bfloat16(s, device),
    }
    image = decode(s, stock(plain))
    differences = {name: f"{difference(image, decode(s, sample())):.0e}" for name, sample in samples.items()}
    works = {name: lambda sample=sample: seconds(sample, device) for name, sample in samples.items()}
    constant = s.changed(without_timesteps)
    works |= {"(c)": lambda: floor(s), "(c), timestep embeddings for nothing": lambda: floor(constant)}
    works |= {
        f"both ControlNets alone, MONAI's attention, {how}": shared_pass(plain, how, device)
        for how in ("in turn", "one vmapped pass")
    }
    for work in works.values():
        work()
    found = alternate(works, rounds)
    reference = found["(a) the stock loop"]
    return [
        [name, f"{1000 * statistics.median(t) / s.steps:.1f}", f"{ratio(reference, t):.2f}", differences.get(name, "")]
        for name, t in found.items()
    ]


def channels_last(network: nn.Module) -> nn.Module:
    """Weights, and with them what is between the convolutions, with the channels last in memory."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.inference_mode()
def in_inference_mode(s: Setup) -> Tensor:
    """(b) without autograd's bookkeeping."""
    return inferer(s).clone()


def in_bfloat16(s: Setup, device: torch.device) -> Tensor:
    """(b) with the networks in half precision; the latents are added up in float32."""
    with torch.autocast(device.type, dtype=torch.bfloat16):
        return inferer(s)


class Constant(nn.Module):
    """Stands for a layer that sees only the timestep: gives what it gave the first time, as if computed beforehand."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.kept = layer, None

    def forward(self, inputs: Tensor) -> Tensor:
        """The kept output."""
        self.kept = self.layer(inputs) if self.kept is None else self.kept
        return self.kept


def without_timesteps(network: nn.Module) -> nn.Module:
    """Timestep embeddings and their projections cost nothing: what computing them once could save at most."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if name in ("time_embed", "time_emb_proj"):
                setattr(module, name, Constant(child))
    return network


@torch.no_grad()
def shared_pass(s: Setup, how: str, device: torch.device) -> Callable[[], float]:
    """Both ControlNets for all steps, with embedded conditions: one after the other, or stacked into one."""
    x, at, size = s.noise(), torch.tensor([500], device=device), s.latent_shape[1:]
    with encoded_condition(s.semantic, s.label_map, size=size) as label:
        label = label.clone()
    with encoded_condition(s.uncertainty, s.hint_image(), size=size) as hint:
        hint = hint.clone()
    networks = [copy.deepcopy(n) for n in (s.semantic, s.uncertainty)]
    for network in networks:
        network.controlnet_cond_embedding = nn.Identity()
    skeleton, conditions = copy.deepcopy(networks[0]).to("meta"), torch.stack([label, hint])
    weights, _ = torch.func.stack_module_state(networks)

    def one(own: dict[str, Tensor], condition: Tensor) -> Any:
        return torch.func.functional_call(skeleton, own, (x, at), {"controlnet_cond": condition})

    @torch.no_grad()
    def together() -> None:
        for _ in range(s.steps):
            torch.vmap(one)(weights, conditions)

    @torch.no_grad()
    def apart() -> None:
        for _ in range(s.steps):
            networks[0](x, at, controlnet_cond=label)
            networks[1](x, at, controlnet_cond=hint)

    return lambda: seconds(together if "vmapped" in how else apart, device)


def guided(s: Setup, rounds: int, device: torch.device, with_compiled: bool) -> list[list[str]]:
    """Rows of `compositional` with guidance (3, 1), the default of the synthesis, which asks the U-Net three times."""
    plain, whole = s.changed(partial(attention, fused=False)), s.changed(lambda network: network)
    whole.unet.__class__ = WholePasses
    setups = {"as it is": s, "with three whole passes of the U-Net": whole}
    if with_compiled:
        setups["compiled"] = s.changed(compiled)
    image = decode(s, stock(plain, *GUIDED))
    differences = {name: difference(image, decode(s, inferer(setup, *GUIDED))) for name, setup in setups.items()}
    works = {"stock": lambda: seconds(lambda: stock(plain, *GUIDED), device)}
    for name, setup in setups.items():
        works[name] = lambda setup=setup: seconds(lambda: inferer(setup, *GUIDED), device)
    found, rows = alternate(works, rounds), []
    for name in setups:
        each = [f"{1000 * statistics.median(found[key]) / s.steps:.1f}" for key in ("stock", name)]
        cells = [*each, f"{ratio(found['stock'], found[name]):.2f}", f"{differences[name]:.0e}"]
        rows.append([f"{s.label_map.shape[-1]}", str(s.batch), str(s.steps), name, *cells])
    return rows


class WholePasses(DiffusionModelUNet):
    """The same network under another name, so that its encoder is not shared between the passes of a step."""


def profiled(s: Setup) -> list[str]:
    """A row: the inferer's time by kind of work."""
    with recorder() as found:
        inferer(s)
    shares = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in kinds_of(found).items() if share > 0.01)
    return [f"{s.label_map.shape[-1]}", str(s.batch), shares]


@torch.no_grad()
def decode(s: Setup, latents: Tensor) -> Tensor:
    """Images."""
    return torch.cat([s.autoencoder.decode_stage_2_outputs(z) for z in latents.split(1)])


HEADER = [
    "size",
    "batch",
    "steps",
    "networks of (b), (c)",
    "(a) ms",
    "(b) ms",
    "(c) ms",
    "a / b",
    "b / c",
    "difference",
]
TRIED = ["tried", "ms / step", "(a) / this", "difference"]
COMPOSITIONAL = ["size", "batch", "steps", "(b)", "(a) ms", "(b) ms", "a / b", "difference"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--steps", type=int, help="20 at 64 x 64, 4 at 256 x 256 by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="compile the networks too (minutes)")
    parser.add_argument("--options", action="store_true", help="what else was tried, instead")
    settings = parser.parse_args()
    device, rounds, tables = default_device(), settings.rounds, dict[str, list[list[str]]]()
    place = where(device)  # now: the checkout may move on while this runs
    for size in settings.size:
        for batch in settings.batch:
            s = Setup.build(size, batch, settings.steps or (20 if size == 64 else 4), device)
            inferer(s)  # the first pass prepares what later ones use
            if settings.options:
                print(
                    f"{size} x {size}, batch {batch}:\n\n{table(TRIED, try_options(s, rounds, device))}\n", flush=True
                )
                continue
            tables.setdefault("loops", []).extend(compare(s, rounds, device, settings.compiled))
            tables.setdefault("guided", []).extend(guided(s, rounds, device, settings.compiled))
            tables.setdefault("profile", []).append(profiled(s))
    for name, header in (
        ("loops", HEADER),
        ("guided", COMPOSITIONAL),
        ("profile", ["size", "batch", "where the time goes"]),
    ):
        if name in tables:
            print(f"{table(header, tables[name])}\n")
    print(f"medians of {rounds} rounds; {place}")


if __name__ == "__main__":
    main()
