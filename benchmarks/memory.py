"""What keeping freed memory is worth: a training step with and without ``keep_freed_memory``, in processes by turns.

    OMP_NUM_THREADS=1 python -m benchmarks.memory --rounds 5

The networks are those of the small preset at 64 x 64 with random weights, images and targets; nothing but the step of
the optimizer is timed. "New pages" are those that the system handed out during a step.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import alternate, ratio, seconds, table, where
from unicorn_monai.bundle import definition, from_bundle, install
from unicorn_monai.system import keep_freed_memory

NETWORKS = {"segmentation U-Net": "retinal_unet", "diffusion U-Net": "latent_diffusion"}
SIZE, WARMUP, CPU = 64, 3, torch.device("cpu")


def measure(folder: Path, bundle: str, keep: bool, batch_size: int, steps: int) -> tuple[float, float]:
    """Median seconds of a step, and new pages of a step on average, in this process."""
    if keep and not keep_freed_memory():
        raise RuntimeError("This system's allocator cannot be told to keep freed memory; expected Linux with glibc.")
    root = install(bundle, folder, "small")
    network = from_bundle(root).train()
    optimizer, diffuses = torch.optim.AdamW(network.parameters()), bundle == "latent_diffusion"
    side = SIZE // 2 ** (len(definition(root, "autoencoder_def")["channels"]) - 1) if diffuses else SIZE
    images = torch.randn(batch_size, next(network.parameters()).shape[1], side, side)
    conditions = [torch.randint(0, 1000, (batch_size,))] if diffuses else []

    def step() -> None:
        made = network(images, *conditions)
        optimizer.zero_grad()
        nn.functional.mse_loss(made, torch.zeros_like(made)).backward()
        optimizer.step()

    for _ in range(WARMUP):
        step()
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    times = [seconds(step, CPU) for _ in range(steps)]
    new = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - pages
    return statistics.median(times), new / steps


def apart(*arguments: Any) -> tuple[float, float]:
    """:func:`measure` in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def compare(batch_size: int, steps: int, rounds: int) -> str:
    """The table: a row for each network."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for title, bundle in NETWORKS.items():
            ways = {
                name: partial(apart, Path(folder), bundle, name == "kept", batch_size, steps)
                for name in ("left", "kept")
            }
            (left, left_pages), (kept, kept_pages) = (zip(*r, strict=True) for r in alternate(ways, rounds).values())
            times = [f"{1000 * statistics.median(each):.1f}" for each in (left, kept)]
            pages = [f"{statistics.median(each):.0f}" for each in (left_pages, kept_pages)]
            rows.append([title, *times, f"{ratio(left, kept):.2f}", *pages])
    header = ["a training step", "left, ms", "kept, ms", "ratio", "left, new pages", "kept, new pages"]
    return table(header, rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    s = parser.parse_args()
    place = where(CPU)
    print(compare(s.batch_size, s.steps, s.rounds))
    print(f"\n{SIZE} x {SIZE}, batch of {s.batch_size}, {s.steps} steps, {s.rounds} rounds; {place}")


if __name__ == "__main__":
    main()
