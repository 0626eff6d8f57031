"""What the benchmarks share: a clock, medians over rounds, a profile by kind of work, tables, and where it all ran."""

from __future__ import annotations

import datetime
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from unicorn_monai.experiment import provenance
from unicorn_monai.system import freeze

T = TypeVar("T")

PRESETS = {64: "small", 256: None}  # of the bundles, by the size of the images

# Names of PyTorch's operators -> kind of work; the first that fits counts.
KINDS = {
    "convolution": r"conv",
    "normalisation": r"norm",
    "attention, linear": r"mm\b|bmm|linear|attention|softmax|einsum",
    "optimizer, EMA": r"adam|foreach|fused_|lerp",
    "copies": r"copy|cat\b|contiguous|clone|to\b|stack|reorder",
    "Fourier transforms": r"fft",
    "pointwise": r"add|mul|sub|div|silu|swish|relu|sqrt|pow|mean|sum|exp|sigmoid|where|fill|zero|abs|square",
}


def now(device: torch.device) -> float:
    """Seconds: of the processor over all threads (a busy machine does not disturb them), or on the clock with a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Time of one call."""
    started = now(device)
    work()
    return now(device) - started


def alternate(works: dict[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each of several works measured in every round; they take turns, so that all see the same machine."""
    measured: dict[str, list[T]] = {name: [] for name in works}
    for i in range(rounds):
        names = list(works)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            measured[name].append(works[name]())
    return measured


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median of the ratios within the rounds."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def wake(network: nn.Module, std: float = 0.02) -> nn.Module:
    """Random numbers for the weights that start at zero, as if trained: they would hide what comes before them."""
    for weight in network.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=std)
    return freeze(network)


def kinds_of(profiled: profile) -> dict[str, float]:
    """Share of the time by kind of work, largest first; what no operator accounts for is Python's."""
    times: dict[str, float] = {}
    for event in profiled.key_averages():
        spent = max(event.self_cpu_time_total, getattr(event, "self_device_time_total", 0.0))
        kind = next((k for k, pattern in KINDS.items() if re.search(pattern, event.key)), "other")
        times[kind] = times.get(kind, 0.0) + spent
    total = sum(times.values())
    return dict(sorted(((k, t / total) for k, t in times.items()), key=lambda pair: -pair[1]))


def recorder() -> profile:
    """A profiler of everything there is."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    return profile(activities=activities)


def difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    return (a - b).abs().max().item()


def where(device: torch.device) -> str:
    """Machine, versions, commit and day, for the line under a table."""
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        names = re.findall(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.is_file() else []
        machine = f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} thread(s)"
    facts = provenance()
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("python", "torch", "monai"))
    revision = (facts["git_revision"] or "unknown")[:7]
    return f"{machine}; {versions}; commit {revision}; {datetime.datetime.now(tz=datetime.UTC).date()}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])
