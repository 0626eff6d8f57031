"""How fast is the sampling? Side by side, in turns, at equal outputs; nothing is judged here.

    python -m benchmarks.sampling                          both sizes, batches of 1 and 8 (256 x 256: few steps)
    python -m benchmarks.sampling --size 64 --options      what else was tried, each against the stock loop

(a) the loop a user writes from MONAI's parts: two `ControlNet` calls and one `DiffusionModelUNet` call per step;
(b) `DualControlNetInferer`; (c) the bare forward passes of the three networks with the conditions embedded beforehand:
the floor. Mode `paper` with weight 1/2, so all three do the same passes. The networks are those of the bundles, with
random weights. Seconds are per denoising step and batch, without the decoder, whose time is the same in all.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass

import torch
from monai.networks.nets import AutoencoderKL, ControlNet, DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler
from torch import Tensor, nn

from benchmarks.common import alternate, difference, now, ratio, seconds, table, wake, where
from unicorn_monai.bundle import arguments, default_device, definition, from_bundle, install
from unicorn_monai.inferers import DualControlNetInferer
from unicorn_monai.networks import encoded_condition
from unicorn_monai.synthesis import downsampling
from unicorn_monai.transforms import one_hot

PRESETS = {64: "small", 256: None}
WEIGHT = 0.5
BUNDLES = ("latent_diffusion", "retinal_unet", "uncertainty_controlnet", "semantic_controlnet")


@dataclass
class Setup:
    """The networks of the bundles and a batch of conditions."""

    autoencoder: AutoencoderKL
    unet: DiffusionModelUNet
    semantic: ControlNet
    uncertainty: ControlNet
    scheduler: DDIMScheduler
    label_map: Tensor
    hint: Tensor
    latent_shape: tuple[int, ...]
    steps: int

    @classmethod
    def build(cls, size: int, batch: int, steps: int, device: torch.device) -> Setup:
        """From the bundles' configurations; MONAI's DDIM, since (a) is of MONAI's parts."""
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
            scheduler = DDIMScheduler(**arguments(ldm, "scheduler"))
            labels, channels = definition(roots["retinal_unet"], "num_labels"), nets[1].in_channels
        rows = torch.arange(size).reshape(-1, 1).expand(size, size)
        maps = torch.stack([(rows * labels // size + i) % labels for i in range(batch)])[:, None]
        side = size // downsampling(nets[0])
        hint = torch.linspace(-1, 2, batch).to(device)
        label_map = one_hot(maps, labels).to(device)
        return cls(*nets, scheduler, label_map, hint, (channels, side, side), steps)

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
def stock(s: Setup) -> Tensor:
    """(a): latents, by what MONAI has."""
    x, hint = s.noise(), s.hint_image()
    s.scheduler.set_timesteps(s.steps)
    for t in s.scheduler.timesteps:
        at = torch.tensor([int(t)], device=x.device)
        down_sem, mid_sem = s.semantic(x, at, controlnet_cond=s.label_map)
        down_unc, mid_unc = s.uncertainty(x, at, controlnet_cond=hint)
        down = [(1 - WEIGHT) * a + WEIGHT * b for a, b in zip(down_sem, down_unc, strict=True)]
        mid = (1 - WEIGHT) * mid_sem + WEIGHT * mid_unc
        noise = s.unet(x, at, down_block_additional_residuals=down, mid_block_additional_residual=mid)
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


def compare(size: int, batch: int, steps: int, rounds: int, device: torch.device) -> list[str]:
    """One row: the three in turns, and how far their images are apart."""
    s = Setup.build(size, batch, steps, device)
    images = [decode(s, sample(s)) for sample in (stock, inferer)]
    works = {
        "stock": lambda: seconds(lambda: stock(s), device),
        "inferer": lambda: seconds(lambda: inferer(s), device),
        "floor": lambda: floor(s),
        "guided": lambda: seconds(lambda: inferer(s, "compositional", 1.0, (3, 1)), device),
    }
    found = alternate(works, rounds)
    each = [f"{statistics.median(found[name]) / steps:.4f}" for name in works]
    ratios = [f"{ratio(found['stock'], found['inferer']):.2f}", f"{ratio(found['inferer'], found['floor']):.3f}"]
    return [str(size), str(batch), str(steps), *each[:3], *ratios, f"{difference(*images):.1e}", each[3]]


@torch.no_grad()
def decode(s: Setup, latents: Tensor) -> Tensor:
    """Images."""
    return torch.cat([s.autoencoder.decode_stage_2_outputs(z) for z in latents.split(1)])


HEADER = ["size", "batch", "steps", "(a) stock, s / step", "(b) inferer, s / step", "(c) floor, s / step",
          "a / b", "b / c", "difference of the images", "compositional with guidance (3, 1), s / step"]  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, help="20 at 64 x 64, 4 at 256 x 256 by default")
    parser.add_argument("--rounds", type=int, default=5)
    s = parser.parse_args()
    device, rows = default_device(), []
    for size in s.size:
        for batch in s.batch:
            rows.append(compare(size, batch, s.steps or (20 if size == 64 else 4), s.rounds, device))
            print(rows[-1], flush=True)
    print(table(HEADER, rows))
    print(f"\nmedians of {s.rounds} rounds; {where(device)}")


if __name__ == "__main__":
    main()
