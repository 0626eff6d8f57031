"""Memory and rate over many tiny items: a data set is synthesised, encoded, and trained on from the latents.

    python benchmarks/scale.py [--items 100000] [--size 16] [--folder DIR]

Prints a line for every tenth of each stage: items per second in that tenth, memory of its own (RssAnon), pages of files
that the system may drop at any time (RssFile), open files. Both memories should be flat and the rate constant; the
first tenth of a stage includes its start. The networks are as small as they can be: this measures the package around
them, and how long an item takes apart from the networks' work is what `docs/scaling.md` adds to it.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.schedulers import DDPMScheduler

from unicorn_monai.controlnets import controlnet_for
from unicorn_monai.data import About, DatasetWriter
from unicorn_monai.diffusion import (
    ControlNetTask,
    LatentDataset,
    LatentLoader,
    LatentPrepareBatch,
    NoisePredictionInferer,
    latent_diffusion_of,
)
from unicorn_monai.inferers import DualControlNetInferer
from unicorn_monai.latent_diffusion import LatentDiffusion
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.schedulers import DPMSolverPlusPlus
from unicorn_monai.synthesis import Generator, Requests, Synthesizer
from unicorn_monai.system import freeze
from unicorn_monai.training import DiffusionSettings

LABELS, LATENT, BATCH, STEPS = 4, 2, 64, 2
SCHEDULE = {"schedule": "scaled_linear_beta", "clip_sample": False}


class Meter:
    """Prints a line for every tenth of a stage."""

    def __init__(self, stage: str, total: int) -> None:
        self.stage, self.total, self.done, self.told = stage, total, 0, 0
        self.started = self.since = time.monotonic()

    def __call__(self, items: int) -> None:
        """So many more are done."""
        self.done += items
        tenth = 10 * self.done // self.total
        if tenth > 10 * self.told // self.total:
            now = time.monotonic()
            own, mapped, files = usage()
            rate = (self.done - self.told) / (now - self.since)
            print(f"{self.stage:9} {self.done:8} {rate:8.0f}/s {own:7.1f} {mapped:7.1f} {files:6}", flush=True)
            self.told, self.since = self.done, now

    def end(self) -> None:
        """Print the rate of the whole stage."""
        seconds = time.monotonic() - self.started
        print(f"{self.stage:9} {self.total / seconds:8.0f}/s on the whole, {1e3 * seconds / self.total:.2f} ms an item")


def usage() -> tuple[float, float, int]:
    """Own memory and mapped files in MB, and open files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    own, mapped = (int(next(x for x in lines if x.startswith(key)).split()[1]) / 1e3 for key in ("RssAnon", "RssFile"))
    return own, mapped, len(list(Path("/proc/self/fd").iterdir()))


def networks() -> tuple[AutoencoderKL, DiffusionModelUNet]:
    """An autoencoder of factor 4 and a U-Net for its latents."""
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        2, 1, 1, (1, 1, 1), (4, 4, 4), (False,) * 3, LATENT, 4, with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )  # fmt: skip
    unet = DiffusionModelUNet(2, LATENT, LATENT, (1, 1), (8, 8), (False, False), 4, num_head_channels=8)
    return freeze(autoencoder), freeze(unet)  # type: ignore[return-value]


def label_maps(root: Path, size: int, count: int = 100) -> Path:
    """The labelled data set whose label maps are used again and again."""
    labels = {i: str(i) for i in range(LABELS)}
    with DatasetWriter(root, About(name="maps", device="d", labels=labels)) as writer:
        for i in range(count):
            label = np.repeat((np.arange(size)[:, None] * LABELS // size + i % 2).clip(max=LABELS - 1), size, axis=1)
            writer.add("training", label.astype(np.uint8) * 50, label.astype(np.uint8), subject=str(i))
    return root


def synthesise(folder: Path, items: int, size: int) -> None:
    """Stream a data set to the disk."""
    autoencoder, unet = networks()
    semantic, uncertainty = (freeze(controlnet_for(unet, channels, (4, 4, 4))) for channels in (LABELS, 1))
    prior = UncertaintyPrior(0.2, 0.05, "zscore", 0.1, 0.1, "x")
    scheduler = DPMSolverPlusPlus(1000, coarse=True, **SCHEDULE)
    ldm = LatentDiffusion(autoencoder, unet, scheduler, scheduler, 1.0, (LATENT, size // 4, size // 4))
    inferer = DualControlNetInferer(ldm, semantic, uncertainty, 1.0, "compositional")
    meter = Meter("synthesis", items)

    class Metered(Generator):
        def __call__(self, *arguments: Any) -> torch.Tensor:
            meter(len(arguments[0]))
            return super().__call__(*arguments)

    generator = Metered(inferer, prior, LABELS, STEPS)
    maps = label_maps(folder / "maps", size)
    requests = Requests(items, 0, maps, "training", prior)
    Synthesizer(generator, requests, folder / "set", maps, batch_size=BATCH).run()
    meter.end()


def encode(folder: Path, items: int) -> LatentDataset:
    """Encode every image once."""
    autoencoder, _ = networks()
    meter, original = Meter("encoding", 2 * items), autoencoder.encode

    def metered(images: torch.Tensor) -> Any:
        meter(len(images))
        return original(images)

    autoencoder.encode = metered  # type: ignore[method-assign]
    data = LatentDataset(folder / "set", "training", autoencoder, folder / "cache", num_labels=LABELS, mirror=True)
    meter.end()
    return data


def train(data: LatentDataset, items: int) -> None:
    """One epoch from the latents."""
    _, unet = networks()
    unet.requires_grad_(True)
    sampler, scheduler = DPMSolverPlusPlus(1000, coarse=True, **SCHEDULE), DDPMScheduler(1000, **SCHEDULE)
    ldm = latent_diffusion_of(data, unet, sampler, scheduler, "")
    task = ControlNetTask(ldm, "semantic", DiffusionSettings(), LABELS)
    trainer = SupervisedTrainer(
        torch.device("cpu"),
        1,
        LatentLoader(data, BATCH, shuffle=True),
        unet,
        torch.optim.AdamW(unet.parameters(), 1e-4),
        torch.nn.MSELoss(),
        prepare_batch=LatentPrepareBatch(task),
        inferer=NoisePredictionInferer(task),
        decollate=False,
    )
    meter = Meter("training", items)

    def tick(engine: Engine) -> None:
        meter(len(engine.state.batch["index"]))  # type: ignore[index]

    trainer.add_event_handler(Events.ITERATION_COMPLETED, tick)
    trainer.run()
    meter.end()


def main() -> None:
    """Run all three stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=16, help="rows and columns")
    parser.add_argument("--folder", type=Path, help="kept; a temporary one by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.items} items of {options.size} x {options.size}; torch {torch.__version__}, {platform.platform()}")
    print(f"{'stage':9} {'items':>8} {'rate':>10} {'own MB':>7} {'mapped':>7} {'files':>6}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        synthesise(folder, options.items, options.size)
        data = encode(folder, options.items)
        train(data, options.items)
        sizes = {
            name: sum(p.stat().st_size for p in (folder / name).rglob("*") if p.is_file()) for name in ("set", "cache")
        }
        print("bytes an item: " + ", ".join(f"{name} {size / options.items:.0f}" for name, size in sizes.items()))


if __name__ == "__main__":
    main()
