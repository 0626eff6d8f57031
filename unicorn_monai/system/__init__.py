"""What every program needs and no method: files, errors, weights, networks, processes, the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unicorn_monai.system.lazy import offered

if TYPE_CHECKING:
    from unicorn_monai.system.console import log_to_console
    from unicorn_monai.system.cuda_graphs import CudaGraphs
    from unicorn_monai.system.distributed import RankSeeds, SharedOrder, local_device, parallel, start, stop
    from unicorn_monai.system.ending import end_in_one_sentence
    from unicorn_monai.system.files import read_json, write_text
    from unicorn_monai.system.intake import finite
    from unicorn_monai.system.memory import keep_freed_memory
    from unicorn_monai.system.networks import compiled, freeze, require_finite, to_train
    from unicorn_monai.system.records import read_record
    from unicorn_monai.system.terminal import PrintableFormatter
    from unicorn_monai.system.weights import save_weights

__all__ = [
    "CudaGraphs",
    "PrintableFormatter",
    "RankSeeds",
    "SharedOrder",
    "compiled",
    "end_in_one_sentence",
    "finite",
    "freeze",
    "keep_freed_memory",
    "local_device",
    "log_to_console",
    "parallel",
    "read_json",
    "read_record",
    "require_finite",
    "save_weights",
    "start",
    "stop",
    "to_train",
    "write_text",
]
_HOMES = {
    "CudaGraphs": "system.cuda_graphs",
    "PrintableFormatter": "system.terminal",
    "RankSeeds": "system.distributed",
    "SharedOrder": "system.distributed",
    "compiled": "system.networks",
    "end_in_one_sentence": "system.ending",
    "finite": "system.intake",
    "freeze": "system.networks",
    "keep_freed_memory": "system.memory",
    "local_device": "system.distributed",
    "log_to_console": "system.console",
    "parallel": "system.distributed",
    "read_json": "system.files",
    "read_record": "system.records",
    "require_finite": "system.networks",
    "save_weights": "system.weights",
    "start": "system.distributed",
    "stop": "system.distributed",
    "to_train": "system.networks",
    "write_text": "system.files",
}


def __getattr__(name: str) -> Any:
    return offered(__name__, _HOMES, name)
