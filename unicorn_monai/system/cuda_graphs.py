"""A pass of networks as one CUDA graph: its kernels are recorded once and then launched together.

A denoising step, or the forward and backward pass of a training, is hundreds of short kernels, and Python takes longer
to launch them than the GPU to run them. Replaying a graph runs the same kernels on the same addresses, so the result is
the same to the last bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map

WARM_UP = 3  # calls before the recording: libraries choose their algorithms and take their workspace then


@dataclass
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]  # the graph reads from these ...
    output: Tensor  # ... and writes to this


class CudaGraphs:
    """A function on one GPU that is recorded at its first call and replayed from then on.

    Arguments that are tensors may differ from call to call. For each set of their shapes and of all other arguments
    (networks, numbers, None) there is a recording of its own; weights are read where they were when it was made. The
    function gives a tensor; it must not wait for the GPU, nor bring anything there.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function, self.recordings = function, dict[Hashable, _Recording]()
        self.pool: Any = None  # of memory, common to all recordings: they are never replayed at the same time

    def __call__(self, *arguments: Any) -> Tensor:
        """``function(*arguments)``; the answer is the caller's own."""
        inputs = [x for x in arguments if isinstance(x, Tensor)]
        layout = _layout(inputs)
        others = tuple(None if isinstance(x, Tensor) else x for x in arguments)
        # Lower precision means other kernels, and inference tensors cannot be written to outside that mode.
        key = (layout, others, _autocast(), torch.is_inference_mode_enabled())
        if key not in self.recordings:
            self.recordings[key] = self._record(arguments)
        recording = self.recordings[key]
        for kept, given in zip(recording.inputs, inputs, strict=True):
            kept.copy_(given)
        recording.graph.replay()
        return recording.output.clone()

    @torch.no_grad()
    def _record(self, arguments: tuple[Any, ...]) -> _Recording:
        own = [x.clone() if isinstance(x, Tensor) else x for x in arguments]
        graph, beside, current = torch.cuda.CUDAGraph(), torch.cuda.Stream(), torch.cuda.current_stream()
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        enabled, dtype = _autocast()
        # Without its cache: weights that it keeps until its block ends would be gone when the graph is replayed.
        with torch.autocast("cuda", dtype, enabled, cache_enabled=False):
            beside.wait_stream(current)
            with torch.cuda.stream(beside):
                for _ in range(WARM_UP):
                    self.function(*own)
            current.wait_stream(beside)
            with torch.cuda.graph(graph, pool=self.pool):
                output = self.function(*own)
        return _Recording(graph, [x for x in own if isinstance(x, Tensor)], output)


class TrainingGraphs:
    """The same for a function f(inputs, network, *more) that is trained: a graph each of its forward and backward pass.

    What is frozen may take part; its weights are read where they were. Gradients are added to ``.grad`` as ever, so
    accumulation, clipping and every optimizer work. Inside ``no_grad`` the function itself runs. Inputs and outputs are
    tensors, or tuples or dictionaries of them. All trainable weights of the network have to be used, and the backward
    pass of a call comes before the next call.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.recordings = function, dict[Hashable, Callable[..., Any]]()

    def __call__(self, inputs: Any, network: nn.Module, *more: Any) -> Any:
        """``function(inputs, network, *more)``; the answer is the caller's own."""
        if not torch.is_grad_enabled():
            return self.function(inputs, network, *more)
        if isinstance(network, DistributedDataParallel):
            raise ValueError("cuda_graphs is on, but several processes train together. Set it to false for them.")
        arguments = (inputs, *more)
        key = (_layout(tree_leaves(arguments)), network, network.training, _autocast())
        if key not in self.recordings:
            self.recordings[key] = self._record(arguments, network)
        for weight in network.parameters():  # without .grad it would take the graph's, which the next replay overwrites
            if weight.requires_grad and weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        return tree_map(torch.clone, self.recordings[key](*arguments))

    def _record(self, arguments: tuple[Any, ...], network: nn.Module) -> Callable[..., Any]:
        own, (enabled, dtype) = tree_map(torch.clone, arguments), _autocast()
        statistics = [buffer.clone() for buffer in network.buffers()]
        # It is warmed up on a stream beside the training's, as PyTorch does it, which PyTorch warns about.
        warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
        # What the warm-up draws and counts is not the training's; the cache of autocast: as above.
        with torch.random.fork_rng([tree_leaves(own)[0].device]), torch.autocast("cuda", dtype, enabled, False):
            recorded = torch.cuda.make_graphed_callables(_Trained(self.function, network), own, WARM_UP)
        for buffer, before in zip(network.buffers(), statistics, strict=True):
            buffer.copy_(before)
        return recorded


class _Trained(nn.Module):
    """A function with the network whose weights it is trained by."""

    def __init__(self, function: Callable[..., Any], network: nn.Module) -> None:
        super().__init__()
        self.function, self.network = function, network

    def forward(self, inputs: Any, *more: Any) -> Any:
        return self.function(inputs, self.network, *more)


def _layout(inputs: list[Tensor]) -> Hashable:
    """What a recording depends on beside values."""
    away = sorted({str(x.device) for x in inputs if not x.is_cuda})
    if away:
        raise ValueError(f"cuda_graphs is on, but there are tensors on {away}; expected a GPU. Switch it off.")
    return tuple((tuple(x.shape), x.dtype, x.device) for x in inputs)


def _autocast() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
