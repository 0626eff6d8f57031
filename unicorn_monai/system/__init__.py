"""What every program needs and no method: files, errors, weights, networks, processes, the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unicorn_monai.system.lazy import offers

if TYPE_CHECKING:
    from unicorn_monai.system.applied import AppliedNetwork
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

__getattr__, __all__ = offers(__name__, __file__)
