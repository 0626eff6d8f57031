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
from pathlib import Path

import torch
from torch import nn

from benchmarks.common import now, ratio, table, where
from unicorn_monai.bundle import definition, from_bundle, install
from unicorn_monai.memory import keep_freed_memory

NETWORKS = {"segmentation U-Net": "retinal_unet", "diffusion U-Net": "latent_diffusion"}
SIZE, WARMUP = 64, 3


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
    seconds, pages = [], 0
    for step in range(WARMUP + steps):
        if step == WARMUP:
            pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        started = now(torch.device("cpu"))
        made = network(images, *conditions)
        optimizer.zero_grad()
        nn.functional.mse_loss(made, torch.zeros_like(made)).backward()
        optimizer.step()
        seconds.append(now(torch.device("cpu")) - started)
    new = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - pages
    return statistics.median(seconds[WARMUP:]), new / steps


def compare(batch_size: int, steps: int, rounds: int) -> str:
    """The table: a row for each network."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for title, bundle in NETWORKS.items():
            found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
            for _ in range(rounds):
                for keep, results in found.items():
                    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                        results.append(pool.submit(measure, Path(folder), bundle, keep, batch_size, steps).result())
            left, kept = ([s for s, _ in found[keep]] for keep in (False, True))
            pages = [f"{statistics.median(p for _, p in found[keep]):.0f}" for keep in (False, True)]
            times = [f"{1000 * statistics.median(seconds):.1f}" for seconds in (left, kept)]
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
    place = where(torch.device("cpu"))
    print(compare(s.batch_size, s.steps, s.rounds))
    print(f"\n{SIZE} x {SIZE}, batch of {s.batch_size}, {s.steps} steps, {s.rounds} rounds; {place}")


if __name__ == "__main__":
    main()
