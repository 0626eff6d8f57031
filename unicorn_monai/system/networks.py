"""Any network: frozen, compiled, fingerprinted, applied to images, run in parts; the memory that its tensors take."""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unicorn_monai.system.errors import NotFinite

logger = logging.getLogger("unicorn_monai")


@dataclass(frozen=True)
class AppliedNetwork:
    """A network with its weights loaded, the file of these weights, and how and where it is applied to images.

    ``inferer``: ``(images, network) -> output``; MONAI's sliding window where images do not fit into memory.
    """

    network: nn.Module
    weights: str | os.PathLike[str]
    inferer: Callable[[Tensor, nn.Module], Tensor]
    device: torch.device | str = "cpu"

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        """Images (channels, rows, columns) of one size -> the network's output of their batch."""
        return self.inferer(torch.stack(list(images)).to(self.device), self.network)


def to_train(network: nn.Module, device: torch.device | str) -> nn.Module:
    """Bring a network that takes part in a training to its device.

    On a CPU with the channels last in memory, where convolutions of few channels train faster; on a GPU PyTorch's group
    normalisation would bring every tensor back to the usual order.
    """
    cpu = torch.device(device).type == "cpu"
    return network.to(device, memory_format=torch.channels_last if cpu else None)  # type: ignore[call-overload]


def freeze(network: nn.Module) -> nn.Module:
    """Evaluation mode, no gradients."""
    return network.eval().requires_grad_(False)


def compiled(network: nn.Module) -> nn.Module:
    """The same network compiled, for thousands of forward passes with batches of one size; needs a C++ compiler.

    The outputs differ by rounding only. The first pass takes minutes, and so does the first with another batch size.
    The compiled code is fast with the channels last in memory, in which the weights are brought here.
    """
    return torch.compile(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload, return-value]


def fingerprint(network: nn.Module) -> str:
    """Sha256 of the names, shapes and dtypes of all weights: equal for networks that can exchange weights."""
    layout = [(key, list(value.shape), str(value.dtype)) for key, value in network.state_dict().items()]
    return hashlib.sha256(json.dumps(layout).encode()).hexdigest()


def require_finite(name: str, values: Tensor, where: str = "") -> Tensor:
    """Pass ``values`` through, or raise where they hold NaN or infinity; ``where`` tells which images these are."""
    if not torch.isfinite(values).all():
        raise NotFinite(f"{name} holds NaN or infinite values{where}.")
    return values


def require(met: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless ``met``."""
    if not met:
        raise ValueError(message)


def in_parts(function: Callable[[Tensor], Tensor], batch: Tensor, size: int) -> Tensor:
    """``function`` of a batch, ``size`` entries at a time, half as many whenever memory runs out even for them."""
    results: list[Tensor] = []
    done = 0
    while done < len(batch):
        try:
            results.append(function(batch[done : done + size]))
            done += size
        except RuntimeError as error:  # the CPU has no error of its own for it
            out_of_memory = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
            if size == 1 or not out_of_memory:
                raise
            size = max(1, size // 2)
            logger.warning(f"Out of memory; going on with {size} image(s) at a time.")
            torch.cuda.empty_cache()  # without a GPU this does nothing
    return torch.cat(results)


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, for the next tensors of up to 32 MiB; whether it does (glibc only).

    Else Linux takes it back, and the next tensors get pages that have to be mapped and filled with zeros first: up to a
    tenth of a training of small networks on a CPU (docs/benchmarks.md). Results are the same. Holds for the rest of the
    process, whose memory then stays at its peak.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt, trim_threshold, mmap_threshold = ctypes.CDLL(None).mallopt, -1, -3  # as in malloc.h
    return bool(mallopt(mmap_threshold, 32 * 2**20) and mallopt(trim_threshold, -1))  # the largest that glibc takes
