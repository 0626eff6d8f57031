"""All random number generators that a training draws from: their state, in what ``weights_only`` loading accepts."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """What :func:`set_random_state` restores."""
    version, numbers, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [version, torch.from_numpy(np.array(numbers, dtype=np.int64)), position, has_gauss, float(cached)],
        "python": list(random.getstate()[1]),
        "gauss": random.getstate()[2],  # the second of two normal numbers, or None
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what :func:`random_state` gave."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])  # there may have been more GPUs
    version, numbers, position, has_gauss, cached = state["numpy"]
    np.random.set_state((version, numbers.numpy().astype(np.uint32), position, has_gauss, cached))
    random.setstate((3, tuple(state["python"]), state.get("gauss")))
