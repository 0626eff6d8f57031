"""How fast is the sampling? Side by side, in turns, at equal outputs; nothing is judged here.

    python -m benchmarks.sampling                          both sizes, batches of 1, 8 and 32 (256 x 256: few steps)
    python -m benchmarks.sampling --size 64 --options      what else was tried, each against the stock loop
    python -m benchmarks.sampling --size 64 --compiled     the compiled networks too
    python -m benchmarks.sampling --half                   on a GPU: bfloat16 and CUDA graphs too

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
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from benchmarks.common import (
    PRESETS,
    alternate,
    difference,
    kinds_of,
    ratio,
    recorder,
    seconds,
    table,
    where,
)
from benchmarks.sampling_loops import GUIDED, Form, Setup, attention, decode, floor, forms_of, inferer, stock
from unicorn_monai.bundle import default_device
from unicorn_monai.controlnets import encoded_condition


def compare(s: Setup, rounds: int, device: torch.device, forms: dict[str, Form]) -> list[list[str]]:
    """Rows of one size and batch: the loops in turns, and how far their images are apart."""
    plain = s.changed(partial(attention, fused=False))
    image, works = decode(s, stock(plain)), {"stock": lambda: seconds(lambda: stock(plain), device)}
    differences = {}
    for name, form in forms.items():
        sample, floor_of = form.sampler(), form.floor()
        differences[name] = difference(image, decode(s, sample()))  # and nothing is compiled or recorded in the rounds
        floor_of()
        works[name] = lambda sample=sample: seconds(sample, device)
        works[f"floor, {name}"] = floor_of
    found, rows = alternate(works, rounds), []
    for name in forms:
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
        "(b) in inference_mode, as `synthesis.generator.Generator` runs it": Form(s, inference=True).sampler(),
        "(b) with channels last": lambda: inferer(last),
        "(b) in bfloat16 autocast, latents in float32": Form(s, half=True).sampler(),
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


def guided(s: Setup, rounds: int, device: torch.device, forms: dict[str, Form]) -> list[list[str]]:
    """Rows of `compositional` with guidance (3, 1), the default of the synthesis, which asks the U-Net three times."""
    plain, whole = s.changed(partial(attention, fused=False)), s.changed(lambda network: network)
    whole.unet.__class__ = WholePasses
    forms = forms | {"with three whole passes of the U-Net": Form(whole)}
    samples = {name: form.sampler(*GUIDED) for name, form in forms.items()}
    image = decode(s, stock(plain, *GUIDED))
    differences = {name: difference(image, decode(s, sample())) for name, sample in samples.items()}
    works = {"stock": lambda: seconds(lambda: stock(plain, *GUIDED), device)}
    works |= {name: lambda sample=sample: seconds(sample, device) for name, sample in samples.items()}
    found, rows = alternate(works, rounds), []
    for name in forms:
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
    parser.add_argument("--half", action="store_true", help="bfloat16 and CUDA graphs too (needs a GPU)")
    parser.add_argument("--options", action="store_true", help="what else was tried, instead")
    settings = parser.parse_args()
    device, rounds, tables = default_device(), settings.rounds, dict[str, list[list[str]]]()
    if settings.half and device.type != "cuda":
        parser.error(f"--half needs a GPU; there is only '{device}'.")
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
            forms = forms_of(s, settings.compiled, settings.half)
            tables.setdefault("loops", []).extend(compare(s, rounds, device, forms))
            tables.setdefault("guided", []).extend(guided(s, rounds, device, forms))
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
