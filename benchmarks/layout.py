"""What layout supervision costs: seconds and memory of a training step of the Semantic-ControlNet, without and with it.

    python -m benchmarks.layout --unroll 1 3 9

Each variant trains in a process of its own, so that the largest memory is its own. All networks are those of the
bundle's small preset at 64 x 64 (or the defaults at 256 x 256), trained for one step: what they draw plays no part.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow

from benchmarks.common import PRESETS, now, table, where
from data_prep.phantom import write_phantom
from unicorn_monai.bundle import default_device, install, load_config, run_bundle

BUNDLES = ("retinal_unet", "latent_diffusion", "uncertainty_controlnet", "semantic_controlnet")
BRIEF: dict[str, Any] = {"max_epochs": 1, "val_interval": 1, "sample_interval": 1000, "num_inference_steps": 10}


def prepare(folder: Path, size: int, images: int) -> None:
    """Two data sets, and the networks that the Semantic-ControlNet is trained upon."""
    a, b = (str(write_phantom(folder / name, name, images // 4, 4, size)) for name in ("spectralis", "home_oct"))
    for name in BUNDLES:
        install(name, folder, PRESETS[size])
    recipes = [
        ("retinal_unet", "train.json", {"dataset_dir": a, "iterations_per_epoch": 1}),
        ("retinal_unet", "uncertainty.json", {"dataset_dir": a, "unlabeled_dir": b}),
        ("latent_diffusion", "train_autoencoder.json", {"dataset_dir": [a, b], "iterations_per_epoch": 1}),
        ("latent_diffusion", "train_diffusion.json", {"dataset_dir": [a, b], "iterations_per_epoch": 1}),
        ("uncertainty_controlnet", "train.json", {"dataset_dir": a, "unlabeled_dir": b, "iterations_per_epoch": 1}),
    ]
    for name, file, settings in recipes:
        known = load_config(folder / name, file)
        brief = {key: value for key, value in BRIEF.items() if key in known}
        kind = "infer" if file == "uncertainty.json" else "train"
        run_bundle(folder / name / "configs" / file, kind, **(brief | settings))


def measure(folder: Path, unroll: int, batch_size: int, iterations: int) -> tuple[float, float]:
    """Median seconds of an iteration, and the largest memory in MB; ``unroll`` 0 is without layout supervision."""
    configs, device = folder / "semantic_controlnet" / "configs", default_device()
    files = [str(configs / "train.json"), *([str(configs / "layout_supervision.json")] if unroll else [])]
    workflow = ConfigWorkflow(
        config_file=files,
        meta_file=str(configs / "metadata.json"),
        logging_file=False,  # type: ignore[arg-type]
        workflow_type="train",
        dataset_dir=str(folder / "spectralis"),
        ckpt_dir=str(folder / f"unroll{unroll}"),
        output_dir=str(folder / f"unroll{unroll}"),
        batch_size=batch_size,
        iterations_per_epoch=iterations + 2,  # the first ones warm up
        **(BRIEF | ({"unroll": unroll} if unroll else {})),
    )
    workflow.initialize()
    ended: list[float] = []

    def note(engine: Engine) -> None:
        ended.append(now(device))
        if len(ended) == iterations + 2:
            engine.terminate()

    workflow.parser.get_parsed_content("train::trainer").add_event_handler(Events.ITERATION_COMPLETED, note)
    workflow.run()
    seconds = statistics.median(b - a for a, b in pairwise(ended[1:]))
    if device.type == "cuda":
        return seconds, torch.cuda.max_memory_allocated(device) / 1e6
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # Linux counts in kB


def compare(size: int, unroll: list[int], batch_size: int, iterations: int) -> str:
    """The table."""
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), size, images=max(40, 3 * batch_size))
        context = multiprocessing.get_context("spawn")
        for k in [0, *unroll]:
            with ProcessPoolExecutor(1, context) as pool:
                measured[k] = pool.submit(measure, Path(folder), k, batch_size, iterations).result()
    rows = []
    for k, (seconds, memory) in measured.items():
        name = f"with layout supervision, K = {k}" if k else "without"
        times, more = seconds / measured[0][0], memory - measured[0][1]
        rows.append([name, f"{seconds:.2f}", f"{times:.2f}", f"{memory:.0f}", f"{more:+.0f}"])
    return table(["a training step", "s", "times", "memory, MB", "more, MB"], rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, choices=PRESETS, default=64)
    parser.add_argument("--unroll", type=int, nargs="+", default=[1, 3, 9])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=10)
    s = parser.parse_args()
    place = where(default_device())
    print(compare(s.size, s.unroll, s.batch_size, s.iterations))
    print(f"\n{s.size} x {s.size}, batch of {s.batch_size}, median of {s.iterations} iterations; {place}")


if __name__ == "__main__":
    main()
